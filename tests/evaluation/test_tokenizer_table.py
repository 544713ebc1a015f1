"""What image tokenizers keep: each number from codes and pictures by a second way; sizes, data and judges told apart; nothing dropped unsaid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import film, picture_file
from PIL import Image
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.image.lpips import _LPIPS
from toy_run import FINDINGS, toy_run

from llmcxr.cli import main
from llmcxr.commands import tokenizers
from llmcxr.evaluation.judge import Judge
from llmcxr.evaluation.onlookers import Onlooker, Onlookers, find_onlooker, resized
from llmcxr.evaluation.tokenizer_data import Radiographs, of_run
from llmcxr.evaluation.tokenizer_table import BLOCKS, Evaluators, block_averages, measure, numbers
from llmcxr.evaluation.tokenizer_text import findings_table, picture_rows, tokenizer_table, write_pictures
from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.image_tokens.losses import build_lpips
from llmcxr.image_tokens.settings import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.metrics.reconstruction import frechet_distance
from llmcxr.studies.image_files import image_files, read_squares
from llmcxr.studies.radiographs import from_uint8, load_square, to_uint8
from llmcxr.studies.study import SPLITS, Study

CPU = torch.device("cpu")
S, G, K = 16, 4, 8


class Levels:
    """A codec of K grey levels a block: all that it does can be computed by hand."""

    fingerprint, grid = "levels", G
    codebook = torch.linspace(-1, 1, K)[:, None]

    def __init__(self, image_size: int = S) -> None:
        self.image_size = image_size

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        means = torch.nn.functional.avg_pool2d(images, self.image_size // G)[:, 0]
        return ((means + 1) * (K - 1) / 2).round().long()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        side = self.image_size // G
        return self.codebook[codes, 0][:, None].repeat_interleave(side, 2).repeat_interleave(side, 3)

    def save_pretrained(self, folder) -> None: ...


def squares(count: int, size: int = S) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)


def radiographs(x: np.ndarray, labels: list[dict] | None = None) -> Radiographs:
    """Images in memory; two of a patient. At other sizes they are reduced by averages."""
    studies = [
        Study(f"{i}", f"p{i // 2}", f"{i}", "", "test", labels=(labels or [{}] * len(x))[i]) for i in range(len(x))
    ]

    def read(size: int):
        f = x.shape[-1] // size
        return iter(np.rint(x.reshape(len(x), size, f, size, f).mean((2, 4))).astype(np.uint8))

    return Radiographs("toys", studies, read)


def rows(x: np.ndarray, evaluators: Evaluators | None = None, labels=None, codecs=None) -> list[dict]:
    measured = measure(radiographs(x, labels), codecs or {"levels": Levels()}, CPU, evaluators or Evaluators())
    return [numbers(measured, way) for way in measured.painted]


def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes [N, G, G], reconstructions [N, S, S] in [0, 1])."""
    side = x.shape[-1] // G
    codes = np.rint(x.reshape(len(x), G, side, G, side).mean((2, 4)) / 255 * (K - 1))
    return codes, np.kron(codes / (K - 1), np.ones((side, side)))


def test_the_numbers_of_a_codec_that_is_known():
    x = squares(20)  # more than a batch
    x[:, :8] //= 3
    own, blocks = rows(x)
    codes, again = by_hand(x)
    original = x / 255
    assert own["n"] == 20 and own["numbers"] == blocks["numbers"] == G * G
    assert (own["tokenizer"], blocks["tokenizer"]) == ("levels", BLOCKS)
    assert own["l1"] == pytest.approx(np.abs(original - again).mean())
    assert own["psnr"] == pytest.approx(np.mean(-10 * np.log10(((original - again) ** 2).mean((1, 2)))))
    counts = np.unique(codes, return_counts=True)[1]
    assert own["codebook_use"] == len(counts) / K and "codebook_use" not in blocks
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
    assert rows(squares(1) * 0 + 77)[1]["l1"] == pytest.approx(0, abs=1e-6)


def test_what_is_no_number_is_null():
    """An empty image is painted without error and has no spectrum; of one image there is no distance."""
    found = rows(squares(1) * 0, Evaluators(ClinicalFeatures(("a",), resolution=32).eval()))
    json.dumps(found, allow_nan=False)
    assert found[0]["psnr"] is None and found[0]["octaves"] == [None] * 3 and found[0]["fd"] is None
    assert "| - - - |" in tokenizer_table(found)


def test_a_smaller_codec_is_shown_at_both_sizes_and_larger_by_pillows_bicubic():
    x = squares(6, 32)
    found = rows(x, codecs={"small": Levels(16), "large": Levels(32)})
    assert [(r["tokenizer"], r["size"], r["painted_at"]) for r in found if r["tokenizer"] != BLOCKS] == [
        ("small", 16, 16),
        ("small", 32, 16),
        ("large", 32, 32),
    ]
    assert [r["size"] for r in found if r["tokenizer"] == BLOCKS] == [16, 32]  # of a grid and size once
    _, again = by_hand(np.stack(list(radiographs(x).read(16))))
    pictures = [Image.fromarray(a.astype(np.float32)).resize((32, 32), Image.Resampling.BICUBIC) for a in again]
    expected = np.abs(np.clip(np.stack([np.asarray(p) for p in pictures]), 0, 1) - x / 255).mean()
    assert found[2]["l1"] == pytest.approx(expected, rel=1e-3)
    same = torch.rand(1, 1, 8, 8)
    assert resized(same, 8) is same
    text = tokenizer_table(found)
    assert "| 32 px, painted at 16 |" in text and "LPIPS" not in text and "judge" not in text


def test_the_distance_is_of_the_clinical_features():
    torch.manual_seed(0)
    clinical = ClinicalFeatures(("a",), resolution=32).eval()
    x = squares(6)
    own, _ = rows(x, Evaluators(clinical))
    tensor = torch.tensor(x / 127.5 - 1).float()[:, None]
    with torch.no_grad():
        a, b = (clinical.feature_maps(t)[1].numpy() for t in (tensor, Levels().decode(Levels().encode(tensor))))
    assert own["fd"] == pytest.approx(frechet_distance(a, b), rel=1e-3)
    assert "Fréchet distance (theirs)" in tokenizer_table([own], "theirs")


