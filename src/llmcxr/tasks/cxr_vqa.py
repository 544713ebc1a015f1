"""Task: questions about an image (paper, section 2.4, "CXR-VQA"). Several questions can share one reading of the image.

Which questions stand together matters: after "Which findings ...? Cardiomegaly." the answer to "Is there cardiomegaly?"
can be copied instead of seen. So questions about the whole image are asked alone, and details of a finding by themselves or
after all presence questions.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llmcxr.foundation.randomness import stream
from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.questions import YES_NO, Kind, QuestionAnswer
from llmcxr.metrics import scores
from llmcxr.metrics.calibration import brier_score, expected_calibration_error, reliability
from llmcxr.tasks.base import Items, Task, TaskData
from llmcxr.tasks.measurement import (
    TOO_FEW,
    Ask,
    Cases,
    Examinee,
    Measurement,
    NotMeasured,
    Prediction,
    Score,
    in_groups,
)

# The conversations, and the kinds of their questions. Their shares are a setting of each tuning stage.
CONVERSATIONS: dict[str, tuple[Kind, ...]] = {
    "list": ("list",),
    "presence": ("presence", "side", "location", "severity", "type", "device"),
    "detail": ("side", "location", "severity", "type", "device"),  # of findings that are there: the question says so
    "normal": ("normal",),
    "count": ("count",),
    "open": ("open",),
}


class CxrVqaItems(Items):
    """One item an image with its questions."""

    def __init__(
        self,
        questions: Sequence[QuestionAnswer],
        codes: Mapping[str, np.ndarray],
        per_image: int,
        shares: Mapping[str, float],
    ) -> None:
        """`per_image` is the most questions asked on one reading of an image; the paper asks one. `shares` are the
        chances of each conversation of `CONVERSATIONS`; an image that has none with a chance is left out."""
        self._shares = {CONVERSATIONS[name]: share for name, share in shares.items() if share > 0}
        wanted = {kind for conversation in self._shares for kind in conversation}
        by_image: dict[str, array[int]] = {}  # places in `questions`, which can be millions
        for place, question in enumerate(questions):
            if question.image_id in codes and question.kind in wanted:
                by_image.setdefault(question.image_id, array("q")).append(place)
        self._items = list(by_image.items())
        self._questions = questions
        self._codes = codes
        self._per_image = per_image

    def __len__(self) -> int:
        return len(self._items)

    def example(self, item: int, rng: np.random.Generator) -> InstructionExample:
        """A fresh choice and order of the image's questions; the image stands in the first turn."""
        image_id, places = self._items[item]
        questions = [self._questions[place] for place in places]
        kinds = {q.kind for q in questions}
        possible = {c: p for c, p in self._shares.items() if kinds.intersection(c)}
        shares = np.array(list(possible.values()))
        conversation = list(possible)[rng.choice(len(shares), p=shares / shares.sum())]
        own = [q for q in questions if q.kind in conversation]
        chosen = [own[i] for i in rng.permutation(len(own))[: self._per_image]]
        chosen.sort(key=lambda q: q.kind != "presence")  # stable: details keep their drawn order, after presence
        turns = tuple(Turn(q.question, self._codes[image_id] if i == 0 else "", q.answer) for i, q in enumerate(chosen))
        return InstructionExample(TASK.name, turns, image_id)


class CxrVqa(Task):
    """An image as codes and a question in, the answer out."""

    name = "cxr_vqa"
    about = "answers a question about a radiograph"
    place = 3

    def items(self, data: TaskData) -> CxrVqaItems:
        """One item an image with its questions."""
        codes = {study.image_id: data.codes[study.image_id] for study in data.studies}
        options = data.options
        return CxrVqaItems(data.questions, codes, options["questions_per_image"], options["conversations"])

    def prompt(self, codes: np.ndarray, question: str) -> tuple[Turn, ...]:
        """One question about one image."""
        return (Turn(question, codes),)


TASK = CxrVqa()


# ----------------------------------------------------------------------------------------------------- how it is measured

# The types that the paper tells apart, and the kinds of each (a place is a location, a device a type of finding).
PAPER_TYPES: dict[str, tuple[Kind, ...]] = {
    "presence": ("presence",),
    "location": ("side", "location"),
    "size or severity": ("severity",),
    "type": ("type", "device"),
}
PROBABILITIES = "probabilities"  # kind of the predictions of p(yes)
_MOST_TOKENS = 32
_NO_CALIBRATION = (
    "the model has no calibration (`llmcxr calibrate` makes one, or says why it cannot), so its probabilities of findings are as "
    "it answers"
)
_NO_LABEL = "no label of a test image is known"
_NO_QUESTION = "no question is known about any test image: it needs labels, or findings that are known exactly"


