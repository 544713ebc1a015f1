"""Shapes of the VQ-GAN of every kind, and that no output pixel is left out."""

from __future__ import annotations

import pytest
import torch

from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.architecture import CLINICAL_CHANNELS, ImageEncoder, build_decoder
from llmcxr.image_tokens.losses import build_discriminator
from llmcxr.image_tokens.mixer import LappedPatches
from llmcxr.image_tokens.settings import ArchitectureSettings


@pytest.mark.parametrize(
    ("size", "channels", "grid"), [(32, [32, 32, 64], 8), (32, [32, 32, 32, 64], 4), (16, [32], 16)]
)
def test_shapes(size, channels, grid):
    a = ArchitectureSettings(size, channels, codebook_size=16, code_dim=8)
    assert a.faults() == [] and a.grid == grid
    encoder, decoder = ImageEncoder(a), build_decoder(a)
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
    assert (a.image_size, a.channels, a.codebook_size) == (256, [128, 128, 256, 256, 512], 1024)
    assert a.faults() == [] and a.grid == 16
    with torch.device("meta"):
        encoder, decoder = ImageEncoder(a), build_decoder(a)
        assert encoder(torch.empty(1, 1, 256, 256)).shape == (1, 256, 16, 16)
        assert decoder(torch.empty(1, 256, 16, 16)).shape == (1, 1, 256, 256)


def mixer(**changes):
    return ArchitectureSettings(image_size=32, kind="mixer", patch=8, width=24, codebook_size=16, code_dim=8, **changes)


def test_shapes_of_the_mixer():
    a = mixer()
    assert a.faults() == [] and a.grid == 4
    encoder, decoder = ImageEncoder(a), build_decoder(a)
    x = torch.randn(2, 1, 32, 32)
    z = encoder(x)
    assert z.shape == (2, 8, 4, 4)
    y = decoder(z)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [*encoder.parameters(), *decoder.parameters()])
    assert decoder.last_weight.grad is not None


@pytest.mark.parametrize(
    "a", [mixer(clinical_input=True), ArchitectureSettings(32, [32, 32, 32, 64], 16, 8, clinical_input=True)]
)
@pytest.mark.parametrize("side", [1, 2, 7])
def test_the_clinical_map_reaches_the_places_that_it_covers(a, side):
    torch.manual_seed(0)
    encoder = ImageEncoder(a)
    x = torch.randn(1, 1, 32, 32)
    clinical = torch.rand(1, CLINICAL_CHANNELS, side, side)
    other = clinical.clone()
    other[:, :, -1, -1] += 1  # bottom right
    change = (encoder(x, other) - encoder(x, clinical)).abs().mean(1)[0]
    assert change.shape == (a.grid, a.grid) and change[-1, -1] > 0
    if a.kind == "vqgan" and side == 7:  # the mixer blocks carry it everywhere
        assert change[0, 0] < 1e-6 < change[-1, -1]


def test_the_mixer_knows_places_and_convolutions_learn_them_from_the_border_only():
    """A code grid that is constant everywhere: away from the border only the mixer can tell places apart."""
    torch.manual_seed(0)
    decoder = build_decoder(mixer())
    with torch.no_grad():
        for name, p in decoder.named_parameters():
            if name.endswith("place"):
                p.normal_()
        inner = decoder(torch.ones(1, 8, 4, 4))[0, 0, 8:24, 8:24]
    assert inner.std() > 1e-3


def test_lapped_patches_leave_a_constant_constant():
    """The same patch at every place: the windows of neighbours add up to one, so no border shows."""
    lapped = LappedPatches(width=3, stride=8)
    with torch.no_grad():
        lapped.weight.fill_(0.5)
        y = lapped(torch.ones(1, 3, 4, 4))
    torch.testing.assert_close(y[0, 0, 4:-4, 4:-4], torch.full((24, 24), 1.5))


def test_impossible_mixers_are_said():
    with pytest.raises(UserError, match=r"patch: 12 should be even and divide image_size \(32\)"):
        ArchitectureSettings(image_size=32, kind="mixer", patch=12)
    with pytest.raises(UserError, match="width: 0 should be 1 to"):
        ArchitectureSettings(image_size=32, kind="mixer", width=0)


def test_discriminator_gives_a_logit_a_patch():
    assert build_discriminator()(torch.zeros(2, 1, 64, 64)).shape == (2, 1, 7, 7)
