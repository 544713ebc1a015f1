"""Any causal LM of the Hugging Face hub, a local folder, or an embedded asset, under one name."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmcxr.foundation.assets import ASSETS, fetch
from llmcxr.foundation.errors import UserError


def _location(name: str) -> tuple[str, dict[str, str]]:
    if name in ASSETS:
        folder = fetch(name)
        files = [Path(inner).name for inner in ASSETS[name].files if inner.endswith(".gguf")]
        if not files:
            raise UserError(f"asset {name!r} is not a language model.")
        return str(folder), {"gguf_file": files[0]}
    return name, {}


def _problem(name: str, error: Exception) -> UserError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    models = [n for n, asset in ASSETS.items() if any(f.endswith(".gguf") for f in asset.files)]
    return UserError(
        f"the language model {name!r} could not be loaded: {lines[0]}\nGive an asset ({', '.join(models)}), the folder of a "
        "Hugging Face checkpoint, or a hub id (needs a connection, or the hub's cache)."
    )


def load_config(name: str) -> PreTrainedConfig:
    """Configuration of `name` (of its text half): an asset, a folder, or a hub id. No weights are read."""
    location, extra = _location(name)
    try:
        return AutoConfig.from_pretrained(location, **extra).get_text_config(decoder=True)
    except (OSError, ValueError, KeyError) as error:
        raise _problem(name, error) from error


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


def load_text_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Text tokenizer of `name`: an asset, a folder, or a hub id."""
    location, extra = _location(name)
    try:
        return AutoTokenizer.from_pretrained(location, **extra)
    except (OSError, ValueError, KeyError) as error:
        raise _problem(name, error) from error


def empty_language_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same model as `load_language_model`, without weights, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(name), dtype=dtype).eval()


def load_language_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Causal LM of `name` (the text half of a multimodal one), evaluation mode, on the CPU.

    Never runs code that comes with a checkpoint.
    """
    location, extra = _location(name)
    # Packed GGUF blocks cannot be tuned or saved: unpack them once, and forget where they came from.
    packed = {"quantization_config": GgufConfig(dequantize=True)} if extra else {}
    try:
        # The reader of GGUF files has a progress bar that no setting switches off.
        with contextlib.redirect_stderr(io.StringIO()) if packed else contextlib.nullcontext():
            model = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **extra, **packed)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _problem(name, error) from error
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if packed and quantizer is not None:
        quantizer.remove_quantization_config(model)
    return text_half(model).eval()
