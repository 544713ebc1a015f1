"""Calibration of the finished model on validation patients: at the end of the stage `model`, and anew by `llmcxr calibrate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmcxr.evaluation.calibration import fit_calibration, known_labels, told, too_few
from llmcxr.evaluation.readings import ImageReading, read_images
from llmcxr.foundation.artifacts import fingerprint
from llmcxr.foundation.errors import UserError
from llmcxr.inference.consistency import labeller_for
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.model.calibration import CALIBRATION, Calibration, save_calibration
from llmcxr.model.folder import load_checked
from llmcxr.model.outside import NAME as OUTSIDE
from llmcxr.model.sums import SUMS, read_sums
from llmcxr.stages.context import Context
from llmcxr.stages.evaluation import cases_of, under_test
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Split, Study

READINGS = "readings-{}.json"  # in a run's folder: what its model makes of patients of a split
IMAGES = 150  # validation images: 17 findings each; more change little


def readings_of(
    context: Context,
    split: Split,
    images: int,
    candidates: int | None = 1,
    kept: Path | None = None,
    model: LlmCxr | None = None,
) -> tuple[list[ImageReading], list[Study]]:
    """What the run's model makes of at most so many images of a split, drawn by chance, and what they are. Reports only where the
    data has some.

    `kept` as in `read_images`, `model` as in `under_test`. One candidate a report takes a fourth of the time of the best of four.
    """
    cases = cases_of(context, split)
    studies = list(cases.shuffled[:images])
    if not any(report_text(study, context.info.report) for study in studies):
        candidates = 0
    folder = context.given or context.folder / "model"
    sums = read_sums(folder) if (folder / SUMS).exists() else ""
    measured = (f"  {CALIBRATION}", f"  {OUTSIDE}")  # of which answers know nothing
    weights = [line for line in sums.splitlines() if not line.endswith(measured)]
    about = fingerprint(weights, candidates, split, context.recipe.seed)
    return read_images(under_test(context, cases, model), studies, candidates, kept, about), studies


def lacking(context: Context, images: int) -> str | None:
    """Why the run's model cannot be calibrated on its validation patients; None where it can."""
    findings = context.info.findings
    if not findings:
        return "the model was asked about no finding"
    try:
        studies = list(cases_of(context, "validate").shuffled[:images])
    except UserError as error:  # no such patients, or none of the cohort
        return str(error)
    return too_few(known_labels(studies, findings))


def calibrate(
    context: Context, folder: Path, images: int = IMAGES, kept: Path | None = None, model: LlmCxr | None = None
) -> Calibration:
    """Fit a calibration to the run's validation patients and keep it in the model `folder`, which `model` is (None: it is loaded).

    `UserError` where it cannot be.
    """
    if why := lacking(context, images):
        raise UserError(f"{why}. Give the run more of them, with labels.")
    readings, studies = readings_of(context, "validate", images, kept=kept, model=model)
    findings = context.info.findings
    calibration = fit_calibration(readings, studies, findings, labeller_for(findings), context.recipe.source.kind)
    save_calibration(folder, calibration)
    return calibration


def calibrate_run(context: Context, into: Path | None, images: int | None = None) -> str:
    """The command: calibrate the model that a run made, into its folder, or the one that it measures, `into` another. What to say.

    `UserError` where it is not said into which folder, and where that holds another model.
    """
    if into is None and context.given is not None:
        raise UserError(
            f"the run {context.folder.name} measures the model {context.recipe.model}, which it did not make. Say with --into which "
            "folder should hold the calibration: that of the model, packed or not, or of a copy."
        )
    folder = into or context.folder / "model"
    own, there = replace(context.info, image_tokenizer=""), replace(load_checked(folder), image_tokenizer="")
    if own != there:
        raise UserError(f"{folder} holds another model than the one that the run {context.folder.name} is of.")
    calibration = calibrate(context, folder, images or IMAGES, context.folder / READINGS.format("validate"))
    return f"{told(calibration)}\n{folder / CALIBRATION}"
