"""Cross entropy of the output head without float32 logits: logits stay in the model's precision, and become their own gradient.

Stock cross entropy over a vocabulary of 50,000 keeps about 16 bytes a logit (logits, their float32 copy, its logarithm and
both gradients); this keeps one copy in the model's precision. Sums are taken in float32, some rows at a time.

Shapes: N states, d width, V rows of the head, in parts [V_p, d] one after the other; C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CELLS = {True: 2**21, False: 2**26}  # logits that are float32 at once, on a CPU and elsewhere


def _chunks(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of logits [N, V] at a time, and their float32 copy, always in the same memory (a CPU's cache holds it)."""
    size = max(1, CELLS[logits.device.type == "cpu"] // logits.shape[1])
    memory = torch.empty(min(size, len(logits)), logits.shape[1], device=logits.device)
    for first in range(0, len(logits), size):
        rows = slice(first, min(first + size, len(logits)))
        yield rows, memory[: rows.stop - first].copy_(logits[rows])


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, bias: Tensor | None, *parts: Tensor) -> Tensor:
        N, first = len(states), 0
        logits, partial = [], []
        wanted = torch.empty(N, device=states.device)  # logit of the target
        for part in parts:
            end = first + len(part)
            own = torch.nn.functional.linear(states, part, None if bias is None else bias[first:end])
            logits.append(own)
            sums = states.new_empty(N, dtype=torch.float32)
            for c, work in _chunks(own):
                highest = work.amax(-1, keepdim=True)
                sums[c] = work.sub_(highest).exp_().sum(-1).log_() + highest.squeeze(1)
            partial.append(sums)
            here = ((targets >= first) & (targets < end)).nonzero().squeeze(1)
            wanted[here] = own[here, targets[here] - first].float()
            first = end
        total = torch.stack(partial).logsumexp(0)
        ctx.save_for_backward(states, targets, total, *parts)
        ctx.logits, ctx.has_bias = logits, bias is not None
        return total - wanted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, targets, total, *parts = ctx.saved_tensors
        if ctx.logits is None:
            raise RuntimeError("the logits were turned into gradients already: backward can run once")
        scale, first = gradients[0], 0
        d_states = torch.zeros_like(states)
        d_parts: list[Tensor | None] = []
        d_bias = []
        for part, g, needed in zip(parts, ctx.logits, ctx.needs_input_grad[3:], strict=True):
            end = first + len(part)
            for c, work in _chunks(g):
                p = work.sub_(total[c, None]).exp_()
                own = targets[c] - first
                here = ((own >= 0) & (own < len(part))).nonzero().squeeze(1)
                p[here, own[here]] -= 1
                g[c] = p.mul_(scale[c, None])
            d_states.addmm_(g, part)
            d_parts.append(g.T @ states if needed else None)
            if ctx.has_bias:
                d_bias.append(g.sum(0))
            first = end
        ctx.logits = None
        return (d_states, None, torch.cat(d_bias) if ctx.has_bias else None, *d_parts)


def head_cross_entropy(states: Tensor, parts: Sequence[Tensor], targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """-log softmax(states @ concat(parts).T + bias)[target], float32 [N].

    `states` [N, d] and the `parts` [V_p, d] of the head have one precision; `targets` int64 [N] in [0, sum of V_p); `bias` [V].
    Backward can run once. A part that needs no gradient costs none.
    """
    return _HeadCrossEntropy.apply(states, targets, bias, *parts)  # type: ignore[no-untyped-call]
