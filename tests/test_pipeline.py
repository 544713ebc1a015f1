"""The whole pipeline from data to results page at the smallest size that works: real CT, real reports, real SmolLM2.

One run with a toy LLM serves the tests of skipping, changing and killing; another goes on from its images and codes
with the real LLM, and its model is then used through the command line.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from conftest import build_model, build_tokenizer, load_script
from PIL import Image
from safetensors.torch import load_file

from llmcxr.cli import main
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.foundation.settings import load_settings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.inference.backend import Sampling
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.instructions.example import Turn
from llmcxr.model.calibration import load_calibration
from llmcxr.model.find import find_model
from llmcxr.model.folder import load_info
from llmcxr.model.outside import OutsideLimits, read_limits, write_limits
from llmcxr.model.patients import patient_hash, seen_patients
from llmcxr.model.sums import check_sums
from llmcxr.packing import rows_before
from llmcxr.pipeline import Run
from llmcxr.recipe import Recipe
from llmcxr.recipes import FOLDER
from llmcxr.sources.phantom.source import PhantomSource
from llmcxr.stages import tuning
from llmcxr.stages.context import Context
from llmcxr.stages.evaluation import cases_of, under_test
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.study import read_manifest, write_manifest
from llmcxr.tasks.cxr_to_report import ReportMeasurement
from llmcxr.tasks.cxr_vqa import TASK
from llmcxr.tuning.trainer import Stage as TuningStage
from llmcxr.vocabulary.language_model import load_language_model

RECIPE = {
    "name": "tiny",
    "device": "cpu",
    "source": {"phantom": {"train": 24, "validate": 8, "test": 40}},
    "clinical_features": {"training": {"steps": 2, "batch_size": 8}},
    "image_tokenizer": {
        "architecture": {
            "image_size": 64,
            "kind": "mixer",
            "patch": 16,
            "width": 32,
            "codebook_size": 16,
            "code_dim": 8,
            "clinical_input": True,
        },
        "steps": 3,
        "batch_size": 8,
    },
    "tuning": {
        "lora_rank": 2,
        "template": "chat",
        "system_prompt": "",
        "findings_first": ["cxr_to_report", "report_to_cxr"],
        "questions_per_image": 2,
        "language": {"loss": "base_model", "replay_texts": 3},
        "max_tokens": 640,
        "tokens_per_batch": 1280,
        "stages": [
            {"name": "stage1", "examples": 6, "mixture": {"cxr_vqa": 1, "report_to_cxr": 1, "cxr_to_report": 1}},
            {
                "name": "stage2",
                "examples": 3,
                "cohort": {"sections": "impression"},
                "mixture": {"cxr_vqa": 1, "report_to_cxr": 1, "language": 1},
                "adapters_kept": 0.5,
                "rare_findings": 0.3,
            },
        ],
    },
    "evaluation": {
        "judge_steps": 2,
        "cases": {"reconstructions": 40, "reports": 3, "questions": 4, "probabilities": 40, "drawings": 40},
    },
}
STAGES = [
    "studies",
    "clinical_features",
    "image_tokenizer",
    "codes",
    "vqa",
    "replay",
    "stage1",
    "stage2",
    "model",
    "judge",
    "evaluation",
]
RATE = "image_tokenizer.learning_rate=3e-4"
REQUIRED = {
    "report": {"micro_f1", "macro_f1", "baseline_micro_f1", "n"},
    "vqa": {"accuracy", "majority_accuracy", "auroc", "auroc_low", "auroc_high", "n"},
    "image": {"auroc", "auroc_low", "auroc_high", "auroc_real", "n"},
    "image_tokenizer": {"codebook_use", "l1", "auroc_original", "auroc_reconstruction"},
    "language": {"perplexity_ratio"},
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A finished run with a toy LLM; its recipe is `recipe.yaml` beside `runs`. Copy it before changing it."""
    home = tmp_path_factory.mktemp("tiny")
    build_model("llama", 340, True, max_position_embeddings=2048).save_pretrained(home / "llm")
    build_tokenizer().save_pretrained(home / "llm")
    recipe = RECIPE | {"runs": str(home / "runs"), "llm": str(home / "llm")}
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", str(home / "recipe.yaml")]) == 0
    return home


@pytest.fixture
def copied(tiny, tmp_path):
    """A copy of the run, and a function that runs it with overrides and returns the stages that started."""
    shutil.copytree(tiny / "runs", tmp_path / "runs")

    def run(*overrides: str, stage: str | None = None, fail_in: str = "", idle: bool = False) -> list[str]:
        started: list[str] = []
        one = Run(load_settings(Recipe, tiny / "recipe.yaml", [f"runs={tmp_path / 'runs'}", *overrides]))
        original = one.workflow._start

        def start(what, wanted):
            started.append(what.name)
            if idle:  # which stages run is decided before they do anything: what they would write is empty

                def write_nothing():
                    for path in (one.context.folder / name for name in what.outputs):
                        path.touch() if path.suffix else path.mkdir(exist_ok=True)

                what = dataclasses.replace(what, run=write_nothing)
            if what.name == fail_in:
                real = what.run

                def killed():
                    real()
                    raise KeyboardInterrupt

                what = dataclasses.replace(what, run=killed)
            return original(what, wanted)

        one.workflow._start = start  # type: ignore[method-assign]
        try:
            one.run(stage)
        except KeyboardInterrupt:
            assert fail_in
        return started

    run.folder = tmp_path / "runs" / "tiny"  # type: ignore[attr-defined]
    return run


