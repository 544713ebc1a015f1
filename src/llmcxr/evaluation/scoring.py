"""Scores from predictions, and how they read: the table, what falls short, and what to try next. Needs no model."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmcxr.evaluation import image_tokenizer
from llmcxr.instructions.questions import presence_question
from llmcxr.studies.findings import LabelSet
from llmcxr.tasks.measurement import Cases, Measurement, NotMeasured, Prediction, Score, measurements

MEASUREMENTS: tuple[Measurement, ...] = tuple(
    sorted([*measurements(), image_tokenizer.MEASUREMENT], key=lambda measurement: measurement.place)
)
SCORES: tuple[Score, ...] = tuple(score for measurement in MEASUREMENTS for score in measurement.scores)
NOT_MEASURED = "not measured"
FEW_PATIENTS = (
    30  # below, intervals over patients are too short (bootstrap of small samples) and most rare findings are missing
)


def summarise(predictions: Sequence[Prediction], cases: Cases) -> dict[str, Any]:
    """What summary.json holds: a group of values for each measurement, and beside them

    `not_measured` {key of a score: reason}, `findings` (rows of name, `positives` in the test images, AUROC by route),
    `notes` (what falls short, in sentences) and `protocol` (which test images took part, and how labels were counted).
    """
    summary: dict[str, Any] = {}
    missing: dict[str, str] = {}
    routes: dict[str, dict[str, float]] = {}
    for measurement in MEASUREMENTS:
        own = [p for p in predictions if p.task == measurement.name]
        found = measurement.score(own, cases)
        values: dict[str, Any] = {} if isinstance(found, NotMeasured) else found
        routes |= values.pop("per_finding", {})
        for score in measurement.scores:
            name = score.key.partition(".")[2]
            if number(values.get(name)) is None:
                why = found if isinstance(found, NotMeasured) else values.get(name)
                missing[score.key] = str(why) if isinstance(why, NotMeasured) else score.needs
        summary[measurement.group] = {k: None if isinstance(v, NotMeasured) else v for k, v in values.items()}
    labels = cases.labels(cases.test)
    summary["findings"] = [
        {"name": name, "positives": int((labels[:, i] == 1).sum())}
        | {route: values[name] for route, values in routes.items() if name in values}
        for i, name in enumerate(cases.findings)
    ]
    summary["not_measured"] = missing
    summary["protocol"] = {
        "test_images": len(cases.test),
        "test_patients": len({study.patient_id for study in cases.test}),
        "left_out": dict(cases.left_out),
        "unknown_labels": cases.unknown_labels,
        "uncertain_labels": cases.uncertain_labels,
    }
    summary = _plain(summary)
    summary["notes"] = shortfalls(summary)
    return summary


def _plain(value: Any) -> Any:
    """JSON values; NaN becomes null, which means not measured."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else round(float(value), 6)
    return int(value) if isinstance(value, np.integer) else value


# --------------------------------------------------------------------------------------------------------- how they read


def number(value: Any) -> float | None:
    """A finite number; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    return float(value) if math.isfinite(value) else None


def look_up(summary: Mapping[str, Any], key: str | float | None) -> float | None:
    """The number at "group.name", None where it is missing; a number stands for itself."""
    if key is None or isinstance(key, int | float):
        return key
    group, _, name = key.partition(".")
    inner = summary.get(group)
    return number(inner.get(name)) if isinstance(inner, Mapping) else None


def text_of(value: float | None, missing: str = NOT_MEASURED) -> str:
    """Three decimals."""
    return missing if value is None else f"{value:.3f}"


def score_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of label, number with its interval, trivial baseline, ceiling and n; the first is the head. Missing: "not measured"."""
    rows: list[tuple[str, ...]] = [("score", "model", "baseline", "ceiling", "n")]
    for score in SCORES:
        value = text_of(look_up(summary, score.key))
        low, high = (look_up(summary, key) for key in score.interval or (None, None))
        if low is not None and high is not None and value != NOT_MEASURED:
            value += f" ({low:.3f} to {high:.3f})"
        count = look_up(summary, score.count)
        limits = ["-" if key is None else text_of(look_up(summary, key)) for key in (score.baseline, score.ceiling)]
        rows.append((score.label, value, *limits, "" if count is None else f"{count:.0f}"))
    return rows


