"""How often an answer can be told without the image: from the words of the question alone.

A linear classifier over hashed words and pairs of words learns answers from questions of some studies and answers those
of others. What it gets right beyond chance is no proof of seeing; in public sets of such questions that is much of them
(Goyal et al., CVPR 2017). `balance.py` lowers it.
"""

from __future__ import annotations

import heapq
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any

import numpy as np
import scipy.special
from numpy.typing import NDArray

from llmcxr.foundation.randomness import stream
from llmcxr.metrics.scores import normalize_answer
from llmcxr.synthesis.balance import balanced, chance, yes_or_no
from llmcxr.synthesis.pairs import QaPair

Floats = NDArray[np.float32]

_FEATURES = 2**14
_ANSWERS = 100  # the most frequent; others count as wrong
_FOLDS, _EPOCHS, _BATCH, _RATE = 5, 4, 256, 1.0


@dataclass(frozen=True)
class Blind:
    """Shares of answers that are right without the image."""

    pairs: int
    by_question: float  # from the words of the question
    by_majority: float  # by the answer that is commonest in the group


@dataclass(frozen=True)
class Control:
    """What is answered blind of all pairs, and of those that balance leaves: by type, "all" and "yes or no"."""

    before: dict[str, Blind]
    after: dict[str, Blind]
    pairs: tuple[int, int]  # there were, of which at most `SAMPLE` were looked at

    @classmethod
    def of(cls, read: Callable[[], Iterable[QaPair]], seed: int, most: float = 0.5) -> Control:
        """Of the pairs that `read` reads from their beginning; `most` as in `balanced`."""
        taken = balanced(read(), seed, most)
        before = answered_blind(read(), seed)
        after = answered_blind(compress(read(), taken), seed)
        return cls(before, after, (len(taken), int(taken.sum())))

    def as_json(self) -> dict[str, Any]:
        """For summary.json."""
        parts = {name: {k: asdict(v) for k, v in getattr(self, name).items()} for name in ("before", "after")}
        return parts | {"pairs": list(self.pairs), "sample": SAMPLE}

    def table(self) -> list[list[str]]:
        """Heading and rows: type; pairs and shares right from the question (by the commonest answer), before and after."""
        rows = [["type", "pairs", "all", "pairs", "balanced"]]
        for name, b in self.before.items():
            rows.append([name, f"{b.pairs:,}", f"{b.by_question:.3f} ({b.by_majority:.3f})", "0", ""])
            if a := self.after.get(name):
                rows[-1][3:] = [f"{a.pairs:,}", f"{a.by_question:.3f} ({a.by_majority:.3f})"]
        return rows

    def told(self) -> list[str]:
        """Lines for people; none where there are too few pairs."""
        if not self.before:
            return []
        kept = f"balance takes {self.pairs[1]:,} of {self.pairs[0]:,} kept pairs"
        drawn = f", of {SAMPLE:,} that were drawn" * (max(self.pairs) > SAMPLE)
        lines = [f"{kept}; right without the image, from the question alone (by the commonest answer){drawn}:"]
        rows = self.table()
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        return lines + ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]


SAMPLE = 50_000  # pairs that a control looks at, at most: their words are in memory


def answered_blind(pairs: Iterable[QaPair], seed: int, sample: int = SAMPLE) -> dict[str, Blind]:
    """Cross-validated over studies: of "all", of "yes or no", and of each type that is there.

    Of more than `sample` pairs as many are drawn as they are read. Empty where fewer than 50 pairs, or 5 studies, are there.
    """
    pairs = heapq.nsmallest(sample, pairs, key=lambda pair: chance(pair, seed))
    folds = np.array([zlib.crc32(pair.study_id.encode()) % _FOLDS for pair in pairs])
    if len(pairs) < 50 or len(np.unique(folds)) < _FOLDS:
        return {}
    texts = [yes_or_no(pair) or normalize_answer(pair.answer, False) for pair in pairs]
    known = {text: k for k, (text, _) in enumerate(Counter(texts).most_common(_ANSWERS))}
    answers = np.array([known.get(text, -1) for text in texts])
    bags = [_features(pair.question) for pair in pairs]
    right = np.zeros(len(pairs), dtype=bool)
    for fold in range(_FOLDS):
        test = np.flatnonzero(folds == fold)
        train = np.flatnonzero((folds != fold) & (answers >= 0))
        weights = _fit(bags, answers, train, len(known), seed)
        right[test] = _guesses(weights, [bags[i] for i in test]) == answers[test]
    groups = {"all": np.ones(len(pairs), dtype=bool), "yes or no": np.array([t in ("yes", "no") for t in texts])}
    types = np.array([pair.type for pair in pairs])
    groups |= {str(name): types == name for name in np.unique(types)}
    names = np.array(texts)
    return {
        name: Blind(
            int(own.sum()), float(right[own].mean()), max(Counter(names[own].tolist()).values()) / int(own.sum())
        )
        for name, own in groups.items()
        if own.any()
    }


def _features(question: str) -> NDArray[np.int64]:
    words = ["<", *re.findall(r"\w+", question.lower()), ">"]
    grams = words + [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)]
    return np.array([zlib.crc32(gram.encode("utf-8", "surrogatepass")) % _FEATURES for gram in grams])


def _scores(weights: Floats, bags: Sequence[NDArray[np.int64]]) -> Floats:
    """Logits [B, answers] of questions; the weights of a question's features are averaged."""
    lengths = np.array([len(bag) for bag in bags])
    starts = np.cumsum([0, *lengths])[:-1]
    sums: Floats = np.add.reduceat(weights[np.concatenate(bags)], starts, axis=0)
    sums /= lengths[:, None]
    return sums


def _guesses(weights: Floats, bags: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The likeliest answers, in batches."""
    parts = [_scores(weights, bags[at : at + _BATCH]).argmax(1) for at in range(0, len(bags), _BATCH)]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _fit(
    bags: Sequence[NDArray[np.int64]], answers: NDArray[np.int64], train: NDArray[np.int64], classes: int, seed: int
) -> Floats:
    """Weights [features, answers] by logistic regression with Adagrad, of which a batch moves only its own rows."""
    weights, squares = np.zeros((2, _FEATURES, classes), dtype=np.float32)
    rng = stream(seed, "control", "order")
    for _ in range(_EPOCHS):
        order = rng.permutation(train)
        for at in range(0, len(order), _BATCH):
            own = order[at : at + _BATCH]
            part = [bags[i] for i in own]
            slope = scipy.special.softmax(_scores(weights, part), axis=1)  # of the loss in the logits [B, answers]
            slope[np.arange(len(own)), answers[own]] -= 1
            lengths = np.array([len(bag) for bag in part])
            slope /= (len(own) * lengths[:, None]).astype(np.float32)
            features, questions = np.concatenate(part), np.repeat(np.arange(len(own)), lengths)
            by_feature = np.argsort(features, kind="stable")
            rows, first = np.unique(features[by_feature], return_index=True)
            gradient = np.add.reduceat(slope[questions[by_feature]], first, axis=0)
            squares[rows] += gradient**2
            weights[rows] -= _RATE * gradient / (np.sqrt(squares[rows]) + np.float32(1e-10))
    return weights