def check_summary(folder: Path) -> dict:
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    for group, keys in REQUIRED.items():
        assert keys <= set(summary[group]), group
        for key in keys:
            assert isinstance(summary[group][key], int | float), (group, key)
    assert 0 < summary["image_tokenizer"]["codebook_use"] <= 1 and 0 < summary["image_tokenizer"]["l1"] < 1
    for low, mid, high in [
        (summary[g]["auroc_low"], summary[g]["auroc"], summary[g]["auroc_high"]) for g in ("vqa", "image")
    ]:
        assert 0 <= low <= high <= 1 and 0 <= mid <= 1
    assert summary["image"]["valid"] == 1
    assert summary["language"]["perplexity_ratio"] > 0
    trace = summary["language"]["trace"]
    assert trace[0]["after"] == "base" and trace[0]["perplexity_ratio"] == 1
    # The merged model is the last stage's, but for rounding (and for texts that a short stage has no time to measure).
    assert trace[-1]["perplexity_ratio"] == pytest.approx(summary["language"]["perplexity_ratio"], rel=0.05)
    assert all(entry["instruction_loss"] > 0 for entry in trace)
    return summary


def test_what_a_run_leaves(tiny):
    folder = tiny / "runs" / "tiny"
    summary = check_summary(folder)
    assert summary["report"]["n"] == 3 and summary["image"]["n"] <= 40
    page = (folder / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert len(page) > 10_000 and "data:image" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert sorted(p.stem for p in (folder / ".stages").glob("*.json")) == sorted(STAGES)
    assert np.load(folder / "pixels.npy").shape == (72, 64, 64)
    assert json.loads((folder / "studies.json").read_text())["studies"] == {"train": 24, "validate": 8, "test": 40}
    kept = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert kept["tuning"]["lora_rank"] == 2 and kept["name"] == "tiny"
    assert not list(folder.rglob("checkpoint.pt")), "finished stages leave no checkpoints"
    assert not [p for p in folder.rglob(".*") if p.name != ".stages"], "nothing half written stays"


def test_scores_and_page_are_made_anew_without_the_model(copied, capsys):
    folder = copied.folder / "evaluation"
    before = json.loads((folder / "summary.json").read_text())
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name in ("summary.json", "report.html", "glance.png"):
        (folder / name).unlink()
    (copied.folder / "model" / "model.safetensors").unlink()
    assert main(["evaluate", str(copied.folder), "--rescore"]) == 0
    assert json.loads((folder / "summary.json").read_text()) == before
    assert (folder / "report.html").read_text(encoding="utf-8") == page and (folder / "glance.png").exists()
    assert "Results page: " in capsys.readouterr().out
    assert main(["evaluate", str(copied.folder), "--rescore", "evaluation.unknown_labels=negative"]) == 0
    assert json.loads((folder / "summary.json").read_text())["protocol"]["unknown_labels"] == "negative"
    assert main(["evaluate", str(copied.folder.parent), "--rescore"]) == 2
    assert "is no folder of a run" in capsys.readouterr().err


def test_evaluation_takes_the_views_of_the_last_stage(copied):
    settings = load_settings(Recipe, copied.folder / "recipe.yaml")

    def measured(evaluation):
        context = Context(dataclasses.replace(settings, runs=copied.folder.parent, evaluation=evaluation))
        context.info = dataclasses.replace(context.info, views=("PA",))
        context.studies = [dataclasses.replace(s, view=("PA", "LATERAL")[i % 2]) for i, s in enumerate(context.studies)]
        return {s.view for s in cases_of(context, "test").test}

    assert measured(settings.evaluation) == {"PA"}
    assert measured(dataclasses.replace(settings.evaluation, views=[])) == {"PA", "LATERAL"}
    with pytest.raises(UserError, match="set evaluation.views"):
        measured(dataclasses.replace(settings.evaluation, views=["AP"]))


def test_a_task_of_ones_own_can_be_asked(tiny):
    context = Context(load_settings(Recipe, tiny / "recipe.yaml"))
    cases = cases_of(context, "test")
    model = under_test(context, cases)
    codes = model.codes([cases.test[0].image_id])[0]
    said = model.generate([TASK.prompt(codes, "Is there a nodule?"), (Turn("Hello."),)], 4)
    assert said[0] == model.model.answers(codes[None], ["Is there a nodule?"], Sampling(max_new_tokens=4))[0]
    assert len(said) == 2


def test_decoding_is_chosen_on_validation_patients(copied, monkeypatch, capsys):
    taken = []
    monkeypatch.setattr("llmcxr.evaluation.choose_decoding._GUIDANCE", (1.0, 2.0))
    monkeypatch.setattr("llmcxr.evaluation.choose_decoding._CANDIDATES", (1,))
    monkeypatch.setattr("llmcxr.tasks.cxr_to_report.MOST_TOKENS", 4)
    score = ReportMeasurement.score
    monkeypatch.setattr(ReportMeasurement, "score", lambda *a: taken.extend(p.image_id for p in a[1]) or score(*a))
    assert main(["choose-decoding", str(copied.folder), "--images", "2"]) == 0
    out = capsys.readouterr().out
    assert "In the recipe:\ntuning:\n  decoding: {report_guidance: " in out
    kept = json.loads((copied.folder / "decoding.json").read_text())
    assert len(kept["rows"]) == 4 and len(taken) == 8
    validation = {s.image_id for s in read_manifest(copied.folder / "manifest.parquet") if s.split == "validate"}
    assert set(taken) <= validation


def test_probabilities_are_calibrated_on_validation_patients(copied, tiny, monkeypatch, capsys):
    model, command = copied.folder / "model", ["calibrate", str(copied.folder)]
    assert load_calibration(model) is None  # the run has 8 validation images
    assert main(command) == 2 and "8 validation images are too few to calibrate by" in capsys.readouterr().err
    monkeypatch.setattr("llmcxr.evaluation.calibration.LEAST_IMAGES", 8)
    monkeypatch.setattr("llmcxr.evaluation.calibration.LEAST_CASES", 1)
    assert main(command) == 0
    said, own = capsys.readouterr().out, load_calibration(model)
    assert own is not None and f"{own.method}  <- chosen" in said and own.fitted_on.images == 8
    check_sums(model)
    kept = json.loads((copied.folder / "readings-validate.json").read_text())["rows"]
    studies = {s.image_id: s for s in read_manifest(copied.folder / "manifest.parquet")}
    assert len(kept) == 8 and {studies[row["image_id"]].split for row in kept} == {"validate"}
    results = copied.folder / "evaluation" / "summary.json"
    assert "calibration_error" in json.loads(results.read_text())["vqa"]  # scored by it at once
    write_limits(model, OutsideLimits(50, (-3.0, 2.0), (0.1, 0.1), tuple(float(i) for i in range(101))))
    monkeypatch.setattr(
        "llmcxr.inference.llm_cxr.LlmCxr.presence_probabilities", None
    )  # nothing is asked again, whatever is usual
    assert main(command) == 0 and load_calibration(model) == own
    assert copied() == []  # the run takes it as it is
    monkeypatch.setattr("llmcxr.stages.evaluation.summarise", None)  # killed between the calibration and the scores
    with pytest.raises(TypeError):
        main(command)
    monkeypatch.undo()
    assert copied() == ["evaluation"] and json.loads(results.read_text())["vqa"]["brier"] > 0
    assert main([*command, f"model={tiny / 'runs' / copied.folder.name}"]) == 2
    assert "Say with --into which folder" in capsys.readouterr().err


def test_what_is_usual_can_be_measured_anew_and_is_the_stages_own(copied, monkeypatch):
    usual = OutsideLimits(50, (-3.0, 2.0), (0.1, 0.1), tuple(float(i) for i in range(101)))
    monkeypatch.setattr("llmcxr.stages.outside.limits_of", lambda *_: usual)  # the run has too few images for its own
    assert main(["measure-outside", str(copied.folder)]) == 0
    assert read_limits(copied.folder / "model") == usual
    check_sums(copied.folder / "model")
    record = copied.folder / ".stages" / "model.json"
    assert "model/outside.json" in json.loads(record.read_text())["files"]
    # Killed as soon as it is written, and given by the folder's name: the next run with other settings makes the model anew.
    before = json.loads(record.read_text())
    record.write_text(json.dumps(before | {"files": [f for f in before["files"] if not f.endswith("outside.json")]}))

    def killed(*given):
        write_limits(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr("llmcxr.model.outside.write_limits", killed)
    assert main(["measure-outside", str(copied.folder), "--into", str(copied.folder / "model")]) == 130
    assert copied("tuning.decoding={report_guidance: 2}", idle=True) == ["model", "evaluation"]


def test_language_is_measured_before_between_and_after_the_stages(tiny, copied, monkeypatch):
    folder = tiny / "runs" / "tiny"
    one, two = (json.loads((folder / f"stage{k}" / "summary.json").read_text()) for k in (1, 2))
    assert [e["after"] for e in one["language"]] == ["base", "stage1"]
    assert two["language"][:2] == one["language"] and two["language"][2]["after"] == "stage2"
    page = (folder / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">stage2</th>' in page
    # Stopped between training and measuring: what was trained is kept, and measured.
    record = copied.folder / ".stages" / "stage2.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": False}))
    summary = copied.folder / "stage2" / "summary.json"
    summary.write_text(json.dumps({k: v for k, v in two.items() if k != "language"}))
    monkeypatch.setattr(TuningStage, "run", None)
    assert copied(stage="stage2") == ["stage2"]
    assert json.loads(summary.read_text()) == two


