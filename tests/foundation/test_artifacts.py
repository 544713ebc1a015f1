"""Atomic writes: whatever goes wrong, a reader sees the old content or the new one, and no litter stays."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.foundation import artifacts
from llmcxr.foundation.artifacts import atomic_path, content_fingerprint, fingerprint, read_json, write_json
from llmcxr.foundation.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_replaces_a_file(tmp_path):
    for content in ("old", "new"):
        with atomic_path(tmp_path / "deep" / "a.txt") as temporary:
            temporary.write_text(content)
        assert (tmp_path / "deep" / "a.txt").read_text() == content
    assert names(tmp_path / "deep") == ["a.txt"]


def test_a_folder_replaces_a_folder_wholly(tmp_path):
    for name in ("first", "second"):
        with atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert names(tmp_path / "model") == ["second"] and names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), UserError("said")])
def test_any_failure_leaves_the_old_content_and_passes_through(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_one_clear_error(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with (
        pytest.raises(UserError, match=r"cannot write .*a\.txt: .*No space left.*Free disk space"),
        atomic_path(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_replaced_is_kept(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="cannot write"), atomic_path(tmp_path / "model") as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["old"]


def test_a_place_that_is_no_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"), atomic_path(tmp_path / "file" / "a.txt") as temporary:
        temporary.write_text("x")


def test_json_round_trip_and_broken_files(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1, None, 0.5]})
    assert read_json(tmp_path / "a.json") == {"ä": [1, None, 0.5]}
    assert "ä" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"b\.json does not exist"):
        read_json(tmp_path / "b.json")
    for content in (b'{"a": ', b"\xff\xfe"):
        (tmp_path / "c.json").write_bytes(content)
        with pytest.raises(UserError, match=r"c\.json is not readable"):
            read_json(tmp_path / "c.json")


def test_fingerprint_sees_values_contents_and_borders(tmp_path):
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("one")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    (tmp_path / "b").write_text("two")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
    assert fingerprint({"x": 1, "y": 2}) == fingerprint({"y": 2, "x": 1})
    assert fingerprint("a", "b") != fingerprint("ab") != fingerprint(["a", "b"])
    assert len(fingerprint(1)) == 12


@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), min_size=1, max_size=4))
def test_equal_fingerprints_mean_equal_values(a, b):
    assert (fingerprint(*a) == fingerprint(*b)) == (a == b)


def test_a_folder_is_known_by_what_loaders_read(tmp_path):
    folder, memo = tmp_path / "llm", tmp_path / "run" / "hashes"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    first = content_fingerprint(folder, memo)
    (folder / "README.md").write_text("words")
    (folder / ".lock.json").write_text("{}")
    assert content_fingerprint(folder, memo) == first, "no loader reads these"
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "config.json", (1, 1))
    assert content_fingerprint(tmp_path / "copy", memo) == first, "the same model elsewhere"
    (folder / "model.safetensors").write_bytes(bytes(999) + b"1")
    second = content_fingerprint(folder, memo)
    (folder / "config.json").rename(folder / "other.json")
    third = content_fingerprint(folder, memo)
    assert len({first, second, third}) == 3


def test_weights_that_did_not_change_are_not_read_again(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    first = content_fingerprint(tmp_path, tmp_path / "memo")
    reads = []
    real = artifacts.fingerprint
    monkeypatch.setattr(artifacts, "fingerprint", lambda *parts: reads.extend(parts) or real(*parts))
    assert content_fingerprint(tmp_path, tmp_path / "memo") == first
    assert not [part for part in reads if isinstance(part, Path)]
