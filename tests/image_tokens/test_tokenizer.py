"""ImageTokenizer: codes and images of the right form, equal after saving, and nothing else accepted."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmcxr.foundation.assets import SHIPPED_MODELS
from llmcxr.foundation.devices import autocast
from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.image_tokens.codes import encode_images, read_codes, write_codes
from llmcxr.image_tokens.settings import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.image_tokens.training import codebook_use, reconstruct, trainable_quantizer, training_pass

SMALL = ArchitectureSettings(32, [32, 32, 32, 64], codebook_size=16, code_dim=8)  # a grid of 4 x 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer whose codebook was started by one training pass."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(SMALL).train()
    trainable_quantizer(tokenizer)
    training_pass(tokenizer, torch.randn(16, 1, 32, 32).clamp(-1, 1))
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.eval().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return ImageTokenizer.from_pretrained(folder)


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def test_encode_and_decode(tokenizer):
    codes = tokenizer.encode(images(3))
    assert codes.shape == (3, 4, 4) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 16 and len(codes.unique()) > 1
    again = tokenizer.decode(codes)
    assert again.shape == (3, 1, 32, 32) and again.dtype == torch.float32
    assert again.min() >= -1 and again.max() <= 1
    assert torch.equal(again, reconstruct(tokenizer, images(3)))


def test_a_code_is_the_nearest_by_cosine(tokenizer):
    x = images(2)
    with torch.no_grad(), autocast(CPU):
        z = tokenizer.encoder(x.contiguous(memory_format=torch.channels_last))
    z = F.normalize(z.float(), dim=1).permute(0, 2, 3, 1)
    expected = (z @ F.normalize(tokenizer.codebook, dim=1).T).argmax(-1)
    assert torch.equal(tokenizer.encode(x), expected)


def test_decoding_codes_is_the_training_pass_without_encoder(folder):
    tokenizer = ImageTokenizer.from_pretrained(folder)
    trainable_quantizer(tokenizer)
    x = images(2, seed=1)
    with torch.no_grad():
        trained, _, vectors = training_pass(tokenizer, x)
        codes = tokenizer.quantizer(tokenizer.encoder(x).float(), freeze_codebook=True)[1]
        z = tokenizer.codebook[codes].permute(0, 3, 1, 2)
        torch.testing.assert_close(trained, tokenizer.decoder(z), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vectors, z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokenizer.decode(codes), trained.clamp(-1, 1), atol=0.1, rtol=0)  # bfloat16


def test_codes_are_those_of_vector_quantize():
    """The shipped model, on images of little likeness to what it knows: many near ties."""
    tokenizer = ImageTokenizer.from_pretrained(SHIPPED_MODELS / "phantom" / "image_tokenizer")
    S = tokenizer.image_size
    x = torch.nn.functional.interpolate(torch.rand(24, 1, 9, 9) * 2 - 1, size=(S, S), mode="bicubic").clamp(-1, 1)
    codes = tokenizer.encode(x)
    with torch.inference_mode(), autocast(CPU):
        z = tokenizer.encoded(x.contiguous(memory_format=torch.channels_last))
    expected = trainable_quantizer(tokenizer)(z.float(), freeze_codebook=True)[1]
    assert torch.equal(codes, expected) and len(codes.unique()) > 50


def test_using_a_model_loads_no_trainer():
    """Neither importing nor loading nor running the shipped image tokenizer."""
    lines = f"""
