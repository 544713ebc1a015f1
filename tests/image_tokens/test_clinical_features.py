"""The clinical network is TorchXRayVision's, and reads published files without running them."""

from __future__ import annotations

import os

import pytest
import torch
import torchxrayvision as xrv
from safetensors.torch import save_file

from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.clinical_features import ClinicalFeatures, DenseNet, published_features
from llmcxr.image_tokens.settings import ClinicalFeatureSettings


class Hostile:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return xrv.models.DenseNet(num_classes=18, in_channels=1).eval()


def test_the_network_is_torchxrayvisions():
    """The same names, the same start for the same seed, the same outputs while it is trained."""
    torch.manual_seed(0)
    theirs = xrv.models.DenseNet(num_classes=3, in_channels=1)
    torch.manual_seed(0)
    ours = DenseNet(3)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    features = ClinicalFeatures(("a", "b", "c")).train()
    features.network.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    mine, original = features(x), theirs.train().classifier(theirs.features2(x * 1024))
    torch.testing.assert_close(mine, original, rtol=0, atol=0)
    mine.square().sum().backward()
    original.square().sum().backward()
    expected = {n: p.grad for n, p in theirs.named_parameters()}
    torch.testing.assert_close({n: p.grad for n, p in features.network.named_parameters()}, expected)


def test_files_whose_contents_count(tmp_path):
    path = tmp_path / "w.pt"
    assert ClinicalFeatureSettings(weights=str(path)).files() == []
    path.touch()
    assert ClinicalFeatureSettings(weights=str(path)).files() == [path]
    assert ClinicalFeatureSettings().files() == [] == ClinicalFeatureSettings("densenet121-res224-all").files()


@pytest.mark.parametrize("form", ["module", "state", "safetensors"])
def test_published_weights(published, tmp_path, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    state = published.state_dict()
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(published if form == "module" else state, path)
    features = published_features(str(path))
    assert features.findings[:2] == ("Atelectasis", "Consolidation") and len(features.findings) == 18
    assert features.resolution == 224 and not features.training
    x = torch.rand(1, 1, 224, 224) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(features.feature_maps(x)[1], published.features2(x * 1024))


def test_a_malicious_pickle_is_refused(tmp_path):
    torch.save(Hostile(str(tmp_path / "owned")), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt was refused by the safe loader"):
        published_features(str(tmp_path / "w.pt"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["densenet121-res224-al", "w.bin"])
def test_unknown_names(name):
    with pytest.raises(UserError, match=r"clinical_features\.weights"):
        published_features(name)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match=r"w\.pt"):
        published_features(str(tmp_path / "w.pt"))
    for name in (str(tmp_path / "w.safetensors"), "nowhere/w.pt"):  # the second is no id of a hub's repository
        with pytest.raises(UserError, match=r"w\.(safetensors|pt) (does not hold|cannot be read|does not exist)"):
            published_features(name)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt does not hold a TorchXRayVision DenseNet"):
        published_features(str(tmp_path / "w.pt"))


def test_save_and_load(tmp_path):
    torch.manual_seed(0)
    features = ClinicalFeatures(("nodule", "mass"), resolution=48).eval()
    features.save(tmp_path)
    again = ClinicalFeatures.load(tmp_path)
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(again(x), features(x), rtol=0, atol=0)
    assert again.findings == ("nodule", "mass") and again.resolution == 48


def test_shrinking_is_the_mean_of_areas():
    """At half the side the network sees what it would see of an image that was averaged over 2 x 2 pixels."""
    torch.manual_seed(0)
    half, whole = ClinicalFeatures(("mass",), resolution=32).eval(), ClinicalFeatures(("mass",)).eval()
    whole.load_state_dict(half.state_dict())
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    averaged = x.reshape(2, 1, 32, 2, 32, 2).mean((3, 5))
    with torch.no_grad():
        torch.testing.assert_close(half(x), whole(averaged))


def test_weights_are_taken_by_the_names_of_findings():
    torch.manual_seed(0)
    old, new = ClinicalFeatures(("mass", "nodule")).eval(), ClinicalFeatures(("nodule", "left nodule", "edema")).eval()
    before = new.network.classifier.weight[2].clone()
    new.take_weights(old)
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        one, two = old(x), new(x)
    torch.testing.assert_close(two[:, :2], one[:, [1, 1]])
    assert torch.equal(new.network.classifier.weight[2], before)
