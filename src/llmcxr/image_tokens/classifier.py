"""Classifiers of findings, the clinical network and the judge: how they are trained, and batches of images for any network.

Shapes: N images, B images of a step, F findings, S side of the image in pixels.
Images are uint8 [N, S, S] in memory (or mapped: only the rows of a batch are read), [-1, 1] in the network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcxr.foundation import loop
from llmcxr.foundation.devices import autocast, freed_memory_kept, place_network
from llmcxr.foundation.randomness import stream
from llmcxr.image_tokens.settings import ClassifierSettings
from llmcxr.studies.pixel_store import Images
from llmcxr.studies.radiographs import from_uint8

if TYPE_CHECKING:
    from llmcxr.foundation.processes import Processes


def batch_of(images: Images, rows: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [N, S, S] (0 black, 255 white) -> float32 [B, 1, S, S] in [-1, 1]."""
    batch = torch.from_numpy(from_uint8(images[rows])).unsqueeze(1).to(device)
    return batch.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def in_batches(
    function: Callable[[Tensor], Tensor], images: Images, device: torch.device, batch_size: int = 64
) -> np.ndarray:
    """Apply `function` to uint8 images [N, S, S] batch by batch; float32 results, joined."""
    parts = []
    for first in range(0, len(images), batch_size):
        rows = np.arange(first, min(first + batch_size, len(images)))
        with autocast(device):
            parts.append(function(batch_of(images, rows, device)).float().cpu().numpy())
    return np.concatenate(parts)


def _augment(images: Images, rows: np.ndarray, part: slice, generator: np.random.Generator) -> Tensor:
    """Images `rows[part]`, shifted by up to 1/16, contrast and brightness varied a little; never mirrored (sides matter).

    All is drawn for all `rows`, so that it is the same however they are shared out.
    """
    S, B = images.shape[-1], len(rows)
    reach = S // 16
    padded = F.pad(batch_of(images, rows[part], torch.device("cpu")), (reach,) * 4, mode="replicate")
    dy, dx = generator.integers(0, 2 * reach + 1, size=2)
    gain = torch.from_numpy(generator.uniform(0.85, 1.15, (B, 1, 1, 1)).astype(np.float32))[part]
    offset = torch.from_numpy(generator.uniform(-0.1, 0.1, (B, 1, 1, 1)).astype(np.float32))[part]
    return (padded[:, :, dy : dy + S, dx : dx + S] * gain + offset).clamp(-1, 1)


class Classifier(Protocol):
    """A network [B, 1, S, S] -> logits [B, F] that can be saved."""

    def __call__(self, images: Tensor) -> Tensor: ...

    def save(self, folder: Path) -> None:
        """Write it into `folder`."""


class _Training(loop.Training):
    def __init__(
        self,
        network: Classifier,
        images: Images,
        labels: np.ndarray,
        settings: ClassifierSettings,
        seed: int,
        folder: Path,
        name: str,
        processes: Processes,
    ) -> None:
        super().__init__(name, settings.steps, processes)
        assert isinstance(network, nn.Module)
        self.network, self.classifier, self.images, self.labels = network, network, images, labels
        self.settings, self.seed, self.folder = settings, seed, folder
        self.rows = min(settings.batch_size, len(images))
        self.part = loop.share_of(self.rows, processes)
        place_network(network, processes.device)
        network.train()
        loop.share_layers(network, self.rows, self.part, processes)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=0.01)

    def step(self) -> loop.Step:
        device, parameters = self.processes.device, list(self.network.parameters())
        generator = stream(self.seed, self.name, self.at.step)
        rows = generator.choice(len(self.images), self.rows, replace=False)
        x = _augment(self.images, rows, self.part, generator).to(device, memory_format=torch.channels_last)
        target = torch.from_numpy(self.labels[rows]).to(device)
        known = ~target.isnan()
        with autocast(device):
            logits = self.classifier(x)
        own = target[self.part].nan_to_num()
        losses = F.binary_cross_entropy_with_logits(logits.float(), own, reduction="none")
        loss = (losses * known[self.part]).sum() / known.sum().clamp(min=1)
        self.optimizer.zero_grad(set_to_none=True)
        value = loop.backward(loss, parameters, self.processes)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        self.check({"loss": value, "norm of the gradient": norm.item()}, "Lower its learning_rate")
        rate, beta = loop.one_cycle(self.at.step, self.total, self.settings.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = rate, (beta, group["betas"][1])
        self.optimizer.step()
        return loop.Step({"loss": value})

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    def finish(self) -> None:
        self.network.eval().requires_grad_(False)
        self.processes.on_main(lambda: self.classifier.save(self.folder))


def train_classifier(
    network: Classifier,
    images: Images,
    labels: np.ndarray,
    settings: ClassifierSettings,
    seed: int,
    folder: Path,
    name: str,
    processes: Processes,
    save_minutes: float = loop.SAVE_MINUTES,
) -> None:
    """Train `network` by binary cross entropy over the labels that are known, and save it into `folder`.

    `images` uint8 [N, S, S]; `labels` float32 [N, F] of 1, 0 and NaN (unknown: not part of the loss). All processes call;
    resumes from the last checkpoint. `UserError` where the loss is not finite.
    """
    training = _Training(network, images, labels, settings, seed, folder, name, processes)
    with freed_memory_kept():
        loop.run(training, folder, save_minutes)
