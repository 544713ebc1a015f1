"""Memory that does not grow with the number of pairs, or by few bytes each, where a pair as an object takes 600."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import compress

import pytest

from llmcxr.foundation import text_rows
from llmcxr.instructions.questions import write_questions
from llmcxr.labelling.registry import build_labeller
from llmcxr.studies.study import Study
from llmcxr.synthesis.balance import balanced
from llmcxr.synthesis.control import answered_blind
from llmcxr.synthesis.gather import gather
from llmcxr.synthesis.pairs import QaPair

FEW, MANY = 1_000, 4_000  # pairs; a row group is filled by the fewer
NAMES = ("effusion", "mass", "nodule", "edema", "fracture")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(text_rows, "_BATCH", 500)


def pairs(count: int) -> Iterator[QaPair]:
    for k in range(count):
        question = f"Is there {NAMES[k % 5]} of kind {k % 991}?"
        yield QaPair(f"image-{k // 5}", f"study-{k // 5}", question, "Yes." if k % 3 else "No.", "presence", "llm")


def growth(work: Callable[[int], object]) -> float:
    """Bytes of Python and numpy that one more pair takes, at the peak."""

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            work(count)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    work(100)  # what is loaded and compiled once
    return (peak(MANY) - peak(FEW)) / (MANY - FEW)


def test_balance_and_control():
    assert growth(lambda count: balanced(pairs(count), 0)) < 200
    assert growth(lambda count: list(pairs(count))) > 300  # what this measure sees
    assert growth(lambda count: answered_blind(pairs(count), 0, sample=500)) < 10


@pytest.mark.parametrize("origins", [("rules",), ("llm",)])
def test_questions_are_written_as_they_come(tmp_path, origins):
    def work(count: int) -> None:
        write_questions(
            tmp_path / "vqa.parquet", gather(STUDIES[: count // 5], origins, LABELLER, 0, lambda: pairs(count))
        )

    assert growth(work) < 250


LABELLER = build_labeller("rules")
STUDIES = [
    Study(f"image-{k}", f"p{k}", f"s{k}", "", "train", labels={name: int(k % 7 == i) for i, name in enumerate(NAMES)})
    for k in range(MANY // 5)
]


def test_what_is_drawn_for_a_control_does_not_depend_on_the_order():
    own = list(pairs(3000))
    assert answered_blind(own, 0, sample=500) == answered_blind(reversed(own), 0, sample=500)
    assert list(compress(own, balanced(own, 0))) == list(
        reversed(list(compress(reversed(own), balanced(reversed(own), 0))))
    )
