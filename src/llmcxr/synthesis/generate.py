"""Questions and answers from reports by a chat LLM (paper, section 2.3): what is asked, and what becomes of the answers.

Two passes, each in little memory: `ChatClient` asks about every report and keeps what comes as it comes; then all
answers are read once, parsed, checked and written as Parquet files, kept pairs apart from rejected ones, and a control
says how much of what was kept can be answered without the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from tqdm import tqdm

from llmcxr.foundation.artifacts import atomic_path, write_json
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Split, Study
from llmcxr.synthesis.checks import check_pairs
from llmcxr.synthesis.control import Control
from llmcxr.synthesis.pairs import PairType, QaPair, read_pairs, write_pairs
from llmcxr.synthesis.parsing import Parsed, RawPair, parse_pairs
from llmcxr.synthesis.prompts import ChatPrompt, ChatRequest
from llmcxr.synthesis.store import Answer, AnswerStore

KEPT, REJECTED = "kept", "rejected"  # folders of Parquet files
_SHARD = 65_536  # pairs of a file, which wait in memory: 40 MB


@dataclass(frozen=True, slots=True)
class AskedReport:
    """A report, the labels of its study, and whose it is: (image, study) of each image that it is about."""

    text: str
    labels: dict[str, int]
    images: list[tuple[str, str]]


def reports_to_ask(studies: Iterable[Study], only_positive: bool, split: Split = "train") -> list[AskedReport]:
    """The reports of a split's studies, each text once; `only_positive`: of images with at least one finding that is present.

    Training alone uses the pairs: the patients of other splits are asked about what is known best (`gather.MEASURED`).
    """
    found: dict[str, AskedReport] = {}
    for study in studies:
        if study.split != split or (only_positive and 1 not in study.labels.values()):
            continue
        if text := report_text(study, "findings_and_impression"):
            report = found.setdefault(text, AskedReport(text, study.labels, []))
            report.images.append((study.image_id, study.study_id))
    return list(found.values())


def requests_of(prompt: ChatPrompt, reports: Sequence[AskedReport]) -> Iterator[ChatRequest]:
    """What is asked about each report, in order, made as it is needed."""
    return (prompt.request(report.text) for report in reports)


@dataclass
class PairCounts:
    """What became of answers. Pairs count once a report, whatever the number of its images."""

    reports: int = 0
    answers: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # requests without an answer, by reason
    cut: int = 0  # answers that were not whole: what is whole in them is used
    without_pairs: int = 0  # answers in which there is none
    incomplete: int = 0  # objects without a question or an answer
    pairs: int = 0
    kept: int = 0
    unknown: int = 0  # of those kept: neither stated nor denied by the report, as far as can be told
    rejected: Counter[str] = field(default_factory=Counter)  # by reason
    types: Counter[str] = field(default_factory=Counter)  # of kept pairs
    control: Control | None = None  # of kept pairs, once all are written; an image's count each

    def as_json(self) -> dict[str, Any]:
        """For summary.json."""
        values = {name: dict(v.most_common()) if isinstance(v, Counter) else v for name, v in vars(self).items()}
        return values | {"control": None if self.control is None else self.control.as_json()}

    def told(self) -> list[str]:
        """Lines for people: shares that were rejected, by reason."""
        lines = [f"{self.answers:,} answers to {self.reports:,} reports, {self.pairs:,} pairs, {self.kept:,} kept"]
        if unanswered := self.reports - self.answers:
            failed = ", ".join(f"{count:,} {reason}" for reason, count in self.failures.most_common(3))
            lines.append(f"{unanswered:,} reports without an answer{f': {failed}' if failed else ''}")
        for count, what in (
            (self.cut, "answers were cut off or broken, and give the pairs that are whole"),
            (self.without_pairs, "answers held no pair"),
            (self.incomplete, "pairs lacked a question or an answer"),
            (self.unknown, "pairs are kept though the report neither states nor denies them (marked unknown)"),
        ):
            if count:
                lines.append(f"{count:,} {what}")
        for reason, count in self.rejected.most_common():
            lines.append(f"rejected {count:,} ({count / self.pairs:.1%}): {reason}")
        return lines + ([] if self.control is None else self.control.told())

    def _answer(self, answer: Answer, parsed: Parsed) -> None:
        self.answers += 1
        self.cut += parsed.broken or answer.finish == "length"
        self.without_pairs += not parsed.pairs
        self.incomplete += parsed.incomplete

    def _pair(self, pair: QaPair) -> None:
        self.pairs += 1
        if pair.kept:
            self.kept += 1
            self.unknown += pair.verdict == "unknown"
            self.types[pair.type] += 1
        else:
            self.rejected[pair.reason] += 1

    def count_answer(self, answer: Answer) -> Parsed | None:
        """Count an answer, and what it holds; None where it is a failure."""
        if answer.error:
            self.failures[answer.error] += 1
            return None
        parsed = parse_pairs(answer.text)
        self._answer(answer, parsed)
        return parsed

    def count_pairs(self, pairs: Sequence[QaPair]) -> None:
        """Count the checked pairs of one report."""
        for pair in pairs:
            self._pair(pair)


def write_all(
    folder: Path, reports: Sequence[AskedReport], prompt: ChatPrompt, model: str, store: AnswerStore
) -> PairCounts:
    """Read all answers to `reports` once; write `kept/` and `rejected/` (Parquet) and summary.json, atomically.

    Nothing is drawn by chance but the pairs that the control looks at, which are always the same.
    """
    wanted = {request.key(model): i for i, request in enumerate(requests_of(prompt, reports))}
    counts = PairCounts(reports=len(reports))
    with atomic_path(folder) as temporary:
        kept, rejected = _Shards(temporary / KEPT), _Shards(temporary / REJECTED)
        for report, pairs in _checked_pairs(reports, wanted, store, counts):
            for pair in pairs:
                shards = kept if pair.kept else rejected
                for image_id, study_id in report.images:
                    shards.add(_of_image(pair, image_id, study_id))
        kept.close()
        rejected.close()
        counts.control = Control.of(lambda: read_pairs(temporary / KEPT), seed=0)
        spent = vars(store.spent)
        write_json(
            temporary / "summary.json", {"model": model, "prompt": prompt.name, "spent": spent} | counts.as_json()
        )
    return counts


def _checked_pairs(
    reports: Sequence[AskedReport],
    wanted: Mapping[str, int],
    store: AnswerStore,
    counts: PairCounts,
) -> Iterator[tuple[AskedReport, Sequence[QaPair]]]:
    """(report, its pairs with verdicts), in the order of the answers."""
    for answer in tqdm(store.answers(wanted), desc="pairs", total=len(wanted), unit="answer"):
        if (parsed := counts.count_answer(answer)) is None:
            continue
        report = reports[wanted[answer.request]]
        image_id, study_id = report.images[0]
        pairs = check_pairs(report.text, [_pair(raw, image_id, study_id) for raw in parsed.pairs], report.labels)
        counts.count_pairs(pairs)
        yield report, pairs


def _pair(raw: RawPair, image_id: str, study_id: str) -> QaPair:
    kind = cast(PairType, raw.type if raw.type in get_args(PairType) else "open")
    return QaPair(image_id, study_id, raw.question, raw.answer, kind, "llm", raw.evidence)


def _of_image(pair: QaPair, image_id: str, study_id: str) -> QaPair:
    if pair.image_id == image_id:
        return pair
    return QaPair(
        image_id, study_id, pair.question, pair.answer, pair.type, pair.origin, pair.evidence, pair.finding, pair.verdict,
        pair.reason,
    )  # fmt: skip


class _Shards:
    """Pairs on their way into numbered Parquet files of a folder; there is always a first one."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._waiting, self._files = folder, list[QaPair](), 0

    def add(self, pair: QaPair) -> None:
        self._waiting.append(pair)
        if len(self._waiting) >= _SHARD:
            self._write()

    def close(self) -> None:
        if self._waiting or not self._files:
            self._write()

    def _write(self) -> None:
        write_pairs(self._folder / f"part-{self._files:05}.parquet", self._waiting)
        self._waiting, self._files = [], self._files + 1
