"""Networks that look at images from outside: they have no part in the image tokenizer that is measured.

Shapes: B images, F findings, S side in pixels. Pixels in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcxr.evaluation.judge import Judge
from llmcxr.foundation.artifacts import read_json
from llmcxr.foundation.assets import SHIPPED_MODELS
from llmcxr.foundation.checkpoints import load_weights
from llmcxr.foundation.devices import autocast
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.optional import AskedBy
from llmcxr.foundation.texts import path_of
from llmcxr.foundation.yaml_text import read_yaml
from llmcxr.image_tokens.clinical_features import ClinicalFeatures, FeatureNetwork, published_features
from llmcxr.image_tokens.dinov2 import is_dinov2
from llmcxr.studies.findings import LabelSet


def resized(images: Tensor, size: int) -> Tensor:
    """[B, 1, S, S] -> [B, 1, size, size], bicubic, over areas where it shrinks: how images of one size are shown at another."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)


def clinical_network(name: str) -> FeatureNetwork:
    """The network `name`: a folder (a run's clinical_features/, a Dinov2), a TorchXRayVision name or file. `UserError` for none."""
    return published_features(
        str(path_of(name)) if path_of(name).is_dir() else name, AskedBy("--clinical", "no --clinical")
    )


@dataclass(frozen=True)
class Onlooker:
    """A classifier of findings, and the side in pixels of the images that it learned from."""

    name: str
    network: Judge | ClinicalFeatures
    image_size: int

    def check_independent(self, codec: nn.Module, name: str) -> None:
        """`UserError` where an image tokenizer was trained to please this very network: the one inside it, or beside it in its run."""
        own = self.network.state_dict()
        inside = getattr(codec, "clinical", None)
        beside = path_of(name).parent / "clinical_features" / "model.safetensors"
        for state in (
            inside.state_dict() if inside is not None else {},
            load_weights(beside) if beside.is_file() else {},
        ):
            if own.keys() == state.keys() and all(
                torch.equal(own[k].cpu().float(), state[k].cpu().float()) for k in own
            ):
                raise UserError(
                    f"--judge {self.name} is the network that the image tokenizer {name} was trained to please, so it cannot judge it. "
                    "Give another, e.g. the judge of a run."
                )


def find_onlooker(name: str) -> Onlooker:
    """The classifier `name`: of a run, a model or a shipped model (its judge), a folder of a judge or clinical network, or a
    TorchXRayVision name or file. `UserError` where there is none, or where nothing says what size of images it knows."""
    shipped = SHIPPED_MODELS / name
    folder = shipped if (shipped / "judge").is_dir() else path_of(name)
    if (folder / "judge" / "config.json").is_file():
        folder = folder / "judge"
    if not folder.is_dir() or is_dinov2(folder):
        network = published_features(name, AskedBy("--judge", "no --judge"))
        if not isinstance(network, ClinicalFeatures):
            raise UserError(f"--judge {name}: this network knows no findings, so it can judge none. Give a classifier.")
        return Onlooker(name, network, network.resolution or 224)
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and "resolution" in config:
        clinical = ClinicalFeatures.load(folder)
        return Onlooker(name, clinical, clinical.resolution or _size_beside(folder))
    judge = Judge.load(folder)
    return Onlooker(name, judge, judge.image_size or _size_beside(folder))


def _size_beside(folder: Path) -> int:
    """Side of a model's or run's images, by what lies beside a network of it."""
    for path in (folder.parent / "llmcxr.json", folder.parent / "recipe.yaml"):
        if path.is_file():
            said = read_json(path) if path.suffix == ".json" else read_yaml(path)
            try:
                return int(
                    said["image_size"]
                    if path.suffix == ".json"
                    else said["image_tokenizer"]["architecture"]["image_size"]
                )
            except (KeyError, TypeError, ValueError):
                continue
    raise UserError(
        f"nothing says what size of images {folder} has learned from: neither its config.json nor the folder above it, which should be a "
        "run or a model. Give that run or model."
    )


class Onlookers:
    """Several classifiers as one: each finding is told by the first that knows it."""

    def __init__(self, members: Sequence[Onlooker], device: torch.device) -> None:
        self.members = [Onlooker(m.name, m.network.to(device).eval(), m.image_size) for m in members]
        self.findings = LabelSet(name for m in members for name in m.network.findings)

    @property
    def name(self) -> str:
        """Of all, for the table."""
        return ", ".join(m.name for m in self.members)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> np.ndarray:
        """Float32 [B, F], in the order of `findings`, of images [B, 1, S, S], shown to each at the size that it knows."""
        columns: dict[str, np.ndarray] = {}
        for member in self.members:
            with autocast(images.device):
                found = member.network(resized(images, member.image_size).contiguous(memory_format=torch.channels_last))
            told = found.float().cpu().numpy()
            for name, column in zip(member.network.findings, told.T, strict=True):
                columns.setdefault(self.findings.spelling(name), column)
        return np.stack([columns[name] for name in self.findings], axis=1)
