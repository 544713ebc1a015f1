"""Packages that only some settings need: extras of this package, not installed with it."""

from __future__ import annotations

import importlib
import warnings
from typing import Any, NamedTuple

from llmcxr.foundation.errors import UserError

EXTRAS = {
    "bitsandbytes": "qlora",
    "lpips": "paper",
    "openai": "chat",
    "tensorboard": "tensorboard",
    "torchxrayvision": "paper",
    "vllm": "vllm",
    "xllamacpp": "gguf",
}  # package -> extra


class AskedBy(NamedTuple):
    """Where something is asked for, and what does without it: what users type."""

    setting: str
    instead: str


def require(module: str, setting: str, instead: str) -> Any:
    """Import `module` (a package of `EXTRAS`, or a part of it), which `setting` needs.

    `UserError` where that fails: it names the extra, and `instead`, the setting that does without.
    """
    package = module.split(".")[0]
    try:
        with warnings.catch_warnings():  # torchxrayvision mutes every warning of the process on import
            return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # not there, or its compiled part does not fit the machine
        raise UserError(
            f"{setting} needs the package {package}, which cannot be used here ({error}). "
            f'Install it with `pip install "llmcxr[{EXTRAS[package]}]"`, or set {instead}.'
        ) from error
