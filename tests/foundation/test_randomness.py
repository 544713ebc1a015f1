"""Streams depend on their key alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.foundation.randomness import stream

KEYS = st.lists(
    st.text(st.characters(exclude_characters="\0"), max_size=5) | st.integers(0, 99), min_size=1, max_size=3
)


@given(KEYS, KEYS)
def test_equal_keys_and_only_they_give_equal_streams(a, b):
    same = [str(x) for x in a] == [str(x) for x in b]
    assert (stream(*a).integers(2**63, size=2).tolist() == stream(*b).integers(2**63, size=2).tolist()) == same


def test_a_stream_neither_reads_nor_changes_the_global_state():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = stream(0, "a").random(3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    stream(0, "b").random(7)
    np.testing.assert_array_equal(stream(0, "a").random(3), first)


def test_another_process_draws_the_same():
    code = "from llmcxr.foundation.randomness import stream; print(stream(3, 'anatomy', 'p1').integers(10**9))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) == stream(3, "anatomy", "p1").integers(10**9)


def test_draws_look_uniform():
    draws = np.array([stream(0, "x", i).random() for i in range(2000)])
    assert abs(draws.mean() - 0.5) < 0.03 and abs(draws.std() - 12**-0.5) < 0.02
