"""The ways of quantising have the codes and bits that they claim, and learn; what is measured once is not run again."""

from __future__ import annotations

import argparse
import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import load_script

from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens import mixer
from llmcxr.image_tokens.settings import ArchitectureSettings, ImageTokenizerSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.studies.study import Study, write_manifest

codebooks = load_script("benchmarks/codebooks.py")

SMALL = ImageTokenizerSettings(
    ArchitectureSettings(32, kind="mixer", patch=8, width=16, code_dim=6), batch_size=8, learning_rate=2e-3
)
NAMES = ["cosine 8", "euclidean 8", "gradient 8", "fsq 4x3", "residual 2x4", "multiscale 4"]


def coder(name, seed=0):
    return codebooks.Coder(codebooks.read_arm(name, 4), SMALL, seed)


@pytest.mark.parametrize(
    ("name", "grid", "tokens", "bits"),
    [
        ("cosine 1024", 8, 64, 640),
        ("gradient 16384", 16, 256, 256 * 14),
        ("fsq 8x8", 8, 64, 384),
        ("fsq 8x5x5x5", 8, 64, 64 * math.log2(1000)),
        ("residual 2x32", 8, 128, 640),
        ("residual 4x2", 8, 256, 256),
        ("multiscale 256", 8, 80, 640),
    ],
)
def test_tokens_and_bits_by_hand(name, grid, tokens, bits):
    arm = codebooks.read_arm(name, grid)
    assert (arm.tokens, arm.bits) == (tokens, pytest.approx(bits))


@pytest.mark.parametrize("name", ["cosine", "cosine 1", "cosine 4x4", "fsq 2x8", "residual 32", "kmeans 8", "fsq 8x"])
def test_what_is_no_arm_is_said(name):
    with pytest.raises(UserError, match="is no arm"):
        codebooks.read_arm(name, 8)
    with pytest.raises(UserError, match="is no arm"):
        codebooks.read_arm("multiscale 8", 5)


def test_default_arms_at_equal_bits():
    arms = [codebooks.read_arm(name, 8) for name in codebooks.ARMS]
    assert arms[0].bits == 640
    for kind in ("euclidean", "gradient", "fsq", "residual", "multiscale"):  # within half a bit a place
        assert any(a.kind == kind and abs(a.bits - 640) <= 32 for a in arms), kind


@pytest.mark.parametrize("name", NAMES)
def test_codes_say_all_that_the_decoder_gets(name):
    """On many vectors: as many codes as claimed, and places of the same codes have the same vectors."""
    quantiser, arm = coder(name).quantiser, codebooks.read_arm(name, 4)
    torch.manual_seed(1)
    z = 3 * torch.randn(512, 6, 4, 4)
    quantiser.train()(z)  # begins codebooks of averages
    vectors, codes, _ = quantiser.eval()(z)
    assert vectors.shape == z.shape and len(codes) == len(arm.codes)
    for found, K, side in zip(codes, arm.codes, arm.sides, strict=True):
        assert found.shape == (512, side, side) and found.min() >= 0 and found.max() < K
        if arm.kind != "gradient":  # whose codes begin in a small corner
            assert len(found.unique()) == K
    if arm.kind == "multiscale":
        return  # a vector is made of its neighbours' coarse codes, too
    joint = sum(found * 4**k for k, found in enumerate(codes)) if arm.kind == "residual" else codes[0]
    flat = vectors.movedim(1, -1).reshape(-1, 6)
    for code in joint.unique():
        same = flat[(joint == code).flatten()]
        torch.testing.assert_close(same, same[:1].expand_as(same), rtol=0, atol=1e-5)


def test_averages_are_those_of_training():
    """One codebook: the very codes and vectors that the library's quantizer gives, and the codec's own search."""
    s = dataclasses.replace(SMALL, architecture=dataclasses.replace(SMALL.architecture, codebook_size=8))
    arm = coder("cosine 8").quantiser
    tokenizer = ImageTokenizer(s.architecture)
    z = torch.randn(64, 6, 4, 4)
    arm.train()(z)
    tokenizer.quantizer.load_state_dict(arm.layers[0].state_dict(), strict=False)
    _, (codes,), _ = arm.eval()(z)
    assert torch.equal(codes.flatten(), tokenizer._nearest(z.movedim(1, -1).reshape(-1, 6)))


@pytest.mark.parametrize("name", ["euclidean 8", "gradient 8", "residual 2x4", "multiscale 4"])  # others bend them
def test_gradients_go_straight_through_once(name):
    quantiser = coder(name).quantiser.train()
    z = torch.randn(8, 6, 4, 4, requires_grad=True)
    vectors, _, _ = quantiser(z)
    given = torch.randn_like(vectors)
    vectors.backward(given)
    torch.testing.assert_close(z.grad, given)


