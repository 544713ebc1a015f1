"""The clinical network: learns what it is shown, resumes, and reads published files without running them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import torchxrayvision as xrv
from safetensors.torch import save_file

from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens import clinical_features
from llmcxr.image_tokens.clinical_features import (
    ClassifierSettings,
    ClinicalFeatures,
    batch_of,
    in_batches,
    published_features,
    train_classifier,
)

CPU = torch.device("cpu")


class Hostile:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return xrv.models.DenseNet(num_classes=18, in_channels=1).eval()


@pytest.mark.parametrize("form", ["module", "state", "safetensors"])
def test_published_weights(published, tmp_path, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    state = published.state_dict()
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(published if form == "module" else state, path)
    features = published_features(str(path))
    assert features.findings[:2] == ("Atelectasis", "Consolidation") and len(features.findings) == 18
    assert features.resolution == 224 and not features.training
    x = torch.rand(1, 1, 224, 224) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(features.feature_maps(x)[1], published.features2(x * 1024))


def test_a_malicious_pickle_is_refused(tmp_path):
    torch.save(Hostile(str(tmp_path / "owned")), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt was refused by the safe loader"):
        published_features(str(tmp_path / "w.pt"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["densenet121-res224-al", "w.bin"])
def test_unknown_names(name):
    with pytest.raises(UserError, match=r"clinical_features\.weights"):
        published_features(name)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match=r"w\.pt"):
        published_features(str(tmp_path / "w.pt"))
    with pytest.raises(UserError, match=r"w\.safetensors"):
        published_features(str(tmp_path / "w.safetensors"))
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt does not hold a TorchXRayVision DenseNet"):
        published_features(str(tmp_path / "w.pt"))


def test_save_and_load(tmp_path):
    torch.manual_seed(0)
    features = ClinicalFeatures(("nodule", "mass"), resolution=48).eval()
    features.save(tmp_path)
    again = ClinicalFeatures.load(tmp_path)
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(again(x), features(x), rtol=0, atol=0)
    assert again.findings == ("nodule", "mass") and again.resolution == 48


def test_shrinking_is_the_mean_of_areas():
    """At half the side the network sees what it would see of an image that was averaged over 2 x 2 pixels."""
    torch.manual_seed(0)
    half, whole = ClinicalFeatures(("mass",), resolution=32).eval(), ClinicalFeatures(("mass",)).eval()
    whole.load_state_dict(half.state_dict())
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    averaged = x.reshape(2, 1, 32, 2, 32, 2).mean((3, 5))
    with torch.no_grad():
        torch.testing.assert_close(half(x), whole(averaged))


def test_pixels_of_a_batch():
    batch = batch_of(np.array([[[0, 255], [51, 204]]], dtype=np.uint8), np.array([0]), CPU)
    torch.testing.assert_close(batch, torch.tensor([[[[-1.0, 1.0], [-0.6, 0.6]]]]))


def test_in_batches_keeps_the_order():
    images = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8) * 20
    means = in_batches(lambda x: x.mean((1, 2, 3)), images, CPU, batch_size=3)
    np.testing.assert_allclose(means, np.arange(10) * 20 / 127.5 - 1, atol=0.01)


class Small(torch.nn.Module):
    """A classifier that is quick to train."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 5, 4, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2)
        )
        self.head = torch.nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.layers(x).flatten(1))


def bright_half(count: int, seed: int):
    """Finding 0: the upper half is bright; finding 1: always unknown but for wrong labels on none."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, 2, count), np.full(count, np.nan)], 1).astype(np.float32)
    images = rng.integers(60, 120, (count, 32, 32)).astype(np.uint8)
    images[labels[:, 0] == 1, :16] += 100
    return images, labels


def test_training_learns_known_labels_and_leaves_unknown_alone(tmp_path):
    images, labels = bright_half(64, 0)
    network = Small()
    start = network.head.weight[1].clone()
    settings = ClassifierSettings(steps=40, batch_size=16, learning_rate=2e-2)
    train_classifier(network, images, labels, settings, CPU, tmp_path / "c.pt", "test")
    test_images, test_labels = bright_half(40, 1)
    found = in_batches(network, test_images, CPU)[:, 0] > 0
    assert (found == (test_labels[:, 0] == 1)).mean() > 0.9
    # No gradient ever reaches the unknown finding: only weight decay moves it, towards zero, along itself.
    assert torch.nn.functional.cosine_similarity(network.head.weight[1], start, dim=0) > 0.9999
    assert not (tmp_path / "c.pt").exists() and not network.training


def test_interrupted_training_gives_equal_weights(tmp_path, monkeypatch):
    images, labels = bright_half(32, 0)
    settings = ClassifierSettings(steps=503, batch_size=4)
    whole, broken = Small(), Small()
    train_classifier(whole, images, labels, settings, CPU, tmp_path / "a.pt", "test")
    real = clinical_features.stream

    def stops_at_502(*key):
        if key[-1] == 502:
            raise KeyboardInterrupt
        return real(*key)

    monkeypatch.setattr(clinical_features, "stream", stops_at_502)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(broken, images, labels, settings, CPU, tmp_path / "b.pt", "test")
    monkeypatch.undo()
    assert (tmp_path / "b.pt").exists()
    again = Small()
    train_classifier(again, images, labels, settings, CPU, tmp_path / "b.pt", "test")
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_weights_are_taken_by_the_names_of_findings():
    torch.manual_seed(0)
    old, new = ClinicalFeatures(("mass", "nodule")).eval(), ClinicalFeatures(("nodule", "left nodule", "edema")).eval()
    before = new.network.classifier.weight[2].clone()
    new.take_weights(old)
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        one, two = old(x), new(x)
    torch.testing.assert_close(two[:, :2], one[:, [1, 1]])
    assert torch.equal(new.network.classifier.weight[2], before)
