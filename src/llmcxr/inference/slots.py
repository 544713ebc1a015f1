"""Keys and values of responses in progress, in memory that is reserved once and written in place.

Shapes: R rows in progress, H query heads, G key heads (H a multiple of G), T positions, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "llmcxr_decoding"
_BLOCK = 64  # positions by which the memory grows


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **named: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it. For one new token the H/G query heads of a key head stand as so many queries of it:
    stock attention repeats all keys and values H/G times at every step.
    """
    B, H, T, D = query.shape
    G = key.shape[1]
    if T > 1 or H == G:
        result, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **named
        )
        return result, None
    grouped = query.reshape(B, G, H // G, D)
    result = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return result.reshape(B, 1, H, -1), None


AttentionInterface.register(NAME, _attention)  # type: ignore[arg-type]
AttentionMaskInterface.register(NAME, sdpa_mask)  # type: ignore[arg-type]


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Let a model that uses torch's attention decode with grouped heads; others keep their own."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def _resized(old: Tensor, rows: int, positions: int) -> Tensor:
    new = old.new_zeros(rows, old.shape[1], positions, old.shape[3])
    kept = min(positions, old.shape[2])
    new[: len(old), :, :kept] = old[:, :, :kept]
    return new


class SlotCache(Cache):
    """A cache of rows of different lengths, to which each step adds one token a row. Rows come and go."""

    def __init__(self, device: torch.device, exact: bool = False) -> None:
        """`exact`: what a step is shown is all that is reserved, so that it lies in one piece, in few different shapes."""
        super().__init__(layers=[])
        self.exact = exact
        self.keys: list[Tensor] = []  # of each layer [rows reserved, G, positions reserved, D]
        self.values: list[Tensor] = []
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)  # [R]
        self._rows, self._end = torch.zeros(0, dtype=torch.long, device=device), 0

    def __len__(self) -> int:
        return len(self.lengths)

    def _reserve(self, rows: int, positions: int) -> None:
        """At least as many, with what is there kept."""
        for tensors in (self.keys, self.values):
            for i, old in enumerate(tensors):
                if old.shape[0] < rows or old.shape[2] < positions:
                    tensors[i] = _resized(old, max(old.shape[0], rows), max(old.shape[2], positions))

    def admit(self, read: DynamicCache, sources: Tensor, lengths: Tensor, most: int) -> None:
        """Add rows: new row i is row `sources[i]` of what was `read`, of `lengths[i]` tokens. `most` rows will be needed."""
        first, new = len(self), len(sources)
        layers: list[Any] = read.layers  # each with keys and values [n, G, T, D]
        T = layers[0].keys.shape[2]
        if not self.keys:
            for layer in layers:
                for tensors, like in ((self.keys, layer.keys), (self.values, layer.values)):
                    tensors.append(like.new_zeros(0, like.shape[1], 0, like.shape[3]))
        rows = max(first + new, min(most, 2 * (first + new)))
        self._reserve(rows, -(-(T + 1) // _BLOCK) * _BLOCK)
        for i, layer in enumerate(layers):
            self.keys[i][first : first + new, :, :T] = layer.keys[sources]
            self.values[i][first : first + new, :, :T] = layer.values[sources]
        self.lengths = torch.cat([self.lengths, lengths.to(self.lengths)])

    def drop(self, rows: Iterable[int]) -> dict[int, int]:
        """Remove rows; the last that stay take their places: {former row: row now} of those."""
        gone = set(rows)
        left = len(self) - len(gone)
        moved = dict(
            zip((r for r in range(left, len(self)) if r not in gone), sorted(r for r in gone if r < left), strict=True)
        )
        if moved:
            former, now = list(moved), list(moved.values())
            longest = int(self.lengths.max())
            for tensor in (*self.keys, *self.values):
                tensor[now, :, :longest] = tensor[former, :, :longest]
            self.lengths[now] = self.lengths[former]
        self.lengths = self.lengths[:left]
        return moved

    def begin_step(self) -> tuple[Tensor, Tensor | None]:
        """Make room for one token a row: (positions [R, 1], mask of what is seen bool [R, 1, 1, T] or None for all)."""
        longest = int(self.lengths.max())
        needed = -(-(longest + 1) // _BLOCK) * _BLOCK
        if self.exact and self.keys[0].shape[2] != needed:  # also where a long row has gone
            for tensors in (self.keys, self.values):
                tensors[:] = [_resized(old, len(old), needed) for old in tensors]
        self._reserve(0, needed)
        self._end = needed if self.exact else longest + 1
        self._rows = torch.arange(len(self), device=self.lengths.device)
        seen = torch.arange(self._end, device=self.lengths.device) <= self.lengths[:, None]
        all_seen = self._end == longest + 1 and bool((self.lengths == longest).all())
        return self.lengths[:, None], None if all_seen else seen[:, None, None]

    def end_step(self) -> None:
        """The tokens of the step count from here on."""
        self.lengths = self.lengths + 1

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [R, G, 1, D] of a step's tokens, written in place; all of them so far [R, G, T, D], as views."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self._rows, :, self.lengths] = key_states[:, :, 0]
        values[self._rows, :, self.lengths] = value_states[:, :, 0]
        return keys[: len(self), :, : self._end], values[: len(self), :, : self._end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before the step's, of the longest row."""
        return self._end - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(positions that a mask covers, the first one)."""
        return self._end, 0