def test_stage2_goes_on_from_stage1(tiny):
    folder = tiny / "runs" / "tiny"
    one, two = (load_file(folder / f"stage{k}" / "weights.safetensors") for k in (1, 2))
    assert set(one) == set(two)
    distance = sum((one[n].float() - two[n].float()).norm() for n in one)
    length = sum(one[n].float().norm() for n in one)
    assert 0 < distance < 0.5 * length


def test_a_stage_begins_with_less_of_the_adapters_and_more_of_rare_findings(tiny, tmp_path, monkeypatch):
    begun = {}

    def run(self):
        begun.update(self.tunable.state())

    monkeypatch.setattr(TuningStage, "run", run)
    context = Context(load_settings(Recipe, tiny / "recipe.yaml"))
    stage = context.recipe.tuning.stages[1]
    tuning._train(context, stage, tmp_path)
    one = load_file(context.folder / "stage1" / "weights.safetensors")
    for name, weight in one.items():
        assert torch.equal(begun[name], 0.5 * weight if "lora_B" in name else weight), name
    all_once = dataclasses.replace(stage, rare_findings=0.0)
    drawings, once = (len(tuning.task_items(context, s, "train")[0]["report_to_cxr"]) for s in (stage, all_once))
    assert drawings > once


def test_a_second_run_starts_nothing(copied):
    assert copied() == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluation.cases={questions: 3}", ["evaluation"]),
        ("evaluation.judge_steps=3", ["judge", "evaluation"]),
        ("tuning.decoding={report_guidance: 2}", ["model", "evaluation"]),
        (
            "tuning.language={loss: base_model, replay_texts: 4}",
            ["replay", "stage2", "model", "evaluation"],
        ),
        ("tuning.lora_rank=3", ["stage1", "stage2", "model", "evaluation"]),
        (RATE, ["image_tokenizer", "codes", "stage1", "stage2", "model", "evaluation"]),
        ("labeller=none", ["studies", *STAGES[1:5], *STAGES[6:]]),
        ("seed=1", STAGES[1:]),
        ("about=other words", []),
        ("device=auto", []),
    ],
)
def test_a_changed_setting_starts_what_depends_on_it(copied, override, expected):
    assert copied(override, idle=True) == expected


