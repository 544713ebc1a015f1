"""Calibration fitted to readings of validation patients: what is kept in a model's folder.

Letters: N images, F findings. Labels [N, F] are 1, 0 or NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from llmcxr.evaluation.readings import ImageReading
from llmcxr.foundation.artifacts import fingerprint
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.inference.consistency import claims_of
from llmcxr.instructions.questions import SIDE_ANSWERS
from llmcxr.labelling.base import Labeller
from llmcxr.metrics.calibration import log_loss
from llmcxr.metrics.scores import Floats
from llmcxr.model.calibration import Calibration, FindingMap, FittedOn, bounded_logit
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.study import Study, label_matrix
from llmcxr.tasks.cxr_to_report import side_of

LEAST_IMAGES = 40  # fewer say little: then there is no calibration, which is said
LEAST_CASES = 5  # images with and without a finding, of some finding at least
_FOLDS = 5
# How strongly the line of a finding is held to the one of all: the weight of a squared difference, in nats.
_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)

Lines = Floats  # [F, 2]: slope and intercept of each finding
Fit = Callable[[Floats, Floats], Lines]  # of logits [N, F] and labels [N, F]


def _line(x: Floats, y: Floats, start: Floats, strength: float) -> Floats:
    """Slope and intercept [2] of the likeliest line for logits `x` [n] and truth `y` [n], with a pull towards `start`."""

    def loss(at: Floats) -> tuple[float, Floats]:  # over the logarithm of the slope, which so stays above 0
        slope = np.exp(at[0])
        z = slope * x + at[1]
        nats = np.logaddexp(0, z) - y * z
        slip = 1 / (1 + np.exp(-z)) - y
        pull = at - origin
        gradient = np.array([(slip * x).sum() * slope, slip.sum()]) + 2 * strength * pull
        return float(nats.sum() + strength * (pull**2).sum()), gradient

    origin = np.array([np.log(start[0]), start[1]])
    found = minimize(loss, origin, jac=True, method="L-BFGS-B", bounds=[(-4, 4), (-20, 20)]).x
    return np.array([np.exp(found[0]), found[1]])


def _shared(logits: Floats, labels: Floats, slope_only: bool = False) -> Lines:
    """One line for all findings; `slope_only` is temperature scaling (Guo et al., ICML 2017)."""
    known = ~np.isnan(labels)
    x, y = logits[known], labels[known]
    if slope_only:
        nats = minimize_scalar(
            lambda t: float((np.logaddexp(0, np.exp(t) * x) - y * np.exp(t) * x).sum()),
            (-4, 4),
            method="bounded",
            bounds=(-4, 4),
        )
        line = np.array([np.exp(nats.x), 0.0])
    else:
        line = _line(x, y, np.array([1.0, 0.0]), 0.01)
    return np.tile(line, (logits.shape[1], 1))


def _each(logits: Floats, labels: Floats, strength: float) -> Lines:
    """A line for each finding, pulled towards the one of all (Platt, 1999, with shrinkage)."""
    shared = _shared(logits, labels)
    lines = []
    for f in range(logits.shape[1]):
        known = ~np.isnan(labels[:, f])
        lines.append(_line(logits[known, f], labels[known, f], shared[f], strength) if known.any() else shared[f])
    return np.stack(lines)


METHODS: dict[str, Fit] = {
    "none": lambda logits, labels: np.tile([1.0, 0.0], (logits.shape[1], 1)),
    "one temperature": partial(_shared, slope_only=True),
    "one line": _shared,
    **{f"a line each, held by {s:g}": partial(_each, strength=s) for s in _STRENGTHS},
}


def mapped(lines: Lines, logits: Floats) -> Floats:
    """Calibrated p [N, F]."""
    return 1 / (1 + np.exp(-(lines[:, 0] * logits + lines[:, 1])))


def folds(patients: Sequence[str], seed: int = 0) -> list[np.ndarray]:
    """Rows of each fold: whole patients, whose images are alike."""
    names, own = np.unique(np.asarray(patients, str), return_inverse=True)
    fold = stream(seed, "calibration").permutation(len(names)) % _FOLDS
    return [np.flatnonzero(fold[own] == k) for k in range(_FOLDS)]


def left_out(fit: Fit, logits: Floats, labels: Floats, patients: Sequence[str]) -> Floats:
    """Calibrated p [N, F] of each image, by lines fitted to the patients of the other folds."""
    p = np.full(labels.shape, np.nan)
    for rows in folds(patients):
        if len(rows):
            others = np.setdiff1d(np.arange(len(labels)), rows)
            p[rows] = mapped(fit(logits[others], labels[others]), logits[rows])
    return p


def known_labels(studies: Sequence[Study], findings: Sequence[str]) -> Floats:
    """Labels [N, F] of a model's findings, however the data spells them."""
    known = LabelSet(findings)
    spelt = [
        replace(s, labels={known.spelling(name): state for name, state in s.labels.items() if name in known})
        for s in studies
    ]
    return label_matrix(spelt, findings).astype(float)


