"""Encoder, decoder and discriminator of the VQ-GAN.

With `stem_stride` 1 and channels (128, 128, 256, 256, 512) this is the paper's (taming-transformers') layout. A stem of
stride 4 or 8 skips the dear full-resolution layers: tens of times faster on a CPU, for a little sharpness.

Shapes: B images, S side in pixels, g side of the code grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

from llmcxr.foundation.settings import setting


@dataclass(frozen=True)
class ArchitectureSettings:
    """Sizes of the image tokenizer."""

    image_size: int = setting(256, "side of the square image in pixels")
    stem_stride: int = setting(1, "1 as in the paper; 2, 4 or 8 begins with a patch embedding (fast on CPUs)")
    channels: list[int] = setting([128, 128, 256, 256, 512], "width of each resolution; each but the last halves it")
    blocks: int = setting(2, "residual blocks at each resolution")
    codebook_size: int = setting(1024, "K_img: number of image tokens")
    code_dim: int = setting(256, "dimension of a code vector (codes are compared by cosine)")

    @property
    def grid(self) -> int:
        """Codes along one side of the image."""
        return self.image_size // (self.stem_stride * 2 ** (len(self.channels) - 1))

    def faults(self) -> list[str]:
        """Impossible combinations."""
        faults = []
        if not self.channels:
            return ["channels: needs at least one width"]
        reduction = self.stem_stride * 2 ** (len(self.channels) - 1)
        if self.stem_stride not in (1, 2, 4, 8):
            faults.append(f"stem_stride: {self.stem_stride} should be 1, 2, 4 or 8")
        elif self.image_size < 1 or self.image_size % reduction:
            faults.append(
                f"image_size: {self.image_size} is not a multiple of {reduction} (stem_stride x halvings by channels)"
            )
        if bad := [c for c in self.channels if c < 1 or c % 32]:
            faults.append(f"channels: {bad} are not positive multiples of 32")
        if not 2 <= self.codebook_size <= 65536:
            faults.append(f"codebook_size: {self.codebook_size} should be 2 to 65536 (codes are stored as uint16)")
        return faults


def build_encoder(a: ArchitectureSettings) -> nn.Module:
    """[B, 1, S, S] in [-1, 1] -> [B, code_dim, g, g]."""
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
    return nn.Sequential(stem, encoder, nn.Conv2d(a.channels[-1], a.code_dim, 1))


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


class VqDecoder(nn.Module):
    """[B, code_dim, g, g] -> [B, 1, S, S] in about [-1, 1]."""

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
        """Weight of the last layer, at which the adversarial weight is balanced (VQ-GAN, eq. 7)."""
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
