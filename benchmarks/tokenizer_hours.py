"""What does a curve of the image tokenizer's training say about hours?

    python benchmarks/tokenizer_hours.py runs/tokenizer-256 --targets 0.030 0.020

A power law, error = a * steps ** -b, is fitted to the L1 of training images over the part of the curve that pixels alone shape (before
feature terms and adversary begin), and continued to the targets, at the run's own seconds a step. It says in what order of magnitude the
answer lies: a falling rate ends lower than the law says, feature terms and the adversary higher.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from llmcxr.foundation.artifacts import read_json
from llmcxr.foundation.settings import load_settings
from llmcxr.recipe import Recipe

BEGINNING = 0.1  # share of the fitted part that is left out: warm-up, and the codebook's first vectors


def power_law(steps: np.ndarray, errors: np.ndarray) -> tuple[float, float, float]:
    """(a, b, scatter) of errors = a * steps ** -b, by least squares of the logarithms; the scatter as a share of the error."""
    b, a = np.polyfit(np.log(steps), np.log(errors), 1)
    scatter = np.std(np.log(errors) - (a + b * np.log(steps)))
    return float(np.exp(a)), float(-b), float(scatter)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder whose `image_tokenizer` stage is done")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.03, 0.02], help="L1 as a share of the range")
    o = parser.parse_args()
    curve = read_json(o.run / "image_tokenizer" / "curves.json")
    settings = load_settings(Recipe, o.run / "recipe.yaml").image_tokenizer
    total = curve[-1]["step"] + 1
    seconds = read_json(o.run / ".stages" / "image_tokenizer.json")["seconds"] / total
    starts = [settings.feature_start or 1.0, settings.adversarial_start if settings.adversarial_weight else 1.0]
    last = min(starts) * total
    points = [p for p in curve if BEGINNING * last <= p["step"] <= last]
    steps = np.array([p["step"] for p in points]) + 1.0
    a, b, scatter = power_law(steps, np.array([p["l1"] / 2 for p in points]))  # pixels are in [-1, 1]
    print(
        f"{total:,} steps of {settings.batch_size} images, {seconds:.2f} s each; L1 at the end of them {curve[-1]['l1'] / 2:.4f} (training)"
    )
    print(f"steps {steps[0]:,.0f} to {steps[-1]:,.0f}: L1 = {a:.3f} * steps ** -{b:.3f}, within {scatter:.1%}")
    for target in o.targets:
        needed = (a / target) ** (1 / b)
        print(f"L1 {target:.3f}: {needed:,.0f} steps, {needed * seconds / 3600:,.1f} hours here")


if __name__ == "__main__":
    main()
