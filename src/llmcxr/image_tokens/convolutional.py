"""The paper's (taming-transformers') layout, of diffusers' encoder and decoder: channels (128, 128, 256, 256, 512)."""

from __future__ import annotations

from torch import Tensor, nn

from llmcxr.foundation.optional import require
from llmcxr.image_tokens.architecture import EncoderParts
from llmcxr.image_tokens.settings import ArchitectureSettings

vae = require(
    "diffusers.models.autoencoders.vae",
    "image_tokenizer.architecture.kind: convolutional",
    "image_tokenizer.architecture.kind=mixer",
)
BLOCKS = 2  # residual blocks at each resolution, as in the paper


def build_encoder(a: ArchitectureSettings) -> EncoderParts:
    """Residual blocks; each resolution but the last halves the side."""
    encoder = vae.Encoder(
        in_channels=1,
        out_channels=a.channels[-1],
        down_block_types=("DownEncoderBlock2D",) * len(a.channels),
        block_out_channels=tuple(a.channels),
        layers_per_block=BLOCKS,
        double_z=False,
    )
    stem = nn.Sequential(nn.Identity(), encoder)  # at place 1: the name under which weights are saved
    return EncoderParts(stem, nn.Sequential(nn.Conv2d(a.channels[-1], a.code_dim, 1)), a.channels[-1])


class Decoder(nn.Module):
    """[B, code_dim, g, g] -> [B, 1, S, S]."""

    def __init__(self, a: ArchitectureSettings) -> None:
        super().__init__()
        self.expand = nn.Conv2d(a.code_dim, a.channels[-1], 1)
        self.trunk = vae.Decoder(
            in_channels=a.channels[-1],
            out_channels=1,
            up_block_types=("UpDecoderBlock2D",) * len(a.channels),
            block_out_channels=tuple(a.channels),
            layers_per_block=BLOCKS,
        )

    @property
    def last_weight(self) -> Tensor:
        return self.trunk.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        return self.trunk(self.expand(z))
