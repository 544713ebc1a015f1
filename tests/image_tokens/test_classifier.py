"""Classifiers: batches in order, known labels learned, and a stopped training ends with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.image_tokens import classifier
from llmcxr.image_tokens.classifier import batch_of, in_batches, train_classifier
from llmcxr.image_tokens.settings import ClassifierSettings

CPU = torch.device("cpu")


def test_pixels_of_a_batch():
    batch = batch_of(np.array([[[0, 255], [51, 204]]], dtype=np.uint8), np.array([0]), CPU)
    torch.testing.assert_close(batch, torch.tensor([[[[-1.0, 1.0], [-0.6, 0.6]]]]))


def test_in_batches_keeps_the_order():
    images = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8) * 20
    means = in_batches(lambda x: x.mean((1, 2, 3)), images, CPU, batch_size=3)
    np.testing.assert_allclose(means, np.arange(10) * 20 / 127.5 - 1, atol=0.01)


class Small(torch.nn.Module):
    """A classifier that is quick to train."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 5, 4, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2)
        )
        self.drop, self.head = torch.nn.Dropout(dropout), torch.nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.drop(self.layers(x).flatten(1)))

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")


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
    train_classifier(network, images, labels, settings, 0, tmp_path, "test", Processes("cpu"))
    test_images, test_labels = bright_half(40, 1)
    found = in_batches(network, test_images, CPU)[:, 0] > 0
    assert (found == (test_labels[:, 0] == 1)).mean() > 0.9
    # No gradient ever reaches the unknown finding: only weight decay moves it, towards zero, along itself.
    assert torch.nn.functional.cosine_similarity(network.head.weight[1], start, dim=0) > 0.9999
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"] and not network.training


@pytest.mark.parametrize("kill", [1, 4, 9])
def test_killed_at_any_step_and_resumed_gives_equal_weights(kill, tmp_path, monkeypatch):
    """With dropout, whose masks come from torch's own generator."""
    images, labels = bright_half(32, 0)
    settings, one = ClassifierSettings(steps=10, batch_size=4), Processes("cpu")
    whole, broken, again = Small(0.3), Small(0.3), Small(0.3)
    torch.manual_seed(5)
    train_classifier(whole, images, labels, settings, 0, tmp_path / "a", "test", one)
    real = classifier.stream

    def stops(*key):
        if key[-1] == kill:
            raise KeyboardInterrupt
        return real(*key)

    torch.manual_seed(5)
    monkeypatch.setattr(classifier, "stream", stops)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(broken, images, labels, settings, 0, tmp_path / "b", "test", one, save_minutes=0)
    monkeypatch.undo()
    assert (tmp_path / "b" / "checkpoint.pt").exists()
    torch.manual_seed(99)
    train_classifier(again, images, labels, settings, 0, tmp_path / "b", "test", one)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["model.safetensors"]


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    images, labels = bright_half(8, 0)
    network = Small()
    with torch.no_grad():
        network.head.bias[0] = float("inf")
    with pytest.raises(
        UserError, match=r"^judge: the loss is (inf|nan) at step 0\. Lower its learning_rate and run again"
    ):
        train_classifier(network, images, labels, ClassifierSettings(steps=2), 0, tmp_path, "judge", Processes("cpu"))
    assert not list(tmp_path.iterdir())
