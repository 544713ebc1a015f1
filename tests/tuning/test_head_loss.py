"""The head's cross entropy against torch's over whole logits: values and every gradient, in parts and in chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmcxr.tuning import head_loss
from llmcxr.tuning.head_loss import head_cross_entropy


def case(sizes, with_bias, dtype=torch.float32, N=23, d=12):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(N, d, generator=generator)
    parts = [torch.randn(size, d, generator=generator) for size in sizes]
    V = sum(sizes)
    bias = torch.randn(V, generator=generator) if with_bias else None
    targets = torch.randint(0, V, (N,), generator=generator)
    upstream = torch.rand(N, generator=generator)
    return [x if x is None else x.to(dtype) for x in (states, bias, *parts)], targets, upstream


def run(function, inputs, targets, upstream):
    leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
    losses = function(leaves[0], leaves[2:], targets, leaves[1])
    return losses, torch.autograd.grad((losses * upstream).sum(), [x for x in leaves if x is not None])


def stock(states, parts, targets, bias):
    return F.cross_entropy(F.linear(states, torch.cat(list(parts)), bias).float(), targets, reduction="none")


@pytest.mark.parametrize("sizes", [(40,), (31, 8), (31, 8, 1)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("cells", [2**22, 100])  # one chunk, and many of two to twelve rows
def test_values_and_gradients(sizes, with_bias, cells, monkeypatch):
    monkeypatch.setitem(head_loss.CELLS, True, cells)
    inputs, targets, upstream = case(sizes, with_bias)
    ours, own = run(head_cross_entropy, inputs, targets, upstream)
    theirs, expected = run(stock, inputs, targets, upstream)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_as_near_to_float32_as_torchs():
    inputs, targets, upstream = case((3000, 64), False, torch.bfloat16, N=60, d=32)
    exact, gradients = run(stock, [None if x is None else x.float() for x in inputs], targets, upstream)
    for function, results in ((head_cross_entropy, []), (stock, [])):
        losses, own = run(function, inputs, targets, upstream)
        results += [(losses - exact).norm() / exact.norm()]
        results += [(a.float() - b).norm() / b.norm() for a, b in zip(own, gradients, strict=True)]
        if function is head_cross_entropy:
            ours = results
    for a, b in zip(ours, results, strict=True):
        assert a <= 1.1 * b + 1e-4


def test_frozen_parts_ask_for_nothing_and_backward_runs_once():
    inputs, targets, _ = case((31, 8), False)
    states, rows = inputs[0].requires_grad_(), inputs[3].requires_grad_()
    losses = head_cross_entropy(states, [inputs[2], rows], targets)
    losses.sum().backward(retain_graph=True)
    assert inputs[2].grad is None and rows.grad is not None
    with pytest.raises(RuntimeError, match="backward can run once"):
        losses.sum().backward()
