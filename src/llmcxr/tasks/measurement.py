"""How a model is measured on a task: what it is asked, what is kept of each answer, and what the answers score.

A task's module defines `MEASUREMENT`, which is found by `measurements()`. Predictions are the border: `answer` needs the model,
`score` needs predictions, studies and pixels only. Page and terminal list `scores` and know no task.

Shapes: N images, F findings, L codes an image, S side in pixels.
"""

from __future__ import annotations

import base64
import functools
import importlib
import io
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from llmcxr.foundation.randomness import stream
from llmcxr.instructions.example import Turn
from llmcxr.instructions.questions import QuestionAnswer
from llmcxr.labelling.base import Labeller
from llmcxr.metrics.scores import Interval, bootstrap_interval, mean_auroc_interval
from llmcxr.studies.findings import LabelSet, UncertainLabels, label_value, normal_form
from llmcxr.studies.report_sections import ReportPart
from llmcxr.studies.study import Study, label_matrix

AT_ONCE = (
    32  # responses generated at once: a group, which has one seed, so that no split over processes changes an answer
)
UnknownLabels = Literal["left_out", "negative"]


@dataclass(frozen=True)
class Ask:
    """One thing that the model is asked, and what would be right. `shown`: the page shows it, so pictures of it are kept;
    `repeated`: it is answered by a second seed, too."""

    study: Study
    kind: str  # of question, part of report, ...: the task's own
    question: str = ""
    reference: str = ""
    shown: bool = False
    repeated: bool = False


@dataclass(frozen=True)
class Prediction:
    """One answer of the model beside what was expected. `extra` holds JSON values: all that a score needs of the model."""

    task: str
    image_id: str
    patient_id: str
    kind: str
    question: str
    reference: str
    response: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """One row of the score table. Keys are "group.name" of the summary; a baseline or ceiling may be a number that always holds.

    `needs` is what the data must have for it; said where it could not be measured and nothing more exact is known.
    """

    label: str
    key: str
    baseline: str | float | None
    baseline_name: str
    ceiling: str | float | None
    ceiling_name: str
    meaning: str
    interval: tuple[str, str] | None = None
    count: str | None = None
    scale: tuple[float, float] | None = (0.0, 1.0)  # ends of the drawn scale; None: a bare number
    lower_is_better: bool = False
    needs: str = "it was not asked for"


class NotMeasured(str):
    """In the place of a score: why it is not there."""


class Examinee(Protocol):
    """The model under test with what measures its images; images are uint8 [N, S, S], named by their ids where they are real."""

    findings: LabelSet  # of the data

    def generate(
        self, conversations: Sequence[tuple[Turn, ...]], most_tokens: int, seed: int = 0, temperature: float = 0.0
    ) -> list[str]:
        """Text responses to the last turns."""

    def reports(self, image_ids: Sequence[str], most_tokens: int) -> list[str]:
        """Reports, written as the model writes by default."""

    def answers(self, image_ids: Sequence[str], questions: Sequence[str], most_tokens: int) -> list[str]:
        """Answer i to question i about image i."""

    def finding_probabilities(self, image_id: str, findings: Sequence[str]) -> list[float]:
        """p(yes) of the presence question of each finding."""

    def draw(self, texts: Sequence[str], seed: int) -> np.ndarray:
        """Codes uint16 [N, L] drawn from reports."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [N, L] to images."""

    def codes(self, image_ids: Sequence[str]) -> np.ndarray:
        """Codes [N, L] of real images."""

    def images(self, image_ids: Sequence[str]) -> np.ndarray:
        """Real images."""

    def reconstructed(self, images: np.ndarray) -> np.ndarray:
        """Images through the image tokenizer and back."""

    def codebook_use(self) -> float:
        """Share of the codebook that occurs in the images of training and test."""

    def codebook_perplexity(self) -> float:
        """Of the codes of these images."""

    def judged(self, images: np.ndarray) -> list[dict[str, float]]:
        """The judge's logit of each finding, by name, on each image; empty where there is no judge."""

    def perplexities(self) -> dict[str, float]:
        """Of general text: of the model ("tuned") and of its base ("base"), and the number of texts ("n")."""