def matrices(
    readings: Sequence[ImageReading], studies: Sequence[Study], findings: Sequence[str]
) -> tuple[Floats, Floats]:
    """p(yes) [N, F] and labels [N, F] of a model's `findings`."""
    p = np.array([[reading.p_yes[name] for name in findings] for reading in readings], float)
    labels = known_labels(studies, findings)
    return p.reshape(labels.shape), labels


def side_cases(readings: Sequence[ImageReading], studies: Sequence[Study]) -> tuple[list[str], list[int], Floats]:
    """Findings that are there on a known side: their names, the right columns, and p [n, 3] of `SIDE_ANSWERS`."""
    order = list(SIDE_ANSWERS)
    found = [
        (name, order.index(side_of(study, name)), p)
        for reading, study in zip(readings, studies, strict=True)
        for name, p in reading.p_sides.items()
    ]
    p = np.array([p for *_, p in found], float).reshape(len(found), len(order))
    return [name for name, *_ in found], [column for _, column, _ in found], p


def _side_temperature(columns: Sequence[int], p: Floats) -> float:
    """By which log p of sides [n, 3] should be divided so that the right `columns` become likeliest; 1 where too few are known."""
    if len(columns) < LEAST_IMAGES:
        return 1.0
    logs = np.log(p.clip(1e-6))

    def nats(t: float) -> float:
        z = logs / np.exp(t)
        return float((np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), list(columns)]).sum())

    return float(np.exp(minimize_scalar(nats, method="bounded", bounds=(-4, 4)).x))


@dataclass(frozen=True)
class JudgedClaim:
    """What a report says of a finding, the model's calibrated p of it on the image, and whether it is there."""

    image: int
    sentence: int
    finding: str
    stated: bool
    p: float
    present: bool

    @property
    def wrong(self) -> bool:
        """Whether the truth is the other way."""
        return self.stated != self.present


def judged_claims(
    reports: Sequence[str], p: Floats, labels: Floats, findings: Sequence[str], labeller: Labeller
) -> list[JudgedClaim]:
    """All that `reports` [N] state or deny of findings whose labels [N, F] are known, with p [N, F]."""
    place, found = {name: f for f, name in enumerate(findings)}, []
    for i, report in enumerate(reports):
        for claim in claims_of(report, findings, labeller)[1]:
            f = place[claim.finding]
            if not np.isnan(labels[i, f]):
                found.append(
                    JudgedClaim(i, claim.sentence, claim.finding, claim.stated, float(p[i, f]), bool(labels[i, f]))
                )
    return found


def best_threshold(p: Sequence[float], wrong: Sequence[bool], below: bool) -> float | None:
    """The p `below` which (else above which) marking claims has the best F1 of precision and recall; None for too few cases.

    `p` [n] are the model's, `wrong` [n] says what should be marked.
    """
    truth = np.asarray(wrong, bool)
    if min(truth.sum(), (~truth).sum()) < LEAST_CASES:
        return None
    values, place = np.unique(p, return_inverse=True)
    hits, marks = np.bincount(place, truth), np.bincount(place)  # by value, from the least certain on
    hits, marks = (x if below else x[::-1] for x in (hits, marks))
    f1 = 2 * hits.cumsum()[:-1] / (marks.cumsum()[:-1] + truth.sum())
    if not len(f1):
        return None
    ordered = values if below else values[::-1]
    at = int(np.argmax(f1))
    return round(float(ordered[at] + ordered[at + 1]) / 2, 6)


