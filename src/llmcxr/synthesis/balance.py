"""Yes as often as no: by taking from what there is, never by inventing.

A question that is always answered alike can be answered blind. So of pairs with the answer yes or no so many are taken
that both are as frequent: first of each wording that is frequent, then of each finding, then of what is left. Which
ones are taken is decided by seed and pair alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from llmcxr.metrics.scores import normalize_answer
from llmcxr.synthesis.pairs import QaPair

_FEW = 20  # pairs: a wording, or a finding, that is rarer is balanced with the next wider group


def yes_or_no(pair: QaPair) -> str:
    """ "yes" or "no" where that is how the answer begins; else ""."""
    answer = normalize_answer(pair.answer, True)
    return answer if answer in ("yes", "no") else ""


def balanced(pairs: Iterable[QaPair], seed: int) -> NDArray[np.bool_]:
    """Which pairs are taken, bool [N] in their order; those without yes or no all are. Takes 50 bytes a pair."""
    rows = list(_rows(pairs, seed))
    answers = np.array([row[0] for row in rows], dtype=np.int8)  # 1 yes, 0 no, -1 neither
    keys = np.array([row[1:4] for row in rows], dtype=np.uint64).reshape(-1, 3)
    chance = np.array([row[4] for row in rows], dtype=np.float64)
    taken = np.ones(len(rows), dtype=bool)
    pooled = answers >= 0  # not balanced yet
    for level in range(3):
        rest = np.flatnonzero(pooled)
        _, groups = np.unique(keys[rest, level], return_inverse=True)
        counts = [np.bincount(groups, answers[rest] == answer) for answer in (0, 1)]
        wanted = np.minimum(*counts)  # of each answer
        settled = (sum(counts) >= (_FEW, _FEW, 0)[level]) & ((wanted > 0) | (level > 0))
        for answer in (0, 1):
            own = np.flatnonzero((answers[rest] == answer) & settled[groups])
            own = own[np.lexsort((chance[rest[own]], groups[own]))]  # by group, then by chance
            rank = np.arange(len(own)) - np.searchsorted(groups[own], groups[own])
            taken[rest[own]] = rank < wanted[groups[own]]
        pooled[rest[settled[groups]]] = False
    return taken


def _rows(pairs: Iterable[QaPair], seed: int) -> Iterator[tuple[int, int, int, int, float]]:
    for pair in pairs:
        answer = {"yes": 1, "no": 0}.get(yes_or_no(pair), -1)
        wording = " ".join(re.findall(r"\w+", pair.question.lower()))
        draw = _number(str(seed), pair.image_id, pair.question) / 2**64
        yield answer, _number(wording), _number(pair.type, pair.finding), 0, draw


def _number(*words: str) -> int:
    digest = hashlib.blake2b("\0".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
