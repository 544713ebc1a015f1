"""Training state on disk: one file, written atomically, read with the safe loader only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values). The last good file survives a kill or a full disk."""
    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch reports a full disk as RuntimeError
            raise OSError(str(error)) from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state in `path`, or None where there is none yet. A broken file is an error that names it."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler and zip reader raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"checkpoint {path} cannot be read ({reason}). Delete it to start this stage anew.") from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. A missing or broken file is an error that names it."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"weights {path} cannot be read ({error}). Run the stage that writes them again.") from error
