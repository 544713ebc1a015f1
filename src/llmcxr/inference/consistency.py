"""Whether a model believes its own report: p(yes) of each finding that a sentence states or denies, read back from the image.

A sentence is doubted where the image gives a finding that it states less than `Calibration.doubt_stated`, or one that it denies
more than `doubt_denied`: thresholds that were chosen on validation patients. What a report leaves out is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmcxr.foundation.errors import UserError
from llmcxr.labelling.base import Labeller
from llmcxr.labelling.registry import LabellerName, build_labeller
from llmcxr.model.calibration import Calibration
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.sentences import sentences


@dataclass(frozen=True)
class Claim:
    """What one sentence says of one finding: that it is there (`stated`), or that it is not."""

    sentence: int
    finding: str  # as the model spells it
    stated: bool


@dataclass(frozen=True)
class Doubt:
    """A claim that the model itself does not believe: its calibrated `p` of the finding on the image."""

    finding: str
    stated: bool
    p: float

    def __str__(self) -> str:
        return f"{'states' if self.stated else 'denies'} {self.finding}, of which the image gives p = {self.p:.2f}"


@dataclass(frozen=True)
class CheckedSentence:
    """A sentence of a report, and the claims in it that the model does not believe."""

    text: str
    doubts: tuple[Doubt, ...] = ()


def labeller_for(findings: Sequence[str]) -> Labeller:
    """The rules that read most of a model's findings from text."""
    names: tuple[LabellerName, ...] = ("rules", "chexpert")
    return max(
        (build_labeller(name) for name in names), key=lambda own: len(findings) - len(own.findings.missing(findings))
    )


def claims_of(text: str, findings: Sequence[str], labeller: Labeller) -> tuple[list[str], list[Claim]]:
    """The sentences of a report, and what they state or deny of `findings`, each once a sentence; doubts are no claims.

    A sentence that both states and denies a finding ("no effusion on the left, a small one on the right") states it.
    """
    known, parts, starts, at = LabelSet(findings), sentences(text), list[int](), 0
    for part in parts:
        at = text.index(part, at)
        starts.append(at)
        at += len(part)
    said: dict[tuple[int, str], bool] = {}
    for mention in labeller.read(text).mentions:
        if mention.finding in known and mention.state != -1:
            number = max((i for i, start in enumerate(starts) if start <= mention.start), default=0)
            key = number, known.spelling(mention.finding)
            said[key] = said.get(key, False) or mention.state == 1
    return parts, [Claim(number, finding, stated) for (number, finding), stated in said.items()]


def check_report(
    text: str, p: Mapping[str, float], calibration: Calibration, labeller: Labeller
) -> list[CheckedSentence]:
    """The sentences of a report of an image on which findings have the calibrated probabilities `p`, with what is doubted."""
    parts, claims = claims_of(text, list(p), labeller)
    below, above = calibration.doubt_stated, calibration.doubt_denied
    doubts: list[list[Doubt]] = [[] for _ in parts]
    for claim in claims:
        own = p[claim.finding]
        if (below is not None and own < below) if claim.stated else (above is not None and own > above):
            doubts[claim.sentence].append(Doubt(claim.finding, claim.stated, own))
    return [CheckedSentence(part, tuple(found)) for part, found in zip(parts, doubts, strict=True)]


def check_possible(calibration: Calibration | None) -> Calibration:
    """`UserError` where a model has no thresholds of doubt."""
    if calibration is None:
        raise UserError(
            "this model's reports cannot be checked: it has no calibration, so it is not known which of its probabilities mean "
            "doubt. `llmcxr calibrate RUN` fits one to the validation patients of a run."
        )
    if calibration.doubt_stated is None and calibration.doubt_denied is None:
        raise UserError(
            "this model's reports cannot be checked: among the patients of its calibration too few sentences were right, or "
            "wrong, to choose when to doubt. Calibrate it on more."
        )
    return calibration
