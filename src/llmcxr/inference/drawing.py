"""Drawing tokens from logits, each row by its own sampling and its own random number.

Shapes: B rows, N tokens that can come.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcxr.inference.backend import Sampling

_COLDEST = 1e-5  # below, the most likely token: smaller temperatures would overflow


def is_greedy(sampling: Sampling) -> bool:
    """Whether no random number is needed."""
    return sampling.temperature < _COLDEST


def draw_tokens(logits: Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> Tensor:
    """One index for each row of logits float32 [B, N] -> int64 [B], by `numbers` in [0, 1) through the inverse distribution."""
    if all(map(is_greedy, samplings)):
        return logits.argmax(-1)

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=logits.dtype, device=logits.device)[:, None]

    N = logits.shape[-1]
    logits = logits / column([s.temperature if s.temperature >= _COLDEST else 1.0 for s in samplings])
    most = torch.tensor([1 if is_greedy(s) else min(s.top_k or N, N) for s in samplings], device=logits.device)[:, None]
    largest = int(most.where(most < N, 0).max())
    if largest:
        least = logits.topk(largest).values.gather(-1, most.clamp(max=largest) - 1)
        logits = logits.masked_fill((most < N) & (logits < least), -torch.inf)
    probabilities = logits.softmax(-1)
    if any(s.min_p > 0 for s in samplings):
        least = probabilities.amax(-1, keepdim=True) * column([s.min_p for s in samplings])
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    if any(s.top_p < 1 for s in samplings):
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # the most likely token always stays
        top = column([s.top_p if s.top_p < 1 else 2.0 for s in samplings])  # sums are not exact: 2 leaves out none
        probabilities = probabilities.masked_fill((before >= top).gather(-1, order.argsort(-1)), 0)
    summed = probabilities.cumsum(-1)
    value = column(list(numbers)) * summed[:, -1:]
    drawn = torch.searchsorted(summed, value.contiguous(), right=True).squeeze(-1)
    # A number so near to 1 that the product is the sum itself: the last token that can come.
    last = N - 1 - (probabilities.flip(-1) > 0).to(torch.int8).argmax(-1)
    return torch.minimum(drawn, last)


def penalised(logits: Tensor, written: Sequence[int], penalty: float) -> Tensor:
    """Logits [N] in which tokens already `written` are less likely (Keskar et al., 2019)."""
    there = torch.tensor(sorted(set(written)), device=logits.device)
    values = logits[there]
    return logits.index_copy(0, there, torch.where(values > 0, values / penalty, values * penalty))
