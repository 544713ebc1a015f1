"""The results of a run as one HTML file that needs nothing else: no script, no font, no request.

Words and markup are in results.html.j2 and what it extends, looks in style.css; here is what numbers and pictures
become. All text is escaped by the template engine. Colours never carry a meaning alone: each has a symbol or a shape
beside it.

Pictures are [H, W] arrays, uint8 (0 black, 255 white) or float in [0, 1]; they are embedded as WebP.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from llmcxr.evaluation.scoring import NOT_MEASURED, SCORES, falls_short, look_up, number, text_of
from llmcxr.foundation.artifacts import atomic_path
from llmcxr.inference.provenance import mark_visibly
from llmcxr.pages.pictures import Picture, as_image, page_environment

Curve = Sequence[tuple[float, float, float]]  # (optimiser step, tokens seen, loss)


@dataclass(frozen=True)
class Reconstruction:
    """A radiograph and what the image tokenizer makes of it; `l1` is the mean absolute difference in [0, 1]."""

    original: Picture
    reconstruction: Picture
    caption: str = ""
    l1: float | None = None


@dataclass(frozen=True)
class ReportCard:
    """A reference and a generated report, and how the findings named in them compare."""

    image: Picture
    reference: str
    generated: str
    right: Sequence[str] = ()
    missed: Sequence[str] = ()
    invented: Sequence[str] = ()
    caption: str = ""
    unread: str = ""  # why findings could not be compared


@dataclass(frozen=True)
class DrawingCard:
    """Images drawn from one text, beside the image that the text was written for and what its image tokens keep of
    it."""

    prompt: str
    real: Picture | None
    drawn: Sequence[Picture]
    caption: str = ""
    reconstruction: Picture | None = None


@dataclass(frozen=True)
class QuestionRow:
    """One question about an image."""

    question: str
    reference: str
    response: str
    right: bool
    image: Picture | None = None


@dataclass(frozen=True)
class PageContent:
    """All that the page shows. Whatever is left empty is shown as not measured.

    `facts`: name -> value of the run (recipe, sizes, minutes of each stage, versions). `summary`: what `summary.json`
    holds. `data`: what `studies.json` holds; `cohorts`: training stage -> what its `cohort.json` holds, and `too_long` of
    its `summary.json`; `remarks`: what the data cannot give; `next_steps`: command lines for the run's folder. `train_loss` and
    `unseen_loss`: task -> curve, on the training batches and on patients never trained on.
    `stage_changes`: the steps at which a new stage of training began.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    reconstructions: Sequence[Reconstruction] = ()
    reports: Sequence[ReportCard] = ()
    drawings: Sequence[DrawingCard] = ()
    overview: Image.Image | None = None  # of `glance`
    questions: Sequence[QuestionRow] = ()
    train_loss: Mapping[str, Curve] = field(default_factory=dict)
    unseen_loss: Mapping[str, Curve] = field(default_factory=dict)
    stage_changes: Sequence[float] = ()
    simulated: bool = True
    data: Mapping[str, Any] = field(default_factory=dict)
    cohorts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    next_steps: Sequence[str] = ()


ROUTES = {
    "original": "original",
    "reconstruction": "reconstructed",
    "drawn": "drawn",
    "reading": "read by the LLM",
}
_ROWS = ("radiograph", "from its image tokens", "drawn from its report")


def glance(cards: Sequence[DrawingCard], columns: int = 6, size: int = 176) -> Image.Image | None:
    """One picture of a few patients, one a column: the radiograph, what its image tokens keep of it, and what is drawn
    from its report, with the card's caption below. None where no card has all three.
    """
    whole = [c for c in cards if c.real is not None and c.reconstruction is not None and c.drawn][:columns]
    if not whole:
        return None
    gap, line = 4, 18
    sheet = Image.new("L", (len(whole) * (size + gap) - gap, 3 * (size + gap) + 2 * line), 0)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, card in enumerate(whole):
        for row, picture in enumerate((card.real, card.reconstruction, card.drawn[0])):
            tile = as_image(np.asarray(picture)).resize((size, size), Image.Resampling.LANCZOS)
            tile = mark_visibly(tile) if row == 2 else tile
            place = column * (size + gap), row * (size + gap)
            sheet.paste(tile, place)
            if column == 0:
                pen.text((place[0] + 4, place[1] + 2), _ROWS[row], fill=255, font=font, stroke_width=1, stroke_fill=0)
        lines = textwrap.wrap(card.caption, size // 7, max_lines=2, placeholder=" ...")
        pen.multiline_text((column * (size + gap), 3 * (size + gap)), "\n".join(lines), fill=210, font=font, spacing=2)
    return sheet


# ----------------------------------------------------------------------------------------------------------- curves


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers within [low, high]."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    step = 10 ** math.floor(math.log10(rough))
    step *= next((m for m in (1, 2, 2.5, 5) if m * step >= rough), 10)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:g}"


