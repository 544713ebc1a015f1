"""Training state on disk: one file, written atomically, read with the safe loader only; the one before is kept beside it.

Every training has the same form: "training" (its own), "progress" (foundation/loop.py) and "generators".
"""

from __future__ import annotations

import errno
import os
import random
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values). The last good file survives a kill, a power cut or a full disk.

    Needs room for two files: the one before the last makes way for the new one.
    """
    if path.exists():
        _previous(path).unlink(missing_ok=True)
    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # so torch says that it could not write all, without the reason
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())  # else a power cut may leave the new name on an empty file
        if path.exists():
            os.replace(path, _previous(path))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last state saved as `path`, or None where there is none yet.

    A broken file is passed over for the one before (this is said); `UserError` names it where no other is left.
    """
    files = [file for file in (path, _previous(path)) if file.exists()]
    fault: UserError | None = None
    for file in files:
        try:
            # Mapped: of several processes on one machine each would read all of it. Windows cannot replace a mapped file.
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=os.name != "nt")
        except Exception as error:  # the unpickler and zip reader raise many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            fault = fault or UserError(
                f"checkpoint {file} cannot be read ({reason}). Delete it to start this stage anew."
            )
            fault.__cause__ = error
            continue
        if fault is not None:
            print(f"{path} cannot be read: going on from the checkpoint before it.", file=sys.stderr)
            path.unlink(missing_ok=True)  # else the next save would make the good one give way
        return state
    if fault is not None:
        raise fault
    return None


def remove_checkpoint(path: Path) -> None:
    """Remove the checkpoint at the end of its training, and the one before."""
    _previous(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)  # last: as long as it is there, the training was not ended


def generator_states() -> dict[str, Any]:
    """The states of all generators that a training may draw from, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Go on drawing where `generator_states` was taken; a device that is not here is passed over."""
    torch.set_rng_state(states["torch"].clone())
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].clone())
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"].clone())


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. A missing or broken file is an error that names it."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"weights {path} cannot be read ({error}). Run the stage that writes them again.") from error


def load_state(network: nn.Module, path: Path) -> None:
    """Give `network` the tensors of a .safetensors file. `UserError` names a file that cannot be read or is of another
    network."""
    try:
        network.load_state_dict(load_weights(path))
    except RuntimeError as error:
        raise UserError(f"{path} does not fit its config.json: {error}") from error


class _Ignored:
    """Stands for an object of a package that is not needed (and not imported): it takes everything and keeps nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _IgnoredMapping:
    """As `_Ignored`, for objects that items are put into; the safe unpickler does so with plain mappings only."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


def load_foreign(path: Path) -> Any:
    """What torch saved as `path`, by someone else's trainer: tensors, numbers, texts, and lists and mappings of these.

    Such files also hold objects of Lightning, OmegaConf and the like. The safe unpickler reads them with an empty stand-in for
    every class and function that it does not allow by itself: nothing is imported and no code of theirs runs. `UserError`
    where the file cannot be read so.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        kinds = {name: _Ignored if name.startswith("numpy.") else _IgnoredMapping for name in names}
        # A class for each: some trainers use classes as keys.
        stand_ins: list[Any] = [(type(name, (kind,), {}), name) for name, kind in kinds.items()]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler and zip reader raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} cannot be read as a file of torch.save ({reason}). Check that it was downloaded whole and is of PyTorch 1.6 or later."
        ) from error