def score_table(summary: Mapping[str, Any]) -> str:
    """The scores as a short plain-text table, with what could not be measured and why, and what falls short, below."""
    rows = score_rows(summary)
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    labels = {score.key: score.label for score in SCORES}
    reasons: dict[str, list[str]] = {}
    for key, why in (summary.get("not_measured") or {}).items():
        reasons.setdefault(why, []).append(labels.get(key, key))
    if reasons:
        lines.append("\nNot measured:")
        lines += [f"  {'; '.join(names)}: {why}" for why, names in reasons.items()]
    if notes := summary.get("notes"):
        lines += ["\nWhat falls short:", *(f"  {note}" for note in notes)]
    return "\n".join(lines)


def shortfalls(summary: Mapping[str, Any]) -> list[str]:
    """A sentence on a test of few patients, on every score that is not clearly better than its baseline, or better than its
    ceiling, or whose baseline reaches the ceiling, and the tasks' own."""
    notes = []
    protocol = summary.get("protocol") or {}
    if (patients := protocol.get("test_patients", FEW_PATIENTS)) < FEW_PATIENTS:
        notes.append(
            f"The test has {protocol['test_images']} images of {patients} patients: no number here says much. Give more patients "
            f"the split test, or bring more data."
        )
    for measurement in MEASUREMENTS:
        for score in measurement.scores:
            notes += falls_short(score, summary).values()
        notes += measurement.notes(summary.get(measurement.group) or {})
    return notes


def falls_short(score: Score, summary: Mapping[str, Any]) -> dict[str, str]:
    """In a few words for its card, and as a sentence: a score that is not clearly better than its baseline, is better than its
    ceiling, or whose baseline reaches the ceiling."""
    value, baseline, ceiling = (look_up(summary, key) for key in (score.key, score.baseline, score.ceiling))
    low, high = (look_up(summary, key) for key in score.interval or (None, None))
    sign = -1 if score.lower_is_better else 1
    bound = high if score.lower_is_better else low
    found: dict[str, str] = {}
    if value is None:
        return found
    if baseline is not None and sign * (value if bound is None else bound) <= sign * baseline:
        beaten = "worse than" if sign * value < sign * baseline else "no better than"
        sure = "" if bound is None or beaten == "worse than" else " (95 % interval)"
        sentence = f"{score.label}: {value:.3f} is {beaten} {score.baseline_name}, {baseline:.3f}{sure}."
        found[f"{beaten} the baseline{sure}"] = sentence
    if baseline is not None and ceiling is not None and sign * baseline >= sign * ceiling:
        found["the baseline reaches the ceiling: says nothing here"] = (
            f"{score.label}: the baseline, {score.baseline_name} ({baseline:.3f}), reaches the ceiling, "
            f"{score.ceiling_name} ({ceiling:.3f}), so on these cases the score tells no good model from a bad one."
        )
    elif ceiling is not None and sign * value > sign * ceiling:
        sentence = f"{score.label}: {value:.3f} is better than the ceiling, {score.ceiling_name}, {ceiling:.3f}."
        found["better than the ceiling"] = sentence
    return found


def next_steps(summary: Mapping[str, Any], findings: Sequence[str], image: str, model: str, command: str) -> list[str]:
    """Command lines to try on a test image, about the finding of this data that the model reads best, else the most frequent.

    `command` is how llmcxr is called. Nothing is suggested that the model has not learned: reports and drawings need reports.
    """
    rows = {row["name"]: row for row in summary.get("findings") or ()}

    def rank(name: str) -> tuple[float, float]:
        return tuple(-(number(rows.get(name, {}).get(key)) or 0.0) for key in ("reading", "positives"))  # type: ignore[return-value]

    named = sorted(LabelSet(findings), key=rank)
    steps = []
    if (summary.get("report") or {}).get("n"):
        steps.append([command, "report", image, "--model", model])
        if named:
            text = presence_question(named[0]).removeprefix("Is there ").removesuffix("?")
            steps.append([command, "draw", f"There is {text}.", "-o", "drawn.png", "--model", model])
    if named:
        steps.append([command, "ask", image, presence_question(named[0]), "--model", model])
        steps.append([command, "findings", image, "--model", model])
    return [shlex.join(words) for words in steps]
