"""Batches: every example once, never over the limit, in an order that the seed decides."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.instructions.rendering import RenderedExample
from llmcxr.tuning.batches import collate, plan_batches


@given(st.lists(st.integers(1, 120), max_size=80), st.integers(1, 300), st.integers(0, 3), st.integers(1, 30))
def test_every_example_once_and_never_over_the_limit(lengths, tokens, seed, window):
    array = np.array(lengths, dtype=np.int64)
    plan = plan_batches(array, tokens, seed, window)
    assert sorted(i for group in plan for i in group) == list(range(len(lengths)))
    for group in plan:
        assert len(group) == 1 or max(array[group]) * len(group) <= tokens
        assert max(group) // window == min(group) // window
    assert plan == plan_batches(array, tokens, seed, window)


def test_like_lengths_go_together_and_the_order_is_shuffled():
    lengths = np.array([10, 100] * 200)
    plan = plan_batches(lengths, 1000, seed=0)
    assert all(len(set(lengths[group])) == 1 for group in plan)
    firsts = [lengths[group[0]] for group in plan]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)
    assert plan != plan_batches(lengths, 1000, seed=1)
    assert len(plan) <= 2 + (200 * 10 + 200 * 100) / 1000


def test_collate():
    a = RenderedExample(np.array([5, 6, 7]), np.array([False, True, True]), "language")
    b = RenderedExample(np.array([9]), np.array([False]), "cxr_vqa", "i")
    batch = collate([a, b])
    assert batch.ids.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch.supervised.tolist() == [[False, True, True], [False, False, False]]
    assert batch.tasks == ("language", "cxr_vqa") and batch.image_ids == ("", "i") and batch.tokens == 4
