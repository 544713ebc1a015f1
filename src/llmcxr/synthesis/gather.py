"""The questions that images are asked, of all origins: known findings, labels and reports by rules, a chat LLM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from tempfile import TemporaryDirectory

from llmcxr.instructions.questions import Origin, QuestionAnswer, is_exact, questions_of
from llmcxr.labelling.base import Labeller
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study
from llmcxr.synthesis.balance import balanced
from llmcxr.synthesis.pairs import QaPair, read_pairs, write_pairs
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
    studies: Sequence[Study],
    origins: Sequence[Origin],
    labeller: Labeller,
    seed: int,
    llm: Callable[[], Iterable[QaPair]] = tuple,
) -> Iterator[QuestionAnswer]:
    """The questions of some studies (of one split), answers balanced within each origin, in 50 bytes of memory a pair.

    An image whose findings are known exactly is asked about these where `origins` has "truth"; else, and every other
    image, what rules read where it has "rules". `llm` reads kept pairs from their beginning; they join where it has "llm".
    """
    by_truth = [s for s in studies if is_exact(s)] if "truth" in origins else []
    yield from questions_of(by_truth, seed)
    if "rules" in origins:
        exact = {s.image_id for s in by_truth}
        with TemporaryDirectory() as folder:  # reports are read once, and their pairs twice
            path = Path(folder) / "pairs.parquet"
            write_pairs(path, rule_questions((s for s in studies if s.image_id not in exact), labeller))
            yield from _taken(lambda: read_pairs(path), seed)
    if "llm" in origins:
        images = {s.image_id for s in studies}
        yield from _taken(lambda: (pair for pair in llm() if pair.image_id in images), seed)


def _taken(read: Callable[[], Iterable[QaPair]], seed: int) -> Iterator[QuestionAnswer]:
    return (pair.as_question() for pair in compress(read(), balanced(read(), seed)))
