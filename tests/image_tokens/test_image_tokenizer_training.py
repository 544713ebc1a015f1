"""Training lowers the error, starts the adversary when told, and resumes to the very same weights."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmcxr import speed
from llmcxr.foundation import loop
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.image_tokens import mixer, training
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.image_tokens.settings import ArchitectureSettings, ImageTokenizerSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.image_tokens.training import reconstruct, train_image_tokenizer, trainable_quantizer, training_pass

ONE = Processes("cpu")
SETTINGS = ImageTokenizerSettings(
    architecture=ArchitectureSettings(32, [32, 32, 32, 64], codebook_size=16, code_dim=8, blocks=1, z_channels=32),
    steps=30,
    batch_size=8,
    learning_rate=2e-3,
    adversarial_start=0.6,
    weights_average=0.9,
    clinical_weight=0.01,  # the clinical network here is random: what it asks for does not lower the pixels' error
)


@pytest.fixture(scope="module")
def images():
    """64 discs of random place, size and brightness on a dark ground."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    result = np.full((64, 32, 32), 20, dtype=np.uint8)
    for image in result:
        cy, cx, r = rng.uniform(8, 24), rng.uniform(8, 24), rng.uniform(4, 9)
        image[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = rng.integers(120, 250)
    return result


def features():
    torch.manual_seed(0)
    return ClinicalFeatures(("a", "b")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train_image_tokenizer(SETTINGS, features(), images, 0, folder, ONE), folder


def test_the_error_falls(trained, images):
    curve = json.loads((trained[1] / "curves.json").read_text())
    assert [c["step"] for c in curve] == [0, 10, 20]
    assert curve[-1]["l1"] < 0.75 * curve[0]["l1"]  # running means
    assert 0.3 < curve[-1]["codebook_use"] <= 1 and 1 < curve[-1]["perplexity"] <= 16 and curve[-1]["restarts"] >= 0
    assert "critic" not in curve[1] and np.isfinite(curve[2]["critic"])  # the adversary starts at step 18 of 30
    x = torch.from_numpy(images.astype(np.float32) / 127.5 - 1)[:, None]
    torch.manual_seed(0)
    untrained = ImageTokenizer(SETTINGS.architecture).train()
    trainable_quantizer(untrained)
    training_pass(untrained, x)  # starts the codebook
    errors = [(reconstruct(t.eval(), x) - x).abs().mean().item() for t in (trained[0], untrained)]
    assert errors[0] < 0.6 * errors[1]


def test_what_is_saved_is_what_was_trained(trained):
    again = ImageTokenizer.from_pretrained(trained[1])
    assert again.fingerprint == trained[0].fingerprint
    torch.testing.assert_close(again.state_dict(), trained[0].state_dict(), rtol=0, atol=0)
    assert sorted(p.name for p in trained[1].iterdir()) == ["config.json", "curves.json", "model.safetensors"]


@pytest.mark.parametrize("kill", [1, 13, 25])  # before and after the adversary starts
def test_killed_and_resumed_equals_uninterrupted(trained, images, tmp_path, monkeypatch, kill):
    real = training.ImageTokenizerTraining.step

    def dies(self):
        if self.at.step == kill:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(training.ImageTokenizerTraining, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train_image_tokenizer(SETTINGS, features(), images, 0, tmp_path, ONE, save_minutes=0)
    torch.manual_seed(12345)  # another process would have another state here
    torch.rand(77)
    steps = []
    monkeypatch.setattr(training.ImageTokenizerTraining, "step", lambda self: steps.append(self.at.step) or real(self))
    again = train_image_tokenizer(SETTINGS, features(), images, 0, tmp_path, ONE)
    assert steps[0] == kill
    torch.testing.assert_close(again.state_dict(), trained[0].state_dict(), rtol=0, atol=0)
    assert (tmp_path / "curves.json").read_text() == (trained[1] / "curves.json").read_text()
    assert not (tmp_path / "checkpoint.pt").exists()


def test_what_is_kept_is_the_moving_average(images, tmp_path, monkeypatch):
    """By hand: each step moves it by half of the way, the first by nine tenths."""
    settings = dataclasses.replace(SETTINGS, steps=3, adversarial_weight=0.0, clinical_weight=0.0, weights_average=0.5)
    real, seen = training.ImageTokenizerTraining.step, []

    def watched(self):
        if not seen:
            seen.append(self.tokenizer.decoder.last_weight.detach().clone())
        done = real(self)
        seen.append(self.tokenizer.decoder.last_weight.detach().clone())
        return done

    monkeypatch.setattr(training.ImageTokenizerTraining, "step", watched)
    kept = train_image_tokenizer(settings, features(), images, 0, tmp_path, ONE).decoder.last_weight
    average = seen[0]
    for weight, new in zip(seen[1:], (0.9, 9 / 11, 9 / 12), strict=True):
        average = average + new * (weight - average)
    torch.testing.assert_close(kept, average)
    assert not torch.allclose(kept, seen[-1])


def test_watching_shows_validation_images_and_changes_nothing(images, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    short = dataclasses.replace(SETTINGS, steps=4, adversarial_weight=0.0, clinical_weight=0.0)
    watched = dataclasses.replace(short, pictures_every=2)
    plain, seen = (
        train_image_tokenizer(s, None, images, 0, tmp_path / str(s.pictures_every), ONE, shown=images[:3])
        for s in (short, watched)
    )
    torch.testing.assert_close(seen.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert not (tmp_path / "0" / "logs").exists()
    events = EventAccumulator(str(tmp_path / "2" / "logs"))
    events.Reload()
    grids = events.Images("validation")
    assert [g.step for g in grids] == [2, 4] and (grids[0].width, grids[0].height) == (3 * 32, 2 * 32)
    for name in ("l1", "codebook_use", "perplexity", "restarts"):
        assert [e.step for e in events.Scalars(f"image_tokenizer/{name}")] == [2, 4]


def test_the_clinical_weight_matters(images, tmp_path):
    short = dataclasses.replace(SETTINGS, steps=3, adversarial_weight=0.0, clinical_weight=1.0)
    one = train_image_tokenizer(short, features(), images, 0, tmp_path / "1", ONE)
    none = train_image_tokenizer(
        dataclasses.replace(short, clinical_weight=0.0), features(), images, 0, tmp_path / "0", ONE
    )
    assert not torch.equal(one.decoder.last_weight, none.decoder.last_weight)


def test_codes_learn_to_be_read(images, tmp_path, monkeypatch):
    """The term falls, and resumes with its linear map."""
    monkeypatch.setattr(mixer, "BLOCKS", 1)
    architecture = ArchitectureSettings(
        32, kind="mixer", patch=8, width=24, codebook_size=16, code_dim=8, clinical_input=True
    )
    settings = dataclasses.replace(
        SETTINGS, architecture=architecture, reading_weight=0.1, adversarial_weight=0.0, codebook_decay=0.9
    )
    whole = train_image_tokenizer(settings, features(), images, 0, tmp_path / "whole", ONE)
    curve = json.loads((tmp_path / "whole" / "curves.json").read_text())
    assert curve[-1]["reading"] < 0.9 * curve[0]["reading"]
    real = training.ImageTokenizerTraining.step

    def dies(self):
        if self.at.step == 20:
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(training.ImageTokenizerTraining, "step", dies)
        train_image_tokenizer(settings, features(), images, 0, tmp_path / "part", ONE, save_minutes=0)
    again = train_image_tokenizer(settings, features(), images, 0, tmp_path / "part", ONE)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_training_goes_on_from_another_tokenizer(trained, images, tmp_path):
    settings = dataclasses.replace(SETTINGS, steps=1, learning_rate=1e-9, codebook_decay=1 - 1e-9)
    again = train_image_tokenizer(settings, features(), images, 0, tmp_path, ONE, start=trained[0])
    torch.testing.assert_close(again.decoder.state_dict(), trained[0].decoder.state_dict(), rtol=0, atol=1e-6)
    x = torch.from_numpy(images.astype(np.float32) / 127.5 - 1)[:, None]
    assert (again.encode(x) == trained[0].encode(x)).float().mean() > 0.95
    other = dataclasses.replace(settings, architecture=dataclasses.replace(SETTINGS.architecture, codebook_size=32))
    with pytest.raises(UserError, match=r"another architecture: codebook_size \(16, not 32\)"):
        train_image_tokenizer(other, features(), images, 0, tmp_path / "other", ONE, start=trained[0])


def test_frozen_features_stay_frozen(images, tmp_path):
    network = features()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    train_image_tokenizer(dataclasses.replace(SETTINGS, steps=2), network, images, 0, tmp_path, ONE)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_the_clinical_network_sees_no_image_where_nothing_asks_it(images, tmp_path):
    torch.save({f"features.{k}": v for k, v in speed._vgg().state_dict().items()}, tmp_path / "vgg16.pth")
    blind = dataclasses.replace(SETTINGS, steps=1, perceptual=str(tmp_path / "vgg16.pth"), clinical_weight=0.0)
    seen = dict[str, int]()
    for name, change in {
        "nothing": {},
        "reading": {"reading_weight": 0.1},
        "clinical": {"clinical_weight": 0.1},
    }.items():
        network = features()
        step = training.ImageTokenizerTraining(
            dataclasses.replace(blind, **change), network, images, 0, tmp_path / name, ONE
        )
        passes = network.network.features.conv0.register_forward_hook(lambda *_, name=name: seen.update({name: 1}))
        assert step.step() is not None
        passes.remove()
    assert seen == {"reading": 1, "clinical": 1}


def test_wrong_size_and_divergence_are_said(images, tmp_path):
    with pytest.raises(UserError, match=r"image_size is 32, but the images are \(16, 16\)"):
        train_image_tokenizer(SETTINGS, features(), images[:, :16, :16], 0, tmp_path, ONE)
    broken = dataclasses.replace(SETTINGS)
    object.__setattr__(broken, "clinical_weight", float("nan"))  # which no recipe can ask for
    with pytest.raises(UserError, match="the loss is nan at step 0"):
        train_image_tokenizer(broken, features(), images, 0, tmp_path, ONE)


def test_files_whose_contents_count(tmp_path):
    assert SETTINGS.files() == []
    (tmp_path / "vgg.pth").touch()
    assert dataclasses.replace(SETTINGS, perceptual=str(tmp_path / "vgg.pth")).files() == [tmp_path / "vgg.pth"]


def test_minutes_end_a_training_in_good_order(images, tmp_path, monkeypatch):
    """However many steps there are, schedules are run through: the adversary begins, and the tokenizer is saved."""
    clock = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock) / 8))  # a step takes 1/8 second
    settings = dataclasses.replace(SETTINGS, steps=1_000_000, minutes=30 / 8 / 60)
    train_image_tokenizer(settings, features(), images, 0, tmp_path, ONE)
    curve = json.loads((tmp_path / "curves.json").read_text())
    assert [point["step"] for point in curve] == [0, 10, 20]  # as of 30 steps
    assert "critic" not in curve[1] and np.isfinite(curve[2]["critic"])
    assert not (tmp_path / "checkpoint.pt").exists()
    assert ImageTokenizer.from_pretrained(tmp_path).architecture == settings.architecture
