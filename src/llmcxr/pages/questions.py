"""Samples of the questions that were made from reports: report, pairs and verdicts, with counts by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmcxr.labelling.base import Labeller
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study
from llmcxr.synthesis.gather import rule_questions
from llmcxr.synthesis.generate import KEPT, REJECTED
from llmcxr.synthesis.pairs import QaPair, read_pairs

_STUDIES = 6  # that are shown


@dataclass(frozen=True)
class QuestionSamples:
    """What the page shows of questions; `counts` are of pairs, by verdict or reason, the most frequent first."""

    counts: list[tuple[str, int]]
    studies: list[tuple[Study, str, list[QaPair]]]  # with the report
    by_llm: bool


def sample_questions(folder: Path, studies: Sequence[Study], labeller: Labeller) -> QuestionSamples:
    """Of the pairs in `folder` (kept and rejected ones, read as they go), else of those that rules read from reports."""
    texts = {s.image_id: (s, report_text(s, "findings_and_impression")) for s in studies if s.split == "train"}
    chosen = {image: text for image, text in texts.items() if text[1]}
    by_llm = (folder / KEPT).is_dir()
    counts, shown = Counter[str](), dict[str, list[QaPair]]()
    pairs: Iterator[QaPair]
    if by_llm:
        parts = [read_pairs(folder / name) for name in (KEPT, REJECTED) if (folder / name).is_dir()]
        pairs = (pair for part in parts for pair in part)
    else:
        pairs = rule_questions([study for study, _ in list(chosen.values())[:_STUDIES]], labeller)
    for pair in pairs:
        counts[f"rejected: {pair.reason}" if pair.reason else pair.verdict] += 1
        if pair.image_id in shown or (len(shown) < _STUDIES and pair.image_id in chosen):
            shown.setdefault(pair.image_id, []).append(pair)
    return QuestionSamples(
        counts.most_common() if by_llm else [], [(*chosen[image], own) for image, own in shown.items()], by_llm
    )
