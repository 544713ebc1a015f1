"""Where to compute, and in what precision.

bfloat16 is not the faster one everywhere: on a CPU without its instructions float32 products run two to ten times as fast.
So both are measured, once in a process, and everything that computes asks `precision` (or `autocast`).
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Precision

Use = Literal["training", "generating"]
# (rows, inputs, outputs) of products that stand for a use, those of a small language model: a batch of training through a layer;
# a few sequences by one token through a layer, and one by one token through the head.
SHAPES: dict[Use, list[tuple[int, int, int]]] = {
    "training": [(256, 576, 1536)],
    "generating": [(8, 576, 1536), (1, 576, 16384)],
}
_set: dict[str, dict[Use, torch.dtype]] = {}  # by kind of device


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, not built in, or not there
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used: {reason} Give auto, cpu, cuda, cuda:1, ...") from error
    return device


def seconds_of_product(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> float:
    """Time of one product [rows, inputs] @ [inputs, outputs] on the CPU."""
    x, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    begin = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    return time.perf_counter() - begin


@cache
def measured_precision(kind: str) -> dict[Use, torch.dtype]:
    """The faster of float32 and bfloat16 for each use on a `kind` of device; on the CPU by measurement, once in a process.

    bfloat16 wins unless float32 takes less than 0.8 of its time, since it needs half the memory. GPUs take bfloat16 where they
    have it; Apple's (mps), where much of it is emulated or missing, float32.
    """
    if kind == "cpu":
        choice = {}
        for use, shapes in SHAPES.items():
            # By turns, the first round to warm up, and the best of each: other work on the machine hits both alike.
            both = (torch.float32, torch.bfloat16)
            rounds = np.array([[[seconds_of_product(d, *s) for s in shapes] for d in both] for _ in range(4)])
            wide, narrow = rounds[1:].min(0).sum(1)
            choice[use] = torch.float32 if wide < 0.8 * narrow else torch.bfloat16
        return choice
    has = kind != "mps" and (kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False))
    return dict.fromkeys(SHAPES, torch.bfloat16 if has else torch.float32)


def asked_precision(setting: Precision, device: torch.device) -> dict[Use, torch.dtype]:
    """For each use, what a recipe's `precision` means on `device`."""
    return measured_precision(device.type) if setting == "auto" else dict.fromkeys(SHAPES, getattr(torch, setting))


def set_precision(device: torch.device, choice: dict[Use, torch.dtype]) -> None:
    """Compute in `choice` on such devices from here on, in this process."""
    _set[device.type] = choice


def precision(device: torch.device, use: Use) -> torch.dtype:
    """The precision of products on `device`: what was set, or else what is faster."""
    return (_set.get(device.type) or measured_precision(device.type))[use]


def autocast(device: torch.device) -> AbstractContextManager:
    """Matrix products and convolutions of image networks in `precision`; parameters and reductions stay in float32."""
    dtype = precision(device, "training")
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def without_autocast(x: torch.Tensor) -> AbstractContextManager:
    """What is computed from `x` keeps the precision that it is given in."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def place_network(network: nn.Module, device: torch.device) -> None:
    """Move a convolutional network, channels last: several times faster in bfloat16 on CPUs, and on GPUs too."""
    network.to(device=device)
    network.to(memory_format=torch.channels_last)


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's mallopt


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Large blocks that are freed here are taken again, instead of going back to the system each time and coming anew.

    Images' activations on CPUs are such blocks, and clearing their pages costs more than a tenth of the time
    (benchmarks/encoding.py --memory returned). Only where the C library is glibc.
    """
    library: Any = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, 1 << 30)
    library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)  # what glibc's own rules rise to
        library.mallopt(_TRIM_THRESHOLD, 64 << 20)
        library.malloc_trim(0)


def core_count() -> int:
    """Cores this process may use (containers and Slurm restrict them below the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
