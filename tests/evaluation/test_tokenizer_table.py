"""The table of any tokenizer on any radiographs: each number from codes and pictures by a second way; nothing dropped unsaid."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from image_files import film, picture_file
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from llmcxr.cli import main
from llmcxr.evaluation.tokenizer_table import BLOCKS, block_averages, measure_tokenizer
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.metrics.reconstruction import frechet_distance
from llmcxr.studies.image_files import image_files, read_squares
from llmcxr.studies.radiographs import load_square, to_uint8

CPU = torch.device("cpu")
S, G, K = 16, 4, 8


class Levels:
    """A codec of K grey levels a block: all that it does can be computed by hand."""

    fingerprint, image_size, grid = "levels", S, G
    codebook = torch.linspace(-1, 1, K)[:, None]

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return ((torch.nn.functional.avg_pool2d(images, S // G)[:, 0] + 1) * (K - 1) / 2).round().long()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.codebook[codes, 0][:, None].repeat_interleave(S // G, 2).repeat_interleave(S // G, 3)

    def save_pretrained(self, folder) -> None: ...


def squares(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, S, S), dtype=np.uint8)


def test_the_numbers_of_a_codec_that_is_known():
    x = squares(20)  # more than a batch
    x[:, :8] //= 3
    measured = measure_tokenizer(Levels(), iter(x), CPU)
    means = x.reshape(20, G, 4, G, 4).mean((2, 4)) / 255
    codes = np.rint(means * (K - 1))
    again = np.kron(codes / (K - 1), np.ones((4, 4)))
    own, original = measured["tokenizer"], x / 255
    assert measured["n"] == 20
    assert own["l1"] == pytest.approx(np.abs(original - again).mean())
    assert own["psnr"] == pytest.approx(np.mean(-10 * np.log10(((original - again) ** 2).mean((1, 2)))))
    counts = np.unique(codes, return_counts=True)[1]
    assert own["codebook_use"] == len(counts) / K
    assert own["perplexity"] == pytest.approx(np.prod((counts / counts.sum()) ** (-counts / counts.sum())))
    assert len(own["octaves"]) == 3 and own["octaves"][0] < 0.5
    one = torch.tensor(original)[:, None], torch.tensor(again)[:, None]
    pairs = zip(*one, strict=True)  # at 16 px MS-SSIM has one scale
    ssim = [structural_similarity_index_measure(b[None], a[None], data_range=1.0).item() for a, b in pairs]
    assert own["ms_ssim"] == pytest.approx(np.mean(ssim), abs=0.05)  # they leave the border out


def test_block_averages_know_as_many_numbers_as_there_are_tokens():
    x = torch.zeros(1, 1, S, S)
    x[..., :8, :] = 1
    y = block_averages(x, G)
    assert y.shape == x.shape and y[0, 0, 0, 0] == 1 and y[0, 0, -1, 0] == 0
    shuffled = x.reshape(1, 1, G, 4, G, 4).flip(3, 5).reshape(x.shape)  # another image of the same means
    torch.testing.assert_close(block_averages(shuffled, G), y)
    constant = squares(1) * 0 + 77
    assert measure_tokenizer(Levels(), constant, CPU)[BLOCKS]["l1"] == pytest.approx(0, abs=1e-6)


def test_the_distance_is_of_the_clinical_features():
    torch.manual_seed(0)
    clinical = ClinicalFeatures(("a",), resolution=32).eval()
    x = squares(6)
    measured = measure_tokenizer(Levels(), x, CPU, clinical)
    tensor = torch.tensor(x / 127.5 - 1).float()[:, None]
    with torch.no_grad():
        a, b = (clinical.feature_maps(t)[1].numpy() for t in (tensor, Levels().decode(Levels().encode(tensor))))
    assert measured["tokenizer"]["fd"] == pytest.approx(frechet_distance(a, b), rel=1e-3)


def test_files_are_found_and_what_cannot_be_read_is_listed(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("deep/b.png", "a.png"):
        picture_file(tmp_path / name, film(64))
    (tmp_path / "c.JPG").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("x")
    files = image_files([tmp_path])
    assert [p.name for p in files] == ["a.png", "c.JPG", "b.png"]
    a, broken, b = read_squares(files, S)
    np.testing.assert_array_equal(a, to_uint8(load_square(tmp_path / "a.png", S)))
    assert isinstance(broken, str) and "c.JPG" in broken and b.shape == (S, S)


def test_the_command_writes_table_numbers_and_pictures(tmp_path, capsys):
    from llmcxr.foundation.assets import SHIPPED_MODELS

    (tmp_path / "images").mkdir()
    for i in range(3):
        picture_file(tmp_path / "images" / f"{i}.png", film(140))
    (tmp_path / "images" / "z.png").write_bytes(b"no")
    out, tokenizer = tmp_path / "out", str(SHIPPED_MODELS / "phantom" / "image_tokenizer")
    command = [
        "evaluate-tokenizer",
        tokenizer,
        str(tmp_path / "images"),
        "-o",
        str(out),
        "--shown",
        "2",
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "| 3 images | tokenizer | averages of pixel blocks |" in said and "1 of 4 files could not be read" in said
    numbers = json.loads((out / "tokenizer.json").read_text())
    assert numbers["n"] == 3 and len(numbers["unreadable"]) == 1 and 0 < numbers["tokenizer"]["l1"] < 0.5
    assert Image.open(out / "grid.png").size == (2 * 128, 3 * 128)
    assert main(["evaluate-tokenizer", tokenizer, str(tmp_path / "images" / "z.png"), "-o", str(out)]) == 2
    assert "none of 1 files could be read" in capsys.readouterr().err
    assert main(["evaluate-tokenizer", tokenizer, str(tmp_path / "none"), "-o", str(out)]) == 2
