"""No answer more often than all others together: by taking from what there is, never by inventing.

A question that is mostly answered alike can be answered blind. So of pairs whose commonest answer has more than half of
them, so many are taken that it has half: first of each wording that is frequent, then of each finding, then of what is
left. Of yes and no that makes both as frequent. Which ones are taken is decided by seed and pair alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from llmcxr.instructions.questions import YES_NO
from llmcxr.metrics.scores import normalize_answer
from llmcxr.synthesis.pairs import QaPair

# Pairs: a wording, a finding, or a type that is rarer is balanced with the next wider group; of yes and no all are.
_FEW = 20
_ROW = np.dtype(
    [("yes_no", "?"), ("answer", "u8"), ("wording", "u8"), ("finding", "u8"), ("type", "u8"), ("chance", "f8")]
)


def yes_or_no(pair: QaPair) -> str:
    """ "yes" or "no" where that is asked for and how the answer begins; else "" ("No abnormal finding." is no such answer)."""
    answer = normalize_answer(pair.answer, True)
    return answer if pair.type in YES_NO and answer in ("yes", "no") else ""


def balanced(pairs: Iterable[QaPair], seed: int, most: float = 0.5) -> NDArray[np.bool_]:
    """Which pairs are taken, bool [N] in their order. Takes some 100 bytes a pair.

    `most`, from a half to below 1, is the share that the commonest answer of a group may have; of yes and no it is a half.
    """
    rows = np.fromiter(_rows(pairs, seed), dtype=_ROW)
    answers = np.unique(rows["answer"], return_inverse=True)[1]
    taken = np.ones(len(rows), dtype=bool)
    pooled = taken.copy()  # not balanced yet
    for name in ("wording", "finding", "type"):
        rest = np.flatnonzero(pooled)
        groups = np.unique(rows[name][rest], return_inverse=True)[1]
        cells, counts = np.unique(groups * len(rows) + answers[rest], return_inverse=True, return_counts=True)[1:]
        group_of = np.zeros(len(counts), dtype=np.int64)
        group_of[cells] = groups
        total, commonest = np.bincount(groups), np.zeros(groups.max(initial=-1) + 1, dtype=np.int64)
        np.maximum.at(commonest, group_of, counts)
        yes_no = np.zeros(len(total), dtype=bool)
        yes_no[groups] = rows["yes_no"][rest]
        allowed = np.floor((total - commonest) * np.where(yes_no, 1.0, most / (1 - most)))
        enough = total >= np.where(yes_no & (name == "type"), 0, _FEW)
        settled = enough & ((allowed > 0) | (name != "wording"))
        own = np.flatnonzero(settled[groups])
        own = own[np.lexsort((rows["chance"][rest[own]], cells[own]))]  # by answer of a group, then by chance
        rank = np.arange(len(own)) - np.searchsorted(cells[own], cells[own])
        taken[rest[own]] = rank < allowed[groups[own]]
        pooled[rest[own]] = False
    return taken


def _rows(pairs: Iterable[QaPair], seed: int) -> Iterator[tuple[bool, int, int, int, int, float]]:
    """Yes and no are balanced among themselves, so that their groups are none of the others'."""
    for pair in pairs:
        answer = yes_or_no(pair)
        binary = "yes or no" if answer else ""
        words = " ".join(re.findall(r"\w+", pair.question.lower()))
        yield (
            bool(answer),
            _number(answer or normalize_answer(pair.answer, False)),
            _number(binary, words),
            _number(binary, pair.type, pair.finding),
            _number(binary or pair.type),
            chance(pair, seed),
        )


def chance(pair: QaPair, seed: int) -> float:
    """From 0 to 1, by seed and pair alone: what is drawn are the smallest."""
    return _number(str(seed), pair.image_id, pair.question) / 2**64


def _number(*words: str) -> int:
    digest = hashlib.blake2b("\0".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
