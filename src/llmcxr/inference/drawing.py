"""Drawing tokens from logits, each row by its own sampling and its own random number.

Shapes: B rows, N tokens that can come.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcxr.inference.backend import Sampling

_FEW = 256  # tokens among which the likeliest nearly always are
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
        top = column([s.top_p if s.top_p < 1 else 2.0 for s in samplings])  # sums are not exact: 2 leaves out none
        probabilities = _nucleus(probabilities, top)
    summed = probabilities.cumsum(-1)
    value = column(list(numbers)) * summed[:, -1:]
    drawn = torch.searchsorted(summed, value.contiguous(), right=True).squeeze(-1)
    # A number so near to 1 that the product is the sum itself: the last token that can come.
    last = N - 1 - (probabilities.flip(-1) > 0).to(torch.int8).argmax(-1)
    return torch.minimum(drawn, last)


def _nucleus(probabilities: Tensor, top: Tensor) -> Tensor:
    """Probabilities [B, N] of the likeliest tokens that make up `top` [B, 1] of each row, the others 0."""
    N = probabilities.shape[-1]
    for k in (_FEW, N):  # to sort a whole vocabulary takes longer than a step of the model
        values, order = probabilities.topk(min(k, N))
        before = values.cumsum(-1) - values  # the most likely token always stays
        if k >= N or bool((before[:, -1:] >= top).all()):
            break
    return torch.zeros_like(probabilities).scatter_(-1, order, values.masked_fill(before >= top, 0))


def penalised(logits: Tensor, written: Sequence[int], penalty: float) -> Tensor:
    """Logits [N] in which tokens already `written` are less likely (Keskar et al., 2019)."""
    there = torch.tensor(sorted(set(written)), device=logits.device)
    values = logits[there]
    return logits.index_copy(0, there, torch.where(values > 0, values / penalty, values * penalty))
