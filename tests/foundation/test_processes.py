"""Two processes give what one gives.

Tolerances, in float32: what DDP and FSDP2 add up in another order differs by 1e-7; losses agree to 1e-5 relative, weights
to 1e-5 (FSDP2: 5e-5, since a process that gets its weights from the main one computes by the stock kernels, and Adam enlarges
what differs where a gradient is near 0). In bfloat16, FSDP2 reduces gradients in float32, where one process keeps them in bfloat16: 2e-2.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import weakref
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from toy_stage import SETTINGS, STAGE, WINDOW, full, run_stage, stage, together

from llmcxr.foundation.checkpoints import load_checkpoint
from llmcxr.foundation.devices import core_count
from llmcxr.foundation.processes import Processes
from llmcxr.foundation.stopping import exit_code
from llmcxr.recipes import FOLDER
from llmcxr.tuning import feed, trainer
from llmcxr.tuning.settings import LanguageSettings

DDP: dict[str, str] = {}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
MODES = {"ddp": DDP, "fsdp2": FSDP2}
WEIGHT = {"ddp": 1e-5, "fsdp2": 5e-5}
# 4 batches a step: each process accumulates two, and in the last step, of three, one process idles for one.
ODD = {"batches_per_step": 4, "stages": [dataclasses.replace(STAGE, examples=42)]}
CASES = {
    "checkpointing": dataclasses.replace(SETTINGS, gradient_checkpointing=True, **ODD),
    "lora": dataclasses.replace(SETTINGS, **ODD),
    "full": full(**ODD),
    "base_model": dataclasses.replace(SETTINGS, language=LanguageSettings(loss="base_model"), **ODD),
}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(feed, "WINDOW", WINDOW)


def check_equal(one, two, loss=1e-5, weight=1e-5):
    curves = [json.loads((folder / "curves.json").read_text()) for folder in (one, two)]
    assert [(r["step"], r["tokens"]) for r in curves[0]] == [(r["step"], r["tokens"]) for r in curves[1]]
    for key in ("train", "unseen"):
        for a, b in zip(*curves, strict=True):
            assert b[key] == pytest.approx(a[key], rel=loss), key
    weights = [load_file(folder / "weights.safetensors") for folder in (one, two)]
    torch.testing.assert_close(weights[1], weights[0], rtol=weight, atol=weight)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_are_those_of_one_process(case, tmp_path):
    settings = CASES[case]
    one = stage(tmp_path / "one", settings)
    counts = [len(batches) for _, _, batches in one.feed.steps(0, 0)]
    assert counts[0] == 4 and counts[-1] % 2 == 1, counts
    one.feed.too_long.clear()
    one.run()
    for name, environment in MODES.items():
        assert together(run_stage, tmp_path / name, settings, **environment) == [(0, ""), (0, "")]
        check_equal(tmp_path / "one", tmp_path / name, weight=WEIGHT[name])


def test_sharded_bfloat16(tmp_path):
    stage(tmp_path / "one", full(), dtype=torch.bfloat16).run()
    assert together(run_stage, tmp_path / "two", full(), torch.bfloat16, **FSDP2) == [(0, ""), (0, "")]
    check_equal(tmp_path / "one", tmp_path / "two", 2e-2, 2e-2)
    weights = load_file(tmp_path / "two" / "weights.safetensors")
    assert {p.dtype for n, p in weights.items() if "image" not in n and not n.endswith("rows")} == {torch.bfloat16}


def save_gradients(processes: Processes, folder, settings) -> None:
    one = stage(folder, settings, processes=processes)
    _, _, batches = next(one.feed.steps(0, 0))
    one.losses.train()
    one._gradients(0, batches)
    divisor = one._divisor(batches) / processes.count
    save_file({n: p.grad / divisor for n, p in one.tunable.trainable().items()}, folder / f"{processes.rank}")


def test_the_gradient_of_a_step_over_two_processes(tmp_path):
    """Two processes, one batch each, of different lengths and task weights, against one process with both in one batch."""
    stages = [dataclasses.replace(STAGE, examples=9)]
    wide = full(tokens_per_batch=100_000, batches_per_step=1, stages=stages)
    split = full(tokens_per_batch=500, batches_per_step=2, stages=stages)
    one = stage(tmp_path, wide)
    _, _, (batch,) = next(one.feed.steps(0, 0))
    _, _, halves = next(stage(tmp_path, split).feed.steps(0, 0))
    assert len(halves) == 2 and sum(h.tokens for h in halves) == batch.tokens
    assert halves[0].supervised.sum() != halves[1].supervised.sum(), "else a mean of means would do"
    one._gradients(0, [batch])
    expected = {n: p.grad / one._divisor([batch]) for n, p in one.tunable.trainable().items()}
    assert together(save_gradients, tmp_path, split) == [(0, ""), (0, "")]
    for rank in "01":
        torch.testing.assert_close(load_file(tmp_path / rank), expected, rtol=1e-4, atol=1e-6)


def run_killed(processes: Processes, folder, settings, batches: int) -> None:
    real, calls = trainer.token_losses, 0

    def dies(model, *rest):
        nonlocal calls
        calls += model.training
        if calls > batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(model, *rest)

    trainer.token_losses = dies
    run_stage(processes, folder, settings)


@pytest.mark.parametrize("mode", MODES)
def test_killed_in_two_processes_and_resumed_in_two_or_one(mode, tmp_path):
    """A checkpoint belongs to the training, not to a number of processes."""
    stage(tmp_path / "one", full()).run()
    results = together(run_killed, tmp_path / "two", full(), 3, **MODES[mode])
    assert [code for code, _ in results] == [-signal.SIGKILL] * 2
    assert (tmp_path / "two" / "checkpoint.pt").exists()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "checkpoint.pt").write_bytes((tmp_path / "two" / "checkpoint.pt").read_bytes())
    assert together(run_stage, tmp_path / "two", full(), **MODES[mode]) == [(0, ""), (0, "")]
    check_equal(tmp_path / "one", tmp_path / "two", weight=WEIGHT[mode])
    stage(tmp_path / "again", full()).run()
    check_equal(tmp_path / "one", tmp_path / "again", weight=WEIGHT[mode])


def run_stopped(processes: Processes, folder, settings) -> None:
    """A launcher tells all processes to end, this one of them a step earlier."""
    real = trainer.Stage.step

    def step(self):
        if self.at.step == 1 + processes.main:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    trainer.Stage.step = step  # type: ignore[method-assign]
    toy = stage(folder, settings, processes=processes)
    toy.save_minutes = 60.0
    try:
        toy.run()
    except KeyboardInterrupt as stop:
        raise SystemExit(exit_code(stop)) from None


def test_stopped_in_two_processes_the_state_is_saved_once_all_have_made_the_step(tmp_path):
    stage(tmp_path / "one", full()).run()
    results = together(run_stopped, tmp_path / "two", full(), **FSDP2)
    assert results == [(128 + signal.SIGTERM, ""), (2, "")]
    assert load_checkpoint(tmp_path / "two" / "checkpoint.pt")["progress"]["step"] == 3
    stage(tmp_path / "two", full()).run()
    check_equal(tmp_path / "one", tmp_path / "two", weight=WEIGHT["fsdp2"])


def run_broken(processes: Processes, folder, settings) -> None:
    real, calls = trainer.token_losses, 0

    def breaks(model, *rest):
        nonlocal calls
        result = real(model, *rest)
        calls += model.training
        if calls == 2 and processes.rank == 1:
            return dataclasses.replace(result, losses=result.losses * float("nan"))
        return result

    trainer.token_losses = breaks
    run_stage(processes, folder, settings)


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_is_not_finite_in_one_process_ends_all_and_names_its_images(mode, tmp_path):
    (code, message), other = together(run_broken, tmp_path, full(), **MODES[mode])
    assert code == 2 and other == (2, ""), "the main process says it, the other just ends"
    _, _, batches = list(stage(tmp_path, full()).feed.steps(0, 0))[1]
    images = [i for i in batches[1].image_ids if i]
    assert "stage1: the loss is nan at step 1 on the images" in message and str(images) in message
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_step_must_have_batches_for_all(tmp_path):
    settings = dataclasses.replace(SETTINGS, batches_per_step=3)
    (code, message), other = together(run_stage, tmp_path, settings)
    assert code == 2 and "tuning.batches_per_step is 3: 2 processes need a multiple" in message and other == (2, "")


def main_alone(processes: Processes, folder, breaks: bool) -> None:
    def write() -> None:
        (folder / f"{processes.rank}").touch()
        if breaks:
            from llmcxr.foundation.errors import UserError

            raise UserError("the table has no rows")

    processes.on_main(write)
    assert (folder / "0").exists(), "nobody goes on before the main process is done"
    assert processes.from_main(processes.main) and not processes.from_main(not processes.main)


@pytest.mark.parametrize("breaks", [False, True])
def test_what_the_main_process_does_alone(breaks, tmp_path):
    expected = [(2, "the table has no rows"), (2, "")] if breaks else [(0, ""), (0, "")]
    assert together(main_alone, tmp_path, breaks) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["0"]


def test_configurations_that_cannot_work_are_said(tmp_path):
    old = together(run_stage, tmp_path, full(), ACCELERATE_USE_FSDP="true", FSDP_VERSION="1")
    assert "fsdp_version should be 2 (see accelerate/fsdp2.yaml" in old[0][1] and old[1] == (2, "")


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_shipped_configurations_are_accelerates(name):
    path = FOLDER / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.distributed_type == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}[name] and config.mixed_precision == "no"
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2 and not config.fsdp_config["fsdp_cpu_ram_efficient_loading"]


def count_threads(processes: Processes, folder: Path) -> None:
    before = torch.get_num_threads()
    processes.on_main(lambda: (folder / "alone").write_text(str(torch.get_num_threads())))
    (folder / str(processes.rank)).write_text(f"{before} {torch.get_num_threads()}")


def test_the_main_process_has_all_cores_while_the_others_wait(tmp_path):
    assert together(count_threads, tmp_path) == [(0, ""), (0, "")]
    assert (tmp_path / "alone").read_text() == str(core_count())
    assert {(tmp_path / rank).read_text() for rank in "01"} == {"1 1"}


def two_stages(processes: Processes, folder: Path) -> None:
    first = stage(folder / "a", processes=processes)
    first.run()
    model, losses = weakref.ref(first.tunable.model), weakref.ref(first.losses)
    del first
    second = stage(folder / "b", processes=processes)
    alive = [ref() is not None for ref in (model, losses)]
    (folder / f"alive{processes.rank}").write_text(str(alive))
    second.run()


@pytest.mark.parametrize("mode", MODES)
def test_the_model_of_a_finished_stage_is_let_go(mode, tmp_path):
    """Accelerate's prepare_model keeps every model until the process ends."""
    assert together(two_stages, tmp_path, **MODES[mode]) == [(0, ""), (0, "")]
    assert [(tmp_path / f"alive{rank}").read_text() for rank in "01"] == ["[False, False]"] * 2


