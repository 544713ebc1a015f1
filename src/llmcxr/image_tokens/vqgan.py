"""The VQ-GAN of taming-transformers (Esser et al., 2021), the paper's: convolutions, and attention at coarse resolutions.

Modules and parameters have taming's names, so that published weights fit (image_tokens/taming.py).

Shapes: B images, S side in pixels, g side of the code grid, C channels. Pixels in [-1, 1].
With three image channels the grey image is repeated, and what is painted is the mean of the three.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from llmcxr.foundation.devices import without_autocast
from llmcxr.image_tokens.architecture import EncoderParts
from llmcxr.image_tokens.settings import ArchitectureSettings


class _Norm(nn.GroupNorm):
    """In the precision of its input (sums are float32 inside): autocast would keep float32 copies, half of a training's memory."""

    def __init__(self, width: int) -> None:
        super().__init__(32, width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ResidualBlock(nn.Module):
    """[B, inputs, s, s] -> [B, outputs, s, s]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _Norm(inputs), _conv(inputs, outputs)
        self.norm2, self.conv2 = _Norm(outputs), _conv(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """Every place of [B, C, s, s] attends to every other, with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _Norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))  # [B, 1, s * s, C]
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class _Halve(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # a row below and a column to the right only, as taming


class _Double(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where `attends`, and the way to the next."""

    def __init__(
        self,
        inputs: int,
        width: int,
        blocks: int,
        attends: bool,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(inputs if i == 0 else width, width) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(width) for _ in range(blocks if attends else 0))
        self.downsample, self.upsample = downsample, upsample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for onward in (self.downsample, self.upsample):
            x = x if onward is None else onward(x)
        return x


class _Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResidualBlock(width, width),
            Attention(width),
            ResidualBlock(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def _sides(a: ArchitectureSettings) -> list[int]:
    """Side of each resolution in pixels."""
    return [a.image_size // 2**i for i in range(len(a.channels))]


class Encoder(nn.Module):
    """[B, 1, S, S] -> [B, z_channels, g, g]."""

    def __init__(self, a: ArchitectureSettings) -> None:
        super().__init__()
        self.image_channels = a.image_channels
        width = a.channels[0]
        self.conv_in = _conv(a.image_channels, width)
        self.down = nn.ModuleList()
        for i, side in enumerate(_sides(a)):
            inputs, width = width, a.channels[i]
            halve = _Halve(width) if i < len(a.channels) - 1 else None
            self.down.append(_Level(inputs, width, a.blocks, side in a.attention, downsample=halve))
        self.mid = _Middle(width)
        self.norm_out, self.conv_out = _Norm(width), _conv(width, a.z_channels)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(images.expand(-1, self.image_channels, -1, -1))
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class _Painter(nn.Module):
    """taming's decoder: [B, z_channels, g, g] -> [B, image channels, S, S]."""

    def __init__(self, a: ArchitectureSettings) -> None:
        super().__init__()
        width = a.channels[-1]
        self.conv_in, self.mid = _conv(a.z_channels, width), _Middle(width)
        levels = []
        for i, side in reversed(list(enumerate(_sides(a)))):
            inputs, width = width, a.channels[i]
            double = _Double(width) if i > 0 else None
            levels.append(_Level(inputs, width, a.blocks + 1, side in a.attention, upsample=double))
        self.up = nn.ModuleList(reversed(levels))  # taming counts from the finest
        self.norm_out, self.conv_out = _Norm(width), _conv(width, a.image_channels)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def build_encoder(a: ArchitectureSettings) -> EncoderParts:
    """taming's encoder, and its `quant_conv`."""
    return EncoderParts(Encoder(a), nn.Conv2d(a.z_channels, a.code_dim, 1), a.z_channels)


class Decoder(nn.Module):
    """[B, code_dim, g, g] -> [B, 1, S, S]: taming's `post_quant_conv` and decoder."""

    def __init__(self, a: ArchitectureSettings) -> None:
        super().__init__()
        self.expand = nn.Conv2d(a.code_dim, a.z_channels, 1)
        self.trunk = _Painter(a)

    @property
    def last_weight(self) -> Tensor:
        return self.trunk.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        return self.trunk(self.expand(z)).mean(1, keepdim=True)


def build_discriminator() -> nn.Module:
    """taming's NLayerDiscriminator (pix2pix) with its defaults, on grey images: 70 x 70 patches, norms of batches, weights
    normal(0, 0.02)."""
    net: list[nn.Module] = [nn.Conv2d(1, 64, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
    for inputs, outputs, stride in ((64, 128, 2), (128, 256, 2), (256, 512, 1)):
        net += [
            nn.Conv2d(inputs, outputs, 4, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.2, True),
        ]
    whole = nn.Sequential(*net, nn.Conv2d(512, 1, 4, padding=1))
    for layer in whole:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
    return whole
