"""Questions without an LLM: from the labels of a study and what its report says of them, with the sentence that does.

Presence is asked where a label is known, present or absent; side, severity, place and device where the report tells
them; which findings there are where report and labels leave none in doubt. Nothing else is concluded from silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llmcxr.instructions.questions import (
    LIST_QUESTION,
    NORMAL_QUESTION,
    SIDE_ANSWERS,
    finding_list,
    presence_question,
    severity_question,
    side_question,
    spoken,
)
from llmcxr.labelling import terms
from llmcxr.studies.findings import Finding, is_finding
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study
from llmcxr.synthesis.pairs import PairType, QaPair
from llmcxr.synthesis.statements import DEVICE, NARROWER, Statement, says_all_is_normal, statements_of, terms_named

DEVICE_QUESTION = "Which support devices are there?"


def rule_pairs(study: Study, labels: Mapping[str, int]) -> list[QaPair]:
    """All questions that labels (finding -> 1, 0, -1) and the study's report answer, not yet balanced (`balance.py`).

    Labels that are uncertain are not asked about. The same study gives the same pairs, in the order of its labels.
    """
    report = report_text(study, "findings_and_impression")
    asked = _Asked(study)
    known = {name: state for name, state in labels.items() if is_finding(name)}
    statements = statements_of(report)
    _all_findings(asked, report, known, statements)
    if any(state == 1 and DEVICE not in terms_named(name) for name, state in known.items()):
        asked.about(NORMAL_QUESTION, "No.", "normal", evidence=_first([s for s in statements if s.state == 1]))
    elif _all_normal(report, known, statements):
        asked.about(NORMAL_QUESTION, "Yes.", "normal")
    for name, state in known.items():
        named = terms_named(name)
        own = [s for s in statements if s.term in named and s.state == state]
        one_side = bool(own) and not any(
            s.denies() for s in own
        )  # "the left lung is clear" is no answer to the question
        if state == 1 or (state == 0 and not one_side):
            answer = "Yes." if state else "No."
            asked.about(presence_question(name), answer, "presence", name, _first(own))
        if state == 1 and own:
            _details(asked, name, own)
            if DEVICE in named:
                _devices(asked, name, own)
    return asked.pairs


class _Asked:
    """The pairs of one study."""

    def __init__(self, study: Study) -> None:
        self._study, self.pairs = study, list[QaPair]()

    def about(self, question: str, answer: str, kind: PairType, finding: str = "", evidence: str = "") -> None:
        ids = self._study.image_id, self._study.study_id
        self.pairs.append(QaPair(*ids, question, answer, kind, "rules", evidence, finding, "entailed"))


def _first(statements: Sequence[Statement]) -> str:
    return statements[0].sentence if statements else ""


def _all_normal(report: str, known: Mapping[str, int], statements: Sequence[Statement]) -> bool:
    return not {1, -1} & set(known.values()) and says_all_is_normal(report) and all(s.state == 0 for s in statements)


def _all_findings(asked: _Asked, report: str, known: Mapping[str, int], statements: Sequence[Statement]) -> None:
    """All findings at once: what a report names is what its writer found worth naming.

    Not asked where something is uncertain, or stated but no finding of the data: the list would lack it.
    """
    of_data = {term for name in known for term in terms_named(name)}
    if not report or -1 in known.values() or any(s.state and not _covered(s, of_data) for s in statements):
        return
    present = [name for name, state in known.items() if state == 1]
    own = {name: [s for s in statements if s.term in terms_named(name) and s.state == 1] for name in present}
    if present or _all_normal(report, known, statements):
        findings = [Finding(name, side) for name in present for side in _sides(own[name]) or [""]]
        evidence = dict.fromkeys(s.sentence for name in present for s in own[name])
        asked.about(LIST_QUESTION, finding_list(findings), "open", evidence=" ".join(evidence))


def _covered(statement: Statement, of_data: set[str]) -> bool:
    """Whether the data have the finding that a statement affirms, or one that it is a wider word for."""
    return statement.state == 1 and not of_data.isdisjoint((statement.term, *NARROWER.get(statement.term, ())))


def _sides(statements: Iterable[Statement]) -> list[str]:
    return sorted(frozenset[str]().union(*(s.sides for s in statements)))


def _details(asked: _Asked, name: str, own: Sequence[Statement]) -> None:
    """Side, severity and place of a finding that is there, where all that is said of it agrees."""
    if sided := [s for s in own if s.sides]:
        sides = _sides(sided)
        answer = SIDE_ANSWERS["both" if len(sides) == 2 else sides[0]]
        asked.about(side_question(name), answer, "location", name, sided[0].sentence)
        if own[0].term in terms.SIDED:
            for side in ("left", "right"):
                answer = "Yes." if side in sides else "No."
                asked.about(presence_question(f"{side} {spoken(name)}"), answer, "presence", name, sided[0].sentence)
    graded = [s for s in own if s.degrees]
    if len(degrees := {d for s in graded for d in s.degrees}) == 1:
        asked.about(severity_question(name), f"{degrees.pop().capitalize()}.", "severity", name, graded[0].sentence)
    placed = [s for s in own if s.place]
    if len(places := {s.place for s in placed}) == 1:
        question = f"Where in the chest is the {spoken(name)}?"
        asked.about(question, f"{places.pop().capitalize()}.", "location", name, placed[0].sentence)


def _devices(asked: _Asked, name: str, own: Sequence[Statement]) -> None:
    kinds = {kind: s.sentence for s in reversed(own) for kind in s.kinds}
    for kind in sorted(kinds):
        asked.about(presence_question(kind), "Yes.", "presence", name, kinds[kind])
    if kinds and all(s.kinds for s in own):  # all that are named are known
        text = "; ".join(sorted(kinds))
        asked.about(DEVICE_QUESTION, f"{text[0].upper()}{text[1:]}.", "device", name, own[0].sentence)