def build_sharded(processes: Processes, folder: Path) -> None:
    seen, real = [], torch.nn.Module.to

    def to(module, *rest, **named):  # of a whole model to a device, before it is sharded
        seen.append(any(p.device.type != "meta" for p in module.parameters()))
        return real(module, *rest, **named)

    torch.nn.Module.to = to
    one = stage(folder, full(), dtype=torch.bfloat16, processes=processes)
    parameters = dict(one.tunable.model.named_parameters())
    assert all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in parameters.values())
    local = sum(p.to_local().numel() for p in parameters.values())
    total = sum(p.numel() for p in parameters.values())
    assert local < 0.6 * total
    assert one.tunable.model.get_output_embeddings().parametrizations.weight.original is (
        one.tunable.model.get_input_embeddings().parametrizations.weight.original
    ), "the tie stays"
    state = one.tunable.state()
    if processes.main:
        save_file(state, folder / "state")
    assert not any(seen) or processes.main


def test_a_sharded_model_is_built_without_weights_and_gets_its_parts(tmp_path):
    """Float32 exists as shards only; a process that is not the main one reads no weights."""
    assert together(build_sharded, tmp_path, **FSDP2) == [(0, ""), (0, "")]
    expected = stage(tmp_path, full(), dtype=torch.bfloat16).tunable.state()
    torch.testing.assert_close(load_file(tmp_path / "state"), expected, rtol=0, atol=0)
