"""Settings of the image tokenizer and of the classifiers, apart from the networks so that they are read without
torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from llmcxr.foundation.optional import AskedBy
from llmcxr.foundation.settings import (
    Count,
    LearningRate,
    NameOrPath,
    Number,
    Range,
    Settings,
    Share,
    ShareBelowAll,
    Weight,
    setting,
)

# What these may be, here and in a model's own description.
ImageSize = Annotated[int, Range(8, 4096)]
CodebookSize = Annotated[int, Range(2, 65_536)]  # codes are stored as uint16
BatchSize = Annotated[int, Range(1, 100_000)]  # images of a step

_DISCRIMINATED = {"vqgan": 24, "mixer": 16}  # sides of the smallest images that each kind's discriminator takes


@dataclass(frozen=True)
class ArchitectureSettings(Settings):
    """Sizes of the image tokenizer."""

    image_size: ImageSize = setting(256, "side of the square image in pixels")
    channels: list[Annotated[int, Range(32, 8192)]] = setting(
        [128, 128, 256, 256, 512],
        "vqgan: width of each resolution; each but the last halves it (taming's ch x ch_mult)",
    )
    codebook_size: CodebookSize = setting(1024, "K_img: number of image tokens")
    code_dim: Annotated[int, Range(1, 8192)] = setting(256, "dimension of a code vector")
    codebook: Literal["cosine", "euclidean"] = setting(
        "cosine", "how the nearest code is found: by angle (more codes stay in use) or, as in the paper, by distance"
    )
    kind: Literal["vqgan", "mixer"] = setting("vqgan", "taming-transformers' as in the paper, or mixer (fast on CPUs)")
    blocks: Annotated[int, Range(1, 16)] = setting(2, "vqgan: residual blocks at each resolution")
    attention: list[Annotated[int, Range(1, 4096)]] = setting(
        [16], "vqgan: sides in pixels at which each block is followed by attention, beside the middle"
    )
    z_channels: Annotated[int, Range(1, 8192)] = setting(256, "vqgan: width on either side of the code vectors")
    image_channels: Literal[1, 3] = setting(
        1,
        "vqgan: 3 for weights that were trained on colour: grey is repeated, and the mean of what is painted is taken",
    )
    patch: Annotated[int, Range(2, 1024)] = setting(16, "mixer: pixels along one side of a code")
    width: Annotated[int, Range(1, 16_384)] = setting(384, "mixer: channels")
    clinical_input: bool = setting(
        False, "the encoder also sees the clinical network's last feature map (ours; false as in the paper)"
    )

    @property
    def grid(self) -> int:
        """Codes along one side of the image."""
        return self.image_size // (self.patch if self.kind == "mixer" else 2 ** (len(self.channels) - 1))

    def faults(self) -> list[str]:
        """Impossible combinations."""
        faults = []
        if not 1 <= len(self.channels) <= 12:
            return [f"channels: {len(self.channels)} of them; should be 1 to 12 widths"]
        reduction = 2 ** (len(self.channels) - 1)
        if self.kind == "mixer":
            if self.patch % 2 or self.image_size % self.patch:
                faults.append(f"patch: {self.patch} should be even and divide image_size ({self.image_size})")
        elif self.image_size % reduction:
            faults.append(f"image_size: {self.image_size} is not a multiple of {reduction} (halvings by channels)")
        if self.kind == "vqgan" and (bad := [c for c in self.channels if c % 32]):
            faults.append(f"channels: {bad} are not multiples of 32")
        return faults


# What names networks of others where nothing else is said.
CLINICAL_WEIGHTS = AskedBy("clinical_features.weights", "clinical_features.weights=train")
LPIPS_WEIGHTS = AskedBy("image_tokenizer.perceptual", "image_tokenizer.perceptual=clinical")


@dataclass(frozen=True)
class ClassifierSettings(Settings):
    """How a classifier of findings is trained."""

    steps: Count = setting(200, "optimiser steps")
    batch_size: BatchSize = setting(32, "images a step")
    learning_rate: LearningRate = setting(2e-3, "peak of the one-cycle schedule (AdamW)")


@dataclass(frozen=True)
class ClinicalFeatureSettings(Settings):
    """Where the network of the clinical feature loss comes from."""

    weights: NameOrPath = setting(
        "train",
        "'train' (on the labels of this run), a TorchXRayVision name such as densenet121-res224-all, its .pt/.safetensors path, or "
        "the folder or hub id of a Dinov2 such as microsoft/rad-dino",
    )
    training: ClassifierSettings = setting(ClassifierSettings(), "used where weights is 'train'")
    resolution: Annotated[int, Range(32, 4096)] | None = setting(  # the network halves it five times
        None,
        "used where weights is 'train': side in pixels to which the network shrinks images; null keeps theirs. "
        "Half the side is four times faster, here and in the image tokenizer's training (published weights see 224)",
    )

    def files(self) -> list[Path]:
        """Files whose contents the network is made of."""
        path = Path(self.weights)
        if path.is_dir():
            return sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors"))
        return [path] if path.suffix in (".pt", ".safetensors") and path.is_file() else []


@dataclass(frozen=True)
class ImageTokenizerSettings(Settings):
    """The VQ-GAN and its training."""

    architecture: ArchitectureSettings = setting(ArchitectureSettings(), "sizes")
    pretrained: NameOrPath | None = setting(
        None,
        "a trained image tokenizer (its folder, or a Hugging Face id) to use as it is, instead of training; its sizes take the place "
        "of `architecture`",
    )
    start: NameOrPath | None = setting(
        None,
        "a trained image tokenizer to train on from, on this run's images; its sizes take the place of `architecture`",
    )
    steps: Count = setting(50_000, "optimiser steps")
    minutes: Annotated[float, Range(0.01, 1e6)] | None = setting(
        None,
        "of training, after which it ends in good order where `steps` are not done; its schedules then follow the clock",
    )
    batch_size: BatchSize = setting(16, "images a step")
    images_at_once: BatchSize | None = setting(
        None,
        "images of a step that are computed at once on a device, where its memory does not hold more: the same result, in about "
        "half as much time again; null: all",
    )
    learning_rate: LearningRate = setting(4e-4, "AdamW, cosine to a tenth after 2 % of warm-up")
    varied_share: Share = setting(
        0.0, "share of a step's images that are turned, scaled, moved, mirrored and changed in contrast: for few images"
    )
    perceptual: NameOrPath = setting(
        "clinical",
        "'clinical' (maps of the clinical network), 'download' (LPIPS) or the path of VGG-16 weights (LPIPS)",
    )
    clinical_weight: Weight = setting(0.1, "clinical feature loss; 0 for the paper's ablation")
    reading_weight: Weight = setting(
        0.0, "findings, as the clinical network sees them, read from the codes themselves (ours; 0 as in the paper)"
    )
    feature_start: ShareBelowAll = setting(
        0.0,
        "share of the steps before the perceptual and clinical terms begin (they then rise over a tenth of the steps)",
    )
    adversarial_weight: Weight = setting(0.5, "times the adaptive weight; 0 switches the adversary off")
    adversarial_start: Share = setting(0.5, "share of the steps after which the adversary starts")
    codebook_decay: ShareBelowAll = setting(
        0.99, "moving average of the code vectors; lower follows faster, for short trainings"
    )
    commitment_weight: Weight = setting(
        0.25, "pull of the encoder towards its code vectors; 1 is what taming's code does, by its known slip"
    )
    pictures_every: Number = setting(
        0, "steps between grids of validation images in TensorBoard (image_tokenizer/logs), with the losses; 0: none"
    )
    weights_average: ShareBelowAll = setting(
        0.0,
        "moving average of encoder and decoder, a step, of which the tokenizer is made; 0: the last weights, as VQ-GAN",
    )

    @property
    def given(self) -> str | None:
        """The trained image tokenizer that it is, or begins from."""
        return self.pretrained or self.start

    @property
    def asks_clinical(self) -> bool:
        """Whether a term of the objective, or the encoder, depends on what the clinical network sees."""
        weights = self.clinical_weight + self.reading_weight
        return weights > 0 or self.perceptual == "clinical" or self.architecture.clinical_input

    def faults(self) -> list[str]:
        """Impossible combinations."""
        faults = []
        if self.pretrained and self.start:
            faults.append("start: nothing is trained where `pretrained` is given; set one of the two")
        least = _DISCRIMINATED[self.architecture.kind]
        if self.adversarial_weight and self.given is None and self.architecture.image_size < least:
            faults.append(
                f"adversarial_weight: the discriminator sees nothing in images of {self.architecture.image_size} pixels, below {least}; "
                "should be 0"
            )
        return faults

    def files(self) -> list[Path]:
        """Files whose contents the tokenizer is made of (the folder of a given one is a model of its own)."""
        path = Path(self.perceptual)
        return [path] if path.is_file() else []


def without_clinical(settings: ImageTokenizerSettings) -> ImageTokenizerSettings:
    """The same training where there is no clinical network: pixels, the adversary, and LPIPS where it was asked for."""
    architecture = dataclasses.replace(settings.architecture, clinical_input=False)
    return dataclasses.replace(
        settings,
        architecture=architecture,
        clinical_weight=0.0,
        reading_weight=0.0,
    )
