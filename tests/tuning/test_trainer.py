"""The loop of a stage: learns, resumes to the very same weights, counts what it leaves out, stops before damage."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_stage import LONG, PAIRS, SENTENCES, SETTINGS, STAGE, WINDOW, stage

from llmcxr.foundation.errors import UserError
from llmcxr.tuning import feed, trackers, trainer
from llmcxr.tuning.trainer import load_stage
from llmcxr.tuning.tunable import MasterAdamW


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(feed, "WINDOW", WINDOW)


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
        for key in ("seconds", "measuring_seconds", "measuring_last"):
            summary.pop(key)
    assert summaries[0] == summaries[1]
    assert not (tmp_path / "part" / "checkpoint.pt").exists()
    curves = [json.loads((tmp_path / n / "curves.json").read_text()) for n in ("whole", "part")]
    for curve in curves:
        for record in curve:
            record.pop("seconds")
    assert curves[0] == curves[1]


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
    original = one._losses_of

    def watch(batch):
        if one.tunable.model.training:
            seen.extend(zip(batch.tasks, batch.image_ids, strict=True))
        return original(batch)

    one._losses_of = watch
    one.run()
    assert sorted(seen) == sorted((e.task, e.image_id) for e in wanted if e.image_id != "long")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["too_long"] == counts and summary["seen"] == 40 - long


def test_a_step_weighs_tokens_by_task(tmp_path):
    """One batch, one step: the gradient is that of the weighted losses over the number of all supervised tokens."""
    settings = dataclasses.replace(SETTINGS, tokens_per_batch=100_000, stages=[dataclasses.replace(STAGE, examples=6)])
    one, two = stage(tmp_path / "1", settings), stage(tmp_path / "2", settings)
    rates = {}

    class Watch(MasterAdamW):
        def step(self, given, divisor, clip=1.0):
            rates.update(given)
            return super().step(given, divisor, clip)

    trainer_class, trainer.MasterAdamW = trainer.MasterAdamW, Watch
    try:
        one.run()
    finally:
        trainer.MasterAdamW = trainer_class
    (batch,) = [b for _, _, b in two.feed.batches(0, 0)]
    two.tunable.model.train()
    result = trainer.token_losses(two.tunable.model, batch, two.tunable.vocabulary, "image_rows")
    weights = torch.tensor([0.5 if batch.tasks[r] == "report_to_cxr" else 1.0 for r in result.rows])
    (result.losses * weights).mean().backward()
    MasterAdamW(two.tunable).step(rates, 1.0)
    torch.testing.assert_close(one.tunable.state(), two.tunable.state(), atol=1e-5, rtol=1e-4)


def gradients(one) -> dict[str, torch.Tensor]:
    """Of the mean over the first step, as the optimizer takes it."""
    _, _, batches = next(one.feed.steps(0, 0))
    one.losses.train()
    one._gradients(0, batches)
    return {n: p.grad / one._divisor(batches) for n, p in one.tunable.trainable().items()}


def test_a_weight_counts_in_a_step_of_one_task_alone(tmp_path):
    lists = []
    for weight in (1.0, 8.0):
        alone = dataclasses.replace(STAGE, mixture={"language": 1.0}, task_loss_weights={"language": weight})
        folder = tmp_path / str(weight)
        folder.mkdir()
        lists.append(gradients(stage(folder, dataclasses.replace(SETTINGS, stages=[alone]))))
    for name, gradient in lists[0].items():
        torch.testing.assert_close(lists[1][name], 8 * gradient, rtol=1e-4, atol=1e-6)


def test_a_stage_can_weigh_tasks_its_own_way(tmp_path):
    weights = {"report_to_cxr": 0.5, "cxr_to_report": 3.0}
    own = dataclasses.replace(SETTINGS, stages=[dataclasses.replace(STAGE, task_loss_weights=weights)])
    (tmp_path / "a").mkdir()
    one = stage(tmp_path / "a", own)
    batch = next(b for _, _, b in one.feed.batches(0, 0) if {"report_to_cxr", "cxr_to_report"} <= set(b.tasks))
    assert one._task_weights(batch).tolist() == [weights.get(task, 1.0) for task in batch.tasks]


def test_images_that_are_read_weigh_what_is_said(tmp_path):
    stages = [dataclasses.replace(STAGE, examples=12)]
    settings = dataclasses.replace(SETTINGS, tokens_per_batch=100_000, batches_per_step=1, stages=stages)
    settings = dataclasses.replace(settings, read_image_weight=0.3)
    one, two = stage(tmp_path, settings), stage(tmp_path, settings)
    (batch,) = next(one.feed.steps(0, 0))[2]
    model, vocabulary = two.tunable.model.train(), two.tunable.vocabulary
    result = trainer.token_losses(model, batch, vocabulary, "image_rows", read_images=True)
    read = result.read.tolist()
    assert sum(read) == 3 * batch.tasks.count("cxr_to_report") > 0
    tasks = [batch.tasks[r] for r in result.rows]
    weights = [0.3 if r else 0.5 if t == "report_to_cxr" else 1.0 for r, t in zip(read, tasks, strict=True)]
    learned = sum(0.3 if r else 1.0 for r in read)
    ((result.losses * torch.tensor(weights)).sum() / learned).backward()
    expected = {n: p.grad for n, p in two.tunable.trainable().items()}
    torch.testing.assert_close(gradients(one), expected, rtol=1e-4, atol=1e-6)
    one.run()
    last = json.loads((tmp_path / "curves.json").read_text())[-1]
    assert last["train"]["read_image"] > 0 and last["unseen"]["read_image"] > 0
    # Codes that are read count apart: the losses of the tasks are those of their responses alone.
    own = {n: [] for n in ("cxr_to_report", "report_to_cxr", "language", "read_image")}
    for loss, r, t in zip(result.losses.tolist(), read, tasks, strict=True):
        own["read_image" if r else t].append(loss)
    row = torch.tensor(two._losses_of(batch)[1].tolist()[1:]).view(2, -1)
    for k, name in enumerate(two.kinds):
        if name in own:
            torch.testing.assert_close(row[:, k], torch.tensor([sum(own[name]), len(own[name])]), rtol=1e-4, atol=1e-4)


def test_a_step_in_several_batches_has_the_gradient_of_one_batch(tmp_path):
    stages = [dataclasses.replace(STAGE, examples=12)]
    wide = dataclasses.replace(SETTINGS, tokens_per_batch=100_000, batches_per_step=1, stages=stages)
    split = dataclasses.replace(SETTINGS, tokens_per_batch=300, batches_per_step=16, stages=stages)
    one, two = stage(tmp_path, wide), stage(tmp_path, split)
    assert len(next(one.feed.steps(0, 0))[2]) == 1 and len(next(two.feed.steps(0, 0))[2]) >= 2
    first, second = gradients(one), gradients(two)
    assert all(g.abs().max() > 1e-4 for n, g in first.items() if "lora_B" in n or n.endswith("rows"))
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-6)


def test_sequence_loss_is_that_of_transformers_over_all_tokens(tmp_path):
    stages = [dataclasses.replace(STAGE, examples=6, task_loss_weights={})]
    settings = dataclasses.replace(
        SETTINGS,
        loss="sequence",
        method="full",
        image_softmax="all_rows",
        tokens_per_batch=100_000,
        batches_per_step=1,
        stages=stages,
    )
    one = stage(tmp_path, settings)
    _, _, (batch,) = next(one.feed.steps(0, 0))
    real = torch.zeros_like(batch.supervised)
    for row, length in enumerate([len(one._render(one.mixture[i]).ids) for i in range(6)]):
        real[row, :length] = True
    assert sorted(real.sum(1).tolist()) == sorted((batch.supervised.sum(1) + 1).tolist())
    model = stage(tmp_path, settings).tunable.model.train()
    lengths = batch.supervised.sum(1) + 1
    labels = batch.ids.masked_fill(torch.arange(batch.ids.shape[1]) >= lengths[:, None], -100)
    model(input_ids=batch.ids, labels=labels, use_cache=False).loss.backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    torch.testing.assert_close(gradients(one), expected, rtol=1e-3, atol=1e-6)
    plain = stage(tmp_path, dataclasses.replace(settings, loss="response"))
    assert one.evaluate() == plain.evaluate(), "losses on unseen patients stay comparable"


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
            return dataclasses.replace(result, losses=result.losses * float("nan"))
        return result

    monkeypatch.setattr(trainer, "token_losses", breaks)
    with pytest.raises(UserError) as caught:
        one.run()
    state, names = before[0]
    assert "stage1: the loss is nan at step 1" in str(caught.value) and str(names) in str(caught.value)
    torch.testing.assert_close(one.tunable.state(), state, rtol=0, atol=0)
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_gradient_that_is_not_finite_updates_nothing(tmp_path, monkeypatch):
    one = stage(tmp_path)
    parameter = next(p for n, p in one.tunable.trainable().items() if "lora_B" in n)
    parameter.register_hook(lambda grad: grad * float("inf"))
    state = one.tunable.state()
    with pytest.raises(UserError, match=r"stage1: the norm of the gradient is (nan|inf) at step 0 on the images \['i"):
        one.run()
    torch.testing.assert_close(one.tunable.state(), state, rtol=0, atol=0)


def test_curves_are_shown_in_tensorboard_without_what_a_kill_made_void(tmp_path, monkeypatch):
    settings = dataclasses.replace(SETTINGS, logging="tensorboard")
    real, calls = trainer.token_losses, 0

    def dies(model, *rest):
        nonlocal calls
        calls += model.training
        if calls == 5:
            raise KeyboardInterrupt
        return real(model, *rest)

    monkeypatch.setattr(trainer, "token_losses", dies)
    killed = stage(tmp_path, settings)
    killed.save_minutes = 1e9
    with pytest.raises(KeyboardInterrupt):
        killed.run()  # two steps are shown
    monkeypatch.setattr(trainer, "token_losses", real)
    stage(tmp_path, settings).run()
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    curve = json.loads((tmp_path / "curves.json").read_text())
    assert [e.step for e in events.Scalars("loss")] == list(range(1, curve[-1]["step"] + 1))
    assert [e.value for e in events.Scalars("unseen/cxr_to_report")] == pytest.approx(
        [c["unseen"]["cxr_to_report"] for c in curve[1:]]
    )
    assert {"gradient_norm", "learning_rate/body", "train/language"} <= set(events.Tags()["scalars"])


def test_a_tracker_that_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "mlflow", "trackio"):
        with pytest.raises(
            UserError, match=rf"tuning.logging: {name} is not installed. Install it \(pip install {name}"
        ):
            trackers.Tracker(name, tmp_path, 0)
    trackers.Tracker("none", tmp_path, 0).log({"loss": 1.0}, 1)


def test_missing_and_damaged_weights(tmp_path):
    one = stage(tmp_path / "s")
    with pytest.raises(UserError, match=r"weights\.safetensors does not exist. Run the stage s first"):
        load_stage(one.tunable, tmp_path / "s")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "weights.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load_stage(one.tunable, tmp_path / "s")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradient_checkpointing_changes_memory_alone(method, kind, tmp_path):
    found = []
    for checkpointing in (False, True):
        settings = dataclasses.replace(
            SETTINGS, method=method, gradient_checkpointing=checkpointing, batches_per_step=1, tokens_per_batch=1000
        )
        one = stage(tmp_path, settings, kind=kind, dropout=0.1 if kind == "gpt2" else 0.0)
        _, _, (batch,) = next(one.feed.steps(0, 0))
        one.losses.train()
        kept: dict[int, int] = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, row = one._losses_of(batch)
        weights = {p.untyped_storage().data_ptr() for p in one.tunable.model.parameters()}
        memory = sum(size for place, size in kept.items() if place not in weights)
        loss.backward()
        found.append((row, {n: p.grad for n, p in one.tunable.trainable().items()}, memory))
    torch.testing.assert_close(found[1][:2], found[0][:2], rtol=1e-5, atol=1e-6)
    assert found[1][2] < 0.5 * found[0][2], found
    one.tunable.model.eval()
    assert not one.tunable.merge().is_activation_checkpointing


def long_unseen(folder, share, examples=40, before=None):
    settings = dataclasses.replace(
        SETTINGS, measure_share=share, tokens_per_batch=200, stages=[dataclasses.replace(STAGE, examples=examples)]
    )
    return stage(folder, settings, before=before)


def test_unseen_patients_are_measured_on_as_many_batches_as_the_stage_is_worth(tmp_path):
    few, more, all_ = (long_unseen(tmp_path / str(n), 0.1, n) for n in (40, 400, 100_000))
    assert len(few.evaluation) == len(STAGE.mixture), "one of each task at least"
    assert len(few.evaluation) < len(more.evaluation) < len(all_.evaluation)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(few.evaluation, all_.evaluation, strict=False))
    examples = np.mean([len(b.tasks) for b in all_.evaluation])
    assert 2 * len(more.evaluation) <= 0.5 * 0.1 * 3 * 400 / examples, "the first and the last, in passes forward"
    assert {t for b in few.evaluation for t in b.tasks} == set(STAGE.mixture)


@pytest.mark.parametrize(("part", "points"), [(0.0, 2), (1e9, None)])
def test_measuring_stays_within_its_share(part, points, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "_UNSEEN_PART", part)
    one = long_unseen(tmp_path, 0.1)
    one.run()
    curve = json.loads((tmp_path / "curves.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(curve) == (points or summary["step"] + 1), "fewer steps than points: each is measured"
    assert curve[-1]["step"] == summary["step"] and summary["measuring_seconds"] > summary["measuring_last"] > 0


def test_the_next_point_waits_until_its_time_is_allowed(tmp_path):
    one = long_unseen(tmp_path, 0.1)
    measured = []
    one._measure = lambda: measured.append(one.at.done)
    one._show = lambda: None
    one.measuring = {"seconds": 1.0, "last": 1.0}
    for done, seconds, due in ((1, 1e9, False), (4, 59.0, False), (4, 60.0, True), (4, 1e9, False), (6, 1e9, True)):
        one.at.done, one.at.seconds = done, seconds  # half of a tenth of 60 s: the point now, and the last
        before = len(measured)
        one.after_step({})
        assert (len(measured) > before) == due, (done, seconds)


def test_a_stage_begins_with_the_losses_that_the_one_before_ended_with(tmp_path):
    one = long_unseen(tmp_path / "1", 0.0)
    one.run()
    last = json.loads((tmp_path / "1" / "curves.json").read_text())[-1]["unseen"]
    same, other = long_unseen(tmp_path / "2", 0.0, before=tmp_path / "1"), long_unseen(tmp_path / "3", 0.1, 10_000)
    same.evaluate = other.evaluate = lambda: pytest.fail("measured")
    same.begin()
    assert same.at.curve[0]["unseen"] == last and same.measuring["seconds"] == 0
    other.before = tmp_path / "1"
    with pytest.raises(pytest.fail.Exception):
        other.begin()  # on other batches
