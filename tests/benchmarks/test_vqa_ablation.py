"""The ablation of questions whole, with a toy LLM: equal tokens, what arms and seeds share and do not, the table."""

from __future__ import annotations

import csv
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from conftest import build_model, build_tokenizer, load_script
from PIL import Image

ablation = load_script("benchmarks/vqa_ablation.py")

EFFUSION = "There is a small left pleural effusion. The heart is enlarged."
NORMAL = "No pleural effusion. The heart is normal in size. No pneumothorax, and no consolidation is seen."
TOKENS = 7000


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> Namespace:
    """Toy sizes, 40 invented patients of whom every second is ill, and an LLM of random weights."""
    home = tmp_path_factory.mktemp("ablation")
    build_model("llama", 340, True, max_position_embeddings=2048).save_pretrained(home / "llm")
    build_tokenizer().save_pretrained(home / "llm")
    random = np.random.default_rng(0)
    with open(home / "studies.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "patient", "report", "split"])
        for k in range(40):
            Image.fromarray(random.integers(0, 255, (40, 36)).astype(np.uint8)).save(home / f"{k:02d}.png")
            split = "train" if k < 24 else "validate" if k < 30 else "test"
            writer.writerow([f"{k:02d}.png", f"p{k}", "FINDINGS: " + (EFFUSION if k % 2 else NORMAL), split])
    columns = "{image: file, report: report, patient: patient, split: split}"
    overrides = [
        f"runs={home / 'runs'}",
        "device=cpu",
        "precision=float32",
        f"llm={home / 'llm'}",
        f"source={{kind: table, table: {{path: {home / 'studies.csv'}, columns: {columns}}}}}",
        "clinical_features.resolution=32",
        "image_tokenizer={steps: 1, batch_size: 4, architecture: {kind: mixer, image_size: 32, patch: 16, width: 16, "
        "codebook_size: 8, code_dim: 4, clinical_input: false}}",
        "tuning.lora_rank=2",
        "tuning.max_tokens=256",
        "tuning.tokens_per_batch=1024",
        "tuning.logging=none",
        "evaluation.judge_steps=1",
    ]
    return Namespace(small=True, tokens=TOKENS, overrides=overrides, parallel=1)


def test_arms_differ_in_questions_and_seeds_in_the_seed_alone(options):
    def settings(arm: str, seed: int) -> dict:
        recipe = vars(ablation.recipe_of(arm, seed, 10, options))
        return recipe | {"name": "", "seed": 0}

    assert settings("none", 0) == settings("none", 1)
    none, rules, llm = (settings(arm, 0) for arm in ablation.ARMS)
    changed = [key for key in none if none[key] != rules[key]]
    assert changed == ["tuning"] and [key for key in none if rules[key] != llm[key]] == ["vqa"]
    mixtures = {arm: mixture for arm, (mixture, _) in ablation.ARMS.items()}
    assert "cxr_vqa" not in mixtures["none"] and mixtures["rules"] == mixtures["llm"]
    assert all(sum(mixture.values()) == pytest.approx(1) for mixture in mixtures.values())


def test_tuning_sees_no_ground_truth(options):
    for arm in ablation.ARMS:
        tuning = ablation.recipe_of(arm, 0, 10, Namespace(small=False, overrides=[])).tuning
        assert tuning.row_start == "codebook" and not tuning.alignment.steps and not tuning.findings_first
        assert "truth" not in ablation.recipe_of(arm, 0, 10, options).vqa.origins


def test_all_arms_and_seeds_run_and_learn_from_as_many_tokens(options, tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    command = ["vqa_ablation.py", "--small", "--tokens", str(TOKENS), "--json", str(path), *options.overrides]
    for asked in (["--arms", "rules", "none", "--seeds", "0"], ["--arms", "rules", "--seeds", "1"]):
        monkeypatch.setattr(sys, "argv", [*command, *asked])
        ablation.main()
    results = json.loads(path.read_text())
    assert set(results) == {"none/0", "rules/0", "rules/1"}
    for key, found in results.items():
        assert found["tokens"] == pytest.approx(TOKENS, rel=0.02), key
        assert ("cxr_vqa" in found["by_task"]) == key.startswith("rules")
        assert found["vqa"]["n"] == 16 and 0 <= found["report.micro_f1"] <= 1
        assert found["report.loss"] > 0 < found["image.loss"]
    assert len({found["examples"] for found in results.values()}) > 1  # reports are longer than answers
    runs = next(Path(o.removeprefix("runs=")) for o in options.overrides if o.startswith("runs="))

    def lies(part: str, *file: str) -> bytes:
        return runs.joinpath(ablation.folder_of(options, *part.split()), *file).read_bytes()

    for file in (("pixels.npy",), ("judge", "model.safetensors"), ("codes", "codes.parquet"), ("vqa.parquet",)):
        assert lies("0 none", *file) == lies("0 rules", *file) == lies("0", *file)
    assert lies("0", "pixels.npy") == lies("1", "pixels.npy")
    assert lies("0", "judge", "model.safetensors") != lies("1", "judge", "model.safetensors")
    assert lies("0 rules", "stage1", "weights.safetensors") != lies("1 rules", "stage1", "weights.safetensors")
    capsys.readouterr()
    before = path.read_bytes()
    ablation.main()  # nothing is left to do
    assert path.read_bytes() == before and "stage1" not in capsys.readouterr().out


def test_table_by_hand():
    one = dict.fromkeys(ablation.SCORES, 0.5) | {"report.loss": 1.25, "image.loss": 5, "tokens": 1234}
    results = {"rules/1": one | {"vqa.auroc": 0.75}, "rules/0": one, "none/0": one | {"image.auroc": None}}
    lines = ablation.table(results).splitlines()
    assert lines[2:] == [
        "| none, 0 | 1,234 | 0.500 | - | 0.500 | 0.500 | 0.500 | 1.250 | 5.000 |",
        "| rules, 0 | 1,234 | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 | 1.250 | 5.000 |",
        "| rules, 1 | 1,234 | 0.500 | 0.500 | 0.500 | 0.500 | 0.750 | 1.250 | 5.000 |",
        "| rules, mean |  | 0.500 | 0.500 | 0.500 | 0.500 | 0.625 | 1.250 | 5.000 |",
    ]
