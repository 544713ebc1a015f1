"""Where to compute, and in what precision."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch
from torch import nn

from llmcxr.foundation.errors import UserError


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


def autocast(device: torch.device) -> AbstractContextManager:
    """bfloat16 matrix products and convolutions; parameters and reductions stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def place_network(network: nn.Module, device: torch.device) -> None:
    """Move a convolutional network, channels last: several times faster in bfloat16 on CPUs, and on GPUs too."""
    network.to(device=device)
    network.to(memory_format=torch.channels_last)


def core_count() -> int:
    """Cores this process may use (containers and Slurm restrict them below the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
