"""Calibration of the finished model on validation patients: at the end of the stage `model`, and anew by `llmcxr calibrate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmcxr.evaluation.calibration import fit_calibration, known_labels, too_few
from llmcxr.evaluation.readings import ImageReading, read_images
from llmcxr.foundation.artifacts import fingerprint
from llmcxr.foundation.errors import UserError
from llmcxr.inference.consistency import labeller_for
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.model.calibration import Calibration
from llmcxr.model.folder import LEARNED_LATER, load_checked
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
    folder = context.model
    sums = read_sums(folder) if (folder / SUMS).exists() else ""
    weights = [line for line in sums.splitlines() if line.partition("  ")[2] not in LEARNED_LATER]
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


def fitted_calibration(
    context: Context, images: int = IMAGES, kept: Path | None = None, model: LlmCxr | None = None
) -> Calibration:
    """Of the run's `model` (None: it is loaded), fitted to validation patients; `kept` as in `read_images`.

    `UserError` where it cannot be.
    """
    if why := lacking(context, images):
        raise UserError(f"{why}. Give the run more of them, with labels.")
    readings, studies = readings_of(context, "validate", images, kept=kept, model=model)
    findings = context.info.findings
    return fit_calibration(readings, studies, findings, labeller_for(findings), context.recipe.source.kind)


def folder_to_calibrate(context: Context, into: Path | None) -> Path:
    """That of the run's own model, or `into`, which holds the same one.

    `UserError` where it is not said into which folder, and where that holds another model.
    """
    if into is None and context.given is not None:
        raise UserError(
            f"the run {context.folder.name} measures the model {context.recipe.model}, which it did not make. Say with --into which "
            "folder should hold the calibration: that of the model, packed or not, or of a copy."
        )
    folder = into or context.model
    own, there = replace(context.info, image_tokenizer=""), replace(load_checked(folder), image_tokenizer="")
    if own != there:
        raise UserError(f"{folder} holds another model than the one that the run {context.folder.name} is of.")
    return folder
