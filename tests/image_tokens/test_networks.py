"""Shapes of the VQ-GAN for every stem, and that no output pixel is left out by the layers around the stem."""

from __future__ import annotations

import pytest
import torch

from llmcxr.image_tokens.networks import ArchitectureSettings, VqDecoder, build_discriminator, build_encoder


@pytest.mark.parametrize(
    ("size", "stem", "channels", "grid"),
    [(32, 1, [32, 32, 64], 8), (32, 2, [32, 64], 8), (64, 4, [32, 64], 8), (64, 8, [32, 64, 64], 2), (32, 8, [32], 4)],
)
def test_shapes(size, stem, channels, grid):
    a = ArchitectureSettings(size, stem, channels, blocks=1, codebook_size=16, code_dim=8)
    assert a.faults() == [] and a.grid == grid
    encoder, decoder = build_encoder(a), VqDecoder(a)
    x = torch.randn(2, 1, size, size)
    z = encoder(x)
    assert z.shape == (2, 8, grid, grid)
    y = decoder(z)
    assert y.shape == x.shape
    decoder.last_weight.grad = None
    y.sum().backward()
    assert decoder.last_weight.grad is not None and decoder.last_weight.shape[0] == 1
    assert all(p.grad is not None for p in [*encoder.parameters(), *decoder.parameters()])


def test_the_papers_layout_has_16_by_16_codes():
    a = ArchitectureSettings()
    assert (a.image_size, a.stem_stride, a.channels, a.codebook_size) == (256, 1, [128, 128, 256, 256, 512], 1024)
    assert a.faults() == [] and a.grid == 16
    with torch.device("meta"):
        encoder, decoder = build_encoder(a), VqDecoder(a)
        assert encoder(torch.empty(1, 1, 256, 256)).shape == (1, 256, 16, 16)
        assert decoder(torch.empty(1, 256, 16, 16)).shape == (1, 1, 256, 256)


def test_discriminator_gives_a_logit_a_patch():
    assert build_discriminator()(torch.zeros(2, 1, 64, 64)).shape == (2, 1, 7, 7)
