"""A model folder's language model as one GGUF file, for llama.cpp and the programs built on it.

For models of the Llama family with byte-level BPE (SmolLM2). Image tokens become control tokens: llama.cpp never makes one out of
a text that it is told to read plainly (`parse_special: false`), so prompts with images are best given as token ids.

Shapes: V rows of the table, d width of the LLM, h heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    TokenType,
    get_tensor_name_map,
    quant_shape_to_byte_shape,
    quantize,
)
from safetensors import safe_open
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError
from llmcxr.instructions.rendering import response_end
from llmcxr.instructions.templates import build_template
from llmcxr.model.find import find_model
from llmcxr.model.folder import ModelInfo, load_checked
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_config, load_text_tokenizer

Weights = Literal["f16", "q8_0"]  # of matrices; vectors are float32
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
_TYPES = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
# How text is split before merges: the kinds of `tokenizer.json`'s steps, and llama.cpp's name for them.
_SPLITS = {("ByteLevel",): "gpt-2", ("Digits", "ByteLevel"): "smollm"}
_ELSEWHERE = (
    "Export the model with `--to hf` and convert that folder with llama.cpp's own convert_hf_to_gguf.py, which is part of "
    "its repository (not of any package)."
)


def export_gguf(model: str | Path, output: Path, weights: Weights = "f16") -> None:
    """Write the language model of `model` (what `LlmCxr.from_pretrained` takes) as the file `output`.

    The vocabulary has as many tokens as the table has rows. `UserError` for a model that only llama.cpp's own converter knows.
    """
    folder = find_model(model).resolve()
    info, config, tokenizer = load_checked(folder), load_config(str(folder)), load_text_tokenizer(str(folder))
    _check(config, folder)
    split, vocabulary = _split(tokenizer), ImageVocabulary(tokenizer, info.codebook_size)
    end_id = response_end(build_template(info.template, tokenizer, info.system_prompt), vocabulary)[-1]
    with atomic_path(output) as temporary:
        writer = GGUFWriter(temporary, "llama")
        try:
            _describe(writer, config, info, vocabulary)
            _add_tokens(writer, split, config.vocab_size, vocabulary, end_id)
            writer.add_file_type(_TYPES[weights][1])
            _write_tensors(writer, folder, config, weights)
        finally:
            writer.close()


def _check(config: PreTrainedConfig, folder: Path) -> None:
    rope = config.rope_parameters or {}
    wanted: dict[str, tuple[Any, Any]] = {
        "model_type": (config.model_type, "llama"),
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "hidden_act": (getattr(config, "hidden_act", "silu"), "silu"),
        "attention_bias": (getattr(config, "attention_bias", False), False),
        "mlp_bias": (getattr(config, "mlp_bias", False), False),
    }
    if odd := [f"{name} {own!r} (not {known!r})" for name, (own, known) in wanted.items() if own != known]:
        raise UserError(f"{folder}: llmcxr writes GGUF for Llama models only, this one has {odd[0]}. {_ELSEWHERE}")


def _split(tokenizer: PreTrainedTokenizerBase) -> str:
    """llama.cpp's name for how `tokenizer` splits text. `UserError` where it has none that we know."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {}
    step = state.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    plain = (
        state.get("model", {}).get("type") == "BPE"
        and not state["model"].get("ignore_merges")
        and not state.get("normalizer")
        and all(s.get("use_regex", True) and not s.get("add_prefix_space") for s in steps)
        and all(s.get("individual_digits", True) for s in steps)
    )
    kinds = tuple(s.get("type") for s in steps)
    if not plain or kinds not in _SPLITS:
        raise UserError(
            f"llmcxr writes GGUF for byte-level BPE as GPT-2 or SmolLM split it, not for this model's tokenizer. {_ELSEWHERE}"
        )
    return _SPLITS[kinds]


