"""What a radiologist would look at, as a network sees it: the TorchXRayVision DenseNet and how a classifier is trained.

Paper, section 2.1: the 1024-d features of a TorchXRayVision DenseNet must survive tokenisation.

Shapes: B images, F findings, S side of the image in pixels, C channels.
Pixels: [B, 1, S, S] in [-1, 1], bone white; TorchXRayVision itself expects [-1024, 1024], the change is made here only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from llmcxr.foundation.artifacts import atomic_path, read_json, write_json
from llmcxr.foundation.checkpoints import load_checkpoint, load_weights, remove_checkpoint, save_checkpoint
from llmcxr.foundation.devices import autocast, place_network
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import setting
from llmcxr.studies.pixel_store import Images
from llmcxr.studies.radiographs import from_uint8

with warnings.catch_warnings():  # torchxrayvision mutes every warning of the process on import
    import torchxrayvision as xrv


@dataclass(frozen=True)
class ClassifierSettings:
    """How a classifier of findings is trained."""

    steps: int = setting(200, "optimiser steps")
    batch_size: int = setting(32, "images a step")
    learning_rate: float = setting(2e-3, "peak of the one-cycle schedule (AdamW)")
    seed: int = setting(0, "order of the images, shifts, and start of the weights")


@dataclass(frozen=True)
class ClinicalFeatureSettings:
    """Where the DenseNet of the clinical feature loss comes from."""

    weights: str = setting(
        "train",
        "'train' (on the labels of this run), a TorchXRayVision name such as densenet121-res224-all, or a .pt/.safetensors path",
    )
    training: ClassifierSettings = setting(ClassifierSettings(), "used where weights is 'train'")
    resolution: int | None = setting(
        None,
        "used where weights is 'train': side in pixels to which the network shrinks images; null keeps theirs. "
        "Half the side is four times faster, here and in the image tokenizer's training (published weights see 224)",
    )

    def faults(self) -> list[str]:
        """Impossible combinations."""
        if self.resolution is not None and self.resolution < 32:
            return [f"resolution: {self.resolution} should be at least 32 (the network halves it five times)"]
        return []


class ClinicalFeatures(nn.Module):
    """TorchXRayVision's DenseNet-121 (1 channel) with named findings."""

    def __init__(self, findings: tuple[str, ...], resolution: int | None = None) -> None:
        super().__init__()
        self.findings = findings
        self.resolution = resolution  # images are resized to this before the network; None keeps their size
        self.network = xrv.models.DenseNet(num_classes=len(findings), in_channels=1)

    def feature_maps(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Outputs of the four dense blocks ([B, C, s, s] each) and the pooled 1024-d features [B, 1024]."""
        x = images * 1024  # TorchXRayVision's convention
        if self.resolution is not None and x.shape[-1] != self.resolution:
            size = (self.resolution, self.resolution)
            if x.shape[-1] > self.resolution:  # average over areas: fine findings fade, rather than being skipped
                x = F.interpolate(x, size=size, mode="area")
            else:
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        # Inputs of this size would make the first convolution's activations very large in bfloat16; its batch norm
        # takes the scale out again, so nothing changes but the rounding.
        maps = []
        for name, layer in self.network.features.named_children():
            x = layer(x)
            if name.startswith("denseblock"):
                maps.append(x)
        return maps, F.relu(x).mean(dim=(2, 3))

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` needs, beside the weights."""
        return {"findings": self.findings, "resolution": self.resolution}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ClinicalFeatures:
        """The network that `config` describes, untrained."""
        return cls(tuple(config["findings"]), config["resolution"])

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, F]."""
        return self.network.classifier(self.feature_maps(images)[1])

    @torch.inference_mode()
    def log_likelihoods(self, images: Tensor, labels: Tensor) -> Tensor:
        """Float32 [B]: log p of the known ones of `labels` [B, F] (1, 0, NaN) on images [B, 1, S, S], in nats."""
        with autocast(images.device):
            logits = self(images)
        losses = F.binary_cross_entropy_with_logits(logits.float(), labels.nan_to_num(), reduction="none")
        return -(losses * ~labels.isnan()).sum(1)

    @torch.no_grad()
    def take_weights(self, other: ClinicalFeatures) -> None:
        """The weights of `other`; its findings may be others: "left X" begins as "X", and what it never saw begins anew."""
        own, given = self.network.classifier, other.network.classifier
        self.network.features.load_state_dict(other.network.features.state_dict())
        for row, name in enumerate(self.findings):
            known = [n for n in (name, name.removeprefix("left ").removeprefix("right ")) if n in other.findings]
            if known:
                own.weight[row] = given.weight[other.findings.index(known[0])]
                own.bias[row] = given.bias[other.findings.index(known[0])]

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        with atomic_path(folder / "model.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, temporary)
        write_json(folder / "config.json", self.config)

    @classmethod
    def load(cls, folder: Path) -> ClinicalFeatures:
        """Read what `save` wrote; the network is frozen and in evaluation mode."""
        model = cls.from_config(read_json(folder / "config.json"))
        model.load_state_dict(load_weights(folder / "model.safetensors"))
        return model.eval().requires_grad_(False)


def published_features(weights: str) -> ClinicalFeatures:
    """TorchXRayVision's own weights, by name (downloaded once by torchxrayvision) or by the path of the same file.

    The published files are whole pickled modules; they are read with the safe unpickler, which is allowed the classes
    of that one network and nothing else. Raises `UserError` where the file cannot be had or read.
    """
    path = Path(weights)
    if weights in xrv.models.model_urls:
        findings = xrv.models.model_urls[weights]["labels"]
        try:
            path = Path(xrv.models.get_weights(weights))
        except Exception as error:  # requests, urllib and OS errors alike
            raise UserError(
                f"the TorchXRayVision weights {weights!r} could not be downloaded ({error}). Set clinical_features.weights to "
                "the path of the file, or to 'train' to train the same network on this run's labels."
            ) from error
    elif path.suffix in (".pt", ".safetensors"):
        findings = xrv.models.DenseNet.targets
    else:
        raise UserError(
            f"clinical_features.weights: {weights!r} is neither 'train', a TorchXRayVision name, nor a .pt/.safetensors path."
        )
    try:
        if path.suffix == ".safetensors":
            state = load_weights(path)
        else:
            modules = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Linear, nn.Sequential]
            dense = [getattr(xrv.models, n) for n in ("DenseNet", "_DenseBlock", "_DenseLayer", "_Transition")]
            with torch.serialization.safe_globals([*modules, *dense, set]):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = loaded.state_dict() if isinstance(loaded, nn.Module) else loaded
        state = {k: v for k, v in state.items() if k != "op_threshs"}
        model = ClinicalFeatures(tuple(findings[: state["classifier.weight"].shape[0]]), resolution=224)
        model.network.load_state_dict(state)
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path} does not hold a TorchXRayVision DenseNet-121: {error}") from error
    except Exception as error:  # pickle.UnpicklingError, without importing pickle
        raise UserError(f"{path} was refused by the safe loader: {error}") from error
    return model.eval().requires_grad_(False)


def _augment(images: Tensor, generator: np.random.Generator) -> Tensor:
    """Shift by up to 1/16 and vary contrast and brightness a little; never mirror (sides matter)."""
    S = images.shape[-1]
    reach = S // 16
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    dy, dx = generator.integers(0, 2 * reach + 1, size=2)
    B = images.shape[0]
    gain = torch.from_numpy(generator.uniform(0.85, 1.15, (B, 1, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(generator.uniform(-0.1, 0.1, (B, 1, 1, 1)).astype(np.float32))
    return (padded[:, :, dy : dy + S, dx : dx + S] * gain + offset).clamp(-1, 1)


def batch_of(images: Images, rows: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [N, S, S] (0 black, 255 white) -> float32 [B, 1, S, S] in [-1, 1]."""
    batch = torch.from_numpy(from_uint8(images[rows])).unsqueeze(1).to(device)
    return batch.contiguous(memory_format=torch.channels_last)


