"""Shapes of the VQ-GAN of every kind, and that no output pixel is left out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.architecture import CLINICAL_CHANNELS, ImageEncoder, build_decoder, build_discriminator
from llmcxr.image_tokens.mixer import LappedPatches
from llmcxr.image_tokens.settings import ArchitectureSettings, ImageTokenizerSettings

VQGAN = ArchitectureSettings(32, [32, 64], codebook_size=16, code_dim=8)
MIXER = ArchitectureSettings(32, kind="mixer", patch=8, width=32, codebook_size=16, code_dim=8)


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


def test_the_discriminator_of_vqgan_is_tamings():
    """taming/modules/discriminator/model.py with its defaults (ndf 64, n_layers 3, BatchNorm): its parameters, by place in `main`,
    but one input channel."""
    torch.manual_seed(0)
    network = build_discriminator(VQGAN)
    widths = {2: (64, 128), 5: (128, 256), 8: (256, 512)}
    expected = {"0.weight": (64, 1, 4, 4), "0.bias": (64,), "11.weight": (1, 512, 4, 4), "11.bias": (1,)}
    expected |= {f"{k}.weight": (wide, narrow, 4, 4) for k, (narrow, wide) in widths.items()}
    expected |= {f"{k + 1}.{name}": (wide,) for k, (_, wide) in widths.items() for name in ("weight", "bias")}
    assert {n: tuple(p.shape) for n, p in network.named_parameters()} == expected
    # 70 x 70 patches: of one patch's logit, 70 rows of pixels have a part.
    x = torch.zeros(1, 1, 256, 256, requires_grad=True)
    logits = network.eval()(x)
    assert logits.shape == (1, 1, 30, 30)
    logits[0, 0, 15, 15].backward()
    assert (x.grad[0, 0].abs().sum(1) > 0).sum() == 70
    # weights_init: convolutions normal(0, 0.02), norms normal(1, 0.02) with no bias
    assert network[8].weight.std().item() == pytest.approx(0.02, rel=0.01) and network[9].bias.abs().max() == 0
    assert network[9].weight.mean().item() == pytest.approx(1, abs=0.005)
    # as torch's own functions say it, one after the other
    x, p = torch.randn(3, 1, 64, 64), dict(network.train().named_parameters())
    y = F.leaky_relu(F.conv2d(x, p["0.weight"], p["0.bias"], stride=2, padding=1), 0.2)
    for k, stride in ((2, 2), (5, 2), (8, 1)):
        y = F.conv2d(y, p[f"{k}.weight"], stride=stride, padding=1)
        y = F.batch_norm(y, None, None, p[f"{k + 1}.weight"], p[f"{k + 1}.bias"], training=True)
        y = F.leaky_relu(y, 0.2)
    y = F.conv2d(y, p["11.weight"], p["11.bias"], padding=1)
    torch.testing.assert_close(network(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "smallest"), [(VQGAN, 24), (MIXER, 16)])
def test_images_too_small_for_the_discriminator_are_said(kind, smallest):
    assert build_discriminator(kind)(torch.zeros(2, 1, smallest, smallest)).shape[2:] == (1, 1)
    small = dataclasses.replace(kind, image_size=smallest - 8)
    with pytest.raises(UserError, match=f"adversarial_weight: .* images of {smallest - 8} pixels, below {smallest}"):
        ImageTokenizerSettings(architecture=small)
    ImageTokenizerSettings(architecture=small, adversarial_weight=0.0)
