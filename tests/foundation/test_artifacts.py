"""Atomic writes: whatever goes wrong, a reader sees the old content or the new one, and no litter stays."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from transformers import AddedToken

from llmcxr.foundation import artifacts
from llmcxr.foundation.artifacts import (
    atomic_path,
    check_output,
    content_fingerprint,
    fingerprint,
    read_json,
    remove_leftovers,
    write_json,
    writing,
)
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


BIG = np.zeros(50_000)
SAVED = {
    "bytes": lambda path: path.write_bytes(BIG.tobytes()),
    "safetensors": lambda path: save_file({"x": torch.zeros(50_000)}, path),
    "parquet": lambda path: pd.DataFrame({"x": np.random.default_rng(0).uniform(size=50_000)}).to_parquet(path),
    "tokenizer": lambda path: build_tokenizer(*[AddedToken(f"<{k:050d}>") for k in range(1500)]).save_pretrained(path),
    "copy": lambda path: shutil.copytree(path.parents[2] / "source", path),
    "image": lambda path: Image.effect_noise((500, 500), 99).save(path, format="PNG"),
}


@pytest.mark.parametrize("how", SAVED)
def test_a_full_disk_is_one_clear_error(how, small_disk):
    """Of each library that writes: some tell of it in words of their own."""
    (small_disk.parent / "source").mkdir()
    if how == "copy":
        with open(small_disk.parent / "source" / "a", "wb") as file:
            file.truncate(90_000)
        (small_disk / "other").write_bytes(bytes(60_000))
        if shutil.disk_usage(small_disk).total > 200_000:
            pytest.skip("needs a small disk: no single file is too large")
    (small_disk / "a").write_text("old")
    before = names(small_disk)
    said = r"cannot write .*/a: (No space left on device|File too large) \(.* were written, .* are free\)\. Free disk space"
    with pytest.raises(UserError, match=said), atomic_path(small_disk / "a") as temporary:
        SAVED[how](temporary)
    assert (small_disk / "a").read_text() == "old" and names(small_disk) == before


def test_what_is_written_in_place_says_so_too(small_disk):
    with (
        pytest.raises(UserError, match=r"cannot write .*log: (No space left|File too large)"),
        writing(small_disk / "log"),
        open(small_disk / "log", "wb") as file,
    ):
        file.write(bytes(200_000))
    with pytest.raises(ValueError, match="a bug"), writing(small_disk / "log"):
        raise ValueError("a bug")


def test_outputs_go_through_links_and_keep_permissions(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a").write_text("old")
    (tmp_path / "far" / "a").chmod(0o640)
    for name in ("a", "b"):  # b is not there yet
        (tmp_path / name).symlink_to(tmp_path / "far" / name)
        check_output(tmp_path / name)
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text("new")
        assert (tmp_path / name).is_symlink() and (tmp_path / "far" / name).read_text() == "new"
    assert (tmp_path / "far" / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_nothing_but_a_file_that_may_be_written_is_replaced(tmp_path):
    """Also by root, whom the system lets do it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "locked").write_text("mine")
    (tmp_path / "locked").chmod(0o444)
    (tmp_path / "folder").mkdir()
    (tmp_path / "round").symlink_to("round")
    reasons = {"pipe": "device, a pipe", "link": "device, a pipe", "locked": "read-only", "round": "symbolic links"}
    for path, why in {**{tmp_path / k: v for k, v in reasons.items()}, Path("/dev/null"): "device, a pipe"}.items():
        before = os.lstat(path)
        for write in (check_output, lambda p: atomic_path(p).__enter__()):
            with pytest.raises(UserError, match=f"cannot write {path}: .*{why}"):
                write(path)
        assert os.lstat(path) == before
    with pytest.raises(UserError, match="is a folder"):
        check_output(tmp_path / "folder")
    with pytest.raises(UserError, match="is a file, where a folder"):
        check_output(tmp_path / "locked" / ".." / "locked", folder=True)
    with pytest.raises(UserError, match="locked is no folder"):
        check_output(tmp_path / "locked" / "a" / "b")
    check_output(tmp_path / "new" / "deep" / "a.png")
    check_output(tmp_path / "folder", folder=True)
    assert names(tmp_path) == ["folder", "link", "locked", "pipe", "round"], "nothing is made"


def test_leftovers_of_kills_go_and_nothing_else(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from llmcxr.foundation.artifacts import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as t:\n    t.mkdir(); (t / 'x').touch(); os.kill(os.getpid(), "
        "signal.SIGKILL)\n"
    )
    for name in ("pixels.npy", "deep/model"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], check=False)
    for name in (".git.settings", ".a.partial", "a.abcdefgh.partial"):
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.rglob("x"))) == 2
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".a.partial", ".git.settings", "a.abcdefgh.partial", "deep"]
    assert names(tmp_path / "deep") == []


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