def test_changed_contents_of_model_folders_are_noticed(copied, tiny, tmp_path):
    llm, images = tmp_path / "llm", tmp_path / "image_tokenizer"
    shutil.copytree(tiny / "llm", llm)
    shutil.copytree(copied.folder / "image_tokenizer", images)
    run = partial(copied, f"llm={llm}", f"image_tokenizer.pretrained={images}", idle=True)
    run()
    assert run() == []
    weights = llm / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert run() == ["replay", "stage1", "stage2", "model", "evaluation"]
    weights = images / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert run() == ["image_tokenizer", "codes", "stage1", "stage2", "model", "evaluation"]


def test_missing_inputs_are_said_before_anything_runs(tiny, tmp_path, capsys):
    def error(*overrides: str) -> str:
        assert main(["run", str(tiny / "recipe.yaml"), f"runs={tmp_path}", *overrides]) == 2
        assert not (tmp_path / "tiny" / "recipe.yaml").exists()
        return capsys.readouterr().err

    table = ["source.kind=table", "source.table.path=no/studies.csv", "source.access=Apply at the archive."]
    assert "the table no/studies.csv does not exist" in (said := error(*table))
    assert said.endswith("Apply at the archive.\n")
    assert "the folder of the images, no/files, does not exist" in error(*table, "source.table.images=no/files")
    assert "no/dolly.jsonl do not exist" in error("tuning.language.instructions=no/dolly.jsonl")
    assert "no/such/tokenizer does not exist" in error("image_tokenizer.pretrained=no/such/tokenizer")


def test_what_qlora_needs_is_said_before_anything_runs(tiny, tmp_path, capsys, monkeypatch):
    command = ["run", str(tiny / "recipe.yaml"), f"runs={tmp_path}", "tuning.method=qlora"]

    def missing():
        raise UserError("bitsandbytes is missing")

    monkeypatch.setattr(tuning, "bitsandbytes", missing)
    assert main(command) == 2 and "bitsandbytes is missing" in capsys.readouterr().err
    monkeypatch.setattr(tuning, "bitsandbytes", lambda: None)
    monkeypatch.setattr(Processes, "sharded", True)
    assert main(command) == 2 and "accelerate/ddp.yaml" in capsys.readouterr().err
    assert not (tmp_path / "tiny" / "recipe.yaml").exists()


