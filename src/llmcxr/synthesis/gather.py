"""The questions that images are asked, of all origins: known findings, labels and reports by rules, a chat LLM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress

from llmcxr.instructions.questions import Origin, QuestionAnswer, is_exact, questions_of
from llmcxr.labelling.base import Labeller
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study
from llmcxr.synthesis.balance import balanced
from llmcxr.synthesis.pairs import QaPair
from llmcxr.synthesis.rules import rule_pairs

MEASURED: tuple[Origin, ...] = ("truth", "rules")  # what is asked of validation and test patients: what is known best


def rule_questions(studies: Iterable[Study], labeller: Labeller) -> Iterator[QaPair]:
    """Pairs by rules, not balanced. Exact findings stay unused: such a study's labels are read from its report."""
    for study in studies:
        labels = study.labels
        if is_exact(study):
            labels = labeller.read(report_text(study, "findings_and_impression")).states
        yield from rule_pairs(study, labels)


def gather(
    studies: Sequence[Study], origins: Sequence[Origin], labeller: Labeller, seed: int, llm: Sequence[QaPair] = ()
) -> list[QuestionAnswer]:
    """The questions of some studies (of one split), answers balanced within each origin.

    An image whose findings are known exactly is asked about these where `origins` has "truth"; else, and every other
    image, what rules read where it has "rules". `llm` are kept pairs, which join them where it has "llm".
    """
    by_truth = [s for s in studies if is_exact(s)] if "truth" in origins else []
    questions = questions_of(by_truth, seed)
    if "rules" in origins:
        exact = {s.image_id for s in by_truth}
        pairs = list(rule_questions((s for s in studies if s.image_id not in exact), labeller))
        questions += [pair.as_question() for pair in compress(pairs, balanced(pairs, seed))]
    if "llm" in origins:
        images = {s.image_id for s in studies}
        pairs = [pair for pair in llm if pair.image_id in images]
        questions += [pair.as_question() for pair in compress(pairs, balanced(pairs, seed))]
    return questions
