"""Killed at any moment, on a full disk, or with a torn checkpoint: the stage ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import signal
import time

import pytest
import torch
from toy_stage import SERVER, SETTINGS, STAGE, set_up, stage

from llmcxr.foundation import loop
from llmcxr.foundation.checkpoints import load_checkpoint
from llmcxr.foundation.errors import UserError

# Dropout everywhere, so that a resumed run must also draw what the uninterrupted one drew.
DROPOUT = {"kind": "gpt2", "dropout": 0.1}
SETTINGS_LONG = dataclasses.replace(SETTINGS, stages=[dataclasses.replace(STAGE, examples=200)])


def train(folder, how: str = "", number: int = 0) -> None:
    """The stage in a process of its own. `how` and `number` say what befalls it at which checkpoint."""
    set_up()
    one, saves, real, checkpoint = stage(folder, SETTINGS_LONG, **DROPOUT), 0, torch.save, loop.save_checkpoint

    def save(state, path):
        nonlocal saves
        saves += 1
        if saves == number and how == "full disk":
            # A real failure of the system's write, as on a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        real(state, path)
        if saves == number and how == "half written":
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def save_checkpoint(path, state):
        checkpoint(path, state)
        if saves == number and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save, loop.save_checkpoint = save, save_checkpoint
    try:
        one.run()
    except UserError as error:
        assert "cannot write" in str(error) and "Free disk space" in str(error), error
        raise SystemExit(2) from None


def start(*arguments):
    process = SERVER.Process(target=train, args=arguments)
    process.start()
    return process


def finish(*arguments) -> int | None:
    process = start(*arguments)
    process.join(300)
    return process.exitcode


def result(folder):
    curve = json.loads((folder / "curves.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    for record in [*curve, summary]:
        record.pop("seconds")
    for key in ("measuring_seconds", "measuring_last"):
        summary.pop(key)
    return (folder / "weights.safetensors").read_bytes(), curve, summary


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert finish(folder) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["curves.json", "summary.json", "weights.safetensors"]
    return result(folder)


def test_several_kills_at_random_moments(whole, tmp_path):
    moments, steps = random.Random(0), []
    for _ in range(7):
        process = start(tmp_path)
        before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns if (tmp_path / "checkpoint.pt").exists() else 0
        while process.is_alive():  # until it has begun to save: the time to start differs by machine
            path = tmp_path / "checkpoint.pt"
            if path.exists() and path.stat().st_mtime_ns != before:
                break
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.04))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break  # finished before the kill
        steps.append(load_checkpoint(tmp_path / "checkpoint.pt")["progress"]["step"])
    assert len(steps) >= 4 and steps == sorted(steps) and steps[0] > 0, steps
    assert finish(tmp_path) == 0
    assert result(tmp_path) == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.json", "summary.json", "weights.safetensors"]


@pytest.mark.parametrize("how", ["full disk", "half written"])
def test_the_last_good_checkpoint_is_kept(how, whole, tmp_path):
    assert finish(tmp_path, how, 4) == (2 if how == "full disk" else -signal.SIGKILL)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["progress"]["step"] == 3
    assert finish(tmp_path) == 0
    assert result(tmp_path) == whole


def test_a_torn_checkpoint_gives_way_to_the_one_before(whole, tmp_path):
    assert finish(tmp_path, "killed", 4) == -signal.SIGKILL
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:5000])
    # Killed again while it writes the next one: the one good file must not have made way for it.
    assert finish(tmp_path, "half written", 1) == -signal.SIGKILL
    assert load_checkpoint(path)["progress"]["step"] == 3
    assert finish(tmp_path) == 0
    assert result(tmp_path) == whole
