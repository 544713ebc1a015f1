"""One process a folder, also where the system's lock holds nothing; a holder that is gone holds nothing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time

import psutil
import pytest

from llmcxr.foundation import folder_lock
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.folder_lock import FolderLock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(folder_lock, "_BEAT", 0.05)
    monkeypatch.setattr(folder_lock, "_SILENCE", 0.5)


def taken_over(folder) -> bool:
    lock = FolderLock(folder, folder)
    lock.acquire()
    owner = json.loads((folder / "owner.json").read_text())
    lock.release()
    assert not (folder / "owner.json").exists()
    return (owner["host"], owner["process"]) == (platform.node(), os.getpid())


def test_second_holder_of_one_process(tmp_path):
    lock = FolderLock(tmp_path, tmp_path)
    lock.acquire()
    with pytest.raises(UserError, match=rf"another run works in .*process {os.getpid()} on {platform.node()}"):
        FolderLock(tmp_path, tmp_path).acquire()
    lock.release()
    assert taken_over(tmp_path)


def test_process_of_this_machine_where_the_systems_lock_does_nothing(tmp_path):
    """As on some network file systems: only what the owner says is there."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        owner = {"host": platform.node(), "process": other.pid, "started": psutil.Process(other.pid).create_time()}
        (tmp_path / "owner.json").write_text(json.dumps(owner))
        with pytest.raises(UserError, match=f"process {other.pid} on"):
            FolderLock(tmp_path, tmp_path).acquire()
        assert json.loads((tmp_path / "owner.json").read_text()) == owner
        (tmp_path / "owner.json").write_text(json.dumps(owner | {"started": owner["started"] - 100}))
        assert taken_over(tmp_path), "the number was given to another process"
        (tmp_path / "owner.json").write_text(json.dumps(owner))
    finally:
        other.communicate(b"\n")
    assert taken_over(tmp_path)


def test_process_of_another_machine_is_known_by_its_signs_of_life(tmp_path):
    owner, over = tmp_path / "owner.json", threading.Event()
    owner.write_text(json.dumps({"host": "elsewhere", "process": 1, "started": 1.0}))

    def live():
        while not over.wait(0.05):
            os.utime(owner)

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(UserError, match="process 1 on elsewhere"):
        FolderLock(tmp_path, tmp_path).acquire()
    over.set()
    thread.join()
    assert taken_over(tmp_path)


def test_a_holder_gives_signs_of_life_until_it_lets_go(tmp_path):
    lock = FolderLock(tmp_path, tmp_path)
    lock.acquire()
    first, until = (tmp_path / "owner.json").stat().st_mtime_ns, time.monotonic() + 10
    while (tmp_path / "owner.json").stat().st_mtime_ns == first:
        assert time.monotonic() < until
        time.sleep(0.01)
    lock.release()


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_an_owner_that_was_cut_off(content, tmp_path):
    (tmp_path / "owner.json").write_text(content)
    assert taken_over(tmp_path)
