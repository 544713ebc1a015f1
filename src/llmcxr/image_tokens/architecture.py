"""Sizes of the image tokenizer, and the kinds of networks behind them: one file a kind, loaded when it is asked for.

A kind is a module with `build_encoder(a) -> EncoderParts`, a class `Decoder(a)` ([B, code_dim, g, g] -> [B, 1, S, S]) with
`last_weight`, and `build_discriminator()`, its adversary in training. A new one is one more file, and its name in `_KINDS` and in
the setting.

Shapes: B images, S side in pixels, g side of the code grid, C channels.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from llmcxr.image_tokens.settings import ArchitectureSettings

_KINDS = {"vqgan": "llmcxr.image_tokens.vqgan", "mixer": "llmcxr.image_tokens.mixer"}
CLINICAL_CHANNELS = 1024  # of the DenseNet's last feature map


class EncoderParts(NamedTuple):
    """What an encoder is made of; the clinical network's map comes in between."""

    stem: nn.Module  # [B, 1, S, S] -> [B, width, g, g]
    layers: nn.Module  # [B, width, g, g] -> [B, code_dim, g, g]
    width: int


def networks(a: ArchitectureSettings) -> Any:
    """The module of the architecture's kind."""
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


def build_discriminator(a: ArchitectureSettings) -> nn.Module:
    """The PatchGAN (pix2pix) that the kind is trained against: [B, 1, S, S] -> a logit for each overlapping patch."""
    return networks(a).build_discriminator()
