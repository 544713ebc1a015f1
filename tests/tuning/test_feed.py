"""The feed: the same batches in any number of processes, each of which renders its part, ahead of training."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from toy_stage import LONG, PAIRS, SENTENCES, SETTINGS, WINDOW, set_up, stage, together

from llmcxr.foundation.processes import Processes
from llmcxr.tuning import feed


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(feed, "WINDOW", WINDOW)


MIXED = [*PAIRS[:9], *LONG, *LONG, *SENTENCES]


def watched(folder, processes=None):
    """A feed, and the threads in which its examples are rendered, one entry an example."""
    one, threads = stage(folder, SETTINGS, MIXED, processes=processes).feed, []
    real = one._render

    def render(example):
        threads.append(threading.current_thread())
        return real(example)

    one._render = render
    return one, threads


def save_steps(processes: Processes, folder) -> None:
    set_up()
    one, threads = watched(folder, processes)
    steps = list(one.steps(0, 0))
    tensors = {f"{s}.{n}": batch.ids for s, (_, _, batches) in enumerate(steps) for n, batch in enumerate(batches)}
    save_file(tensors, folder / f"{processes.rank}.safetensors")
    (folder / f"{processes.rank}.txt").write_text(f"{len(threads)} {sorted(one.too_long.items())}")


def test_processes_render_a_part_each_and_agree(tmp_path):
    count = 2
    one, threads = watched(tmp_path)
    steps = list(one.steps(0, 0))
    assert len(threads) == 40 and len(one.too_long) == 4
    assert together(save_steps, tmp_path, count=count) == [(0, "")] * count
    rendered = []
    for rank in range(count):
        tensors = load_file(tmp_path / f"{rank}.safetensors")
        assert len(tensors) == sum(len(batches) for _, _, batches in steps)
        for s, (_, _, batches) in enumerate(steps):
            for n, batch in enumerate(batches):
                np.testing.assert_array_equal(tensors[f"{s}.{n}"], batch.ids)
        number, too_long = (tmp_path / f"{rank}.txt").read_text().split(" ", 1)
        rendered.append(int(number))
        assert too_long == str(sorted(one.too_long.items()))
    assert sum(rendered) == 40 and max(rendered) - min(rendered) <= 3


def test_windows_after_the_first_are_rendered_off_the_training_thread(tmp_path):
    one, threads = watched(tmp_path)
    steps = one.steps(0, 0)
    next(steps)
    list(steps)
    own = [t is threading.current_thread() for t in threads]
    assert own == [True] * WINDOW + [False] * (40 - WINDOW)


def test_any_place_is_gone_on_from_exactly(tmp_path):
    one, _ = watched(tmp_path)
    steps = list(one.steps(0, 0))
    for k, (window, done, _) in enumerate(steps[:-1]):
        again = list(watched(tmp_path)[0].steps(window, done))
        assert [p[:2] for p in again] == [p[:2] for p in steps[k + 1 :]]
        for a, b in zip(again, steps[k + 1 :], strict=True):
            assert all((x.ids == y.ids).all() for x, y in zip(a[2], b[2], strict=True))