def test_a_lost_output_is_made_again(copied):
    (copied.folder / "vqa.parquet").unlink()
    assert copied(stage="vqa") == ["vqa"]
    assert (copied.folder / "vqa.parquet").exists()


def test_killed_in_a_stage_and_run_again(copied, tiny):
    """After new settings and a kill inside `codes`, what was finished stays and the end is that of a run without kill."""
    assert copied(RATE, fail_in="codes") == ["image_tokenizer", "codes"]
    assert not json.loads((copied.folder / ".stages" / "codes.json").read_text())["finished"]
    assert copied(RATE) == ["codes", "stage1", "stage2", "model", "evaluation"]
    assert copied(RATE) == []
    check_summary(copied.folder)
    # Back to the first settings: the same files as ever.
    assert "image_tokenizer" in copied()
    for name in ("image_tokenizer/model.safetensors", "model/model.safetensors", "codes/codes.parquet"):
        assert (copied.folder / name).read_bytes() == (tiny / "runs" / "tiny" / name).read_bytes(), name


def test_a_kill_on_the_command_line_exits_130(tiny, tmp_path, monkeypatch, capsys):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(PhantomSource, "studies", killed)
    assert main(["run", str(tiny / "recipe.yaml"), f"runs={tmp_path}"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_several_processes_share_tuning_and_the_main_one_does_the_rest(copied, tiny):
    """`accelerate launch` with the shipped configuration on two CPU processes, against one process."""
    shipped = FOLDER / "accelerate" / "fsdp2.yaml"
    overrides = ["tuning.batches_per_step=2", "tuning.alignment={steps: 2}"]
    command = ["-m", "accelerate.commands.launch", "--config_file", str(shipped), "--num_processes", "2"]
    recipe = ["-m", "llmcxr", "run", str(tiny / "recipe.yaml"), f"runs={copied.folder.parent}", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *command, *recipe], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    starts = [line for line in result.stdout.splitlines() if line.startswith("[") and "(done)" not in line]
    expected = ["6/12] alignment", "8/12] stage1", "9/12] stage2", "10/12] model", "12/12] evaluation"]
    assert [line.split(":")[0] for line in starts] == ["[" + name for name in expected], "each said once"
    check_summary(copied.folder)
    trace = json.loads((copied.folder / "evaluation" / "summary.json").read_text())["language"]["trace"]
    assert [entry["after"] for entry in trace] == ["base", "alignment", "stage1", "stage2"]
    assert not [p for p in copied.folder.rglob(".*") if p.name != ".stages"]
    # What two processes made is what one process makes: the run is done for it, and a stage made again agrees.
    assert copied(*overrides) == []
    two = load_file(copied.folder / "stage1" / "weights.safetensors")
    shutil.rmtree(copied.folder / "stage1")
    assert copied(*overrides, stage="stage1") == ["stage1"]
    one = load_file(copied.folder / "stage1" / "weights.safetensors")
    torch.testing.assert_close(two, one, rtol=2e-2, atol=2e-2)


@pytest.fixture(scope="session")
def smollm(tiny, tmp_path_factory, smollm_tokenizer) -> Path:
    """The run goes on with the real LLM and one stage: images, image tokens and questions are kept."""
    home = tmp_path_factory.mktemp("smollm")
    # Unpacking the embedded 4-bit file takes longer than all that is done with it here: once, not in every stage.
    load_language_model("smollm2-135m-instruct", torch.bfloat16).save_pretrained(home / "llm")
    smollm_tokenizer.save_pretrained(home / "llm")
    shutil.copytree(tiny / "runs" / "tiny", home / "runs" / "tiny")
    stages = "tuning.stages=[{name: stage1, examples: 4}]"
    arguments = [
        f"runs={home / 'runs'}",
        f"llm={home / 'llm'}",
        stages,
        "evaluation.cases={reconstructions: 40, reports: 2, questions: 2, drawings: 12, probabilities: 12}",
    ]
    records = {n: (home / "runs" / "tiny" / ".stages" / f"{n}.json").read_text() for n in STAGES}
    assert main(["run", str(tiny / "recipe.yaml"), *arguments]) == 0
    kept = [n for n, text in records.items() if (home / "runs" / "tiny" / ".stages" / f"{n}.json").read_text() == text]
    assert kept == ["studies", "clinical_features", "image_tokenizer", "codes", "vqa", "stage2", "judge"]
    return home / "runs" / "tiny"


def test_the_real_llm_end_to_end(smollm):
    summary = json.loads((smollm / "evaluation" / "summary.json").read_text())
    for group, keys in REQUIRED.items():
        assert keys <= set(summary[group]), group
    # Four examples cannot make it forget, and a model whose text was broken would be far from 1.
    assert 0.9 < summary["language"]["perplexity_ratio"] < 1.1
    assert summary["language"]["perplexity_base"] < 60


def test_the_command_line_uses_the_model(smollm, tmp_path, capsys, monkeypatch):
    image = str(next((smollm / "images").glob("*test*.png")))
    model = ["--model", str(smollm), "--device", "cpu", "--max-new-tokens", "6"]
    assert main(["report", image, *model]) == 0
    assert main(["report", image, *model, "--guidance", "2", "--candidates", "2"]) == 0
    assert main(["ask", image, "Is there cardiomegaly?", *model]) == 0
    capsys.readouterr()
    assert main(["findings", image, *model[:-2]]) == 0  # no text is written: no length to give
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line]
    values = [float(p) for p, _ in rows]
    assert len(rows) >= 3 and values == sorted(values, reverse=True) and all(0 <= v <= 1 for v in values)
    assert main(["chat", "What is the capital of France?", *model[:-1], "16"]) == 0
    assert "Paris" in capsys.readouterr().out, "language is kept"
    drawn = tmp_path / "deep" / "drawn.png"
    assert main(["draw", "Right pleural effusion.", "-o", str(drawn), *model, "--seed", "3"]) == 0
    with Image.open(drawn) as picture:
        assert picture.size == (64, 64) and picture.text["Synthetic"] == "true"
        first = np.asarray(picture)
    assert main(["draw", "Right pleural effusion.", "-o", str(drawn), *model, "--seed", "3"]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(drawn)), first)
    many = ["--seed", "3", "--candidates", "3"]
    assert main(["draw", "Right pleural effusion.", "-o", str(drawn), *model, *many]) == 0
    assert np.asarray(Image.open(drawn)).shape == first.shape
    info = smollm / "model" / "llmcxr.json"
    whole = info.read_text()
    try:
        info.write_text(whole.replace('"report_candidates": 1', '"report_candidates": 2'))
        assert main(["report", image, *model]) == 2
        assert f"{info} is damaged or was changed" in capsys.readouterr().err
    finally:
        info.write_text(whole)


