"""Toy tokenizers and models: real classes at a size that trains in a second, built without any download."""

from __future__ import annotations

import functools
import importlib.util
import io
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaTokenizer,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaTokenizer,
    PhiConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipVisionConfig,
)

from llmcxr.foundation.assets import fetch
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell; children would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def load_script(path: str) -> ModuleType:
    """A script of this repository that is no part of the package, by its path from the root, as a module."""
    file = Path(__file__).parents[1] / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# Property tests try the same inputs everywhere, so that a change is to blame where one fails; search for new ones with
# `pytest --hypothesis-profile=default`.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

SENTENCES = [
    "Write the report of this chest radiograph.",
    "Is there a pleural effusion? Yes. No. Right pleural effusion; cardiomegaly.",
    "The heart is normal in size. No pneumothorax. The lungs are clear.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\n\nInput:\n\n### Response:\n user assistant system",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(*added: AddedToken, size: int = 340) -> PreTrainedTokenizerFast:
    """Byte-level BPE (lossless for any text) with ChatML; `added` come after the trained tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=size, special_tokens=names, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHATML
    if added:
        tokenizer.add_tokens(list(added))
    return tokenizer


def build_model(kind: str, rows: int, tied: bool = False, seed: int = 0, width: int = 32, **extra):
    """A random float32 causal LM with two layers and `rows` rows of `width` in its table."""
    torch.manual_seed(seed)
    wide = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": width, "intermediate_size": 3 * width // 2}
    common = {"vocab_size": rows, "tie_word_embeddings": tied, "max_position_embeddings": 2048} | extra
    # A window shorter than the tests' examples, and caps that bite.
    gemma = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 20.0}
    layers = {"layer_types": ["sliding_attention", "full_attention"]}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}

    def gemma3_text(**changes):
        return Gemma3TextConfig(**wide, **(gemma | changes), **layers, **common)

    config = {
        "neox": lambda: GPTNeoXConfig(**wide, **common),
        "llama": lambda: LlamaConfig(**wide, num_key_value_heads=2, **common),
        "qwen3": lambda: Qwen3Config(**wide, num_key_value_heads=2, head_dim=8, **common),
        "phi": lambda: PhiConfig(**wide, **common),
        "gpt2": lambda: GPT2Config(
            n_embd=width, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **common
        ),
        "gemma2": lambda: Gemma2Config(
            **wide, **gemma, **layers, attn_logit_softcapping=5.0, attn_implementation="eager", **common
        ),
        "gemma3": gemma3_text,
        "gemma3 multimodal": lambda: Gemma3Config(
            text_config=gemma3_text(final_logit_softcapping=None),  # as in the real one
            vision_config=SiglipVisionConfig(**vision, image_size=32, patch_size=8),
            mm_tokens_per_image=4,
            tie_word_embeddings=tied,
        ),
    }[kind]()
    # Rows for special tokens of other tokenizers do not exist here.
    text = config.get_text_config()
    text.bos_token_id = text.eos_token_id = text.pad_token_id = 0
    model = AutoModelForCausalLM.from_config(config)
    for p in model.parameters():  # the usual start is so small that all logits are alike
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)
    return model.eval()


@functools.cache
def _sentencepiece(kind: str, **options) -> sentencepiece.SentencePieceProcessor:
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=file,
        model_type=kind,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())


def _from_file(cls, processor, folder: Path, **options) -> PreTrainedTokenizerBase:
    (folder / "tokenizer.model").write_bytes(processor.serialized_model_proto())
    return cls.from_pretrained(folder, **options)


def _begin_with(tokenizer, token: str) -> None:
    number = tokenizer.convert_tokens_to_ids(token)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{token} $A", None, [(token, number)])


def llama_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """SentencePiece BPE with bytes, a space before every text, and a begin token (Llama 2). Its template has a space
    before the token that ends a response."""
    tokenizer = _from_file(LlamaTokenizer, _sentencepiece("bpe"), folder)
    _begin_with(tokenizer, "<s>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    return tokenizer


def gemma_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """SentencePiece BPE with bytes and no space before a text; turn marks and newlines are added tokens (Gemma)."""
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    pieces = {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"}
    marks = ("<start_of_turn>", "<end_of_turn>", "\n\n", "▁▁")
    processor = _sentencepiece("bpe", add_dummy_prefix=False, user_defined_symbols=",".join(marks), **ids, **pieces)
    tokenizer = _from_file(GemmaTokenizer, processor, folder)
    _begin_with(tokenizer, "<bos>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
    )
    return tokenizer


def unigram_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """SentencePiece Unigram without bytes: unknown characters are <unk>, and "</s>" is a piece like any other."""
    processor = _sentencepiece("unigram")
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]
    pieces = [p for i, p in enumerate(pieces) if not processor.is_byte(i)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "role: ").replace("<|im_end|>", "</s>")
    return tokenizer


def dolly_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Byte-level with an end mark and runs of spaces as added tokens (GPT-NeoX, dolly-v2)."""
    spaces = [AddedToken(" " * n, special=False, normalized=False) for n in range(9, 1, -1)]
    marks = [AddedToken(mark, special=True, normalized=False) for mark in ("### End", "### Response:")]
    return build_tokenizer(*spaces, *marks)


def qwen_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Byte-level with added tokens that are not special (Qwen 3)."""
    return build_tokenizer(*[AddedToken(n, special=False, normalized=False) for n in ("<think>", "</think>")])


TOKENIZERS = {
    "bytes": lambda folder: build_tokenizer(),
    "dolly": dolly_tokenizer,
    "qwen": qwen_tokenizer,
    "llama": llama_tokenizer,
    "gemma": gemma_tokenizer,
    "unigram": unigram_tokenizer,
}


@dataclass(frozen=True)
class Family:
    """A decoder as it comes: its kind, whether its head is tied, its tokenizer, unused rows at the end of its table."""

    kind: str
    tied: bool
    tokenizer: str
    spare: int


FAMILIES = {
    "dolly-v2 (GPT-NeoX)": Family("neox", False, "dolly", 60),
    "GPT-NeoX, tied": Family("neox", True, "dolly", 0),
    "Llama": Family("llama", False, "llama", 0),
    "Llama, tied, unigram": Family("llama", True, "unigram", 7),
    "SmolLM2": Family("llama", True, "bytes", 0),
    "Qwen 3": Family("qwen3", True, "qwen", 60),
    "Qwen 3, untied": Family("qwen3", False, "qwen", 7),
    "Gemma 2": Family("gemma2", True, "gemma", 0),
    "Gemma 3": Family("gemma3", True, "gemma", 7),
    "Gemma 3, multimodal": Family("gemma3 multimodal", True, "gemma", 60),
    "Phi": Family("phi", False, "bytes", 60),
    "GPT-2": Family("gpt2", True, "bytes", 0),
}


@pytest.fixture(scope="session")
def smollm_tokenizer():
    """The text tokenizer of the embedded base LLM (do not change it: take `fresh_smollm`)."""
    from transformers import AutoTokenizer

    folder = fetch("smollm2-135m-instruct")
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


@pytest.fixture
def toy_vocabulary() -> ImageVocabulary:
    """The toy tokenizer with 16 image tokens."""
    return ImageVocabulary.grow(build_tokenizer(), 16)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A folder in which no file can grow beyond 100 kB: a disk of that size, or the system's limit where none can be
    mounted."""
    resource = pytest.importorskip("resource", reason="neither small disks nor limits on files here")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        yield folder
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
