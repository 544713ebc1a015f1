"""A run folder of 32 px whose data, clinical network and judge are there: what measuring image tokenizers needs of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from llmcxr.evaluation.judge import Judge
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.studies.study import Study, write_manifest

S = 32
FINDINGS = ("effusion", "nodule")


def toy_run(folder: Path, count: int = 48) -> Path:
    """Half of the images for training; those of the test split with and without each finding, simulated and (absolute paths) real."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, S, S), dtype=np.uint8)
    (folder / "images").mkdir(parents=True)
    studies = []
    for i, image in enumerate(pixels):
        relative = f"images/{i:03d}.png"
        Image.fromarray(image).save(folder / relative)
        real, split = i % 4 == 3, "train" if i < count // 2 else "test"
        path = str((folder / relative).resolve()) if real else relative
        labels = {"effusion": i % 2, "nodule": (i // 2) % 2} if not real else {"effusion": (i // 4) % 2}
        studies.append(Study(f"{i:03d}", f"p{i // 2}", f"s{i}", path, split, labels=labels))
    write_manifest(folder / "manifest.parquet", studies)
    with open(folder / "pixels.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": pixels.shape})
        file.write(pixels.tobytes())
    torch.manual_seed(0)
    ClinicalFeatures(FINDINGS).save(folder / "clinical_features")
    Judge(FINDINGS, S).save(folder / "judge")
    architecture = {"kind": "mixer", "image_size": S, "patch": 16, "codebook_size": 8, "code_dim": 8, "width": 32}
    recipe = {
        "precision": "float32",
        "image_tokenizer": {
            "architecture": architecture | {"clinical_input": True},
            "batch_size": 4,
            "reading_weight": 0.01,
            "feature_start": 0.0,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder
