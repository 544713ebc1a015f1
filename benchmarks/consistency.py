"""Whether a model's doubts about its own reports are justified: precision and recall of the marks of `report(..., check=True)`.

    python benchmarks/consistency.py runs/calibration [--images 150] [--candidates 4]

On a run as for calibration.py, whose model has a calibration (`llmcxr calibrate`): thresholds are of its validation patients, numbers of
the test patients here, by what is drawn in each radiograph. Reports are the first candidate (a fourth of the time of the best of four) unless said otherwise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from llmcxr.evaluation import calibration as fitting
from llmcxr.foundation.settings import load_settings
from llmcxr.inference.consistency import check_possible, labeller_for
from llmcxr.metrics.scores import bootstrap_interval
from llmcxr.model.calibration import load_calibration
from llmcxr.pipeline import Run
from llmcxr.recipe import Recipe
from llmcxr.stages.calibration import READINGS, readings_of


def table(rows: list[tuple[int, bool, bool]], what: str) -> str:
    """A line of the table from (image, marked, wrong) of each claim or sentence."""
    image, marked, wrong = (np.array(x) for x in zip(*rows, strict=True))

    def precision(r: np.ndarray) -> float:
        return float(wrong[r][marked[r]].mean()) if marked[r].any() else float("nan")

    low, high = bootstrap_interval(precision, [str(i) for i in image])
    every = np.arange(len(rows))
    recall = marked[wrong].mean() if wrong.any() else float("nan")
    return (
        f"| {what} | {len(rows)} | {wrong.mean():.3f} | {int(marked.sum())} | {precision(every):.3f} ({low:.3f} to {high:.3f}) "
        f"| {recall:.3f} | {wrong[~marked].mean():.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=150, help="test images, at most")
    parser.add_argument("--candidates", type=int, default=1, help="of which each report is the best")
    arguments = parser.parse_args()
    folder = arguments.run.resolve()
    place = [f"runs={folder.parent}", f"name={folder.name}"]
    context = Run(load_settings(Recipe, folder / "recipe.yaml", place)).context
    findings, labeller = context.info.findings, labeller_for(context.info.findings)
    own = check_possible(load_calibration(context.given or folder / "model"))
    kept = folder / READINGS.format("test" if arguments.candidates == 1 else f"test-{arguments.candidates}")
    readings, studies = readings_of(context, "test", arguments.images, arguments.candidates, kept)
    p, labels = fitting.matrices(readings, studies, findings)
    p = np.stack([f(p[:, i]) for i, f in enumerate(own.findings.values())], 1)
    claims = fitting.judged_claims([r.report for r in readings], p, labels, findings, labeller)
    print(
        f"thresholds of {own.fitted_on.images} validation images: stated below {own.doubt_stated}, denied above {own.doubt_denied}"
    )
    print(
        f"\n{len(studies)} test images\n\n| | n | wrong | marked | precision of the marks | recall | wrong of the others |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")

    def doubted(claim: fitting.JudgedClaim) -> bool:
        limit = own.doubt_stated if claim.stated else own.doubt_denied
        return limit is not None and (claim.p < limit if claim.stated else claim.p > limit)

    sentences: dict[tuple[int, int, bool], list[tuple[bool, bool]]] = {}
    for claim in claims:
        sentences.setdefault((claim.image, claim.sentence, claim.stated), []).append((doubted(claim), claim.wrong))
    for stated, verb in ((True, "state"), (False, "deny")):
        rows = [(c.image, doubted(c), c.wrong) for c in claims if c.stated == stated]
        print(table(rows, f"findings that sentences {verb}"))
        # Of a marked sentence what was doubted counts; of another one all that it says.
        whole = [
            (image, any(d for d, _ in said), any(w for d, w in said if d or not any(e for e, _ in said)))
            for (image, _, way), said in sentences.items()
            if way == stated
        ]
        print(table(whole, f"sentences that {verb} a finding"))


if __name__ == "__main__":
    main()
