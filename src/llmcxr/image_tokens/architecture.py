"""Sizes of the image tokenizer, and the kinds of networks behind them: one file a kind, loaded when it is asked for.

A kind is a module with `build_encoder(a) -> EncoderParts` and a class `Decoder(a)` ([B, code_dim, g, g] -> [B, 1, S, S]) with
`last_weight`. A new one is one more file, and its name in `_KINDS` and in the setting.

Shapes: B images, S side in pixels, g side of the code grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from llmcxr.foundation.settings import Range, Settings, setting

_KINDS = {"convolutional": "llmcxr.image_tokens.convolutional", "mixer": "llmcxr.image_tokens.mixer"}
# What these may be, here and in a model's own description.
ImageSize = Annotated[int, Range(8, 4096)]
CodebookSize = Annotated[int, Range(2, 65_536)]  # codes are stored as uint16
CLINICAL_CHANNELS = 1024  # of the DenseNet's last feature map


@dataclass(frozen=True)
class ArchitectureSettings(Settings):
    """Sizes of the image tokenizer."""

    image_size: ImageSize = setting(256, "side of the square image in pixels")
    channels: list[Annotated[int, Range(32, 8192)]] = setting(
        [128, 128, 256, 256, 512], "convolutional: width of each resolution; each but the last halves it"
    )
    codebook_size: CodebookSize = setting(1024, "K_img: number of image tokens")
    code_dim: Annotated[int, Range(1, 8192)] = setting(256, "dimension of a code vector (codes are compared by cosine)")
    kind: Literal["convolutional", "mixer"] = setting("convolutional", "as in the paper, or mixer (fast on CPUs)")
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
        if self.kind == "convolutional" and (bad := [c for c in self.channels if c % 32]):
            faults.append(f"channels: {bad} are not multiples of 32")
        return faults


class EncoderParts(NamedTuple):
    """What an encoder is made of; the clinical network's map comes in between."""

    stem: nn.Module  # [B, 1, S, S] -> [B, width, g, g]
    layers: nn.Module  # [B, width, g, g] -> [B, code_dim, g, g]
    width: int


def networks(a: ArchitectureSettings) -> Any:
    """The module of the architecture's kind. `UserError` where a package that it needs is missing."""
    return import_module(_KINDS[a.kind])


class ImageEncoder(nn.Module):
    """[B, 1, S, S] in [-1, 1] -> [B, code_dim, g, g].

    With `clinical_input`, the last feature map of the clinical network is stretched over the code grid and added to what
    the encoder has seen itself, so that a code can say what its pixels mean. Ours, not the paper's.
    """

    def __init__(self, a: ArchitectureSettings) -> None:
        super().__init__()
        self.grid = a.grid
        self.stem, self.layers, width = networks(a).build_encoder(a)
        self.clinical = nn.Conv2d(CLINICAL_CHANNELS, width, 1) if a.clinical_input else None

    def forward(self, images: Tensor, clinical: Tensor | None = None) -> Tensor:
        """`clinical` is the feature map [B, 1024, s, s]; it is needed with `clinical_input`, and unused without."""
        z = self.stem(images)
        if self.clinical is not None:
            assert clinical is not None
            z = z + F.interpolate(
                self.clinical(clinical), size=(self.grid, self.grid), mode="bilinear", align_corners=False
            )
        return self.layers(z)


class ImageDecoder(Protocol):
    """[B, code_dim, g, g] -> [B, 1, S, S] in about [-1, 1]."""

    @property
    def last_weight(self) -> Tensor:
        """Of the last layer, at which the adversarial weight is balanced (VQ-GAN, eq. 7)."""

    def __call__(self, z: Tensor) -> Tensor: ...


def build_decoder(a: ArchitectureSettings) -> ImageDecoder:
    """The decoder of the architecture's kind, a `nn.Module`."""
    return networks(a).Decoder(a)
