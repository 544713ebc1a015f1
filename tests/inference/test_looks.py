"""The commands that show how a model sees an image, on a toy model."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from test_outside import limits, model
from test_policies import S

from llmcxr.cli import main
from llmcxr.foundation.assets import SHIPPED_MODELS
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.model.find import find_model
from llmcxr.model.outside import read_limits
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.radiographs import to_uint8
from llmcxr.studies.study import Study, write_manifest


@pytest.fixture
def image(tmp_path, monkeypatch):
    """A picture; every command loads the toy model, to which it is unlike all others."""
    toy = model(limits(0, 1e-6))
    monkeypatch.setattr(LlmCxr, "from_pretrained", lambda *_: toy)
    path = tmp_path / "image.png"
    Image.fromarray(to_uint8(np.random.default_rng(1).uniform(-1, 1, (S, S)))).save(path)
    return path


def test_explain(image, tmp_path, capsys):
    out = tmp_path / "map.png"
    assert main(["explain", str(image), "mass", "No nodule.", "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "nats  mass" in said.out and "nats  No nodule." in said.out and said.out.endswith(f"{out}\n")
    assert said.err.count("outside what this model was trained on") == 1 and said.err.startswith(f"llmcxr: {image}: ")
    width = Image.open(out).width
    assert main(["explain", str(image), "-o", str(out)]) == 0
    assert "nats  Mass" in capsys.readouterr().out and Image.open(out).width == width, "of both findings that it knows"
    assert main(["explain", str(image), " ", "-o", str(out)]) == 2
    assert main(["explain", str(image), "mess", "-o", str(out)]) == 0
    assert "'mess' is no finding that this model knows, so it is read as a sentence" in capsys.readouterr().err


def test_look(image, tmp_path, capsys):
    assert main(["look", str(image), "-o", str(tmp_path / "seen.png")]) == 0
    said = capsys.readouterr()
    assert "of the range of greys is lost" in said.out and "than 100% of unseen ones" in said.out and not said.err
    assert Image.open(tmp_path / "seen.png").text["Synthetic"] == "true"


def test_measure_outside(image, tmp_path, capsys):
    run, target = tmp_path / "run", tmp_path / "model"
    run.mkdir()
    target.mkdir()
    images = np.random.default_rng(2).integers(0, 256, (60, S, S)).astype(np.uint8)
    np.save(run / "pixels.npy", images)
    studies = [Study(f"i{i}", f"p{i}", f"s{i}", f"{i}.png", "validate" if i < 55 else "test") for i in range(60)]
    write_manifest(run / "manifest.parquet", studies)
    assert len(PixelStore.open(run / "pixels.npy")) == 60
    assert main(["measure-outside", str(run), "--into", str(target)]) == 0
    assert "of 55 validation images" in capsys.readouterr().out and read_limits(target).images == 55
    write_manifest(run / "manifest.parquet", studies[30:])
    assert main(["measure-outside", str(run), "--into", str(target)]) == 2
    assert "has 25 validation images" in capsys.readouterr().err and read_limits(target).images == 55
    assert main(["measure-outside", str(tmp_path)]) == 2
    assert "holds no studies" in capsys.readouterr().err


def test_the_shipped_model_knows_what_is_usual():
    assert read_limits(find_model("phantom")) == read_limits(SHIPPED_MODELS / "phantom") is not None
