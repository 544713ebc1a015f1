"""The scripts about real data: which images are shown, and how a plan stands beside what a run took."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from conftest import load_script
from PIL import Image

load_script("benchmarks/outside.py")  # which the next imports by its name
real_images = load_script("benchmarks/real_images.py")
plan_and_run = load_script("benchmarks/plan_and_run.py")


def test_frontal_images_one_lateral_a_card_and_noise(tmp_path):
    rows = ["filename,view", *(f"f{k}.png,PA" for k in range(9)), "side.png,L", "other.png,L"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    found = real_images.images(tmp_path, 3, tmp_path, size=64)
    assert list(found) == ["frontal 1", "frontal 2", "frontal 3", "lateral 1", "text card", "noise"]
    assert [found[f"frontal {k}"].name for k in (1, 2, 3)] == ["f0.png", "f4.png", "f8.png"], "from all of the table"
    assert found["lateral 1"].name in ("side.png", "other.png")
    card, noise = (np.asarray(Image.open(found[name])) for name in ("text card", "noise"))
    assert card.shape == noise.shape == (64, 64) and np.median(card) > 190 and card.min() < 100
    assert list(real_images.images(None, 3, tmp_path, size=64)) == ["text card", "noise"]


def test_planned_and_taken_stand_side_by_side():
    stages = [SimpleNamespace(name="stage1", hours=0.1), SimpleNamespace(name="stage2", hours=None)]
    planned = SimpleNamespace(others={"judge": 1 / 60, "codes": 2 / 60}, stages=stages)
    text = plan_and_run.table(planned, {"studies": 0.5, "judge": 1.5, "stage1": 6.0})
    assert text.splitlines()[2:] == [
        "| studies | - | 0.5 |  |",
        "| judge | 1.0 | 1.5 | 1.50 |",
        "| stage1 | 6.0 | 6.0 | 1.00 |",
        "| codes | 2.0 | - |  |",  # left out: the data had nothing for it
        "| stage2 | 0.0 | - |  |",
        "| **all** | 9.0 | 8.0 | 0.89 |",
    ]
