"""Settings of the measurements."""

from __future__ import annotations

from dataclasses import dataclass

from llmcxr.foundation.settings import setting
from llmcxr.image_tokens.classifier import ClassifierSettings
from llmcxr.studies.cohort import CohortSettings
from llmcxr.tasks.measurement import UnknownLabels


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is measured, all on patients and report texts that no part of the model was trained on."""

    judge: ClassifierSettings = setting(ClassifierSettings(steps=600), "the independent classifier of findings")
    cohort: CohortSettings | None = setting(None, "which test images take part; null: those of the last stage's views")
    unknown_labels: UnknownLabels = setting(
        "left_out",
        "labels that the data does not give: left_out of the scores, or negative (absent, as some published protocols count them). "
        "Uncertain ones take no part in either",
    )
    reconstructions: int = setting(400, "test images through the image tokenizer")
    reports: int = setting(200, "test images that are reported")
    questions: int = setting(800, "test questions that are answered")
    probabilities: int = setting(200, "test images that are asked about every finding, for p(yes)")
    drawings: int = setting(96, "test reports that are drawn")
    bootstrap: int = setting(500, "resamples of patients for each 95 % interval")

    @property
    def counts(self) -> dict[str, int]:
        """How many of each are asked."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int) and name != "bootstrap"}
