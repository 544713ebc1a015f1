"""Whether probabilities of findings mean what they say: before and after calibration, on test patients.

    for stage in studies codes; do llmcxr run demo name=calibration source.phantom.seed=2 source.phantom.train=0 \\
        source.phantom.validate=150 source.phantom.test=150 --stage $stage; done
    python benchmarks/calibration.py runs/calibration [--images 150]

The calibration is fitted to the run's validation patients, as `llmcxr calibrate` does; numbers are of its test patients. Readings
are kept in the run's folder (readings-*.json), so a second time takes seconds. Isotonic regression stands beside: it is no method of
the project, because it is no better here and would need scikit-learn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.isotonic import IsotonicRegression

from llmcxr.evaluation import calibration as fitting
from llmcxr.foundation.settings import load_settings
from llmcxr.inference.consistency import labeller_for
from llmcxr.metrics.calibration import brier_score, confidence, expected_calibration_error, log_loss
from llmcxr.metrics.scores import bootstrap_interval
from llmcxr.pipeline import Run
from llmcxr.recipe import Recipe
from llmcxr.stages.calibration import READINGS, readings_of
from llmcxr.stages.context import Context


def context_of(folder: Path) -> Context:
    """The context of a run's folder."""
    folder = folder.resolve()
    return Run(load_settings(Recipe, folder / "recipe.yaml", [f"runs={folder.parent}", f"name={folder.name}"])).context


def isotonic(p: np.ndarray, labels: np.ndarray, at: np.ndarray, each: bool) -> np.ndarray:
    """Isotonic regression of p [N, F] fitted to labels [N, F], for `at` [M, F]: one for all findings, or one for each."""
    result = np.zeros_like(at)
    for own in [[f] for f in range(p.shape[1])] if each else [list(range(p.shape[1]))]:
        x, y = p[:, own].ravel(), labels[:, own].ravel()
        known = ~np.isnan(y)
        step = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x[known], y[known])
        result[:, own] = step.predict(at[:, own].ravel()).reshape(-1, len(own))
    return result


def left_out_isotonic(p: np.ndarray, labels: np.ndarray, patients: Sequence[str], each: bool) -> float:
    """Its log loss on patients left out of the fit, as of `fitting.METHODS`."""
    given = np.full(p.shape, np.nan)
    for rows in fitting.folds(patients):
        others = np.setdiff1d(np.arange(len(p)), rows)
        given[rows] = isotonic(p[others], labels[others], p[rows], each)
    return log_loss(labels, given.clip(1e-3, 1 - 1e-3))


def row(name: str, labels: np.ndarray, raw: np.ndarray, better: np.ndarray, bins: int) -> str:
    """One line of the table."""
    errors = [expected_calibration_error(labels, p, bins) for p in (raw, better)]
    squares = [brier_score(labels, p) for p in (raw, better)]
    return f"| {name} | {int(np.nansum(labels))} | " + " | ".join(f"{x:.3f}" for x in (*errors, *squares)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=150, help="of each split, at most")
    arguments = parser.parse_args()
    context = context_of(arguments.run)
    read = {}
    for split in ("validate", "test"):
        kept = context.folder / READINGS.format(split)
        read[split] = readings_of(context, split, arguments.images, kept=kept)  # type: ignore[arg-type]
    findings = context.info.findings
    own = fitting.fit_calibration(*read["validate"], findings, labeller_for(findings), context.recipe.source.kind)
    print(fitting.told(own))
    p, labels = fitting.matrices(*read["validate"], findings)
    patients = [study.patient_id for study in read["validate"][1]]
    for each in (False, True):
        print(
            f"{left_out_isotonic(p, labels, patients, each):.4f}  isotonic, {'a step function each' if each else 'one'}"
        )

    raw, truth = fitting.matrices(*read["test"], findings)
    maps = list(own.findings.values())
    better = np.stack([f(raw[:, i]) for i, f in enumerate(maps)], 1)
    patients = [study.patient_id for study in read["test"][1]]
    print(f"\n{len(raw)} test images\n\n| finding | with it | ECE raw | calibrated | Brier raw | calibrated |")
    print("| --- | --- | --- | --- | --- | --- |\n" + row("all, 15 bins", truth, raw, better, 15))
    for i, name in enumerate(findings):
        print(row(name, truth[:, i], raw[:, i], better[:, i], 5))
    for name, given in (("raw", raw), ("calibrated", better)):
        low, high = bootstrap_interval(lambda r, g=given: brier_score(truth[r], g[r]), patients)  # type: ignore[misc]
        print(f"Brier score, {name}: 95 % interval over patients {low:.4f} to {high:.4f}")
    names, columns, sides = fitting.side_cases(*read["test"])
    for name, given in (("raw", sides), ("calibrated", own.side_probabilities(sides))):
        right, sure = confidence(columns, given)
        ece, brier = (
            expected_calibration_error(right, sure, 10),
            float(((given - np.eye(3)[columns]) ** 2).sum(1).mean()),
        )
        print(
            f"sides of {len(names)} findings that are there, {name}: {right.mean():.3f} right, ECE {ece:.3f}, Brier {brier:.3f}"
        )


if __name__ == "__main__":
    main()
