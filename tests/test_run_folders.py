"""What names a run's folders may have, and what commands leave alone, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from llmcxr.cli import main
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import load_settings
from llmcxr.foundation.workflow import RESERVED
from llmcxr.pipeline import Run
from llmcxr.recipe import TAKEN, Recipe
from llmcxr.stages.image_tokens import ENCODED
from llmcxr.stages.synthesis import ANSWERS


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe that would be refused only when its table is read."""
    table = {"path": str(tmp_path / "none.csv"), "columns": {"image": "file"}}
    values = {"name": "run", "runs": str(tmp_path / "runs"), "source": {"kind": "table", "table": table}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


PATHS = ["/home/me/thesis", "../../x", "..", ".", "", ".stages", "a/b", "a\\b", "a b", "a\nb", "a\0b", "-a", "x" * 101]


@pytest.mark.parametrize("name", [*PATHS, "a.b", "images", "model", "Evaluation", "owner", "alignment"])
def test_names_of_stages_are_no_paths(name, recipe, tmp_path, capsys):
    stages = json.dumps([{"name": "stage1"}, {"name": name}])
    assert main(["run", str(recipe), f"tuning.stages={stages}"]) == 2
    assert f"tuning.stages[1].name: {name!r}" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_names_of_stages_differ_also_where_disks_know_no_case(recipe, capsys):
    assert main(["run", str(recipe), "tuning.stages=[{name: first}, {name: First}]"]) == 2
    assert "tuning.stages[1].name: 'First' is on some disks the same" in capsys.readouterr().err


def test_questions_of_an_earlier_version_are_not_taken_for_none(recipe):
    context = Run(load_settings(Recipe, recipe, ["device=cpu", "precision=float32"])).context
    assert context.questions == []
    context.folder.mkdir(parents=True)
    (context.folder / "vqa.jsonl").touch()
    del context.questions
    with pytest.raises(UserError, match=r"vqa\.jsonl holds questions as an earlier version .* --until vqa"):
        assert context.questions


@pytest.mark.parametrize("name", PATHS)
def test_names_of_runs_are_no_paths(name, recipe, tmp_path, capsys):
    assert main(["run", str(recipe), f"name={json.dumps(name)}"]) == 2
    assert f"name: {name!r} should be" in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["v1.2", "Lungenröntgen_2", "2024-11"])
def test_ordinary_names_pass(name, recipe, capsys):
    assert main(["run", str(recipe), f"name={json.dumps(name)}", "tuning.stages=[{name: Größer-2_b}]"]) == 2
    assert "none.csv" in capsys.readouterr().err, "the table is the only fault"


def _state(folder: Path) -> dict[Path, tuple[int, ...]]:
    """What a change of anything in `folder` would change; to look at a folder changes its time of access."""
    each = {path: path.stat() for path in folder.rglob("*")}
    return {path: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in each.items()}


@pytest.mark.parametrize("command", ["run", "evaluate", "rescore", "choose-decoding"])
def test_a_folder_that_is_no_run_is_left_alone(command, recipe, tmp_path, capsys):
    project = tmp_path / "my #1 project: runs" / "proj"  # YAML would read another path
    for file in ("model/weights", "evaluation/notes", "recipe.yaml"):
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        (project / file).write_text(recipe.read_text() if file == "recipe.yaml" else "mine")
    before = _state(project)
    words = ["run", str(recipe), f"runs={json.dumps(str(project.parent))}", "name=proj"]
    if command != "run":
        words = ["evaluate" if command == "rescore" else command, str(project), *["--rescore"] * (command == "rescore")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "is no folder of a run" in said and str(project) in said
    assert _state(project) == before


@pytest.mark.parametrize("words", [["draw", "Effusion."], ["preview"], ["pack", "demo"]])
def test_outputs_are_looked_at_before_the_work(words, tmp_path, capsys):
    device = "/dev/null"
    if words[0] == "draw":  # whose output is a PNG by name
        device = str(tmp_path / "x.png")
        (tmp_path / "x.png").symlink_to("/dev/null")
    assert main([*words, *["-o"] * (words[0] != "pack"), device, *["--model=none"] * (words[0] == "draw")]) == 2
    assert f"cannot write {device}: it is a device" in capsys.readouterr().err and not Path("/dev/null").is_file()


def test_no_name_of_a_stage_is_anything_elses_in_a_runs_folder(recipe):
    """Whatever a recipe switches off: it may be switched on again, and would find a tuning stage's weights in its place."""
    everything = ["vqa.synthesize=true", "chat.model=m", "tuning.alignment.steps=1"]
    everything += ["tuning.language={loss: base_model, replay_texts: 1}", "device=cpu", "precision=float32"]
    run = Run(load_settings(Recipe, recipe, everything))
    own = {stage.name for stage in run.recipe.tuning.stages}
    there = {name for stage in run.workflow.stages for name in (stage.name, *stage.outputs) if "." not in name}
    assert there - own | {ENCODED, *RESERVED} == set(TAKEN) and ANSWERS in RESERVED and own == {"stage1"}
    for name in TAKEN:
        with pytest.raises(UserError, match=rf"tuning.stages\[0\].name: '{name}' is the name of something else"):
            load_settings(Recipe, recipe, [f"tuning.stages=[{{name: {name}}}]"])