import sys, torch
from llmcxr.image_tokens.tokenizer import ImageTokenizer
tokenizer = ImageTokenizer.from_pretrained({str(SHIPPED_MODELS / "phantom" / "image_tokenizer")!r})
S = tokenizer.image_size
tokenizer.decode(tokenizer.encode(torch.zeros(1, 1, S, S)))
trainer = "diffusers torchxrayvision torchvision skimage pandas lpips vector_quantize_pytorch accelerate peft sklearn".split()
print([name for name in trainer if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_using_it_never_changes_it(tokenizer):
    before = {k: v.clone() for k, v in tokenizer.state_dict().items()}
    first = tokenizer.encode(images(4))
    tokenizer.encode(images(64, seed=2))
    assert torch.equal(tokenizer.encode(images(4)), first)
    assert all(torch.equal(v, before[k]) for k, v in tokenizer.state_dict().items())
    assert not any(p.requires_grad for p in tokenizer.parameters()) and not tokenizer.training


def test_codes_do_not_depend_on_the_batch(tokenizer):
    together = tokenizer.encode(images(5))
    alone = torch.cat([tokenizer.encode(images(5)[i : i + 1]) for i in range(5)])
    assert (together == alone).float().mean() > 0.97  # bfloat16 sums may differ in a tie


def test_saving_again_gives_equal_codes_and_fingerprint(tokenizer, folder, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = ImageTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint != ""
    assert again.architecture == SMALL
    assert torch.equal(again.encode(images(4)), tokenizer.encode(images(4)))
    with torch.no_grad():
        again.codebook[0] += 0.1
    again.save_pretrained(tmp_path)
    assert again.fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize("shape", [(1, 1, 32, 64), (1, 3, 32, 32), (1, 32, 32), (1, 1, 64, 64)])
def test_other_images_are_refused(tokenizer, shape):
    with pytest.raises(ValueError, match=r"images should be \[B, 1, 32, 32\]"):
        tokenizer.encode(torch.zeros(shape))


@pytest.mark.parametrize(("code", "shape"), [(16, (1, 4, 4)), (-1, (1, 4, 4)), (0, (1, 16)), (0, (1, 4, 5))])
def test_other_codes_are_refused(tokenizer, code, shape):
    with pytest.raises(ValueError, match=r"codes should be \[B, 4, 4\] in \[0, 16\)"):
        tokenizer.decode(torch.full(shape, code))


def test_with_clinical_input_the_network_is_a_part_of_the_tokenizer(tmp_path):
    torch.manual_seed(0)
    features = ClinicalFeatures(("a", "b"), resolution=32).eval()
    architecture = dataclasses.replace(SMALL, clinical_input=True)
    tokenizer = ImageTokenizer(architecture, features).train()
    trainable_quantizer(tokenizer)
    assert tokenizer.training and not any(m.training for m in features.modules())
    before = {k: v.clone() for k, v in features.state_dict().items()}
    y, commitment, _ = training_pass(tokenizer, images(16))
    (y.square().mean() + commitment).backward()
    assert tokenizer.encoder.clinical.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in features.parameters())
    assert all(torch.equal(v, before[k]) for k, v in features.state_dict().items())
    tokenizer.eval().save_pretrained(tmp_path)
    again = ImageTokenizer.from_pretrained(tmp_path)
    assert again.clinical.findings == ("a", "b") and again.clinical.resolution == 32
    torch.testing.assert_close(again.state_dict(), tokenizer.state_dict(), rtol=0, atol=0)
    codes = again.encode(images(8))
    assert torch.equal(ImageTokenizer.from_pretrained(tmp_path).encode(images(8)), codes)
    with torch.no_grad():  # another network, other codes
        for p in again.clinical.parameters():
            p.normal_()
    assert not torch.equal(again.encode(images(8)), codes)
    with pytest.raises(ValueError, match="clinical network goes with"):
        ImageTokenizer(architecture)
    with pytest.raises(ValueError, match="clinical network goes with"):
        ImageTokenizer(SMALL, features)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"clinical": None}))
    with pytest.raises(UserError, match="clinical network"):
        ImageTokenizer.from_pretrained(tmp_path)


def test_damaged_folders_name_the_file(folder, tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        ImageTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not an image tokenizer"):
        ImageTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"model\.safetensors"):
        ImageTokenizer.from_pretrained(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        ImageTokenizer.from_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["architecture"]["codebook_size"] = 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(whole)
    with pytest.raises(UserError, match="does not fit its config"):
        ImageTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "earlier", "fault"),
    [
        ("vqgan", {"mixers": 9}, ""),
        ("vqgan", {"kind": "convolutional"}, "the kind convolutional"),
        ("mixer", {"mixers": 3, "blocks": 1, "stem_stride": 4}, ""),
        ("mixer", {"mixers": 2}, "mixers other than 3"),
    ],
)
def test_earlier_tokenizers_are_read_where_they_are_what_is_left(kind, earlier, fault, tmp_path):
    """Settings that are constants now are in their configs: used ones must agree, unused ones do not count."""
    architecture = dataclasses.replace(SMALL, kind=kind, patch=8, width=24)
    ImageTokenizer(architecture).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architecture"] |= earlier
    (tmp_path / "config.json").write_text(json.dumps(config))
    if fault:
        with pytest.raises(UserError, match=rf"config\.json: {fault} is not read any more.* Train it anew"):
            ImageTokenizer.from_pretrained(tmp_path)
    else:
        blocks = earlier.get("blocks", architecture.blocks)  # a mixer's count for nothing
        assert ImageTokenizer.from_pretrained(tmp_path).architecture == dataclasses.replace(architecture, blocks=blocks)


def test_the_code_store_returns_what_was_written_and_refuses_another_tokenizer(tokenizer, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 32, 32), dtype=np.uint8)  # more than a batch
    codes = encode_images(tokenizer, pixels, CPU)
    assert codes.shape == (70, 16) and codes.dtype == np.uint16
    ids = [f"image {i}" for i in range(70)]
    path = tmp_path / "codes.parquet"
    write_codes(path, ids, codes, tokenizer.fingerprint)
    stored = read_codes(path, tokenizer.fingerprint)
    assert list(stored) == ids
    np.testing.assert_array_equal(np.stack(list(stored.values())), codes)
    with pytest.raises(UserError, match=f"made by image tokenizer {tokenizer.fingerprint}, not by 0123456789ab"):
        read_codes(path, "0123456789ab")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"codes\.parquet cannot be read"):
        read_codes(path, tokenizer.fingerprint)


def test_large_codes_fit_the_store(tmp_path):
    codes = np.array([[0, 65535], [32768, 1]], dtype=np.uint16)
    write_codes(tmp_path / "c.parquet", ["a", "b"], codes, "f")
    np.testing.assert_array_equal(read_codes(tmp_path / "c.parquet", "f")["a"], [0, 65535])


def test_codebook_use():
    assert codebook_use(np.array([[0, 1], [1, 5]]), 12) == 0.25


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1.01, -1.01, 255.0])
def test_pixels_outside_the_range_are_said(folder, wrong):
    """One pixel is enough; bytes and NaN never become codes."""
    tokenizer = ImageTokenizer.from_pretrained(folder)
    x = images(2).clamp(-1, 1)
    tokenizer.encode(x)
    x[1, 0, 3, 5] = wrong
    with pytest.raises(ValueError, match=r"pixels should be in \[-1, 1\], -1 black and 1 white; these are from"):
        tokenizer.encode(x)