class VqaMeasurement(Measurement):
    """Answers to balanced questions, and p(yes) of every finding on every image."""

    name, group, place = "cxr_vqa", "vqa", 2
    scores = (
        Score(
            "Questions, accuracy",
            "vqa.accuracy",
            "vqa.majority_accuracy",
            "the commonest training answer",
            1.0,
            "all answers right",
            "Share of questions about unseen images that are answered right.",
            interval=("vqa.accuracy_low", "vqa.accuracy_high"),
            count="vqa.n",
            needs=_NO_QUESTION,
        ),
        Score(
            "Yes/no questions, balanced accuracy",
            "vqa.balanced_accuracy",
            0.5,
            "one answer to all",
            1.0,
            "all answers right",
            "Mean of the shares of “yes” and of “no” that are answered right.",
            interval=("vqa.balanced_accuracy_low", "vqa.balanced_accuracy_high"),
            count="vqa.balanced_n",
            needs="yes, or no, is the answer to no question that was asked",
        ),
        Score(
            "Free answers, token F1",
            "vqa.token_f1",
            "vqa.majority_token_f1",
            "the commonest training answer",
            1.0,
            "all answers right",
            "Words that answer and reference share, of questions that yes or no do not answer; a mean over questions.",
            count="vqa.token_f1_n",
            needs="yes or no answers all questions that were asked",
        ),
        Score(
            "Questions, AUROC of p(yes)",
            "vqa.auroc",
            "vqa.auroc_shuffled",
            "answers of other patients' images",
            "vqa.auroc_classifier",
            "the independent classifier on the same images",
            "How well the probability that the model gives to “yes” ranks images with a finding above those without.",
            interval=("vqa.auroc_low", "vqa.auroc_high"),
            count="vqa.auroc_n",
            scale=(0.4, 1.0),
            needs=TOO_FEW,
        ),
        Score(
            "Findings, calibration error",
            "vqa.calibration_error",
            "vqa.calibration_error_raw",
            "p(yes) as the model answers, without its calibration",
            0.0,
            "every probability is a frequency",
            "Mean difference of the probability of findings and the share of images that show them, over 15 bins of equally many.",
            count="vqa.auroc_n",
            scale=(0.0, 0.5),
            lower_is_better=True,
            needs=_NO_LABEL,
        ),
        Score(
            "Findings, Brier score",
            "vqa.brier",
            "vqa.brier_constant",
            "each finding as often as in training, whatever the image",
            0.0,
            "certain and right",
            "Mean squared difference of the probability of findings and the truth: calibration and ranking in one.",
            count="vqa.auroc_n",
            scale=(0.0, 0.25),
            lower_is_better=True,
            needs=_NO_LABEL,
        ),
    )

    def asks(self, cases: Cases) -> list[list[Ask]]:
        """Questions by length, so that prompts of a group need little padding; then images, for p(yes) of each finding."""
        place = cases.by_id
        asked = [k for k, q in enumerate(cases.questions) if q.image_id in place]
        order = stream(cases.seed, "questions").permutation(len(asked))[: cases.counts["questions"]]
        shown = set(stream(cases.seed, "shown").permutation(len(order))[:16].tolist())
        chosen = sorted((cases.questions[asked[i]] for i in order), key=lambda q: len(q.question))
        questions = [Ask(place[q.image_id], q.kind, q.question, q.answer, k in shown) for k, q in enumerate(chosen)]
        images = [Ask(s, PROBABILITIES) for s in cases.shuffled[: cases.counts["probabilities"]]]
        return in_groups(questions) + (in_groups(images, 1) if cases.findings else [])

    def answer(self, model: Examinee, group: Sequence[Ask], seed: int) -> list[Prediction]:
        """Greedy answers; or p(yes) of each finding of the data, with the judge's logits of the same image."""
        ids = [ask.study.image_id for ask in group]
        if group[0].kind == PROBABILITIES:
            names = list(model.findings)
            judged = model.judged(model.images(ids))
            rows = [dict(zip(names, model.finding_probabilities(i, names), strict=True)) for i in ids]
            return [
                self.prediction(ask, p_yes=row, judge=seen) for ask, row, seen in zip(group, rows, judged, strict=True)
            ]
        texts = model.answers(ids, [ask.question for ask in group], _MOST_TOKENS)
        return [self.prediction(ask, text, shown=ask.shown) for ask, text in zip(group, texts, strict=True)]

    def score(self, predictions: Sequence[Prediction], cases: Cases) -> dict[str, Any] | NotMeasured:
        """Shares of right answers, and AUROC of p(yes)."""
        answers = [p for p in predictions if p.kind != PROBABILITIES]
        read = [p for p in predictions if p.kind == PROBABILITIES]
        return {**self._answers(answers, cases), **self._probabilities(read, cases)}

    def _answers(self, answers: Sequence[Prediction], cases: Cases) -> dict[str, Any]:
        if not answers:
            missing = NotMeasured(_NO_QUESTION)
            return dict.fromkeys(("accuracy", "balanced_accuracy", "token_f1"), missing) | {"n": 0}
        right, kinds = vqa_right(answers), np.array([p.kind for p in answers])
        reference = np.array([_normal(p.reference, p.kind) for p in answers])
        patients = np.array([p.patient_id for p in answers])
        train_ids = {s.image_id for s in cases.train}
        majority = majority_answers(answers, (q for q in cases.questions if q.image_id in train_ids))
        yes_no = np.flatnonzero(np.isin(kinds, list(YES_NO)))
        free = [(p, guess) for p, guess in zip(answers, majority, strict=True) if p.kind not in YES_NO]
        of_type = {name: np.isin(kinds, own) for name, own in PAPER_TYPES.items()}
        low, high = cases.interval(lambda r: float(right[r].mean()), patients.tolist())
        balanced_low, balanced_high = cases.interval(
            lambda r: scores.balanced_accuracy(reference[yes_no[r]], right[yes_no[r]]), patients[yes_no].tolist()
        )
        return {
            "accuracy": float(right.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "balanced_accuracy": scores.balanced_accuracy(reference[yes_no], right[yes_no]),
            "balanced_accuracy_low": balanced_low,
            "balanced_accuracy_high": balanced_high,
            "balanced_n": len(yes_no),
            "majority_accuracy": float((np.array(majority) == reference).mean()),
            "by_kind": {str(k): float(right[kinds == k].mean()) for k in np.unique(kinds)},
            "count_by_kind": {str(k): int((kinds == k).sum()) for k in np.unique(kinds)},
            "by_type": {name: float(right[own].mean()) for name, own in of_type.items() if own.any()},
            "count_by_type": {name: int(own.sum()) for name, own in of_type.items() if own.any()},
            "token_f1": scores.mean([scores.token_f1(p.response, p.reference) for p, _ in free]),
            "majority_token_f1": scores.mean([scores.token_f1(guess, p.reference) for p, guess in free]),
            "token_f1_n": len(free),
            "n": len(answers),
        }

    def _probabilities(self, read: Sequence[Prediction], cases: Cases) -> dict[str, Any]:
        if not read:
            return {"auroc": cases.unreadable() if not cases.findings else NotMeasured("there is no test image")}
        labels, patients = cases.labels(cases.of(read)), [p.patient_id for p in read]
        p_yes = cases.matrix([p.extra["p_yes"] for p in read])
        reading = scores.mean_auroc(labels, p_yes)
        low, high = cases.auroc_interval(labels, p_yes, patients)
        others = scores.shuffled(len(p_yes), cases.seed)
        return {
            "auroc": reading.mean,
            "auroc_low": low,
            "auroc_high": high,
            "auroc_shuffled": scores.mean_auroc(labels, p_yes[others]).mean,
            "auroc_classifier": scores.mean_auroc(labels, cases.matrix([p.extra["judge"] for p in read])).mean,
            "auroc_n": len(read),
            "per_finding": {"reading": cases.named(reading.per_finding)},
            **self._calibration(read, cases, labels, p_yes),
        }

    def _calibration(
        self, read: Sequence[Prediction], cases: Cases, labels: np.ndarray, p_yes: np.ndarray
    ) -> dict[str, Any]:
        """How far probabilities can be taken at their word: of p(yes), and as calibrated where the model has a calibration."""
        given = {"raw": p_yes}
        if cases.calibrated is not None:
            given["calibrated"] = cases.matrix([cases.calibrated(p.extra["p_yes"]) for p in read])
        errors = {name: expected_calibration_error(labels, p) for name, p in given.items()}
        known = cases.labels(cases.train) if cases.train else np.full((1, len(cases.findings)), np.nan)
        shares = np.broadcast_to([scores.mean(column) for column in known.T], labels.shape)
        return {
            "calibration_error": errors.get("calibrated", NotMeasured(_NO_CALIBRATION)),
            "calibration_error_raw": errors["raw"],
            "brier": brier_score(labels, given.get("calibrated", p_yes)),
            "brier_raw": brier_score(labels, p_yes),
            "brier_constant": brier_score(labels, shares),
            "reliability": {
                name: [(b.predicted, b.observed, b.count) for b in reliability(labels, p)] for name, p in given.items()
            },
        }


def majority_answers(answers: Sequence[Prediction], training: Iterable[QuestionAnswer]) -> list[str]:
    """The commonest training answer to each question, normalised; "" where training has none.

    Yes/no questions take the answer that is commonest for the same question text (where training has it), others that
    of their kind.
    """
    asked = {p.question for p in answers}
    counted = Counter(
        (q.kind, q.question if q.kind in YES_NO and q.question in asked else "", _normal(q.answer, q.kind))
        for q in training
    )
    known = list(counted.elements())
    by_kind = scores.commonest([kind for kind, _, _ in known], [answer for _, _, answer in known])
    exact = [(question, answer) for _, question, answer in known if question]
    by_question = scores.commonest([question for question, _ in exact], [answer for _, answer in exact])
    return [by_question.get(p.question, by_kind.get(p.kind, "")) for p in answers]


def vqa_right(answers: Sequence[Prediction]) -> np.ndarray:
    """Bool [N]: whether response and reference are the same answer to a question of its kind."""
    return np.array([_normal(p.response, p.kind) == _normal(p.reference, p.kind) for p in answers], dtype=bool)


def _normal(answer: str, kind: str) -> str:
    return scores.normalize_answer(answer, kind in YES_NO)


MEASUREMENT = VqaMeasurement()
