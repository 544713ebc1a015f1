"""A Dinov2 as the clinical network: transformers' own outputs, files as published, and no findings."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.image_tokens.clinical_features import load_features, published_features
from llmcxr.image_tokens.dinov2 import Dinov2Features
from llmcxr.image_tokens.losses import ClinicalFeatureLoss
from llmcxr.image_tokens.settings import ArchitectureSettings, ClinicalFeatureSettings, ImageTokenizerSettings
from llmcxr.image_tokens.training import train_image_tokenizer
from llmcxr.stages.image_tokens import _check_findings

SIDE = 28


@pytest.fixture
def folder(tmp_path):
    """Files as microsoft/rad-dino has them, of a network of two patches a side."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=SIDE, patch_size=14)
    path = tmp_path / "rad-dino"
    Dinov2Model(config).save_pretrained(path)
    mean, deviation = [0.5307] * 3, [0.2583] * 3
    size = {"height": SIDE, "width": SIDE}
    BitImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size=size,
        image_mean=mean,
        image_std=deviation,
        resample=3,
        do_convert_rgb=True,
    ).save_pretrained(path)
    return path


def test_features_are_those_of_transformers(folder):
    """From the same file in 8 bits: its own processor and network."""
    own = published_features(str(folder))
    bytes_ = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    pictures = [Image.fromarray(image).convert("RGB") for image in bytes_]
    given = BitImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
    theirs = Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = theirs(**given, output_hidden_states=True)
        maps, pooled = own.feature_maps(torch.from_numpy(bytes_ / 127.5 - 1).float()[:, None])
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-4, atol=1e-4)
    assert [tuple(m.shape) for m in maps] == 4 * [(3, 24, 2, 2)]
    for k in range(4):  # place (row, column) is token 1 + 2 row + column after layer k + 1
        torch.testing.assert_close(maps[k][:, :, 1, 0], expected.hidden_states[k + 1][:, 3], rtol=1e-4, atol=1e-4)


def test_it_is_kept_with_the_run_and_read_again(folder, tmp_path):
    first = published_features(str(folder))
    first.save(tmp_path / "clinical_features")
    again = load_features(tmp_path / "clinical_features")
    assert isinstance(again, Dinov2Features) and again.preprocessing == first.preprocessing
    x = torch.rand(2, 1, 40, 40) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(again.feature_maps(x)[1], first.feature_maps(x)[1], rtol=0, atol=0)
    files = ClinicalFeatureSettings(weights=str(folder)).files()
    assert [p.name for p in files] == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_it_trains_an_image_tokenizer(folder, tmp_path):
    """The clinical and the perceptual term reach the decoder; the network stays as it is."""
    features = published_features(str(folder))
    before = {k: v.clone() for k, v in features.state_dict().items()}
    x = torch.rand(4, 1, 32, 32) * 2 - 1
    y = (-x).requires_grad_()
    terms = ClinicalFeatureLoss(features, x)(features.feature_maps(x), y)
    for term in terms:
        assert term.item() > 0 and torch.autograd.grad(term, y, retain_graph=True)[0].abs().sum() > 0
    architecture = ArchitectureSettings(32, kind="mixer", patch=8, width=16, codebook_size=8, code_dim=8)
    settings = ImageTokenizerSettings(architecture=architecture, steps=2, batch_size=4, adversarial_start=0.0)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32), dtype=np.uint8)
    train_image_tokenizer(settings, features, images, 0, tmp_path / "tokenizer", Processes("cpu"))
    (first,) = json.loads((tmp_path / "tokenizer" / "curves.json").read_text())
    assert first["clinical"] > 0 and first["perceptual"] > 0 and "reading" not in first
    assert all(torch.equal(v, before[k]) for k, v in features.state_dict().items())


def test_what_needs_findings_is_refused():
    plain = ImageTokenizerSettings(clinical_weight=0.1)
    _check_findings(plain, ())
    for changed, fault in (
        (dataclasses.replace(plain, reading_weight=0.1), "Set image_tokenizer.reading_weight=0, or another"),
        (
            dataclasses.replace(plain, architecture=ArchitectureSettings(clinical_input=True)),
            "Set image_tokenizer.architecture.clinical_input=false, or another",
        ),
    ):
        _check_findings(changed, ("edema",))
        with pytest.raises(UserError, match=f"knows no findings .* {fault}"):
            _check_findings(changed, ())


def without(name):
    return lambda folder: (folder / name).unlink()


def other_shape(folder):
    state = load_file(folder / "model.safetensors")
    state["layernorm.weight"] = torch.ones(7)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def fewer_weights(folder):
    state = load_file(folder / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def no_mean(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "image_mean"}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (without("model.safetensors"), r"lacks model\.safetensors\. Fetch the whole repository once .*hf download"),
        (without("preprocessor_config.json"), r"lacks preprocessor_config\.json"),
        (without("config.json"), r"has no config\.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "does not hold a Dinov2 that can be read"),
        (other_shape, "does not (fit its config|hold a Dinov2)"),
        (fewer_weights, r"does not fit its config\.json: 1 weights are missing .* layernorm\.weight"),
        (no_mean, r"(?s)preprocessor_config\.json .* mean"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "vit"}'), "is a vit, which"),
    ],
)
def test_files_that_do_not_do_are_named(folder, harm, message):
    harm(folder)
    with pytest.raises(UserError, match=message) as error:
        published_features(str(folder))
    assert str(folder) in str(error.value)


def test_a_repository_out_of_reach_says_how_to_get_it(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"'nobody/rad-dino' is no folder here, .* connect once; afterwards it works offline"
    ):
        published_features("nobody/rad-dino")
