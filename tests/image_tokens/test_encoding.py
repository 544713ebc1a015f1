"""Files to codes: as the run's own stage makes them, the same after a kill and shared by several processes; nothing dropped."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_files import film, picture_file

from llmcxr.cli import main
from llmcxr.foundation.processes import Processes
from llmcxr.image_tokens import encoding
from llmcxr.image_tokens.codes import encode_images, read_codes
from llmcxr.image_tokens.encoding import encode_files
from llmcxr.image_tokens.settings import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.studies.radiographs import load_square, to_uint8

ONE = Processes("cpu")


@pytest.fixture
def codec(tmp_path) -> ImageTokenizer:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ArchitectureSettings(32, kind="mixer", patch=8, width=16, codebook_size=64, code_dim=4))
    torch.nn.init.normal_(tokenizer.quantizer._codebook.embed)
    tokenizer.eval().save_pretrained(tmp_path / "tokenizer")
    return ImageTokenizer.from_pretrained(tmp_path / "tokenizer")


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Twenty pictures, of which the fourth and the last cannot be read."""
    paths = []
    for i in range(20):
        pixels = film(48)
        pixels[i : i + 20] //= 2
        paths.append(picture_file(tmp_path / f"{i:02d}.png", pixels))
    for broken in (paths[3], paths[-1]):
        broken.write_bytes(broken.read_bytes()[:50])
    return paths


def ids(files: list[Path]) -> list[str]:
    return [p.stem for p in files]


def expected(codec: ImageTokenizer, files: list[Path]) -> dict[str, np.ndarray]:
    good = [p for i, p in enumerate(files) if i not in (3, 19)]
    squares = np.stack([to_uint8(load_square(p, 32)) for p in good])
    return dict(zip(ids(good), encode_images(codec, squares, torch.device("cpu")), strict=True))


def check(folder: Path, codec: ImageTokenizer, files: list[Path]) -> None:
    found, wanted = read_codes(folder / "codes.parquet", codec.fingerprint), expected(codec, files)
    assert list(found) == list(wanted)
    assert np.mean([np.mean(found[i] == wanted[i]) for i in wanted]) > 0.99  # bfloat16 may differ with the batch
    unread = json.loads((folder / "unreadable.json").read_text())
    assert list(unread) == ["03", "19"] and "03.png" in unread["03"]


def test_codes_are_those_of_the_codes_stage_and_unreadable_files_are_listed(codec, files, tmp_path):
    assert encode_files(codec, ids(files), files, tmp_path / "out", ONE, part=7) == (18, 2)
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 3
    check(tmp_path / "out", codec, files)


def test_killed_it_goes_on_with_the_same_result(codec, files, tmp_path, monkeypatch):
    encode_files(codec, ids(files), files, tmp_path / "whole", ONE, part=7)
    real, written = encoding._write_part, []

    def dies(path, *rest):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        real(path, *rest)

    monkeypatch.setattr(encoding, "_write_part", dies)
    with pytest.raises(KeyboardInterrupt):
        encode_files(codec, ids(files), files, tmp_path / "out", ONE, part=7)
    monkeypatch.setattr(encoding, "_write_part", lambda path, *rest: (written.append(path), real(path, *rest)))
    encode_files(codec, ids(files), files, tmp_path / "out", ONE, part=7)
    assert [p.name for p in written] == ["000000.parquet", "000001.parquet", "000002.parquet"]
    for name in ("codes.parquet", "unreadable.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    encode_files(codec, ids(files), files, tmp_path / "out", ONE, part=7)
    assert len(written) == 3  # nothing is left to do
    codec.fingerprint = "another"
    encode_files(codec, ids(files), files, tmp_path / "out", ONE, part=7)
    assert len(written) == 6


def test_processes_share_the_parts(codec, files, tmp_path):
    def process(rank: int, main: bool):
        done = (lambda f: f()) if main else (lambda f: None)
        return SimpleNamespace(rank=rank, count=2, device=torch.device("cpu"), on_main=done, wait=lambda: None)

    encode_files(codec, ids(files), files, tmp_path / "out", process(1, False), part=7)
    assert [p.name for p in (tmp_path / "out" / "parts").iterdir()] == ["000001.parquet"]
    encode_files(codec, ids(files), files, tmp_path / "out", process(0, True), part=7)
    check(tmp_path / "out", codec, files)


def test_the_command(codec, files, tmp_path, capsys):
    (tmp_path / "table.csv").write_text("image\n" + "\n".join(p.name for p in files))
    recipe = tmp_path / "ours.yaml"
    recipe.write_text(
        f"name: ours\nruns: {tmp_path / 'runs'}\ndevice: cpu\nsource: {{kind: table, table: {{path: {tmp_path / 'table.csv'}}}}}\n"
    )
    assert main(["encode", str(recipe), f"image_tokenizer.pretrained={tmp_path / 'tokenizer'}"]) == 0
    assert "18 images" in (said := capsys.readouterr().out) and "2 files unreadable" in said
    check(tmp_path / "runs" / "ours" / "encoded", codec, files)
    assert (
        main(["prepare", str(recipe), f"image_tokenizer.pretrained={tmp_path / 'tokenizer'}"]) == 0
    )  # a run in the same folder
    assert main(["encode", str(recipe), f"image_tokenizer.pretrained={tmp_path / 'tokenizer'}"]) == 0
    check(tmp_path / "runs" / "ours" / "encoded", codec, files)
    capsys.readouterr()
    assert main(["encode", str(recipe), "name=other"]) == 2
    assert "does not exist" in capsys.readouterr().err
