"""Models for other programs: plain transformers and llama.cpp give the tokens that we give."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer, load_script
from gguf import GGUFReader, dequantize

from llmcxr.cli import main
from llmcxr.formats.gguf import export_gguf
from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.architecture import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.instructions.rendering import render_prompt
from llmcxr.model.folder import ModelInfo, save_model
from llmcxr.tasks import report_to_cxr
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K, S, SPARE = 16, 32, 5
SMALL = ArchitectureSettings(S, [32, 32, 32, 64], codebook_size=K, code_dim=8)
parity = load_script("benchmarks/gguf_parity.py")


def make_model(folder: Path, kind: str = "llama", tied: bool = True) -> Path:
    """A model folder; its table has unused rows at the end."""
    torch.manual_seed(0)
    ImageTokenizer(SMALL).save_pretrained(folder / "codec")
    codec = ImageTokenizer.from_pretrained(folder / "codec")
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model(kind, vocabulary.first_id + K + SPARE, tied, width=64)
    grow_language_model(model, vocabulary, 0.3 * torch.randn(K, 64))
    info = ModelInfo("toy", K, codec.grid, S, codec.fingerprint, "chat", None, ("mass",), "impression", "0")
    save_model(folder / "model", model, vocabulary, folder / "codec", info, ["0" * 16])
    return folder / "model"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("made"))


def test_the_card_of_a_folder_for_transformers_does_what_it_says(made, tmp_path, capfd):
    assert main(["export", str(made), str(tmp_path / "out"), "--to", "hf"]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    assert "llmcxr" not in code
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    # A folder of ours as before, that gives what the old one gives.
    old, new = (LlmCxr.from_pretrained(f, "cpu", "float32") for f in (made, tmp_path / "out"))
    assert old.info == new.info
    example = json.loads((tmp_path / "out" / "example.json").read_text())
    turns = report_to_cxr.TASK.prompt("Large right pleural effusion.")
    assert example["draw"]["prompt"] == render_prompt(turns, new.asker.template, new.asker.vocabulary, "image")
    assert "[IMAGE]" in card and "<|im_start|>assistant" in card and "<VQ0003>" not in card


@pytest.mark.parametrize("tied", [True, False])
def test_llama_cpp_gives_our_tokens(tmp_path, tied):
    pytest.importorskip("xllamacpp", reason="llama.cpp (extra gguf) is not installed")
    folder = make_model(tmp_path, tied=tied)
    model = LlmCxr.from_pretrained(folder, "cpu", "float32")
    requests = parity.requests_of(model, 8, 12)
    file, *rows = parity.measure(model, str(folder), requests, "f16")
    assert file["vocab_size"] == file["tokens"] == file["rows"] == file["tokenizer"] + SPARE
    assert {row["tokens"] for row in rows if row["grammar"] == "image"} == {model.info.grid**2}
    found = parity.summary(rows)
    assert found["equal"] >= 0.75 and found["tokens before the first that differs"] > 0.9
    assert abs(found["largest margin where they part"]) < 0.05
    export_gguf(folder, tmp_path / "f16.gguf")
    llama = parity.LlamaCpp(tmp_path / "f16.gguf", threads=1)
    for text in ("Is there a pleural effusion?", "x<VQ0001>\n\n<|im_end|>  12.5 mm é", " a\tb"):
        assert llama.tokenized(text) == model.asker.vocabulary.encode_text(text)


def test_eight_bits_are_near_the_weights(made, tmp_path):
    files = {weights: tmp_path / f"{weights}.gguf" for weights in ("f16", "q8_0")}
    for weights, file in files.items():
        assert main(["export", str(made), str(file), "--to", "gguf", "--weights", weights]) == 0
    tables = [next(t for t in GGUFReader(file).tensors if t.name == "token_embd.weight") for file in files.values()]
    exact, eight = (dequantize(t.data, t.tensor_type).astype(np.float32) for t in tables)
    assert 0 < np.abs(eight - exact).max() < np.abs(exact).max() / 100
    assert files["q8_0"].stat().st_size < files["f16"].stat().st_size


def test_what_only_llama_cpps_own_converter_knows_is_said(made, tmp_path, capfd):
    neox = make_model(tmp_path, "neox", False)
    assert main(["export", str(neox), str(tmp_path / "a.gguf"), "--to", "gguf"]) == 2
    said = capfd.readouterr().err
    assert "gpt_neox" in said and "convert_hf_to_gguf.py" in said and not (tmp_path / "a.gguf").exists()
    shutil.copytree(made, tmp_path / "other")
    (tmp_path / "other" / "SHA256SUMS").unlink()
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"rope_parameters": scaled}))
    with pytest.raises(UserError, match="rope_type 'linear'"):
        export_gguf(tmp_path / "other", tmp_path / "b.gguf")
    shutil.copy(made / "config.json", tmp_path / "other" / "config.json")
    tokenizer = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="tokenizer"):
        export_gguf(tmp_path / "other", tmp_path / "b.gguf")
    assert main(["export", str(made), str(tmp_path / "c"), "--to", "hf", "--weights", "q8_0"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["export", "phantom", "mine", "--to", "hf"],
        ["import", "tokenizer", "w.ckpt", "mine"],
        ["import", "llm-cxr", "a", "b.ckpt", "mine"],
        ["pack", "demo", "mine"],
        ["export", "phantom", "mine/notes.txt", "--to", "gguf"],
        ["export", "phantom", "mine/notes.txt", "--to", "taming"],
    ],
)
def test_what_is_there_is_not_replaced(words, tmp_path, monkeypatch, capsys):
    """A folder that holds anything, and a file that is called otherwise; before anything is loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("a thesis")
    assert main(words) == 2
    assert re.search(
        "cannot write mine.*: (it is a folder that is not empty|its name should end)", capsys.readouterr().err
    )
    assert (tmp_path / "mine" / "notes.txt").read_text() == "a thesis"