def train_classifier(
    network: nn.Module,
    images: Images,
    labels: np.ndarray,
    settings: ClassifierSettings,
    device: torch.device,
    checkpoint: Path,
    name: str,
) -> None:
    """Train `network` ([B, 1, S, S] -> logits [B, F]) by binary cross entropy over the labels that are known.

    `images` uint8 [N, S, S]; `labels` float32 [N, F] of 1, 0 and NaN (unknown: not part of the loss). Resumes from
    `checkpoint`, which is removed at the end.
    """
    place_network(network, device)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps, pct_start=0.2)
    start = 0
    if state := load_checkpoint(checkpoint):
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start = state["step"]
    bar = tqdm(range(start, settings.steps), initial=start, total=settings.steps, desc=name, unit="step")
    for step in bar:
        generator = stream(settings.seed, name, step)
        rows = generator.choice(len(images), min(settings.batch_size, len(images)), replace=False)
        x = _augment(batch_of(images, rows, torch.device("cpu")), generator).to(
            device, memory_format=torch.channels_last
        )
        target = torch.from_numpy(labels[rows]).to(device)
        known = ~target.isnan()
        with autocast(device):
            logits = network(x)
        losses = F.binary_cross_entropy_with_logits(logits.float(), target.nan_to_num(), reduction="none")
        loss = (losses * known).sum() / known.sum().clamp(min=1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 500 == 0:
            save_checkpoint(
                checkpoint,
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "step": step + 1,
                },
            )
    remove_checkpoint(checkpoint)
    network.eval().requires_grad_(False)


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