def test_lpips_is_torchmetrics_with_the_same_weights(tmp_path):
    torch.manual_seed(0)
    theirs = _LPIPS(pretrained=True, net="vgg", pnet_rand=True).eval()
    layers = [
        layer
        for part in (theirs.net.slice1, theirs.net.slice2, theirs.net.slice3, theirs.net.slice4, theirs.net.slice5)
        for layer in part.named_children()
    ]
    state = {f"features.{n}.{k}": v for n, layer in layers for k, v in layer.state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    x = squares(3, 64)
    own, _ = rows(x, Evaluators(lpips=build_lpips(str(tmp_path / "vgg.pth"))), codecs={"levels": Levels(64)})
    a, b = (torch.tensor(v).float()[:, None].expand(-1, 3, -1, -1) * 2 - 1 for v in (x / 255, by_hand(x)[1]))
    with torch.no_grad():
        assert own["lpips"] == pytest.approx(theirs(a, b).mean().item(), rel=1e-3)


class Brightness(torch.nn.Module):
    """A classifier that is known: the mean of the upper half, and of the lower."""

    def __init__(self, findings: tuple[str, ...]) -> None:
        super().__init__()
        self.findings = findings

    def forward(self, images):
        return torch.stack([images[:, 0, :8].mean((1, 2)), images[:, 0, 8:].mean((1, 2))], 1)


def test_what_a_judge_loses_is_sklearns_by_finding():
    x = squares(40)
    random = np.random.default_rng(1)
    x = (x * random.uniform(0.1, 1, (40, 1, 1))).astype(np.uint8)
    labels = [
        {"Effusion": int(x[i, :8].mean() + random.normal(0, 10) > 60), "gout": i % 2, "no finding": i % 2}
        for i in range(40)
    ]
    judges = Onlookers(
        [Onlooker("a", Brightness(("effusion", "mass")), S), Onlooker("b", Brightness(("mass", "Effusion")), S)], CPU
    )
    assert list(judges.findings) == ["effusion", "mass"] and judges.name == "a, b"
    own, _ = rows(x, Evaluators(onlookers=judges), labels)
    assert list(own["auroc"]["by_finding"]) == ["Effusion"]  # gout nobody knows, mass nobody has labelled
    truth = [study["Effusion"] for study in labels]
    tensor = torch.tensor(from_uint8(x))[:, None]
    pictures = (tensor, Levels().decode(Levels().encode(tensor)))  # in float32, as ties of rounding go
    aurocs = [roc_auc_score(truth, v[:, 0, :8].mean((1, 2)).numpy()) for v in pictures]
    found = own["auroc"]["by_finding"]["Effusion"]
    assert found["original"] == pytest.approx(aurocs[0]) and found["loss"] == pytest.approx(aurocs[0] - aurocs[1])
    low, high = found["interval"]
    assert low <= found["loss"] <= high and own["auroc"]["loss"] == pytest.approx(found["loss"])
    few = rows(x[:6], Evaluators(onlookers=judges), labels[:6])
    assert few[0]["auroc"]["loss"] is None and "Too few cases: Effusion." in findings_table(few)


def test_judges_are_found_by_name_and_see_the_size_that_they_know(tmp_path):
    run = toy_run(tmp_path / "run")
    assert find_onlooker(str(run)).image_size == 32 and find_onlooker("phantom").image_size == 128
    clinical = find_onlooker(str(run / "clinical_features"))
    assert isinstance(clinical.network, ClinicalFeatures) and clinical.image_size == 32  # by the run's recipe
    logits = Onlookers([find_onlooker(str(run))], CPU).logits(torch.zeros(2, 1, 64, 64))
    np.testing.assert_allclose(logits, Judge.load(run / "judge").scores(np.full((2, 32, 32), 127.5), CPU), atol=2e-2)
    write_json(tmp_path / "old" / "config.json", {"findings": ["a"]})
    (tmp_path / "old" / "model.safetensors").write_bytes((run / "judge" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="does not fit its config"):
        find_onlooker(str(tmp_path / "old"))
    Judge(("a",)).save(tmp_path / "old")
    with pytest.raises(UserError, match="nothing says what size of images"):
        find_onlooker(str(tmp_path / "old"))


def test_no_tokenizer_is_judged_by_the_network_that_it_pleased(tmp_path):
    run = toy_run(tmp_path / "run")
    judge, clinical = find_onlooker(str(run)), find_onlooker(str(run / "clinical_features"))
    a = ArchitectureSettings(kind="mixer", image_size=32, patch=16, codebook_size=8, code_dim=8, width=32)
    beside = str(run / "image_tokenizer")
    judge.check_independent(ImageTokenizer(a), beside)
    with pytest.raises(UserError, match="trained to please"):  # in its loss
        clinical.check_independent(ImageTokenizer(a), beside)
    clinical.check_independent(ImageTokenizer(a), str(tmp_path / "elsewhere" / "image_tokenizer"))
    inside = ImageTokenizer(ArchitectureSettings(**{**vars(a), "clinical_input": True}), clinical.network)
    with pytest.raises(UserError, match="trained to please"):
        clinical.check_independent(inside, "elsewhere")


def test_a_runs_split_and_what_cannot_be_read(tmp_path):
    run = toy_run(tmp_path / "run", 12)
    (run / "images" / "007.png").write_bytes(b"no picture")
    data = of_run(run, "test")
    assert data.name == "run, test" and len(data.studies) == 6 and len(of_run(run, "all").studies) == 12
    measured = measure(data, {"levels": Levels(32)}, CPU, shown=2)
    assert measured.n == 5 and "007.png" in measured.unreadable[0] and len(measured.patients) == 5
    original = Image.open(run / "images" / "006.png")
    np.testing.assert_array_equal(measured.originals[32].shown[0], np.asarray(original))
    with pytest.raises(UserError, match="split validate"):
        of_run(run, "validate")
    write_pictures(tmp_path / "p.png", [measured, measured])
    assert Image.open(tmp_path / "p.png").size == (2 * 32, 6 * 32)
    assert picture_rows([measured])[:2] == ["run, test: original", "run, test: levels (16)"]


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


def saved_tokenizer(folder: Path, size: int) -> str:
    torch.manual_seed(0)
    a = ArchitectureSettings(kind="mixer", image_size=size, patch=16, codebook_size=8, code_dim=8, width=32)
    ImageTokenizer(a).save_pretrained(folder)
    return str(folder)


def test_the_command_takes_one_tokenizer_and_files(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i in range(3):
        picture_file(tmp_path / "images" / f"{i}.png", film(140))
    (tmp_path / "images" / "z.png").write_bytes(b"no")
    tokenizer, images = saved_tokenizer(tmp_path / "t", 32), str(tmp_path / "images")
    out = ["--json", str(tmp_path / "t.json"), "--pictures", str(tmp_path / "p.png"), "--shown", "2", "--device", "cpu"]
    assert main(["evaluate-tokenizer", tokenizer, images, *out]) == 0
    said = capsys.readouterr().out
    assert f"| images (3) | {tokenizer} | 4 | 32 px |" in said and "1 files could not be read" in said
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["rows"][0]["n"] == 3 and len(found["unreadable"]["images"]) == 1
    assert Image.open(tmp_path / "p.png").size == (2 * 32, 3 * 32)
    assert main(["evaluate-tokenizer", tokenizer, str(tmp_path / "images" / "z.png")]) == 2
    assert "none of 1 files of z.png could be read" in capsys.readouterr().err
    assert main(["evaluate-tokenizer", tokenizer, str(tmp_path / "none")]) == 2
    assert main(["evaluate-tokenizer", tokenizer]) == 2
    assert main(["evaluate-tokenizer", tokenizer, images, "--lpips", str(tmp_path / "none.pth")]) == 2
    assert "Set --lpips to the path" in capsys.readouterr().err
    for option in ("--judge", "--clinical"):
        assert main(["evaluate-tokenizer", tokenizer, images, option, "none.bin"]) == 2
        assert f"llmcxr: {option}: 'none.bin' is neither a TorchXRayVision name" in capsys.readouterr().err


def test_the_command_takes_several_tokenizers_and_data_sets(tmp_path, capsys):
    run = toy_run(tmp_path / "run")
    table = tmp_path / "films.csv"
    table.write_text(
        "image,view,label\n"
        + "".join(f"{i:03d},{'PA' if i % 3 else 'L'},{'nodule' if i % 2 else 'effusion'}\n" for i in range(24))
    )
    recipe = tmp_path / "films.yaml"
    recipe.write_text(
        f"name: films\nsource:\n  kind: table\n  table: {{path: '{table}', images: '{run / 'images'}', columns: {{view: view, label: label}}}}\n"
    )
    small, large = saved_tokenizer(tmp_path / "small", 16), saved_tokenizer(tmp_path / "large", 32)
    data = [
        str(run),
        str(recipe),
        "split=all",
        "source.cohort.views=[lateral]",
        str(recipe),
        "split=all",
        "name=again",
        str(run / "images"),
    ]
    command = [
        "evaluate-tokenizer",
        small,
        large,
        "--device",
        "cpu",
        "--judge",
        str(run),
        "--json",
        str(tmp_path / "t.json"),
        "--data",
    ]
    assert main([*command, *data]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "t.json").read_text())
    n = {row["data"]: row["n"] for row in found["rows"]}
    assert n == {"run, test": 24, "films cohort.views=[lateral]": 8, "again": 24, "images": 48}
    assert found["judge"] == str(run) and len(found["rows"]) == 4 * 6
    assert set(found["rows"][0]["auroc"]["by_finding"]) == set(FINDINGS) and "auroc" not in found["rows"][-1]
    assert "loss of AUROC, again |" in said and "images: no finding is labelled" in said
    more = ["--blocks", "8", "16", "--json", str(tmp_path / "more.json"), "--data", str(run)]
    assert main(["evaluate-tokenizer", small, "--device", "cpu", *more]) == 0
    kept = {row["numbers"]: row["l1"] for row in json.loads((tmp_path / "more.json").read_text())["rows"][1:]}
    own, *others = sorted(kept)
    assert others == [64, 256] and kept[256] < 1e-6 < kept[64] < kept[own]  # of 16 px averages of 256 know all
    capsys.readouterr()
    assert main([*command, str(run), str(run)]) == 2 and "two data sets are called" in capsys.readouterr().err
    assert main([*command, "split=all", str(run)]) == 2 and "before any data set" in capsys.readouterr().err
    assert main([*command, str(run), "source.cohort.views=[PA]"]) == 2 and "only a recipe" in capsys.readouterr().err
    assert main([*command, str(run), "split=most"]) == 2 and "one of train" in capsys.readouterr().err
    saved_tokenizer(run / "image_tokenizer", 32)
    pleased = ["--device", "cpu", "--judge", str(run / "clinical_features"), "--data", str(run)]
    assert main(["evaluate-tokenizer", str(run), *pleased]) == 2  # a run is its tokenizer, too
    assert "trained to please" in capsys.readouterr().err


def test_a_split_that_is_not_there_is_said_with_those_that_are(tmp_path):
    with pytest.raises(UserError, match="toy has no radiograph in the split validate. It has train, test: set --split"):
        of_run(toy_run(tmp_path / "toy"), "validate")
    assert (*SPLITS, "all") == tokenizers._SPLITS  # written there once more, so that help needs no numpy
