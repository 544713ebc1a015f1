"""Tokens drawn from logits: each row by its own sampling and its own number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcxr.inference.backend import Sampling
from llmcxr.inference.drawing import _nucleus, draw_tokens, penalised

PLAIN = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


def shares(**options) -> list[float]:
    """How often each of four tokens comes, over evenly spread numbers."""
    numbers = [(i + 0.5) / 4000 for i in range(4000)]
    drawn = draw_tokens(PLAIN.repeat(4000, 1), [Sampling(**options)] * 4000, numbers)
    return (torch.bincount(drawn, minlength=4) / 4000).tolist()


def test_shares_by_hand():
    assert shares(temperature=0.0) == [1, 0, 0, 0]
    assert shares(temperature=1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=1e-3)
    assert shares(temperature=1.0, top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=1e-3)
    assert shares(temperature=1.0, top_p=0.75) == pytest.approx([0.625, 0.375, 0, 0], abs=1e-3)
    assert shares(temperature=1.0, top_p=0.01) == [1, 0, 0, 0]
    assert shares(temperature=1.0, min_p=0.5) == pytest.approx([0.625, 0.375, 0, 0], abs=1e-3)
    square = np.array([0.25, 0.09, 0.0225, 0.0025])
    assert shares(temperature=0.5) == pytest.approx((square / square.sum()).tolist(), abs=1e-3)


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.floats(0.05, 1),
    top_k=st.integers(0, 12),
    min_p=st.sampled_from([0.0, 0.2]),
)


@given(st.lists(st.tuples(SAMPLINGS, st.floats(0, 1, exclude_max=True)), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_row_is_drawn_as_if_it_were_alone_and_never_a_token_that_cannot_come(rows, seed):
    logits = 3 * torch.randn(len(rows), 9, generator=torch.Generator().manual_seed(seed))
    logits[:, [0, 8]] = -torch.inf
    samplings, numbers = map(list, zip(*rows, strict=True))
    together = draw_tokens(logits, samplings, numbers).tolist()
    alone = [int(draw_tokens(logits[i : i + 1], samplings[i : i + 1], numbers[i : i + 1])) for i in range(len(rows))]
    assert together == alone and not {0, 8} & set(together)
    for row, token, sampling in zip(logits, together, samplings, strict=True):
        if sampling.temperature == 0:
            assert token == int(row.argmax())
        if sampling.top_k:
            assert int((row > row[token]).sum()) < sampling.top_k


def test_the_largest_number_draws_the_last_token_that_can_come():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert int(draw_tokens(logits, [Sampling(1.0)], [np.nextafter(1.0, 0)])) == 1
    assert int(draw_tokens(logits, [Sampling(1.0)], [0.0])) == 0


def test_what_is_written_becomes_less_likely():
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5])
    assert penalised(logits, [1, 0, 0], 2.0).tolist() == [1.0, -4.0, 1.0, 0.5]


def test_the_likeliest_of_many_are_those_of_a_whole_sort():
    """Also where few tokens do not make up the share."""
    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[0.1], [1.0], [4.0], [9.0]]
    )
    probabilities = logits.softmax(-1)
    for top in (0.05, 0.5, 0.9, 0.999):
        found = _nucleus(probabilities, torch.full((4, 1), top))
        ordered, order = probabilities.sort(descending=True)
        inside = (ordered.cumsum(-1) - ordered < top).gather(-1, order.argsort(-1))
        assert torch.equal(found > 0, inside) and torch.equal(found[inside], probabilities[inside])
