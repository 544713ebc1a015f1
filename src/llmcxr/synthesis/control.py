"""How often an answer can be told without the image: from the words of the question alone.

A linear classifier over hashed words and pairs of words learns answers from questions of some studies and answers those
of others. What it gets right beyond chance is no proof of seeing; in public sets of such questions that is much of them
(Goyal et al., CVPR 2017). `balance.py` lowers it.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llmcxr.foundation.randomness import stream
from llmcxr.metrics.scores import normalize_answer
from llmcxr.synthesis.balance import yes_or_no
from llmcxr.synthesis.pairs import QaPair

_FEATURES = 2**14
_ANSWERS = 100  # the most frequent; others count as wrong
_FOLDS, _EPOCHS, _BATCH, _RATE = 5, 4, 256, 1.0


@dataclass(frozen=True)
class Blind:
    """Shares of answers that are right without the image."""

    pairs: int
    by_question: float  # from the words of the question
    by_majority: float  # by the answer that is commonest in the group


def answered_blind(pairs: Sequence[QaPair], seed: int, most: int = 50_000) -> dict[str, Blind]:
    """Cross-validated over studies: of "all", of "yes or no", and of each type that is there.

    Of more than `most` pairs as many are drawn. Empty where fewer than 50 pairs, or 5 studies, are there.
    """
    if len(pairs) > most:
        pairs = [pairs[i] for i in np.sort(stream(seed, "control").choice(len(pairs), most, replace=False))]
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
        right[test] = _scores(weights, [bags[i] for i in test]).argmax(1).numpy() == answers[test]
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


def _scores(weights: torch.Tensor, bags: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    """Logits [B, answers] of questions; the weights of a question's features are averaged."""
    starts = np.cumsum([0, *(len(bag) for bag in bags)])[:-1]
    features = torch.from_numpy(np.concatenate(bags))
    return torch.nn.functional.embedding_bag(features, weights, torch.from_numpy(starts), mode="mean")


def _fit(
    bags: Sequence[NDArray[np.int64]], answers: NDArray[np.int64], train: NDArray[np.int64], classes: int, seed: int
) -> torch.Tensor:
    """Weights [features, answers] by logistic regression with Adagrad, of which a batch moves only its own rows."""
    weights, squares = torch.zeros(_FEATURES, classes), torch.zeros(_FEATURES, classes)
    rng = stream(seed, "control", "order")
    for _ in range(_EPOCHS):
        order = rng.permutation(train)
        for at in range(0, len(order), _BATCH):
            own = order[at : at + _BATCH]
            part = [bags[i] for i in own]
            slope = _scores(weights, part).softmax(1)  # of the loss in the logits [B, answers]
            slope[torch.arange(len(own)), torch.from_numpy(answers[own])] -= 1
            lengths = np.array([len(bag) for bag in part])
            slope /= len(own) * torch.from_numpy(lengths)[:, None]
            rows, places = np.unique(np.concatenate(part), return_inverse=True)
            each = slope[torch.from_numpy(np.repeat(np.arange(len(own)), lengths))]
            gradient = torch.zeros(len(rows), classes).index_add_(0, torch.from_numpy(places), each)
            squares[rows] += gradient**2
            weights[rows] -= _RATE * gradient / (squares[rows].sqrt() + 1e-10)
    return weights