def test_the_codebook_learned_by_gradient_moves():
    """By hand: legacy weights, 1 at the encoder's half and 0.25 at the codebook's."""
    quantiser = codebooks.Gradient(4, 6)
    z = torch.randn(2, 6, 3, 3, requires_grad=True)
    vectors, (codes,), loss = quantiser(z)
    difference = (z - vectors).detach()
    assert loss.item() == pytest.approx(1.25 * difference.square().mean().item(), rel=1e-5)
    loss.backward()
    torch.testing.assert_close(z.grad, 2 * difference / z.numel())
    code = int(codes[0, 0, 0])
    pulled = -0.25 * 2 * difference.movedim(1, -1)[codes == code].sum(0) / z.numel()
    torch.testing.assert_close(quantiser.embedding.weight.grad[code], pulled)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A run folder with 24 discs of random place and brightness, at twice the architecture's size."""
    monkeypatch.setattr(mixer, "BLOCKS", 1)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    pixels = np.full((24, 64, 64), 20, dtype=np.uint8)
    for image in pixels:
        cy, cx = rng.uniform(16, 48, 2)
        image[(y - cy) ** 2 + (x - cx) ** 2 < 200] = rng.integers(120, 250)
    np.save(tmp_path / "pixels.npy", pixels)
    splits = ["train"] * 16 + ["validate"] * 4 + ["test"] * 4
    write_manifest(
        tmp_path / "manifest.parquet", [Study(str(k), str(k), str(k), f"{k}.png", s) for k, s in enumerate(splits)]
    )
    return codebooks.Plan(tmp_path, SMALL, "cpu")


def test_images_of_a_larger_run_are_block_means(plan):
    images, pixels = codebooks.images_of(plan, "validate"), np.load(plan.run / "pixels.npy")[16:20].astype(float)
    assert images.shape == (4, 32, 32)
    np.testing.assert_allclose(images.numpy(), pixels.reshape(4, 32, 2, 32, 2).mean((2, 4)), atol=0.5)


def test_all_arms_learn_and_are_run_once(plan, monkeypatch):
    o = argparse.Namespace(json=plan.run / "out.json", seeds=[0], steps=40, timing=0, parallel=1)
    monkeypatch.setattr(
        codebooks, "speed", lambda arm, plan, seconds: {"fsq": 200.0, "cosine": 100.0}.get(arm.kind, 104.0)
    )
    results = codebooks.run(NAMES, plan, o)
    runs = results["runs"]
    assert len(runs) == 7 and runs["fsq 4x3, seed 0, equal time"]["steps"] == 80
    grey = np.abs(codebooks.images_of(plan, "validate") / 255 - 0.5).mean().item()  # about what all paint at first
    for key, result in runs.items():
        assert result["l1"] < 0.65 * grey and 0 < result["codebook_use"] <= 1, key
        assert len(result["perplexity"]) == 1 + key.startswith(("residual", "multiscale"))
    monkeypatch.setattr(codebooks, "job", lambda *arguments: pytest.fail("run again"))
    assert codebooks.run(NAMES, plan, o) == results
    with pytest.raises(UserError, match="other settings"):
        codebooks.run(NAMES, plan, argparse.Namespace(**vars(o) | {"steps": 41}))
    text = codebooks.table(results)
    assert len(text.splitlines()) == 4 + 6
    assert f"| fsq 4x3 | 16 | 57 | {runs['fsq 4x3, seed 0, equal images']['l1']:.4f} |" in text


def test_beside_cosine_of_as_many_bits():
    def result(l1):
        return {
            "l1": l1,
            "psnr": 20,
            "ms_ssim": 0.5,
            "octaves": [1, 1],
            "codebook_use": 1,
            "perplexity": [2],
            "restarts": 0,
        }

    runs = {"cosine 16": 0.2, "cosine 64": 0.1, "euclidean 32": 0.12, "gradient 4096": 0.05}
    results = {
        "settings": {
            "architecture": dataclasses.asdict(SMALL.architecture),
            "images": {"train": 2, "validate": 1},
            "steps": 1,
            "batch_size": 1,
            "reference": "cosine 16",
        },
        "device": "cpu",
        "speed": dict.fromkeys(runs, 1.0),
        "runs": {f"{name}, seed 0, equal images": result(l1) for name, l1 in runs.items()}
        | {"euclidean 32, seed 1, equal images": result(0.15)},
    }
    lines = {line.split(" | ")[0]: line for line in codebooks.table(results).splitlines()}
    assert "| 0.1350 ± 0.0150 | -10.0% | same |" in lines["| euclidean 32"]  # cosine's at 5 bits a place: 0.15
    assert "| 0.0500 | - | same |" in lines["| gradient 4096"]  # more bits than any of cosine