def too_few(labels: Floats) -> str | None:
    """Why labels [N, F] are too few to calibrate by; None where they are enough."""
    if len(labels) < LEAST_IMAGES:
        return f"{len(labels)} validation images are too few to calibrate by: {LEAST_IMAGES} are needed"
    if not labels.size or np.minimum((labels == 1).sum(0), (labels == 0).sum(0)).max() < LEAST_CASES:
        return (
            f"no finding is known to be there in {LEAST_CASES} validation images and not to be in {LEAST_CASES} others"
        )
    return None


def fit_calibration(
    readings: Sequence[ImageReading],
    studies: Sequence[Study],
    findings: Sequence[str],
    labeller: Labeller,
    data: str,
    split: str = "validate",
) -> Calibration:
    """The calibration that goes best with what is known of `studies`, of a model that was asked about `findings`.

    The method is chosen by the log loss on patients that were left out of its fit. Thresholds of doubt are chosen where
    readings have reports. `UserError` where there are too few patients (`too_few`).
    """
    p, labels = matrices(readings, studies, findings)
    if why := too_few(labels):
        raise UserError(f"{why}.")
    patients, logits = [study.patient_id for study in studies], bounded_logit(p)
    loss = {name: log_loss(labels, left_out(fit, logits, labels, patients)) for name, fit in METHODS.items()}
    method = min(loss, key=lambda name: loss[name])
    lines = METHODS[method](logits, labels)
    counts = zip((labels == 1).sum(0).tolist(), (~np.isnan(labels)).sum(0).tolist(), strict=True)
    maps = {
        name: FindingMap(slope, intercept, present, known)
        for name, (slope, intercept), (present, known) in zip(findings, lines.tolist(), counts, strict=True)
    }
    names, columns, p_sides = side_cases(readings, studies)
    # Thresholds are of patients that the lines have not seen, too: on their own they are more certain than elsewhere.
    unseen = left_out(METHODS[method], logits, labels, patients)
    said = judged_claims([r.report for r in readings], unseen, labels, findings, labeller)
    doubt = {
        stated: best_threshold([c.p for c in own], [c.wrong for c in own], below=stated)
        for stated in (True, False)
        for own in [[c for c in said if c.stated == stated]]
    }
    return Calibration(
        findings=maps,
        method=method,
        log_loss={name: round(value, 5) for name, value in loss.items()},
        fitted_on=FittedOn(data, split, len(studies), len(set(patients)), _fingerprint(studies, findings, labels)),
        sides=tuple(name for name in findings if name in set(names)),
        side_temperature=_side_temperature(columns, p_sides),
        doubt_stated=doubt[True],
        doubt_denied=doubt[False],
    )


def _fingerprint(studies: Sequence[Study], findings: Sequence[str], labels: Floats) -> str:
    rows: Mapping[str, list[float | None]] = {
        s.image_id: [None if np.isnan(v) else v for v in row] for s, row in zip(studies, labels.tolist(), strict=True)
    }
    return fingerprint([(s.patient_id, s.image_id) for s in studies], list(findings), rows)


def told(calibration: Calibration) -> str:
    """What was chosen and by how much it is better, for people."""
    own, loss = calibration, calibration.log_loss
    lines = [f"{own.fitted_on.images} images of {own.fitted_on.patients} patients ({own.fitted_on.split})", ""]
    lines += [f"{value:.4f}  {name}{'  <- chosen' * (name == own.method)}" for name, value in loss.items()]
    lines[1] = "log loss a label, on patients left out of the fit:"
    sides = f"divided by {own.side_temperature:.2f}" if own.sides else "known of no finding"
    doubts = {"states": own.doubt_stated, "denies": own.doubt_denied}
    lines.append(f"log p of sides: {sides}")
    for what, value in doubts.items():
        way = "too few cases to choose" if value is None else f"{'below' if what == 'states' else 'above'} {value:.3f}"
        lines.append(f"a finding that a report {what} is doubted where p is: {way}")
    return "\n".join(lines)