@pytest.fixture(scope="session")
def packed(smollm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "packed-tiny-1"
    assert main(["pack", str(smollm / "recipe.yaml"), str(folder)]) == 0
    return folder


def test_a_model_says_how_and_on_whom_it_was_trained(smollm, packed):
    both = {"cxr_to_report", "report_to_cxr"}
    summary = json.loads((smollm / "stage1" / "summary.json").read_text())
    assert set(summary["findings_first"]) == both and summary["notes"] == []
    trained = {patient_hash(f"phantom-0-train-{i:06d}") for i in range(24)}
    for folder in (smollm / "model", packed):
        info = load_info(folder)
        assert set(info.findings_first) == both and info.views == () and not info.earliest_only
        assert seen_patients(folder) == trained


def test_a_packed_model_is_the_model(smollm, packed, tmp_path, monkeypatch):
    card = (packed / "README.md").read_text()
    summary = json.loads((smollm / "evaluation" / "summary.json").read_text())
    assert f"| Image tokens, L1 error | {summary['image_tokenizer']['l1']:.3f} | - | 0.000 |  |" in card
    assert "24 training, 8 validation and 40 test images" in card and "CC BY-NC-ND 4.0" in card
    assert "stage1: LoRA of rank 2, " in card
    size = sum(p.stat().st_size for p in packed.rglob("*"))
    assert size < 0.08 * sum(p.stat().st_size for p in (smollm / "model").rglob("*"))
    monkeypatch.setattr("llmcxr.model.sums.cache_folder", lambda: tmp_path)
    folder = find_model(packed)
    assert folder.is_relative_to(tmp_path) and find_model(folder) == folder == find_model(packed)
    one, two = (load_file(f / "model.safetensors") for f in (smollm / "model", folder))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    whole, half = (LlmCxr.from_pretrained(f, "cpu") for f in (smollm, packed))
    images = sorted((smollm / "images").glob("*.png"))[:8]
    assert (whole.encode(images) == half.encode(images)).mean() > 0.9  # in half precision some codes are next best
    codes = whole.encode(images[:1])
    with monkeypatch.context() as patch:  # bfloat16 rounds more than half precision of the weights changes
        patch.setattr("llmcxr.image_tokens.tokenizer.autocast", lambda device: nullcontext())
        np.testing.assert_allclose(whole.decode(codes), half.decode(codes), atol=0.01)
    assert half.answers(codes, ["Is there a nodule?"]) == whole.answers(codes, ["Is there a nodule?"])


def test_a_packed_model_is_checked(packed, smollm, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("llmcxr.model.sums.cache_folder", lambda: tmp_path / "cache")
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    content = bytearray((copy / "adapters.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "adapters.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"adapters\.safetensors is damaged"):
        find_model(copy)
    (copy / "adapters.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapters\.safetensors is missing"):
        find_model(copy)
    shutil.copy(packed / "adapters.safetensors", copy)
    (copy / "judge" / "extra.json").write_text("{}")
    with pytest.raises(UserError, match=r"extra\.json is not part of the packed"):
        find_model(copy)
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="SHA256SUMS cannot be read"):
        find_model(copy)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UserError, match=r"there is no model 'nowhere'.*phantom"):
        find_model("nowhere")
    assert main(["pack", str(smollm / "recipe.yaml"), str(packed)]) == 2
    assert "it is a folder that is not empty" in capsys.readouterr().err
    assert main(["pack", str(tiny / "recipe.yaml"), str(tmp_path / "x"), "name=never"]) == 2
    assert "has no finished model" in capsys.readouterr().err


def test_training_goes_on_from_a_run_or_a_packed_model(smollm, packed, tmp_path, capsys):
    """With rates near 0, what comes out is what it began from; without `start`, it is not."""
    base = load_settings(Recipe, smollm / "recipe.yaml", [f"runs={tmp_path}", "name=further"])
    stage = dataclasses.replace(base.tuning.stages[0], examples=4, learning_rate=1e-9, rows_learning_rate=1e-9)
    frozen = dataclasses.replace(base, start=str(smollm), tuning=dataclasses.replace(base.tuning, stages=[stage]))
    frozen = dataclasses.replace(
        frozen, image_tokenizer=dataclasses.replace(base.image_tokenizer, steps=1, learning_rate=1e-9)
    )
    for folder in ("images", "masks", ".stages"):  # as if a run had been stopped while it drew
        shutil.copytree(smollm / folder, tmp_path / "further" / folder, ignore=shutil.ignore_patterns("*.json"))
    run = Run(frozen)
    for name in ("studies", "clinical_features", "image_tokenizer", "codes", "vqa"):
        run.run(name)
    context = run.context
    begun = ImageTokenizer.from_pretrained(smollm / "image_tokenizer")
    for part in ("encoder", "decoder"):
        one, two = (getattr(t, part).state_dict() for t in (begun, context.image_tokenizer))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    last = load_file(smollm / base.tuning.stages[-1].name / "weights.safetensors")
    for start in (smollm, packed):
        state = tuning.tunable_model(Context(dataclasses.replace(frozen, start=str(start)))).state()
        assert state.keys() == last.keys()
        wrong = [n for n in last if not torch.equal(state[n].bfloat16(), last[n].bfloat16())]  # as they are packed
        assert not wrong
    fresh = tuning.tunable_model(Context(dataclasses.replace(frozen, start=None))).state()
    assert not all(torch.equal(fresh[name], last[name]) for name in last)
    # What depends on the start is done again with another, and only that.
    starts = (str(smollm), str(packed), None)
    prints = [Run(dataclasses.replace(frozen, start=s)).workflow.fingerprints() for s in starts]
    assert prints[0] == Run(frozen).workflow.fingerprints()
    for other in prints[1:]:
        same = {name for name in other if other[name] == prints[0][name]}
        assert same == {"studies", "vqa", "judge"} | ({"replay"} if "replay" in other else set())
    rows = rows_before(str(smollm))
    assert [what for what, _ in rows] == ["image tokenizer, in the run tiny before", "stage1, in the run tiny before"]
    assert rows[0][1] == "3 steps of 8 images" and rows[1][1].startswith("LoRA of rank 2, ")
    assert rows_before(str(packed)) == [("start", "trains on from the packed model packed-tiny-1")]
    for start, said in [
        ("nowhere", "is no folder"),
        (str(tmp_path), "holds no model"),
        (str(smollm / "model"), "a merged model"),
    ]:
        assert main(["run", str(smollm / "recipe.yaml"), f"runs={tmp_path}", "name=bad", f"start={start}"]) == 2
        assert said in capsys.readouterr().err
    assert main(["run", str(smollm / "recipe.yaml"), "start=phantom", "llm=elsewhere", "name=bad"]) == 2
    assert "was tuned from smollm2-135m-instruct, not from elsewhere" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"start: nothing is trained where `model` is given"):
        load_settings(Recipe, smollm / "recipe.yaml", ["start=phantom", "model=phantom"])
    with pytest.raises(UserError, match=r"start: needs tuning.method lora, is full"):
        load_settings(
            Recipe,
            smollm / "recipe.yaml",
            ["start=phantom", "tuning.method=full", "tuning.language={loss: answers}"],
        )


