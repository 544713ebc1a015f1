"""Work shared over processes: all of it, in order, and none of them outlives what started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from llmcxr.foundation import devices
from llmcxr.foundation.workers import in_processes

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no signals of this kind here")


def test_workers_give_all_in_order_and_pass_faults_on(monkeypatch):
    monkeypatch.setattr(devices, "core_count", lambda: 2)
    assert list(in_processes(abs, range(-30, 9), "x", "y", chunk=7, worth=0)) == list(map(abs, range(-30, 9)))
    with pytest.raises(ValueError, match="three"):
        list(in_processes(int, [*"12", "three", *"4" * 500], "x", "y", chunk=1, worth=0))
    until = time.monotonic() + 10
    while multiprocessing.active_children():
        assert time.monotonic() < until, "the workers of a fault are ended, not waited for"
        time.sleep(0.01)


SCRIPT = """
import sys, time
from llmcxr import cli
from llmcxr.commands.table import command
from llmcxr.foundation import devices
from llmcxr.foundation.workers import in_processes
devices.core_count = lambda: 2
@command("nap", "sleep")
def _nap(arguments):
    for _ in in_processes(time.sleep, [0.01] + [30.0] * 20, "naps", "nap", chunk=1, worth=0):
        print("one", flush=True)
if __name__ == "__main__":
    sys.exit(cli.main(["nap"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_what_started_them(number, tmp_path):
    """Also where it is killed. Ctrl-C comes to all of a terminal's processes, and only the first says so."""
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    hung = threading.Timer(60, process.kill)
    hung.start()
    assert process.stdout is not None and process.stdout.readline() == "one\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    started = time.monotonic()
    said = process.communicate()[1]
    hung.cancel()
    assert time.monotonic() - started < 15, "not until all naps are over"
    assert psutil.wait_procs(children, timeout=15)[1] == []
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        said = said.replace("\r", "\n").splitlines()  # what is not the progress bar's
        told = [line for line in said if line.strip() and not line.startswith("naps")]
        assert told == ["llmcxr: interrupted; run the same command again to go on."]