def _finite(curve: Curve) -> NDArray[np.float64]:
    points = np.asarray([point for point in curve if all(math.isfinite(x) for x in point)], float)
    return points.reshape(-1, 3)


def _thinned(points: NDArray[np.float64], most: int = 120) -> NDArray[np.float64]:
    """At most `most` points, each the mean of neighbours: single batches are too noisy to read."""
    if len(points) <= most:
        return points
    return np.stack([part.mean(0) for part in np.array_split(points, most)])


_PANEL = {"width": 340, "height": 210, "left": 38, "right": 330, "top": 10, "bottom": 180}


def _panel(content: PageContent, task: str, last_step: float) -> dict[str, Any] | None:
    """Where the curves of a task lie in an SVG of the size `_PANEL`; None where there is no number."""
    seen, held = _thinned(_finite(content.train_loss.get(task, ()))), _finite(content.unseen_loss.get(task, ()))
    both = np.concatenate([seen, held])
    if not len(both):
        return None
    low, high = float(both[:, 2].min()), float(np.quantile(both[:, 2], 0.99))  # one spike may not flatten the rest
    margin = 0.06 * (high - low) or 0.1
    low, high = low - margin, high + margin
    box = _PANEL

    def x(step: float) -> float:
        return box["left"] + (box["right"] - box["left"]) * step / max(last_step, 1)

    def y(loss: float) -> float:
        return box["top"] + (box["bottom"] - box["top"]) * (1 - (min(max(loss, low), high) - low) / (high - low))

    def points(curve: NDArray[np.float64]) -> list[str]:
        return [f"{x(step):.1f},{y(loss):.1f}" for step, _, loss in curve]

    return {
        "task": task,
        "final": f"unseen patients {held[-1, 2]:.3f}" if len(held) else f"train {seen[-1, 2]:.3f}",
        "tokens": _short(float(both[:, 1].max())),
        "rows": [(y(tick), f"{tick:g}") for tick in _ticks(low, high)],
        "columns": [(x(tick), _short(tick)) for tick in _ticks(0, last_step)],
        "changes": [(x(c), i) for i, c in enumerate(content.stage_changes, 2) if 0 < c < last_step],
        "train": points(seen),
        "unseen": points(held),
    }


def _panels(content: PageContent) -> list[dict[str, Any]]:
    curves = [*content.train_loss.values(), *content.unseen_loss.values()]
    last_step = max((float(p[0]) for curve in curves for p in curve if math.isfinite(p[0])), default=0.0)
    tasks = dict.fromkeys([*content.train_loss, *content.unseen_loss])
    return [panel for task in tasks if (panel := _panel(content, task, last_step))]


_SQUARE = {"width": 260, "height": 250, "left": 38, "right": 250, "top": 8, "bottom": 220}


