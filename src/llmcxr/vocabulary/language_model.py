"""Any causal LM of the Hugging Face hub, a local folder, or an embedded asset, under one name."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import has_file

from llmcxr.foundation.artifacts import read_json
from llmcxr.foundation.assets import ASSETS, fetch
from llmcxr.foundation.errors import UserError

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def _location(name: str) -> tuple[str, dict[str, str]]:
    if name in ASSETS:
        folder = fetch(name)
        files = [Path(inner).name for inner in ASSETS[name].files if inner.endswith(".gguf")]
        if not files:
            raise UserError(f"asset {name!r} is not a language model.")
        return str(folder), {"gguf_file": files[0]}
    return name, {}


def _damaged_json(folder: Path) -> str | None:
    """The first of the small files that is no JSON object, and why: some are passed over in silence by those who read
    them."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            try:
                if not isinstance(read_json(folder / name), dict):
                    return f"its {name} should hold an object"
            except UserError as error:
                return f"its {name}: {error}"
    return None


def _culprit(folder: Path) -> str | None:
    """The first file of a checkpoint that cannot be read by itself, and why."""
    for path in sorted(folder.glob("*")):
        try:
            if path.suffix == ".json":
                read_json(path)
            if path.name == "tokenizer.json":
                Tokenizer.from_file(str(path))
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
        except Exception as error:  # readers in Rust raise plain ones
            return f"its {path.name}: {_first_line(error)}"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _problem(name: str, reason: str, ask_network: bool = True) -> UserError:
    if _is_hub_id(name) and not ask_network:
        return UserError(
            f"{name} is not in the hub's cache on this machine, and a packed model alone is no reason to use the "
            f"network. Fetch it yourself, once: hf download {name}"
        )
    models = [n for n, asset in ASSETS.items() if any(f.endswith(".gguf") for f in asset.files)]
    return UserError(
        f"the language model {name!r} could not be loaded: {reason}\nGive an asset ({', '.join(models)}), the folder "
        f"of a Hugging Face checkpoint, or a hub id (needs a connection, or the hub's cache)."
    )


def _is_hub_id(name: str) -> bool:
    return name not in ASSETS and not Path(name).is_dir() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None


def _read(load: Any, name: str, ask_network: bool, **options: Any) -> Any:
    """What a loader of `transformers` makes of `name`; whatever it raises for a damaged checkpoint is a `UserError`."""
    location, extra = _location(name)
    local = not (ask_network and _is_hub_id(name))
    if damaged := _damaged_json(Path(location)) if Path(location).is_dir() else None:
        raise _problem(name, damaged)
    try:
        # Code that comes with a checkpoint is never run; without this word the user would be asked whether to.
        return load(location, local_files_only=local, trust_remote_code=False, **extra, **options)
    except MemoryError:
        raise
    except Exception as error:  # of json, tokenizers, safetensors, torch, and what odd values make of Python
        culprit = _culprit(Path(location)) if Path(location).is_dir() else None
        raise _problem(name, culprit or _first_line(error), ask_network) from error


def load_config(name: str) -> PreTrainedConfig:
    """Configuration of `name` (of its text half): an asset, a folder, or a hub id. No weights are read."""
    return _read(AutoConfig.from_pretrained, name, True).get_text_config(decoder=True)


def text_half(model: PreTrainedModel) -> PreTrainedModel:
    """The text decoder of a multimodal model (Gemma 3 of 4 B and more) as a causal LM of its own, weights shared; others
    as they are. `UserError` where it cannot stand alone."""
    config = model.config.get_text_config(decoder=True)
    if config is model.config:
        return model
    try:
        with torch.device("meta"):
            text = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    except ValueError as error:
        raise UserError(f"the text part of a {model.config.model_type} model is not a causal LM: {error}") from error
    setattr(text, text.base_model_prefix, model.get_decoder())
    text.set_output_embeddings(model.get_output_embeddings())
    text.generation_config = model.generation_config
    return text


def load_text_tokenizer(name: str, ask_network: bool = True) -> PreTrainedTokenizerBase:
    """Text tokenizer of `name`: an asset, a folder, or a hub id (without `ask_network` out of the hub's cache only)."""
    return _read(AutoTokenizer.from_pretrained, name, ask_network)


def empty_language_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same model as `load_language_model`, without weights, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(name), dtype=dtype).eval()


def load_language_model(name: str, dtype: torch.dtype = torch.float32, ask_network: bool = True) -> PreTrainedModel:
    """Causal LM of `name` (the text half of a multimodal one), evaluation mode, on the CPU.

    Never runs code that comes with a checkpoint. `UserError` where it cannot be read, or lacks weights.
    """
    # Packed GGUF blocks cannot be tuned or saved: unpack them once, and forget where they came from.
    packed = {"quantization_config": GgufConfig(dequantize=True)} if name in ASSETS else {}
    load = AutoModelForCausalLM.from_pretrained
    # The reader of GGUF files has a progress bar that no setting switches off.
    with contextlib.redirect_stderr(io.StringIO()) if packed else contextlib.nullcontext():
        model, report = _read(load, name, ask_network, dtype=dtype, output_loading_info=True, **packed)
    if lacking := sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])}):  # they would be random
        raise _problem(name, f"its weights lack {len(lacking)} that its config.json asks for, e.g. {lacking[0]}")
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if packed and quantizer is not None:
        quantizer.remove_quantization_config(model)
    return text_half(model).eval()


def check_language_model(name: str) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and text tokenizer of `name`, and `UserError` for all that can be known without reading its
    weights: a name of nothing, damaged files, no causal LM, weights of other shapes than the configuration's.

    Fetches an asset, and the small files of a hub id.
    """
    config, tokenizer = load_config(name), load_text_tokenizer(name)
    if name in ASSETS:  # its hash is known
        return config, tokenizer
    try:
        shapes = {k: list(v.shape) for k, v in empty_language_model(name).state_dict().items()}
    except UserError:
        raise
    except Exception as error:  # sizes that do not go together raise what they will
        raise _problem(name, f"its config.json describes no causal language model: {_first_line(error)}") from error
    if not Path(name).is_dir():
        if _is_hub_id(name) and not any(has_file(name, file) for file in _WEIGHTS):
            raise _problem(name, f"it has none of {', '.join(_WEIGHTS)}")
        return config, tokenizer
    if not any((Path(name) / file).is_file() for file in _WEIGHTS):
        raise _problem(name, f"the folder has none of {', '.join(_WEIGHTS)}")
    if culprit := _culprit(Path(name)):
        raise _problem(name, culprit)
    index = Path(name) / "model.safetensors.index.json"
    named = read_json(index).get("weight_map") if index.is_file() else {}
    parts = {str(part) for part in named.values()} if isinstance(named, dict) else {str(named)}
    if missing := [part for part in sorted(parts) if not (Path(name) / part).is_file()]:
        raise _problem(name, f"its {missing[0]} is missing")
    for path in sorted(Path(name).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            keys = file.keys()
            for key in keys:
                own = file.get_slice(key).get_shape()
                if own != shapes.get(key, own):
                    raise _problem(
                        name, f"{key} in {path.name} is {own}, by its config.json it should be {shapes[key]}"
                    )
    return config, tokenizer
