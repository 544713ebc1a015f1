"""Settings of the measurements."""

from __future__ import annotations

from dataclasses import dataclass

from llmcxr.foundation.settings import Count, Number, Settings, setting
from llmcxr.image_tokens.settings import ClassifierSettings
from llmcxr.studies.findings import UncertainLabels
from llmcxr.tasks.measurement import UnknownLabels

CASES = {"reconstructions": 400, "reports": 200, "questions": 800, "probabilities": 200, "drawings": 96}


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """How much is measured, all on patients and report texts that no part of the model was trained on."""

    cases: dict[str, Number] = setting(
        CASES,
        "how many test cases, at most: images through the image tokenizer (reconstructions), images that are reported (reports), "
        "questions that are answered, images that are asked about every finding (probabilities), reports that are drawn (drawings)",
    )
    views: list[str] | None = setting(None, "views that take part, [] for all; null: those of the last stage")
    unknown_labels: UnknownLabels = setting(
        "left_out",
        "labels that the data does not give: left_out of the scores, or negative (absent, as some published protocols "
        "count them)",
    )
    uncertain_labels: UncertainLabels = setting(
        "left_out",
        "labels that are uncertain, of the data and of reports that the model writes: left_out of the scores, positive "
        "or negative (CheXpert's U-Ignore, U-Ones and U-Zeros)",
    )
    judge_steps: Count = setting(600, "training of the independent classifier of findings, in steps of 32 images")

    @property
    def counts(self) -> dict[str, int]:
        """How many of each are asked, those included that are not named."""
        return CASES | self.cases

    @property
    def judge(self) -> ClassifierSettings:
        """Training of the judge."""
        return ClassifierSettings(self.judge_steps, batch_size=32, learning_rate=2e-3)

    def faults(self) -> list[str]:
        """Names that mean nothing."""
        return [f"cases.{k}: no such case; they are {', '.join(CASES)}" for k in self.cases if k not in CASES]
