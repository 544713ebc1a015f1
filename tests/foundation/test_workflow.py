"""The workflow with stages that write a number into a file: what runs, what is skipped, what is removed, and who may."""

from __future__ import annotations

import json
import shutil
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

    def cook(self, only: str | None = None, until: str | None = None) -> list[str]:
        self.ran.clear()
        stages = [self.stage("one"), self.stage("two", "one"), self.stage("three", "one")]
        Workflow(self.folder, stages, Processes("cpu")).run(only, until=until)
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


def test_what_the_last_step_reads_has_it_run_again_over_what_is_there(tmp_path):
    model, folder, found = tmp_path / "model", tmp_path / "run", list[bool]()
    model.mkdir()
    (model / "weights.json").write_text("1")

    def run() -> None:
        found.append((folder / "answers").exists())
        (folder / "answers").touch()

    stage = Stage("one", "", run, None, (), ("answers",), (model,), ("late.json",), (model / "late.json",))

    def ran(name: str = "", text: str = "") -> list[bool]:
        found.clear()
        if name:
            (model / name).write_text(text)
        Workflow(folder, [stage], Processes("cpu")).run()
        return list(found)

    assert ran() == [False] and ran() == []
    assert ran("late.json", "2") == [True] and ran() == [], "again, over what it wrote"
    assert ran("weights.json", "3") == [False] and ran() == [], "from nothing"
    flow = Workflow(folder, [stage], Processes("cpu"))
    with flow.renewing("one"):
        (model / "late.json").write_text("4")
    assert ran() == [], "who renews it has read it"


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
    kitchen.folder.mkdir()
    with pytest.raises(UserError, match="no flour"):
        Workflow(kitchen.folder, [stage], Processes("cpu")).run()
    assert list(kitchen.folder.iterdir()) == [], "a folder that was empty stays"


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_of_something_else_stays_as_it_is(kitchen):
    (kitchen.folder / "one").mkdir(parents=True)
    (kitchen.folder / "one" / "thesis.txt").write_text("years of work")
    for work in (kitchen.cook, lambda: Workflow(kitchen.folder, [], Processes("cpu")).alone().__enter__()):
        with pytest.raises(
            UserError, match=r"run is there and is no folder of a run.*Set `runs` and `name` to another"
        ):
            work()
        assert files(kitchen.folder) == {"one/thesis.txt": "years of work"} and kitchen.ran == []
    assert not (kitchen.folder / ".stages").exists()


class Bakery(Kitchen):
    """Stages that write folders of two files."""

    def stage(self, name: str, *after: str) -> Stage:
        def run() -> None:
            self.ran.append(name)
            (self.folder / name).mkdir(exist_ok=True)
            for file in ("a", "b"):
                (self.folder / name / file).write_text(f"{name}{self.settings[name]}")
                if self.killed:
                    raise KeyboardInterrupt

        return Stage(name, f"bakes {name}", run, self.settings[name], after, (name,))


def test_what_is_made_anew_counts_as_finished_when_it_is_whole(kitchen):
    kitchen.cook()
    flow = Workflow(kitchen.folder, [], Processes("cpu"))
    with flow.renewing("two"):
        (kitchen.folder / "two").write_text("2.0")
        assert not flow.record("two")["finished"]
    assert kitchen.cook() == []
    with pytest.raises(KeyboardInterrupt), flow.renewing("two"):
        raise KeyboardInterrupt
    assert kitchen.cook() == ["two"]
    with flow.renewing("four"):  # which never ran
        pass
    assert flow.record("four") == {}


@pytest.mark.parametrize("killed_before", ["the file", "the end"])
def test_what_is_added_later_is_the_stages_own_whenever_it_is_killed(tmp_path, killed_before):
    bakery = Bakery(tmp_path / "run")
    bakery.cook()
    flow = Workflow(bakery.folder, [], Processes("cpu"))
    flow.adds("two", "two/late")
    if killed_before == "the end":
        (bakery.folder / "two" / "late").write_text("two2")
    assert bakery.cook() == []
    bakery.settings["two"] = 22
    assert bakery.cook() == ["two"] and not (bakery.folder / "two" / "late").exists()
    with pytest.raises(KeyboardInterrupt), flow.renewing("two"):
        (bakery.folder / "two" / "new").write_text("two22")
        raise KeyboardInterrupt
    bakery.settings["two"] = 2
    assert bakery.cook() == ["two"] and not (bakery.folder / "two" / "new").exists()
    flow.adds("four", "four/late")  # which never ran
    assert flow.record("four") == {}


