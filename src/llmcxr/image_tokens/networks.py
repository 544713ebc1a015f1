"""Encoder, decoder and discriminator of the VQ-GAN.

Two kinds. `convolutional` with `stem_stride` 1 and channels (128, 128, 256, 256, 512) is the paper's (taming-transformers')
layout; a stem of stride 4 or 8 skips the dear full-resolution layers. `mixer` knows each place of the code grid:
radiographs are aligned, so it reaches in a minute of two CPU cores what convolutions need many for (docs/measurements.md).

Shapes: B images, S side in pixels, g side of the code grid, P = g * g places, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

from llmcxr.foundation.settings import setting


@dataclass(frozen=True)
class ArchitectureSettings:
    """Sizes of the image tokenizer."""

    image_size: int = setting(256, "side of the square image in pixels")
    stem_stride: int = setting(
        1, "convolutional: 1 as in the paper; 2, 4 or 8 begins with a patch embedding (faster on CPUs)"
    )
    channels: list[int] = setting(
        [128, 128, 256, 256, 512], "convolutional: width of each resolution; each but the last halves it"
    )
    blocks: int = setting(2, "convolutional: residual blocks at each resolution")
    codebook_size: int = setting(1024, "K_img: number of image tokens")
    code_dim: int = setting(256, "dimension of a code vector (codes are compared by cosine)")
    kind: Literal["convolutional", "mixer"] = setting("convolutional", "as in the paper, or mixer (fast on CPUs)")
    patch: int = setting(16, "mixer: pixels along one side of a code")
    width: int = setting(384, "mixer: channels")
    mixers: int = setting(3, "mixer: blocks on each side of the quantizer")
    clinical_input: bool = setting(
        False, "the encoder also sees the clinical network's last feature map (ours; false as in the paper)"
    )

    @property
    def grid(self) -> int:
        """Codes along one side of the image."""
        if self.kind == "mixer":
            return self.image_size // self.patch
        return self.image_size // (self.stem_stride * 2 ** (len(self.channels) - 1))

    def faults(self) -> list[str]:
        """Impossible combinations."""
        faults = []
        if not self.channels:
            return ["channels: needs at least one width"]
        reduction = self.stem_stride * 2 ** (len(self.channels) - 1)
        if self.kind == "mixer":
            if self.patch < 2 or self.patch % 2 or self.image_size < 1 or self.image_size % self.patch:
                faults.append(f"patch: {self.patch} should be even and divide image_size ({self.image_size})")
            if self.width < 1 or self.mixers < 0:
                faults.append(f"width, mixers: {self.width}, {self.mixers} should be at least 1 and 0")
        elif self.stem_stride not in (1, 2, 4, 8):
            faults.append(f"stem_stride: {self.stem_stride} should be 1, 2, 4 or 8")
        elif self.image_size < 1 or self.image_size % reduction:
            faults.append(
                f"image_size: {self.image_size} is not a multiple of {reduction} (stem_stride x halvings by channels)"
            )
        if self.kind == "convolutional" and (bad := [c for c in self.channels if c < 1 or c % 32]):
            faults.append(f"channels: {bad} are not positive multiples of 32")
        if not 2 <= self.codebook_size <= 65536:
            faults.append(f"codebook_size: {self.codebook_size} should be 2 to 65536 (codes are stored as uint16)")
        return faults


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
        return F.conv_transpose2d(z, self.weight * self.window, self.bias, stride=self.stride, padding=self.stride // 2)


CLINICAL_CHANNELS = 1024  # of the DenseNet's last feature map


class ImageEncoder(nn.Module):
    """[B, 1, S, S] in [-1, 1] -> [B, code_dim, g, g].

    With `clinical_input`, the last feature map of the clinical network is stretched over the code grid and added to what
    the encoder has seen itself, so that a code can say what its pixels mean. Ours, not the paper's.
    """

    def __init__(self, a: ArchitectureSettings) -> None:
        super().__init__()
        self.grid = a.grid
        if a.kind == "mixer":
            width = a.width
            self.stem: nn.Module = nn.Conv2d(1, width, 2 * a.patch, stride=a.patch, padding=a.patch // 2)
            self.layers = nn.Sequential(
                *[PlaceMixer(width, a.grid) for _ in range(a.mixers)],
                _NormChannels(width),
                nn.Conv2d(width, a.code_dim, 1),
            )
        else:
            width = a.channels[-1]
            self.stem = _convolutional_encoder(a)
            self.layers = nn.Sequential(nn.Conv2d(width, a.code_dim, 1))
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


def _convolutional_encoder(a: ArchitectureSettings) -> nn.Module:
    """[B, 1, S, S] -> [B, channels[-1], g, g]."""
    width = a.channels[0]
    stem: nn.Module = nn.Identity()
    if a.stem_stride > 1:
        s = a.stem_stride  # overlapping patches (kernel 2s) do not see the patch borders
        stem = nn.Sequential(nn.Conv2d(1, width, 2 * s, stride=s, padding=s // 2), nn.SiLU())
    encoder = Encoder(
        in_channels=1 if a.stem_stride == 1 else width,
        out_channels=a.channels[-1],
        down_block_types=("DownEncoderBlock2D",) * len(a.channels),
        block_out_channels=tuple(a.channels),
        layers_per_block=a.blocks,
        double_z=False,
    )
    return nn.Sequential(stem, encoder)


class _Upsample(nn.Module):
    """Bilinear, then convolution: no checkerboard, unlike transposed convolutions, pixel shuffles or, when two follow each
    other after a short training, nearest neighbours."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(width_in, width_out, 3, padding=1),
            nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def build_decoder(a: ArchitectureSettings) -> ConvolutionalDecoder | MixerDecoder:
    """[B, code_dim, g, g] -> [B, 1, S, S] in about [-1, 1]; `last_weight` is that of the last layer, at which the
    adversarial weight is balanced (VQ-GAN, eq. 7)."""
    return MixerDecoder(a) if a.kind == "mixer" else ConvolutionalDecoder(a)