def test_a_finished_model_is_measured_on_other_data(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("llmcxr.model.sums.cache_folder", lambda: tmp_path / "cache")
    source = {"phantom": {"train": 24, "validate": 0, "test": 2}}
    recipe = {"name": "other", "runs": str(tmp_path), "device": "cpu", "model": str(packed), "source": source}
    few = dict.fromkeys(("reports", "questions", "probabilities", "drawings"), 2)
    recipe["evaluation"] = {"cases": few}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", str(tmp_path / "recipe.yaml")]) == 0
    folder = tmp_path / "other"
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    for group, keys in REQUIRED.items():
        assert keys <= set(summary[group]), group
    assert sorted(p.stem for p in (folder / ".stages").glob("*.json")) == [
        "codes",
        "evaluation",
        "judge",
        "studies",
        "vqa",
    ]
    # The model's own judge knows these findings: none is trained.
    assert (folder / "judge" / "model.safetensors").read_bytes() == (
        packed / "judge" / "model.safetensors"
    ).read_bytes()
    assert "packed-tiny-1" in (folder / "evaluation" / "report.html").read_text()
    assert Image.open(folder / "evaluation" / "glance.png").text.keys() == {"Synthetic", "Software", "Comment"}
    capsys.readouterr()
    assert main(["pack", str(tmp_path / "recipe.yaml"), str(tmp_path / "x")]) == 2
    assert "nothing to pack" in capsys.readouterr().err
    assert PixelStore.open(folder / "pixels.npy").shape == (26, 64, 64)  # as the model sees them
    recipe_path = str(tmp_path / "recipe.yaml")
    assert main(["run", recipe_path, "name=seen", "--stage", "studies"]) == 0
    manifest = tmp_path / "seen" / "manifest.parquet"
    write_manifest(manifest, [dataclasses.replace(s, split="test") for s in read_manifest(manifest)])
    assert main(["run", recipe_path, "name=seen", "--stage", "codes"]) == 2
    assert "24 of the 26 validation and test patients, e.g. phantom-0-train-000000" in capsys.readouterr().err
    assert main(["run", recipe_path, "name=seen", "--stage", "codes", "allow_seen_patients=true"]) == 0
    assert "24 of the 26" in capsys.readouterr().out


def test_images_that_cannot_be_read(tiny, tmp_path, capsys):
    model = ["--model", str(tiny / "runs" / "tiny"), "--device", "cpu"]
    whole = next((tiny / "runs" / "tiny" / "images").glob("*.png")).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("hello")
    for name in ("missing.png", "cut.png", "text.png"):
        assert main(["report", str(tmp_path / name), *model]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        said = [line for line in error if line.startswith("llmcxr: ")]
        assert len(said) == 1 and name in said[0]


def test_a_model_with_another_image_tokenizer_is_refused(copied, capsys):
    path = copied.folder / "model" / "image_tokenizer" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    image = str(next((copied.folder / "images").glob("*.png")))
    assert main(["report", image, "--model", str(copied.folder), "--device", "cpu"]) == 2
    assert f"{path} is damaged or was changed" in capsys.readouterr().err
    (copied.folder / "model" / "SHA256SUMS").unlink()
    assert main(["report", image, "--model", str(copied.folder), "--device", "cpu"]) == 2
    assert "Codes of two tokenizers mean different things" in capsys.readouterr().err
    weights = copied.folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def test_learning_is_measured_at_equal_times(tiny, tmp_path):
    """benchmarks/tuning_learning.py, with and without alignment, on the codes of a finished run."""
    benchmark = load_script("benchmarks/tuning_learning.py")
    base = load_settings(Recipe, tiny / "recipe.yaml", ["tuning.logging=none"])
    before = {p: p.stat().st_mtime_ns for p in (tiny / "runs").rglob("*") if p.is_file()}
    results = {}
    for steps in (0, 1):
        change = {"alignment": steps, "mixture": {"cxr_vqa": 1.0}, "tokens_per_batch": 640}
        result = results[f"steps {steps}, 0"] = benchmark.learn(base, change, 0, seconds=1.5, points=2, images=40)
        curve = result["curve"]
        assert len(curve) >= 3 and result["images"] == 40
        minutes, tokens = ([point[k] for point in curve] for k in ("minutes", "tokens"))
        assert minutes == sorted(minutes) and minutes[-1] * 60 >= 1.5 and (minutes[0] > 0) == (steps > 0)
        assert tokens[0] == 0 and tokens[-1] > tokens[1] > 0
        assert all(0 <= point[k] <= 1 for point in curve for k in ("auroc", "list_f1", "report_f1"))
        assert curve[-1]["loss"]["cxr_vqa"] < curve[0]["loss"]["cxr_vqa"]
    assert {p: p.stat().st_mtime_ns for p in (tiny / "runs").rglob("*") if p.is_file()} == before
    benchmark.plot(results, tmp_path / "curves.svg")
    drawn = ElementTree.parse(tmp_path / "curves.svg").getroot()
    named = [g.get("id") for g in drawn.iter("{http://www.w3.org/2000/svg}g") if ": steps " in g.get("id", "")]
    assert drawn.tag.endswith("svg") and len(named) == len(set(named)) == 3 * 2 * 2
