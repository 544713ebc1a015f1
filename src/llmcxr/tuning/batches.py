"""Batches of examples of like length, right-padded: causal attention needs no mask, and the fast kernels stay in use.

Shapes: B examples, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmcxr.foundation.randomness import stream
from llmcxr.instructions.rendering import RenderedExample


@dataclass(frozen=True)
class Batch:
    """`ids` int64 [B, T], padded with 0; `supervised` bool [B, T], False at padding; task and image of each row."""

    ids: Tensor
    supervised: Tensor
    tasks: tuple[str, ...]
    image_ids: tuple[str, ...]
    tokens: int  # without padding

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        return Batch(self.ids.to(device), self.supervised.to(device), self.tasks, self.image_ids, self.tokens)


def collate(examples: Sequence[RenderedExample]) -> Batch:
    """Right-pad to the longest."""
    T = max(len(e.ids) for e in examples)
    ids = np.zeros((len(examples), T), dtype=np.int64)
    supervised = np.zeros((len(examples), T), dtype=bool)
    for row, e in enumerate(examples):
        ids[row, : len(e.ids)] = e.ids
        supervised[row, : len(e.ids)] = e.supervised
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(supervised),
        tuple(e.task for e in examples),
        tuple(e.image_id for e in examples),
        sum(len(e.ids) for e in examples),
    )


def plan_batches(lengths: np.ndarray, tokens: int, seed: int, window: int = 512) -> list[list[int]]:
    """Cut examples into batches of at most `tokens` padded tokens (at least one example each).

    Within each window of `window` examples those of like length go together; the order of batches is shuffled within
    it, so training sees the mixture, not a sweep over lengths.
    """
    batches: list[list[int]] = []
    for first in range(0, len(lengths), window):
        order = first + np.argsort(lengths[first : first + window], kind="stable")
        group: list[list[int]] = [[]]
        for index in order:
            if group[-1] and lengths[index] * (len(group[-1]) + 1) > tokens:
                group.append([])
            group[-1].append(int(index))
        batches += [group[i] for i in stream(seed, "batches", first).permutation(len(group))]
    return batches
