"""Every training on two processes gives what it gives on one, and the image tokenizer's in pieces what it gives undivided.

Float32: what differs is the order of sums, 1e-7 of each. Losses agree to 1e-4, and weights to what a few updates of AdamW make
of it where gradients are near nothing: 1e-3 of the learning rate's order.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_stage import together

from llmcxr.evaluation.judge import Judge
from llmcxr.foundation import loop
from llmcxr.foundation.processes import Processes
from llmcxr.image_tokens import classifier, tokenizer, training
from llmcxr.image_tokens.classifier import train_classifier
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.image_tokens.settings import ArchitectureSettings, ClassifierSettings, ImageTokenizerSettings
from llmcxr.image_tokens.training import train_image_tokenizer

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (24, 32, 32), dtype=np.uint8)
LABELS = rng.integers(0, 2, (24, 2)).astype(np.float32)
LABELS[::5, 1] = np.nan
FEW = ClassifierSettings(steps=4, batch_size=7, learning_rate=1e-3)  # 3 and 4 rows
TOKENIZER = ImageTokenizerSettings(
    architecture=ArchitectureSettings(
        32, kind="mixer", patch=8, width=24, codebook_size=16, code_dim=8, clinical_input=True
    ),
    steps=6,
    batch_size=7,
    learning_rate=1e-3,
    reading_weight=0.1,
    adversarial_start=0.5,
)
# Its discriminator has norms of batches. At 1e-4 AdamW makes 1e-6 of a gradient into 1e-2 of a loss within four steps.
VQGAN = dataclasses.replace(
    TOKENIZER,
    architecture=ArchitectureSettings(32, [32, 32, 32, 64], codebook_size=16, code_dim=8, blocks=1, z_channels=32),
    learning_rate=1e-5,
    adversarial_start=0.0,
    reading_weight=0.0,
)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    for module in (classifier, training, tokenizer):
        monkeypatch.setattr(module, "autocast", lambda device: nullcontext())


def in_float32() -> None:
    for module in (classifier, training, tokenizer):
        module.autocast = lambda device: nullcontext()  # type: ignore[attr-defined]


def record(folder, processes, run) -> None:
    """`run`, and the curve of every step, with the norm of its gradient, beside what it saves."""
    folder.mkdir(parents=True, exist_ok=True)
    curves, norms, real, real_check = [], [], loop.Training.after_step, loop.Training.check

    def after_step(self, terms):
        real(self, terms)
        curves.append(terms | (norms.pop() if norms else {}))

    def check(self, values, *where):
        real_check(self, values, *where)
        norms.extend({name: value} for name, value in values.items() if name.startswith("norm"))

    loop.Training.after_step, loop.Training.check = after_step, check
    try:
        run()
    finally:
        loop.Training.after_step, loop.Training.check = real, real_check
    (folder / f"terms{processes.rank}.json").write_text(json.dumps(curves))


def clinical(processes: Processes, folder) -> None:
    in_float32()
    torch.manual_seed(0)
    network = ClinicalFeatures(("a", "b"))
    # At 32 pixels the last of 121 batch norms see 7 values each, whose last digits AdamW's first steps make much of.
    slow = dataclasses.replace(FEW, learning_rate=1e-5)
    record(folder, processes, lambda: train_classifier(network, IMAGES, LABELS, slow, 0, folder, "clinical", processes))


def judge(processes: Processes, folder) -> None:
    in_float32()
    record(folder, processes, lambda: Judge.train_on(IMAGES, LABELS, ("a", "b"), FEW, 0, folder, processes))


def image_tokenizer(processes: Processes, folder, settings=TOKENIZER) -> None:
    in_float32()
    torch.manual_seed(0)
    features = ClinicalFeatures(("a", "b")).eval().requires_grad_(False)
    record(folder, processes, lambda: train_image_tokenizer(settings, features, IMAGES, 0, folder, processes))


def vqgan_in_pieces(processes: Processes, folder) -> None:
    image_tokenizer(processes, folder, dataclasses.replace(VQGAN, images_at_once=3))


def alignment(processes: Processes, folder) -> None:
    from test_alignment import data, tunable

    from llmcxr.tuning import alignment
    from llmcxr.tuning.settings import AlignmentSettings

    alignment.LAYERS, alignment.BATCH = 1, 7
    model = tunable(dtype=torch.float32)
    settings = AlignmentSettings(steps=6, learning_rate=1e-3)
    record(folder, processes, lambda: alignment.align(model, *data(model.vocabulary), settings, 0, folder, processes))


def assert_equal_trainings(one, others, name="model.safetensors") -> None:
    """Terms of every step, gradients (whose last digits AdamW makes much of), and the weights, codebook included."""
    terms = json.loads((one / "terms0.json").read_text())
    for other in others:
        again = json.loads(other.read_text())
        assert len(terms) == len(again)
        for a, b in zip(terms, again, strict=True):
            norms = [step.pop("norm of the gradient", 1.0) for step in (dict(a), dict(b))]
            a, b = ({k: v for k, v in step.items() if not k.startswith("norm")} for step in (a, b))
            assert b == pytest.approx(a, rel=2e-4, abs=1e-6)
            assert norms[1] == pytest.approx(norms[0], rel=1e-2)
        torch.testing.assert_close(load_file(other.parent / name), load_file(one / name), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("train", [clinical, judge, image_tokenizer, alignment])
def test_losses_and_weights_are_those_of_one_process(train, tmp_path):
    train(Processes("cpu"), tmp_path / "one")
    assert together(train, tmp_path / "two") == [(0, ""), (0, "")]
    name = "weights.safetensors" if train is alignment else "model.safetensors"
    assert_equal_trainings(tmp_path / "one", [tmp_path / "two" / f"terms{rank}.json" for rank in (0, 1)], name)
    assert not list((tmp_path / "two").glob("*.pt"))


@pytest.mark.parametrize("settings", [TOKENIZER, VQGAN], ids=["mixer", "vqgan"])
def test_a_step_in_pieces_is_the_undivided_one(settings, tmp_path, monkeypatch):
    """k-means, averages, restarts, adversary and its weight, reading; and no more images at once than was asked for."""
    image_tokenizer(Processes("cpu"), tmp_path / "whole", settings)
    real, seen = tokenizer.ImageTokenizer.encoded, []
    monkeypatch.setattr(
        tokenizer.ImageTokenizer, "encoded", lambda self, x, *maps: seen.append(len(x)) or real(self, x, *maps)
    )
    image_tokenizer(Processes("cpu"), tmp_path / "pieces", dataclasses.replace(settings, images_at_once=3))
    assert seen == 2 * settings.steps * [2, 2, 3]
    assert_equal_trainings(tmp_path / "whole", [tmp_path / "pieces" / "terms0.json"])


def test_pieces_on_two_processes_are_the_undivided_step(tmp_path):
    image_tokenizer(Processes("cpu"), tmp_path / "one", VQGAN)
    assert together(vqgan_in_pieces, tmp_path / "two") == [(0, ""), (0, "")]
    assert_equal_trainings(tmp_path / "one", [tmp_path / "two" / f"terms{rank}.json" for rank in (0, 1)])


def killed_image_tokenizer(processes: Processes, folder) -> None:
    in_float32()
    real = training.ImageTokenizerTraining.step

    def dies(self):
        if self.at.step == 4:
            raise SystemExit(9)
        return real(self)

    training.ImageTokenizerTraining.step = dies
    torch.manual_seed(0)
    features = ClinicalFeatures(("a", "b")).eval().requires_grad_(False)
    train_image_tokenizer(TOKENIZER, features, IMAGES, 0, folder, processes, save_minutes=0)


def test_a_training_killed_on_two_processes_goes_on_on_one(tmp_path):
    image_tokenizer(Processes("cpu"), tmp_path / "one")
    assert [code for code, _ in together(killed_image_tokenizer, tmp_path / "two")] == [9, 9]
    assert (tmp_path / "two" / "checkpoint.pt").exists()
    image_tokenizer(Processes("cpu"), tmp_path / "two")
    weights = [load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two")]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-3)


def layers(processes: Processes, folder) -> None:
    """Batch norm and dropout over rows 0-2 and 3-6, and their gradients."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Dropout(0.5)
    ).train()
    x = torch.randn(7, 1, 5, 5)
    part = loop.share_of(7, processes)
    loop.share_layers(network, 7, part, processes)
    y = network(x[part])
    loop.backward(y.square().sum(), network.parameters(), processes)
    result = {n: p.grad for n, p in network.named_parameters()} | dict(network.named_buffers())
    everything = loop.joined(y.detach(), 7, part, processes)
    save_file(
        {"y": everything, **{n: t.clone() for n, t in result.items()}}, folder / f"{processes.count}{processes.rank}"
    )


def test_batch_norm_and_dropout_over_two_processes(tmp_path):
    layers(Processes("cpu"), tmp_path)
    assert together(layers, tmp_path) == [(0, ""), (0, "")]
    for rank in "01":
        torch.testing.assert_close(load_file(tmp_path / f"2{rank}"), load_file(tmp_path / "10"), rtol=1e-4, atol=1e-5)
