"""Stopped work is saved, ends at once and leaves no process behind."""

from __future__ import annotations

import os
import signal

import pytest
from test_loop import Walk, seed

from llmcxr.foundation import loop
from llmcxr.foundation.stopping import ends_like_interrupts, exit_code

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no signals of this kind here")


class Asked(Walk):
    """A walk in which a step is interrupted by signals."""

    signals: tuple[int, ...] = ()
    at_step = 3

    def step(self):
        if self.at.step == self.at_step:
            for number in self.signals:
                os.kill(os.getpid(), number)
        return super().step()


@pytest.mark.parametrize("at_step", [0, 3, 6])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_training_ends_after_its_step_and_goes_on(number, at_step, tmp_path, capsys):
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    seed(1)
    loop.run(Walk(tmp_path / "whole"), tmp_path / "whole")
    seed(1)
    walk = Asked(tmp_path / "part")
    walk.signals, walk.at_step = (number,), at_step
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as caught:
        loop.run(walk, tmp_path / "part")
    assert exit_code(caught.value) == 128 + number and signal.getsignal(number) is before
    assert walk.at.step == at_step + 1 and "stopping after this step" in capsys.readouterr().err
    seed(2)
    loop.run(Walk(tmp_path / "part"), tmp_path / "part")
    assert (tmp_path / "part" / "result").read_text() == (tmp_path / "whole" / "result").read_text()
    assert [p.name for p in (tmp_path / "part").iterdir()] == ["result"]


def test_a_second_interrupt_ends_at_once_and_a_launcher_that_says_it_again_does_not(tmp_path):
    walk = Asked(tmp_path)
    walk.signals = (signal.SIGINT, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        loop.run(walk, tmp_path)
    assert walk.saved == 1
    walk = Asked(tmp_path)
    walk.signals, walk.at_step = (signal.SIGINT, signal.SIGINT), 5
    with pytest.raises(KeyboardInterrupt):
        loop.run(walk, tmp_path)
    assert walk.saved == 0 and walk.at.step == 5


def test_what_ends_a_process_interrupts_unless_it_is_ignored():
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(KeyboardInterrupt) as caught, ends_like_interrupts():
            os.kill(os.getpid(), number)
        assert exit_code(caught.value) == 128 + number
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with ends_like_interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert exit_code(KeyboardInterrupt()) == 130