def test_only_what_a_stage_wrote_is_removed(tmp_path):
    bakery = Bakery(tmp_path / "run")
    bakery.cook()
    (bakery.folder / "two" / ".DS_Store").write_text("litter")
    bakery.settings["two"] = 22
    assert bakery.cook() == ["two"] and not (bakery.folder / "two" / ".DS_Store").exists()
    (bakery.folder / "three" / "notes.txt").write_text("mine")
    bakery.settings["one"] = 11
    before = files(bakery.folder)
    with pytest.raises(UserError, match=r"notes\.txt is in the way of the stage three, which did not write it"):
        bakery.cook()
    assert bakery.ran == [] and files(bakery.folder) == before, "found before the first stage begins"
    (bakery.folder / "three" / "notes.txt").unlink()
    assert bakery.cook() == ["one", "two", "three"]
    (bakery.folder / ".stages" / "two.json").unlink()
    with pytest.raises(UserError, match="two/a is in the way of the stage two"):
        bakery.cook()


def test_what_an_interrupted_stage_wrote_is_removed(tmp_path):
    bakery = Bakery(tmp_path / "run")
    bakery.killed = True
    with pytest.raises(KeyboardInterrupt):
        bakery.cook()
    assert (bakery.folder / "one" / "a").exists()
    bakery.killed, bakery.settings["one"] = False, 11
    assert bakery.cook() == ["one", "two", "three"] and (bakery.folder / "one" / "a").read_text() == "one11"


@pytest.mark.parametrize("path", ["../precious", "{tmp}/precious", "", ".", "..", ".stages", "one/../../precious"])
def test_a_record_cannot_name_what_lies_elsewhere(path, kitchen, tmp_path):
    """As of a run that came from somebody else."""
    kitchen.cook()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    record = kitchen.folder / ".stages" / "two.json"
    values = json.loads(record.read_text())
    values["outputs"].append(path.replace("{tmp}", str(tmp_path)))
    values["files"].append(values["outputs"][-1] + "/thesis.txt")
    record.write_text(json.dumps(values))
    kitchen.settings["two"] = 22
    assert kitchen.cook() == ["two"]
    assert (tmp_path / "precious" / "thesis.txt").exists() and (kitchen.folder / "one").exists()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    bakery = Bakery(tmp_path / "run")
    bakery.cook()
    record = bakery.folder / ".stages" / "two.json"
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "files"}))
    shutil.move(bakery.folder / "two", tmp_path / "elsewhere")
    (bakery.folder / "two").symlink_to(tmp_path / "elsewhere")
    bakery.settings["two"] = 22
    assert bakery.cook() == ["two"]
    assert not (bakery.folder / "two").is_symlink() and (tmp_path / "elsewhere" / "a").read_text() == "two2"


def test_until_a_stage_runs_what_it_needs_and_no_more(kitchen):
    assert kitchen.cook(until="three") == ["one", "three"]
    assert kitchen.cook(until="three") == []
    assert kitchen.cook() == ["two"]
    with pytest.raises(UserError, match="no stage is called 'four'"):
        kitchen.cook(until="four")


def test_a_run_that_is_refused_changes_no_file(kitchen):
    kitchen.cook()
    kitchen.settings["one"] = 11
    before = files(kitchen.folder)
    for only, why in (("three", "stage three needs one"), ("four", "no stage is called")):
        stages = [kitchen.stage("one"), kitchen.stage("three", "one")]
        with pytest.raises(UserError, match=why):
            Workflow(kitchen.folder, stages, Processes("cpu")).run(
                only, before=lambda: pytest.fail("writes the recipe")
            )
    assert files(kitchen.folder) == before


def test_leftovers_of_kills_are_removed_by_the_next_run(kitchen):
    kitchen.cook()
    (kitchen.folder / "images" / ".a.png.abcd1234.partial").mkdir(parents=True)
    (kitchen.folder / ".pixels.npy.abcd1234.partial").mkdir()
    (kitchen.folder / ".pixels.npy.abcd1234.partial" / "pixels.npy").write_text("half")
    kitchen.cook()
    assert not list(kitchen.folder.rglob("*.partial"))
