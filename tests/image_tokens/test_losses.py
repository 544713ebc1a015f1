"""The terms of the objective, against values worked out by hand."""

from __future__ import annotations

import os
import sys

import pytest
import torch
import torchvision
import torchxrayvision as xrv
from torch import nn

from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.image_tokens.losses import (
    ClinicalFeatureLoss,
    FindingsInCodes,
    adaptive_weight,
    build_lpips,
    hinge_discriminator_loss,
)


class TwoFeatures(nn.Module):
    """Pooled features: `scale` times the mean of the upper and of the lower half of the image."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def feature_maps(self, x):
        halves = torch.stack([x[:, 0, :2].mean((1, 2)), x[:, 0, 2:].mean((1, 2))], dim=1) * self.scale
        return [x, x, x, x], halves


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_clinical_loss_by_hand_whatever_the_scale(scale):
    sample = torch.zeros(3, 1, 4, 4)
    sample[1], sample[2] = 1, 2  # variance of 0, 1, 2 is 1 in both features
    features = TwoFeatures(scale)
    loss = ClinicalFeatureLoss(features, sample)
    x = torch.zeros(1, 1, 4, 4)
    y = x.clone()
    y[:, :, :2] = 3.0  # the first feature differs by 3, the second by 0: mean square 4.5
    seen_x, seen_y = features.feature_maps(x), features.feature_maps(y)
    assert loss(seen_x, y)[0].item() == pytest.approx(4.5)
    assert loss(seen_x, x)[0].item() == 0 and loss(seen_y, y)[1].item() == 0


def test_perceptual_term_by_hand():
    class Fixed(nn.Module):
        def feature_maps(self, x):
            direction = torch.tensor([3.0, 4.0]) if x.mean() > 0 else torch.tensor([4.0, 3.0])
            maps = direction.reshape(1, 2, 1, 1).expand(len(x), 2, 2, 2)
            return [maps, maps, maps, maps * 100], torch.stack([x.mean((1, 2, 3))] * 2, 1)

    loss = ClinicalFeatureLoss(Fixed(), torch.rand(4, 1, 4, 4))
    x, y = torch.ones(1, 1, 4, 4), -torch.ones(1, 1, 4, 4)
    # unit vectors (.6, .8) and (.8, .6) differ by .04 + .04 at every place, in each of the first three maps
    assert loss(Fixed().feature_maps(x), y)[1].item() == pytest.approx(3 * 0.08, rel=1e-5)


def test_the_real_network_sees_no_change_and_a_change():
    torch.manual_seed(0)
    features = ClinicalFeatures(("a", "b")).eval().requires_grad_(False)
    x = torch.rand(6, 1, 64, 64) * 2 - 1
    loss = ClinicalFeatureLoss(features, x)
    seen = features.feature_maps(x)
    clinical, perceptual = loss(seen, x.clone())
    assert clinical.item() == 0 and perceptual.item() == pytest.approx(0, abs=1e-6)
    y = (x + 0.3 * torch.randn_like(x)).requires_grad_()
    clinical, perceptual = loss(seen, y)
    assert clinical.item() > 0 and perceptual.item() > 0
    (clinical + perceptual).backward()
    assert y.grad.abs().sum() > 0
    other = loss(seen, x.roll(1, 0))[0].item()
    assert 0.5 < other < 6, "about 2 for unrelated images"


def test_findings_in_codes_by_hand_wherever_they_are():
    sample = torch.tensor([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0]])  # means 1 and 10, deviations 1 and 10
    term = FindingsInCodes(4, sample)
    with torch.no_grad():
        term.reading.weight.zero_()
        term.reading.bias.zero_()
        term.reading.weight[0, 0] = 1.0
    vectors = torch.zeros(1, 4, 2, 2)
    vectors[0, 0, 1, 0] = vectors[0, 0, 0, 1] = (
        1.0  # two of four places say so: 2 * sqrt(4) / 2 = 2 for the first finding
    )
    logits = torch.tensor([[4.0, 40.0]])  # both are 3 deviations above their means
    assert term(vectors, logits).item() == pytest.approx(((2 - 3) ** 2 + (0 - 3) ** 2) / 2)
    assert term(vectors.flip(2), logits).item() == term(vectors, logits).item()
    moved = vectors.clone().requires_grad_()
    term(moved, logits).backward()
    assert moved.grad[0, 0].unique().numel() == 1, "every place is asked alike"


def test_feature_maps_are_those_of_torchxrayvision():
    torch.manual_seed(1)
    features = ClinicalFeatures(("a",)).eval()
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        maps, pooled = features.feature_maps(x)
        assert len(maps) == 4 and pooled.shape == (2, 1024)
        theirs = xrv.models.DenseNet(num_classes=1, in_channels=1).eval()
        theirs.load_state_dict(features.network.state_dict())
        torch.testing.assert_close(pooled, theirs.features2(x * 1024))
        torch.testing.assert_close(features(x), features.network.classifier(pooled))


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    # real: 0, .5, 2; fake: 0, 1, 2
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 3 + 3 / 3))


def test_adaptive_weight_by_hand():
    reconstruction, generator = torch.tensor([3.0, 4.0]), torch.tensor([-0.5, -0.5])
    expected = 5 / (0.5 * 2**0.5)  # ratio of the gradients' norms
    assert adaptive_weight(reconstruction, generator).item() == pytest.approx(expected, rel=1e-4)
    assert adaptive_weight(reconstruction, 0 * generator).item() == 1e4


def test_lpips_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)  # as where it is not installed
    with pytest.raises(UserError, match=r'needs the package lpips, .*pip install "llmcxr\[paper\]"'):
        build_lpips("download")


def test_lpips_without_weights_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="image_tokenizer.perceptual to the path of torchvision's vgg16 file"):
        build_lpips("download")


def test_lpips_from_a_file(tmp_path):
    torch.manual_seed(0)
    vgg = torchvision.models.vgg16(weights=None)
    torch.save({k: v for k, v in vgg.state_dict().items() if k.startswith("features.")}, tmp_path / "vgg.pth")
    model = build_lpips(str(tmp_path / "vgg.pth"))
    convolutions = [m for m in model.net.modules() if isinstance(m, nn.Conv2d)]
    theirs = [m for m in vgg.features if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == len(theirs) == 13
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(convolutions, theirs, strict=True))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    assert model(x, x).item() == 0 and model(x, -x).item() > 0
    assert not any(p.requires_grad for p in model.parameters())


class Hostile:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_lpips_from_a_wrong_file(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="could not be read"):
        build_lpips(str(path))
    torch.save(Hostile(str(tmp_path / "owned")), path)
    with pytest.raises(UserError, match="could not be read"):
        build_lpips(str(path))
    assert not (tmp_path / "owned").exists()
    with pytest.raises(UserError, match="could not be read"):
        build_lpips(str(tmp_path / "missing.pth"))
