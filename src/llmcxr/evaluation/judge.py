"""The judge: a small classifier of findings that has no part in training the model.

Another architecture, another seed and other losses than the clinical network, so a drawn image cannot please it by
pleasing the network that the image tokenizer was trained against.

Shapes: B images, F findings, S side in pixels. Pixels in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llmcxr.foundation.artifacts import atomic_path, read_json, write_json
from llmcxr.foundation.checkpoints import load_weights
from llmcxr.foundation.devices import place_network
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Settings, build_settings
from llmcxr.image_tokens.classifier import in_batches, train_classifier
from llmcxr.image_tokens.settings import ClassifierSettings, ImageSize
from llmcxr.studies.pixel_store import Images

if TYPE_CHECKING:
    from llmcxr.foundation.processes import Processes

_SEED = 1000  # added to the run's: nothing of the judge is drawn as the clinical network was


def _block(width_in: int, width_out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU(True)]


@dataclass(frozen=True)
class JudgeConfig(Settings):
    """config.json of a judge."""

    findings: tuple[str, ...]
    image_size: ImageSize | None = (
        None  # side of the images that it learned from; None where its file is too old to say
    )


def judge_config(folder: Path) -> JudgeConfig:
    """What a saved judge says of itself. `UserError` where that is nothing."""
    return build_settings(JudgeConfig, read_json(folder / "config.json"), str(folder / "config.json"))


def judge_findings(folder: Path) -> tuple[str, ...]:
    """The findings that a saved judge knows. `UserError` where it does not say them."""
    return judge_config(folder).findings


class Judge(nn.Module):
    """Plain convolutional classifier: [B, 1, S, S] -> logits [B, F]."""

    def __init__(self, findings: tuple[str, ...], image_size: int | None = None) -> None:
        super().__init__()
        self.findings, self.image_size = findings, image_size
        layers = [nn.Conv2d(1, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(True)]
        for width_in, width_out, stride in (
            (32, 64, 2),
            (64, 64, 1),
            (64, 128, 2),
            (128, 128, 1),
            (128, 192, 2),
            (192, 192, 1),
        ):
            layers += _block(width_in, width_out, stride)
        self.layers = nn.Sequential(*layers)
        # Place matters for sides and bases, so the grid is not averaged away but kept as 4 x 4.
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(192 * 16, len(findings))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, F]."""
        return self.head(self.layers(images))

    def scores(self, images: Images, device: torch.device) -> np.ndarray:
        """Logits float32 [N, F] of uint8 images [N, S, S]."""
        return in_batches(self, images, device)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        with atomic_path(folder / "model.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, temporary)
        write_json(folder / "config.json", {"findings": self.findings, "image_size": self.image_size})

    @classmethod
    def train_on(
        cls,
        images: Images,
        labels: np.ndarray,
        findings: tuple[str, ...],
        settings: ClassifierSettings,
        seed: int,
        folder: Path,
        processes: Processes,
    ) -> None:
        """Train on uint8 images [N, S, S] and labels [N, F] (NaN unknown) and save into `folder`. All processes call."""
        torch.manual_seed(seed + _SEED)
        train_classifier(
            cls(findings, images.shape[-1]), images, labels, settings, seed + _SEED, folder, "judge", processes
        )

    @classmethod
    def load(cls, folder: Path, findings: Sequence[str] | None = None) -> Judge:
        """Read what `save` wrote; of it the given `findings` only, in that order (ValueError for one it does not know)."""
        config = judge_config(folder)
        known = config.findings
        state = load_weights(folder / "model.safetensors")
        if findings is not None:
            rows = [known.index(name) for name in findings]
            known = tuple(findings)
            for name in ("head.3.weight", "head.3.bias"):
                state[name] = state[name][rows]
        judge = cls(known, config.image_size)
        try:
            judge.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{folder / 'model.safetensors'} does not fit its config.json: {error}") from error
        place_network(judge, torch.device("cpu"))
        return judge.eval().requires_grad_(False)