def _describe(writer: GGUFWriter, config: PreTrainedConfig, info: ModelInfo, vocabulary: ImageVocabulary) -> None:
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    writer.add_name(f"llmcxr, tuned from {Path(info.base).name}")
    writer.add_description(
        f"Reads and writes chest radiographs, for research only. An image is {info.grid**2} of the tokens {vocabulary.first_id} to "
        f"{vocabulary.first_id + vocabulary.size - 1}, row by row."
    )
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float((config.rope_parameters or {}).get("rope_theta", 10_000.0)))
    writer.add_vocab_size(config.vocab_size)
    # What a program that draws needs; the image tokenizer itself is not in this file.
    writer.add_uint32("llmcxr.image.first_token", vocabulary.first_id)
    writer.add_uint32("llmcxr.image.tokens", vocabulary.size)
    writer.add_uint32("llmcxr.image.grid", info.grid)
    writer.add_string("llmcxr.image.tokenizer", info.image_tokenizer)


def _add_tokens(writer: GGUFWriter, split: str, rows: int, vocabulary: ImageVocabulary, end_id: int) -> None:
    """All `rows` tokens: those of the tokenizer, and unused ones where the table is longer."""
    tokenizer: Any = vocabulary.tokenizer
    known, added = {i: name for name, i in tokenizer.get_vocab().items()}, tokenizer.added_tokens_decoder
    names, types = [], []
    for i in range(rows):
        names.append(known.get(i, f"[UNUSED{i}]"))
        kind = TokenType.UNUSED if i not in known else TokenType.NORMAL
        if i in added:
            kind = TokenType.CONTROL if i in vocabulary.control_ids or added[i].special else TokenType.USER_DEFINED
        types.append(kind)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_bos_token(bool(vocabulary.begin_ids))
    writer.add_add_space_prefix(False)
    writer.add_eos_token_id(end_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """(name, slice) of every weight in the folder's files, in order."""
    with ExitStack() as stack:
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, "pt"))
            yield from ((name, file.get_slice(name)) for name in sorted(file.keys()))


def _for_ggml(name: str, value: torch.Tensor, config: PreTrainedConfig) -> np.ndarray:
    """Float32. Rows of queries and keys in pairs, as llama.cpp turns them by their positions (transformers: in halves)."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is not None:
        value = value.reshape(heads, 2, len(value) // heads // 2, -1).transpose(1, 2).reshape(value.shape)
    return value.float().contiguous().numpy()


def _write_tensors(writer: GGUFWriter, folder: Path, config: PreTrainedConfig, weights: Weights) -> None:
    """One tensor at a time: a large model is never whole in memory."""
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    kept: list[tuple[str, GGMLQuantizationType]] = []
    for name, own in _tensors(folder):
        shape = tuple(own.get_shape())
        kind = GGMLQuantizationType.F32 if len(shape) == 1 else _TYPES[weights][0]
        if kind == GGMLQuantizationType.Q8_0 and shape[-1] % 32:  # blocks of that many
            kind = GGMLQuantizationType.F16
        there = names.get_name(name, try_suffixes=(".weight",))
        if there is None:
            raise UserError(f"{folder}: llmcxr knows no place in a GGUF for its {name}. {_ELSEWHERE}")
        stored = quant_shape_to_byte_shape(shape, kind) if kind == GGMLQuantizationType.Q8_0 else shape
        dtype = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind, np.uint8)
        size = int(np.prod(stored)) * np.dtype(dtype).itemsize
        writer.add_tensor_info(there, stored, np.dtype(dtype), size, raw_dtype=kind)
        kept.append((name, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with tqdm(total=len(kept), desc="writing GGUF", unit="tensor", disable=None) as bar:
        for (name, own), (_, kind) in zip(_tensors(folder), kept, strict=True):
            value = _for_ggml(name, own[:], config)
            if kind == GGMLQuantizationType.F16 and np.abs(value).max() > np.finfo(np.float16).max:
                raise UserError(
                    f"{folder}: {name} has values that float16 cannot hold. Export it as q8_0. {_ELSEWHERE}"
                )
            writer.write_tensor_data(quantize(value, kind))
            bar.update()
