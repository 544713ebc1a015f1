"""The workflow with stages that write a number into a file: what runs, what is skipped, what is removed, and who may."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.foundation.workflow import Stage, Workflow


class Kitchen:
    """Three stages, the third of which depends on the first alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran = folder, list[str]()
        self.settings = {"one": 1, "two": 2, "three": 3}
        self.reads: tuple[Path, ...] = ()
        self.said: str | None = None
        self.killed = False

    def stage(self, name: str, *after: str) -> Stage:
        def run() -> str | None:
            self.ran.append(name)
            if self.killed:
                raise KeyboardInterrupt
            if name == "two" and self.said:
                return self.said
            (self.folder / name).write_text(str(self.settings[name]))
            return None

        reads = self.reads if name == "three" else ()
        return Stage(name, f"makes {name}", run, self.settings[name], after, (name,), reads)

    def cook(self, only: str | None = None) -> list[str]:
        self.ran.clear()
        stages = [self.stage("one"), self.stage("two", "one"), self.stage("three", "one")]
        Workflow(self.folder, stages, Processes("cpu")).run(only)
        return list(self.ran)


@pytest.fixture
def kitchen(tmp_path) -> Kitchen:
    return Kitchen(tmp_path / "run")


def test_what_is_done_is_skipped_and_what_depends_on_a_change_runs_again(kitchen):
    assert kitchen.cook() == ["one", "two", "three"]
    assert kitchen.cook() == []
    kitchen.settings["two"] = 22
    assert kitchen.cook() == ["two"] and (kitchen.folder / "two").read_text() == "22"
    kitchen.settings["one"] = 11
    assert kitchen.cook() == ["one", "two", "three"]
    (kitchen.folder / "three").unlink()
    assert kitchen.cook() == ["three"]


def test_one_stage_alone_needs_those_before_it(kitchen):
    with pytest.raises(UserError, match="stage two needs one"):
        kitchen.cook("two")
    assert kitchen.cook("one") == ["one"] and kitchen.cook("three") == ["three"] and kitchen.cook() == ["two"]
    with pytest.raises(UserError, match=r"no stage is called 'four'\. Stages: one, two, three"):
        kitchen.cook("four")


def test_a_stage_with_nothing_to_do_is_done_and_says_why(kitchen, capsys):
    kitchen.said = "no eggs"
    kitchen.cook()
    assert "left out: no eggs" in capsys.readouterr().out and kitchen.cook() == []
    record = json.loads((kitchen.folder / ".stages" / "two.json").read_text())
    assert record["finished"] and record["left_out"] == "no eggs"
    kitchen.said, kitchen.settings["two"] = None, 5
    assert kitchen.cook() == ["two"]
    assert "left_out" not in json.loads((kitchen.folder / ".stages" / "two.json").read_text())


def test_contents_of_what_is_read_count_wherever_it_lies(kitchen, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "table.csv").write_text("a")
    kitchen.reads = (Path("~/table.csv"),)
    kitchen.cook()
    (tmp_path / "table.csv").write_text("b")
    assert kitchen.cook() == ["three"]
    kitchen.reads = (tmp_path / "table.csv",)
    assert kitchen.cook() == [], "the same contents by another name"
    (tmp_path / "table.csv").unlink()
    assert kitchen.cook() == ["three"]


def test_an_interrupted_stage_is_not_done(kitchen):
    kitchen.cook()
    kitchen.settings["one"], kitchen.killed = 7, True
    with pytest.raises(KeyboardInterrupt):
        kitchen.cook()
    kitchen.killed = False
    assert kitchen.cook() == ["one", "two", "three"]


def test_two_runs_in_one_folder(kitchen, tmp_path):
    """Another process holds the folder; once it is gone, however it ended, the folder is free."""
    script = (
        "import sys, time; from pathlib import Path\n"
        "from llmcxr.foundation.processes import Processes; from llmcxr.foundation.workflow import Stage, Workflow\n"
        f"run = lambda: (Path({str(tmp_path / 'begun')!r}).touch(), time.sleep(60))[1]\n"
        f"Workflow(Path({str(kitchen.folder)!r}), [Stage('one', '', run)], Processes('cpu')).run()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script])
    try:
        for _ in range(600):
            if (tmp_path / "begun").exists():
                break
            time.sleep(0.1)
        with pytest.raises(UserError, match=rf"another run works in .*\(process {other.pid} on "):
            kitchen.cook()
        assert kitchen.ran == []
    finally:
        other.kill()
        other.wait()
    assert kitchen.cook() == ["one", "two", "three"]


def test_a_run_that_is_refused_leaves_nothing(kitchen, tmp_path):
    def missing():
        raise UserError("no flour")

    stage = Stage("one", "", lambda: None, reads=(tmp_path,), check=missing)
    with pytest.raises(UserError, match="no flour"):
        Workflow(kitchen.folder, [stage], Processes("cpu")).run(before=lambda: pytest.fail("comes after the checks"))
    assert not kitchen.folder.exists()
