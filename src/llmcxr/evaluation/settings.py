"""Settings of the measurements."""

from __future__ import annotations

from dataclasses import dataclass

from llmcxr.foundation.settings import setting
from llmcxr.image_tokens.classifier import ClassifierSettings


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is measured, all on patients and report texts that no part of the model was trained on."""

    judge: ClassifierSettings = setting(ClassifierSettings(steps=600), "the independent classifier of findings")
    reconstructions: int = setting(400, "test images through the image tokenizer")
    reports: int = setting(200, "test images that are reported")
    questions: int = setting(800, "test questions that are answered")
    probabilities: int = setting(200, "test images that are asked about every finding, for p(yes)")
    drawings: int = setting(96, "test reports that are drawn")
    drawn_again: int = setting(64, "of those, reports that are drawn a second time, for how much drawings of one vary")
    report_tokens: int = setting(128, "most tokens of a report")
    batch_size: int = setting(32, "responses generated at once")
    bootstrap: int = setting(500, "resamples of patients for each 95 % interval")
    seed: int = setting(0, "which cases are taken, and sampling of the drawings")