@dataclass(frozen=True)
class Cases:
    """The patients that the model is measured on, those it learned from, and all that is known of them."""

    test: Sequence[Study]
    train: Sequence[Study]
    findings: LabelSet
    labeller: Labeller | None
    part: ReportPart  # of the reports that the model writes
    images: Callable[[Sequence[str]], np.ndarray]  # image ids -> uint8 [N, S, S]
    questions: Sequence[QuestionAnswer] = ()  # of both splits
    counts: Mapping[str, int] = field(default_factory=dict)  # how many of each are asked, by setting
    bootstrap: int = 500
    seed: int = 0
    unknown_labels: UnknownLabels = "left_out"
    uncertain_labels: UncertainLabels = "left_out"
    left_out: Mapping[str, int] = field(default_factory=dict)  # test images that are not of the cohort, by reason
    # p(yes) by finding -> calibrated: when answers are scored, not when they are given, so that a calibration can change
    calibrated: Callable[[Mapping[str, float]], dict[str, float]] | None = None  # None: the model has no calibration

    @functools.cached_property
    def shuffled(self) -> list[Study]:
        """Test studies in the random order of which each measurement takes the first so many."""
        return [self.test[i] for i in stream(self.seed, "evaluation").permutation(len(self.test))]

    @functools.cached_property
    def by_id(self) -> dict[str, Study]:
        """Test studies by image id."""
        return {study.image_id: study for study in self.test}

    def of(self, predictions: Sequence[Prediction]) -> list[Study]:
        """The studies that predictions are about."""
        return [self.by_id[p.image_id] for p in predictions]

    def labels(self, studies: Sequence[Study]) -> np.ndarray:
        """Labels float32 [N, F]: 1, 0, NaN; uncertain and missing ones as `uncertain_labels` and `unknown_labels`
        say."""
        labels = label_matrix(studies, self.findings, self.uncertain_labels)
        if self.unknown_labels == "negative":
            blank = np.array([[name not in study.labels for name in self.findings] for study in studies], dtype=bool)
            labels[blank.reshape(labels.shape)] = 0
        return labels

    def matrix(self, values: Sequence[Mapping[str, float]]) -> np.ndarray:
        """Numbers by name of finding, however spelt, as float64 [N, F]; NaN where there is none."""
        found = [{normal_form(name): value for name, value in row.items()} for row in values]
        forms = [normal_form(name) for name in self.findings]
        return np.array([[row.get(form, np.nan) for form in forms] for row in found]).reshape(len(values), len(forms))

    @functools.cached_property
    def readable(self) -> list[int]:
        """Places of the findings that the labeller can read: reports are scored by these alone."""
        known = self.labeller.findings if self.labeller else LabelSet()
        return [i for i, name in enumerate(self.findings) if name in known]

    def unreadable(self) -> NotMeasured | None:
        """Why no report can be scored; None where some finding can."""
        if self.readable:
            return None
        if not self.findings:
            return NotMeasured("no label of the data is known both present and absent")
        if self.labeller is None:
            return NotMeasured("no labeller reads findings from reports (labeller: none)")
        return NotMeasured(f"the labeller knows none of the findings of the data ({', '.join(self.findings)})")

    def stated(self, texts: Sequence[str]) -> np.ndarray:
        """Whether the labeller reads in each text that a finding is there: bool [N, F], False for those it cannot read.

        A finding that a text doubts counts as stated where `uncertain_labels` is positive, else as not stated.
        """
        assert self.labeller is not None
        states = [{normal_form(k): v for k, v in reading.states.items()} for reading in self.labeller.read_all(texts)]
        rows = [
            [label_value(state.get(normal_form(name)), self.uncertain_labels) == 1 for name in self.findings]
            for state in states
        ]
        return np.array(rows, dtype=bool).reshape(len(texts), len(self.findings))

    def interval(self, statistic: Callable[[np.ndarray], float], patients: Sequence[str]) -> Interval:
        """95 % interval over patients."""
        return bootstrap_interval(statistic, patients, self.bootstrap, self.seed)

    def auroc_interval(self, labels: np.ndarray, values: np.ndarray, patients: Sequence[str]) -> Interval:
        """The same of a mean AUROC."""
        return mean_auroc_interval(labels, values, patients, self.bootstrap, self.seed)

    def named(self, values: np.ndarray) -> dict[str, float]:
        """Numbers [F] by finding, without those that are not known."""
        return {name: float(v) for name, v in zip(self.findings, values, strict=True) if not np.isnan(v)}


class Measurement(ABC):
    """How one task (or the image tokenizer) is measured."""

    name: ClassVar[str]  # of the task, in predictions
    group: ClassVar[str]  # of its scores in the summary
    place: ClassVar[int]  # of its scores in the table
    scores: ClassVar[tuple[Score, ...]]

    @abstractmethod
    def asks(self, cases: Cases) -> list[list[Ask]]:
        """What the model is asked, in the groups in which it answers."""

    @abstractmethod
    def answer(self, model: Examinee, group: Sequence[Ask], seed: int) -> list[Prediction]:
        """Answers to one group, one for each. `seed` is the group's own."""

    @abstractmethod
    def score(self, predictions: Sequence[Prediction], cases: Cases) -> dict[str, Any] | NotMeasured:
        """The group's values by name: numbers, NaN where they cannot be had, or a `NotMeasured` that says why. Without any
        answers, or without what all need, only why. `per_finding` may hold AUROCs by finding: route -> finding -> number."""

    def notes(self, values: Mapping[str, Any]) -> list[str]:
        """What falls short beyond what a comparison with baseline and ceiling says, a sentence each."""
        return []

    def prediction(self, ask: Ask, response: str = "", **extra: Any) -> Prediction:
        """The prediction that answers `ask`."""
        study = ask.study
        return Prediction(
            self.name, study.image_id, study.patient_id, ask.kind, ask.question, ask.reference, response, extra
        )


TOO_FEW = "no finding has at least 5 test images that are known to show it and 5 known not to"


def in_groups(asks: Sequence[Ask], size: int = AT_ONCE) -> list[list[Ask]]:
    """`asks` in groups of `size`."""
    return [list(asks[i : i + size]) for i in range(0, len(asks), size)]


def to_show(studies: Sequence[Study], count: int) -> list[int]:
    """Which studies the page shows: the first with findings, then for a quarter of the places the first without.

    Chosen by what is in the images, never by what the model made of them.
    """
    positive = [any(state == 1 for state in study.labels.values()) for study in studies]
    order = sorted(range(len(studies)), key=lambda k: not positive[k])
    quiet = [k for k in order if not positive[k]][: count // 4]
    return [k for k in order if k not in quiet][: count - len(quiet)] + quiet


def picture_text(image: np.ndarray) -> str:
    """An image uint8 [S, S] as text for `Prediction.extra`: a PNG in base 64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def read_picture(text: str) -> np.ndarray:
    """What `picture_text` wrote."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def measurements() -> list[Measurement]:
    """The measurement of every task of this package."""
    package = importlib.import_module("llmcxr.tasks")
    modules = [importlib.import_module(f"llmcxr.tasks.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    return [module.MEASUREMENT for module in modules if hasattr(module, "MEASUREMENT")]
