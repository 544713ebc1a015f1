"""Checkpoints: equal after a round trip; a broken or hostile file names itself; the last good one survives."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmcxr.foundation.checkpoints import load_checkpoint, load_weights, remove_checkpoint, save_checkpoint
from llmcxr.foundation.errors import UserError


class Hostile:
    """Unpickled by a careless reader, this makes a folder."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_round_trip(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "step": 3, "curve": [{"a": 0.5}], "rng": torch.get_rng_state()}
    save_checkpoint(tmp_path / "c.pt", state)
    again = load_checkpoint(tmp_path / "c.pt")
    assert again["step"] == 3 and again["curve"] == [{"a": 0.5}]
    torch.testing.assert_close(again["optimizer"]["state"], state["optimizer"]["state"], rtol=0, atol=0)
    assert torch.equal(again["rng"], state["rng"])


def test_none_where_there_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "c.pt") is None


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_broken_file_names_itself(tmp_path, content):
    path = tmp_path / "c.pt"
    if content is None:  # a file that was cut off
        save_checkpoint(path, {"x": torch.zeros(1000)})
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pt cannot be read.*Delete it"):
        load_checkpoint(path)


def test_a_hostile_file_is_not_run(tmp_path):
    torch.save({"x": Hostile(str(tmp_path / "owned"))}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"c\.pt"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "owned").exists()


def test_a_full_disk_keeps_the_last_good_one(small_disk):
    save_checkpoint(small_disk / "c.pt", {"step": 1})
    with pytest.raises(
        UserError, match=r"cannot write .*c\.pt: No space left on device \(.* kB of it were written, .* free"
    ):
        save_checkpoint(small_disk / "c.pt", {"step": 2, "x": torch.zeros(100_000)})
    assert load_checkpoint(small_disk / "c.pt") == {"step": 1}


def test_a_torn_file_gives_way_to_the_one_before_and_stays_away(tmp_path, capsys):
    path = tmp_path / "c.pt"
    for step in (1, 2, 3):
        save_checkpoint(path, {"step": step, "x": torch.zeros(100)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt", "c.pt.previous"]
    path.write_bytes(path.read_bytes()[:300])
    assert load_checkpoint(path)["step"] == 2
    assert "going on from the checkpoint before it" in capsys.readouterr().err
    save_checkpoint(path, {"step": 4})
    path.write_bytes(b"")
    assert load_checkpoint(path)["step"] == 2, "the torn one did not take its place"
    (tmp_path / "c.pt.previous").write_bytes(b"")
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"c\.pt cannot be read"):
        load_checkpoint(path)
    remove_checkpoint(path)
    assert not list(tmp_path.iterdir())


def test_weights_missing_cut_off_or_whole(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=r"w\.safetensors"):
        load_weights(path)
    save_file({"a": torch.arange(100.0)}, path)
    assert torch.equal(load_weights(path)["a"], torch.arange(100.0))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"w\.safetensors"):
        load_weights(path)


def test_a_checkpoint_is_mapped_not_read_whole(tmp_path):
    """Every process of a machine opens it; each had a copy of all of it."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"weights": torch.arange(100_000.0)})
    state = load_checkpoint(path)
    assert state is not None
    if sys.platform == "linux":
        assert str(path) in Path("/proc/self/maps").read_text()
    save_checkpoint(path, {"weights": torch.zeros(1)})  # the one before is moved, and stays whole
    assert torch.equal(state["weights"], torch.arange(100_000.0))