def _reliability(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reliability curves in an SVG of the size `_SQUARE`: predicted p of findings against the share that is there."""
    box, found = _SQUARE, []
    for name, bins in ((summary.get("vqa") or {}).get("reliability") or {}).items():
        at = [
            (box["left"] + (box["right"] - box["left"]) * p, box["bottom"] - (box["bottom"] - box["top"]) * share)
            for p, share, _ in bins
        ]
        if at:
            found.append({"name": name, "points": [f"{x:.1f},{y:.1f}" for x, y in at]})
    return found


# ------------------------------------------------------------------------------------------------------------- page


def _place(value: float, first: float, last: float, start: float = 6, length: float = 288) -> str:
    """Where a value lies on a scale drawn from `start` on."""
    return f"{start + length * min(max((value - first) / (last - first), 0), 1):.1f}"


def _score_cards(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    missing = summary.get("not_measured") or {}
    cards = []
    for score in SCORES:
        keys = {"value": score.key, "baseline": score.baseline, "ceiling": score.ceiling, "count": score.count}
        low, high = (look_up(summary, key) for key in score.interval or (None, None))
        numbers = {name: look_up(summary, key) for name, key in keys.items()}
        ends = {"low": low, "high": high} if low is not None and high is not None else {"low": None, "high": None}
        short = list(falls_short(score, summary))
        cards.append({"score": score, "why": missing.get(score.key, ""), "short": short, **numbers, **ends})
    return cards


def _finding_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = summary.get("findings") or ()
    return [
        {
            "name": row["name"],
            "positives": row.get("positives"),
            "routes": {route: number(row.get(route)) for route in ROUTES},
        }
        for row in rows
    ]


_SPLIT_NAMES = {"train": "training", "validate": "validation", "test": "test"}


def _rules(content: PageContent) -> list[dict[str, Any]]:
    """Images and patients after every rule of the data, in each split, after every rule of each training stage, and those measured."""
    data = content.data
    rows = [dict(rule) for rule in data.get("rules", ())]
    for split, name in _SPLIT_NAMES.items() if rows else ():
        rows.append({"rule": name, "images": data["studies"][split], "patients": data["patients"][split]})
    for stage, cohort in content.cohorts.items():
        rows += [rule | {"rule": f"{stage}: {rule['rule']}"} for rule in cohort.get("rules", ())[1:]]
    protocol = content.summary.get("protocol") or {}
    if rows and "test_patients" in protocol:  # not of runs before it was kept
        rows.append({"rule": "measured", "images": protocol["test_images"], "patients": protocol["test_patients"]})
    return rows


def _left_out(content: PageContent) -> list[dict[str, Any]]:
    """What took no part, by where and why, the most first: of the data, and of each training stage."""
    data = content.data
    groups = [("", data.get("left_out", {}))]
    for stage, cohort in content.cohorts.items():
        groups.append((f"{stage}: ", cohort.get("left_out", {})))
        groups.append((f"{stage}, examples longer than tuning.max_tokens: ", cohort.get("too_long", {})))
    return [row | {"reason": where + row["reason"]} for where, counts in groups for row in _counted(counts, data)]


def _counted(counts: Mapping[str, int], data: Mapping[str, Any]) -> list[dict[str, Any]]:
    examples = data.get("examples", {})
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return [{"reason": reason, "count": count, "examples": examples.get(reason, ())} for reason, count in ordered]


def _protocol(summary: Mapping[str, Any]) -> str:
    """Which test images took part and how labels were counted, as sentences after others."""
    protocol = summary.get("protocol") or {}
    ways = {"negative": "count as absent", "positive": "count as present", "left_out": "take no part"}
    counted = ways.get(str(protocol.get("unknown_labels")))
    doubted = ways.get(str(protocol.get("uncertain_labels", "left_out")))
    left_out = "; ".join(f"{count:,} {reason}" for reason, count in (protocol.get("left_out") or {}).items())
    return (f" Test images left out: {left_out}." if left_out else "") + (
        f" Labels that the data does not give {counted}; uncertain ones {doubted}." if counted else ""
    )


def write_page(path: Path, content: PageContent) -> None:
    """Write the results page as one self-contained HTML file, atomically."""
    environment = page_environment(place=_place, panel=_PANEL, square=_SQUARE)
    environment.filters.update(number=number, decimals=text_of)
    summary = content.summary
    html = environment.get_template("results.html.j2").render(
        content=content,
        scores=_score_cards(summary),
        panels=_panels(content),
        findings=_finding_rows(summary),
        reliability=_reliability(summary),
        routes=list(ROUTES.items()),
        why=summary.get("not_measured") or {},
        trace=(summary.get("language") or {}).get("trace") or [],
        notes=summary.get("notes") or [],
        rules=_rules(content),
        left_out=_left_out(content),
        noted=_counted(content.data.get("noted", {}), content.data),
        protocol=_protocol(summary),
        not_measured=NOT_MEASURED,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
