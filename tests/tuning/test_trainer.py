"""The loop of a stage: learns, resumes to the very same weights, counts what it leaves out, stops before damage."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer

from llmcxr.foundation.errors import UserError
from llmcxr.instructions.cxr_to_report import CxrToReportTask, ImageReport
from llmcxr.instructions.example import Turn
from llmcxr.instructions.language import LanguageTask
from llmcxr.instructions.report_to_cxr import ReportToCxrTask
from llmcxr.instructions.templates import build_template
from llmcxr.tuning import trainer
from llmcxr.tuning.settings import StageSettings, TuningSettings
from llmcxr.tuning.trainer import Stage, load_stage
from llmcxr.tuning.tunable import TunableModel
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

CPU = torch.device("cpu")
K = 8
rng = np.random.default_rng(0)
PAIRS = [ImageReport(f"i{k}", rng.integers(0, K, 4).astype(np.uint16), f"The heart is {k % 3}.") for k in range(12)]
LONG = [ImageReport("long", PAIRS[0].codes, "The lungs are clear, " * 40)]  # one sentence: cannot be cut
SENTENCES = [ImageReport("sentences", PAIRS[0].codes, "The lungs are clear. " * 40)]
STAGE = StageSettings(
    examples=40,
    mixture={"language": 0.2, "report_to_cxr": 0.4, "cxr_to_report": 0.4},
    learning_rate=3e-3,
    rows_learning_rate=3e-3,
)
SETTINGS = TuningSettings(
    lora_rank=4,
    template="chat",
    max_tokens=180,
    tokens_per_batch=300,
    batches_per_step=2,
    evaluations=2,
    evaluation_examples=3,
    checkpoint_minutes=0.0,
    task_loss_weights={"report_to_cxr": 0.5},
    stages=[STAGE],
)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(trainer, "_WINDOW", 16)


def tasks(pairs):
    return {
        "language": LanguageTask([Turn("Say yes.", "", "Yes."), Turn("Say no.", "", "No.")]),
        "report_to_cxr": ReportToCxrTask(pairs),
        "cxr_to_report": CxrToReportTask(pairs),
    }


def stage(folder, settings=SETTINGS, pairs=PAIRS, dtype=torch.float32) -> Stage:
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model("llama", vocabulary.first_id, True).to(dtype)
    rows = 0.2 * torch.randn(K, 32, generator=torch.Generator().manual_seed(1))
    tunable = TunableModel(model, vocabulary, rows, settings)
    template = build_template("chat", vocabulary.tokenizer)
    return Stage(tunable, template, settings, settings.stages[0], tasks(pairs), tasks(PAIRS[:2]), folder, CPU)


def variants():
    mixed = [*PAIRS[:9], *LONG, *LONG, *SENTENCES]
    full = dataclasses.replace(SETTINGS, method="full")
    return {
        "lora": (SETTINGS, PAIRS, torch.float32),
        "full": (full, PAIRS, torch.float32),
        "bfloat16": (SETTINGS, PAIRS, torch.bfloat16),
        "too long": (SETTINGS, mixed, torch.float32),
    }


@pytest.mark.parametrize(
    ("name", "kill"), [("lora", 2), ("lora", 7), ("full", 6), ("bfloat16", 3), ("too long", 3), ("too long", 7)]
)
def test_killed_and_resumed_equals_uninterrupted(name, kill, tmp_path, monkeypatch):
    settings, pairs, dtype = variants()[name]
    whole = stage(tmp_path / "whole", settings, pairs, dtype)
    whole.run()
    real, calls = trainer.token_losses, 0

    def dies(model, *rest):
        nonlocal calls
        calls += model.training
        if calls == kill:
            raise KeyboardInterrupt
        return real(model, *rest)

    monkeypatch.setattr(trainer, "token_losses", dies)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "part", settings, pairs, dtype).run()
    assert (tmp_path / "part" / "checkpoint.pt").exists() == (kill > 2)
    assert not (tmp_path / "part" / "weights.safetensors").exists()
    monkeypatch.setattr(trainer, "token_losses", real)
    torch.manual_seed(999)
    again = stage(tmp_path / "part", settings, pairs, dtype)
    again.run()
    torch.testing.assert_close(again.tunable.state(), whole.tunable.state(), rtol=0, atol=0)
    summaries = [json.loads((tmp_path / n / "summary.json").read_text()) for n in ("whole", "part")]
    for summary in summaries:
        summary.pop("seconds")
    assert summaries[0] == summaries[1]
    assert not (tmp_path / "part" / "checkpoint.pt").exists()
    curves = [json.loads((tmp_path / n / "curves.json").read_text()) for n in ("whole", "part")]
    assert [(c["step"], c["tokens"], c["unseen"]) for c in curves[0]] == [
        (c["step"], c["tokens"], c["unseen"]) for c in curves[1]
    ]


def test_a_stage_learns_and_its_weights_load(tmp_path):
    settings = dataclasses.replace(SETTINGS, stages=[dataclasses.replace(STAGE, examples=160)])
    one = stage(tmp_path / "s", settings)
    one.run()
    curve = json.loads((tmp_path / "s" / "curves.json").read_text())
    first, last = curve[0]["unseen"], curve[-1]["unseen"]
    assert set(first) == set(STAGE.mixture) and curve[0]["step"] == 0 and curve[0]["train"] == {}
    assert all(last[task] < first[task] for task in first), (first, last)
    fresh = stage(tmp_path / "t", settings)
    load_stage(fresh.tunable, tmp_path / "s")
    torch.testing.assert_close(fresh.tunable.state(), one.tunable.state(), rtol=0, atol=0)
    assert fresh.evaluate() == pytest.approx(last)
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert summary["seen"] == 160 == sum(summary["examples"].values())


def test_the_whole_mixture_is_seen_once_and_the_long_are_counted(tmp_path):
    one = stage(tmp_path, SETTINGS, [*PAIRS[:8], *LONG, *LONG, *SENTENCES, *SENTENCES])
    wanted = [one.mixture[i] for i in range(len(one.mixture))]
    counts = {}
    for e in wanted:
        if what := {"long": "left out", "sentences": "cut"}.get(e.image_id):
            counts[f"{e.task}, {what}"] = counts.get(f"{e.task}, {what}", 0) + 1
    assert len(counts) == 4
    long = sum(e.image_id == "long" for e in wanted)
    assert 3 <= long <= 20
    seen = []
    original = one._losses

    def watch(batch):
        if one.tunable.model.training:
            seen.extend(zip(batch.tasks, batch.image_ids, strict=True))
        return original(batch)

    one._losses = watch
    one.run()
    assert sorted(seen) == sorted((e.task, e.image_id) for e in wanted if e.image_id != "long")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["too_long"] == counts and summary["seen"] == 40 - long


def test_a_step_weighs_tokens_by_task(tmp_path):
    """One batch, one step: the gradient is that of the weighted mean over all supervised tokens."""
    settings = dataclasses.replace(SETTINGS, tokens_per_batch=100_000, stages=[dataclasses.replace(STAGE, examples=6)])
    one, two = stage(tmp_path / "1", settings), stage(tmp_path / "2", settings)
    rates = {}
    from llmcxr.tuning.tunable import MasterAdamW

    class Watch(MasterAdamW):
        def step(self, given, divisor, clip=1.0):
            rates.update(given)
            return super().step(given, divisor, clip)

    trainer_class, trainer.MasterAdamW = trainer.MasterAdamW, Watch
    try:
        one.run()
    finally:
        trainer.MasterAdamW = trainer_class
    (batch,) = [b for _, _, b in two._batches(0, 0)]
    two.tunable.model.train()
    result = trainer.token_losses(two.tunable.model, batch, two.tunable.vocabulary, "image_rows")
    weights = torch.tensor([0.5 if batch.tasks[r] == "report_to_cxr" else 1.0 for r in result.rows])
    ((result.losses * weights).sum() / weights.sum()).backward()
    MasterAdamW(two.tunable, 0.0).step(rates, 1.0)
    torch.testing.assert_close(one.tunable.state(), two.tunable.state(), atol=1e-5, rtol=1e-4)


def test_rates_rise_then_fall_to_a_tenth(tmp_path):
    one = stage(tmp_path)
    rates = [one._rates(p)["body"] for p in np.linspace(0, 1, 101)]
    assert rates[0] < 0.1 * STAGE.learning_rate and max(rates) == pytest.approx(STAGE.learning_rate, rel=0.01)
    assert np.argmax(rates) == 3 and rates[60] == pytest.approx(STAGE.learning_rate)
    assert rates[80] == pytest.approx((0.1 + 0.9 * 0.2 * 3) * STAGE.learning_rate)
    assert rates[-1] == pytest.approx(0.1 * STAGE.learning_rate)
    assert one._rates(0.5)["rows"] / one._rates(0.5)["body"] == pytest.approx(1.0)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_images(tmp_path, monkeypatch):
    one = stage(tmp_path)
    real, calls = trainer.token_losses, 0
    before = []

    def breaks(model, batch, *rest):
        nonlocal calls
        result = real(model, batch, *rest)
        calls += model.training
        if calls == 3:
            before.append((one.tunable.state(), [i for i in batch.image_ids if i]))
            return type(result)(result.losses * float("nan"), result.rows)
        return result

    monkeypatch.setattr(trainer, "token_losses", breaks)
    with pytest.raises(UserError) as caught:
        one.run()
    state, names = before[0]
    assert "stage1: the loss is nan at step 1" in str(caught.value) and str(names) in str(caught.value)
    torch.testing.assert_close(one.tunable.state(), state, rtol=0, atol=0)
    assert not (tmp_path / "weights.safetensors").exists()


def test_missing_and_damaged_weights(tmp_path):
    one = stage(tmp_path / "s")
    with pytest.raises(UserError, match=r"weights\.safetensors does not exist. Run the stage s first"):
        load_stage(one.tunable, tmp_path / "s")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "weights.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load_stage(one.tunable, tmp_path / "s")
