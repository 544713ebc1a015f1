"""The mixer: encoder and decoder that know each place of the code grid.

Radiographs are aligned, so it reaches in a minute of two CPU cores what convolutions need many for (benchmarks/image_tokenizer_learning.py).

Shapes: B images, S side in pixels, g side of the code grid, P = g * g places, C channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcxr.foundation.devices import without_autocast
from llmcxr.image_tokens.architecture import EncoderParts
from llmcxr.image_tokens.settings import ArchitectureSettings

BLOCKS = 3  # on each side of the quantizer


class PlaceMixer(nn.Module):
    """One block of MLP-Mixer (Tolstikhin et al., 2021) over the code grid, with a learned vector for each place."""

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        P = grid * grid
        self.place = nn.Parameter(torch.zeros(P, width))
        self.norm_places, self.norm_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.places = nn.Sequential(nn.Linear(P, 4 * P), nn.GELU(), nn.Linear(4 * P, P))
        self.channels = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, z: Tensor) -> Tensor:
        """[B, C, g, g] -> [B, C, g, g]."""
        x = z.flatten(2).transpose(1, 2) + self.place  # [B, P, C]
        x = x + self.places(self.norm_places(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm_channels(x))
        return x.transpose(1, 2).reshape(z.shape)


class _NormChannels(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, g, g]."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z.movedim(1, -1)).movedim(-1, 1)


class LappedPatches(nn.Module):
    """[B, C, g, g] -> [B, 1, S, S]: patches of twice the stride, faded out by a squared sine and added.

    The windows of neighbours sum to one, so a constant stays constant and no border can be seen, by construction.
    """

    window: Tensor

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.randn(width, 1, 2 * stride, 2 * stride) * 0.5 * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(1))
        fade = torch.sin(math.pi * (torch.arange(2 * stride) + 0.5) / (2 * stride)) ** 2
        self.register_buffer("window", fade[:, None] * fade[None], persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        weight, bias = self.weight.float() * self.window.float(), self.bias.float()
        with without_autocast(z):  # CPUs have no fast transposed convolution in bfloat16
            return F.conv_transpose2d(z.float(), weight, bias, stride=self.stride, padding=self.stride // 2)


def build_encoder(a: ArchitectureSettings) -> EncoderParts:
    """Overlapping patches, then blocks that know places."""
    stem = nn.Conv2d(1, a.width, 2 * a.patch, stride=a.patch, padding=a.patch // 2)
    blocks = [PlaceMixer(a.width, a.grid) for _ in range(BLOCKS)]
    return EncoderParts(
        stem, nn.Sequential(*blocks, _NormChannels(a.width), nn.Conv2d(a.width, a.code_dim, 1)), a.width
    )


class Decoder(nn.Module):
    """Blocks that know places, then overlapping patches."""

    def __init__(self, a: ArchitectureSettings) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(a.code_dim, a.width, 1),
            *[PlaceMixer(a.width, a.grid) for _ in range(BLOCKS)],
            _NormChannels(a.width),
        )
        self.patches = LappedPatches(a.width, a.patch)

    @property
    def last_weight(self) -> Tensor:
        return self.patches.weight

    def forward(self, z: Tensor) -> Tensor:
        return self.patches(self.layers(z))


def build_discriminator() -> nn.Module:
    """A PatchGAN of three layers: taming's without its widest layer, and with norms of groups instead of batches."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(64, 128, 4, stride=2, padding=1, bias=False),
        nn.GroupNorm(32, 128),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(128, 256, 4, stride=2, padding=1, bias=False),
        nn.GroupNorm(32, 256),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(256, 1, 4, padding=1),
    )
