"""The loop: schedules by hand, exact resume whatever is drawn from, and faults that name their step."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from llmcxr.foundation import loop
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes

ONE = Processes("cpu")


class Walk(loop.Training):
    """Adds what every generator gives."""

    def __init__(self, folder, steps=7, kill=None, units=1, end=None):
        super().__init__("walk", steps * units, ONE)
        self.folder, self.kill, self.units, self.end = folder, kill, units, end
        self.place, self.begun, self.saved = np.zeros(3), 0, 0

    def begin(self):
        self.begun += 1

    def step(self):
        if self.at.step == self.kill:
            raise KeyboardInterrupt
        if self.at.step == self.end:
            return None
        self.place += [torch.rand(()).item(), random.random(), np.random.rand()]  # noqa: NPY002
        return loop.Step({"loss": float(self.place.sum())}, self.units)

    def state(self):
        self.saved += 1
        return {"place": self.place.tolist()}

    def load_state(self, state):
        self.place = np.array(state["place"])

    def finish(self):
        (self.folder / "result").write_text(repr((self.place.tolist(), self.at.curve, self.at.sums)))


def seed(number):
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002


@pytest.mark.parametrize("kill", range(1, 7))
def test_killed_at_any_step_and_resumed_equals_uninterrupted(kill, tmp_path):
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    seed(1)
    loop.run(Walk(tmp_path / "whole"), tmp_path / "whole")
    seed(1)
    with pytest.raises(KeyboardInterrupt):
        loop.run(Walk(tmp_path / "part", kill=kill), tmp_path / "part", save_minutes=0)
    seed(2)
    again = Walk(tmp_path / "part")
    loop.run(again, tmp_path / "part")
    assert again.begun == 0 and again.at.step == 7
    assert (tmp_path / "part" / "result").read_text() == (tmp_path / "whole" / "result").read_text()
    assert [p.name for p in (tmp_path / "part").iterdir()] == ["result"], "the checkpoint goes in the end"


def test_units_early_ends_curves_and_the_time_of_checkpoints(tmp_path):
    walk = Walk(tmp_path, steps=30, units=4, end=25)
    loop.run(walk, tmp_path)
    assert (walk.begun, walk.at.step, walk.at.done, walk.saved) == (1, 25, 100, 0), "5 minutes were not over"
    assert [c["step"] for c in walk.at.curve] == [0, 10, 20]
    often = Walk(tmp_path, steps=3)
    loop.run(often, tmp_path, save_minutes=0)
    assert often.saved == 2, "not after the last step: what was trained is written then"


def test_curves_are_running_means():
    training = Walk(None)
    for step, value in enumerate([1.0, 2.0, 4.0]):
        training.at.step = step + 1
        training.after_step({"loss": value})
    assert training.at.sums["loss"] == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4)
    assert training.at.curve == [{"step": 0, "loss": 1.0}]


def test_what_is_not_finite_names_stage_step_and_way_out():
    training = Walk(None)
    training.at.step = 12
    training.check({"loss": 1.0}, "Lower it")
    with pytest.raises(UserError, match=r"^walk: the norm is inf at step 12 on it\. Lower it and run again\.$"):
        training.check({"loss": 1.0, "norm": math.inf}, "Lower it", " on it")


@pytest.mark.parametrize("steps", [1, 2, 4, 6, 10, 37, 200])
def test_one_cycle_is_torchs(steps):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.2)
    for step in range(steps):
        group = optimizer.param_groups[0]
        assert loop.one_cycle(step, steps, 3e-3) == (group["lr"], group["betas"][0])
        optimizer.step()
        if step + 1 < steps:
            theirs.step()


def test_one_cycle_where_torch_divides_by_nothing():
    """A fifth of 5 steps is one: the peak is the first step."""
    rates = [loop.one_cycle(step, 5, 1.0)[0] for step in range(5)]
    assert rates[0] == 1.0 and rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(1 / 25 / 1e4)


def test_cosine_by_hand():
    assert [loop.cosine(step, 100) for step in (0, 1, 2)] == pytest.approx([0.5, 1.0, 0.1 + 0.45 * 1.998], rel=1e-3)
    assert loop.cosine(50, 100) == pytest.approx(0.55) and loop.cosine(99, 100) == pytest.approx(0.1, abs=1e-3)
    assert loop.cosine(0, 1) == 1.0


def test_trapezoid_by_hand():
    assert loop.trapezoid(0.0, 0.05) == pytest.approx(0.02)
    assert [loop.trapezoid(p, 0.05) for p in (0.1, 0.5, 0.66)] == [1.0, 1.0, 1.0]
    assert loop.trapezoid(0.8, 0.05) == pytest.approx(0.1 + 0.9 * 0.2 * 3)
    assert loop.trapezoid(1.0, 0.05) == pytest.approx(0.1)


@pytest.mark.parametrize(("rows", "count"), [(8, 2), (7, 3), (3, 3), (5, 4)])
def test_rows_are_shared_out_whole_and_evenly(rows, count):
    class Some:
        def __init__(self, rank):
            self.rank, self.count = rank, count

        def fault(self, message):
            return UserError(message)

    parts = [range(rows)[loop.share_of(rows, Some(rank))] for rank in range(count)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(UserError, match=f"a step has 1 images for {count} processes"):
        loop.share_of(1, Some(0))