class MixerDecoder(nn.Module):
    """Blocks that know places, then overlapping patches."""

    def __init__(self, a: ArchitectureSettings) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(a.code_dim, a.width, 1),
            *[PlaceMixer(a.width, a.grid) for _ in range(a.mixers)],
            _NormChannels(a.width),
        )
        self.patches = LappedPatches(a.width, a.patch)

    @property
    def last_weight(self) -> Tensor:
        return self.patches.weight

    def forward(self, z: Tensor) -> Tensor:
        return self.patches(self.layers(z))


class ConvolutionalDecoder(nn.Module):
    """diffusers' decoder; a stem's stride is undone by bilinear upsampling and convolutions."""

    def __init__(self, a: ArchitectureSettings) -> None:
        super().__init__()
        width = a.channels[0]
        self.expand = nn.Conv2d(a.code_dim, a.channels[-1], 1)
        self.trunk = Decoder(
            in_channels=a.channels[-1],
            out_channels=1 if a.stem_stride == 1 else width,
            up_block_types=("UpDecoderBlock2D",) * len(a.channels),
            block_out_channels=tuple(a.channels),
            layers_per_block=a.blocks,
        )
        steps: list[nn.Module] = []
        stride = a.stem_stride
        while stride > 1:
            steps.append(_Upsample(width, max(width // 2, 32)))
            width, stride = max(width // 2, 32), stride // 2
        self.rise = nn.Sequential(*steps)
        self.last = nn.Conv2d(width if a.stem_stride > 1 else 1, 1, 3, padding=1) if a.stem_stride > 1 else None

    @property
    def last_weight(self) -> Tensor:
        return self.trunk.conv_out.weight if self.last is None else self.last.weight

    def forward(self, z: Tensor) -> Tensor:
        x = self.trunk(self.expand(z))
        return x if self.last is None else self.last(self.rise(x))


def build_discriminator(width: int = 64, layers: int = 3) -> nn.Module:
    """PatchGAN (pix2pix): [B, 1, S, S] -> a logit for each overlapping patch."""
    net: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
    for i in range(1, layers):
        last, now = width * min(2 ** (i - 1), 8), width * min(2**i, 8)
        net += [
            nn.Conv2d(last, now, 4, stride=2, padding=1, bias=False),
            nn.GroupNorm(32, now),
            nn.LeakyReLU(0.2, True),
        ]
    return nn.Sequential(*net, nn.Conv2d(width * min(2 ** (layers - 1), 8), 1, 4, stride=1, padding=1))
