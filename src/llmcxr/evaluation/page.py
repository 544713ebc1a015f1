"""The results of a run as one HTML file that needs nothing else: no script, no font, no request.

Images come as [H, W] arrays, uint8 (0 black, 255 white) or float in [0, 1]; they are embedded as WebP. All text is escaped.
Colours never carry a meaning alone: each has a symbol or a shape beside it.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.inference.provenance import mark_visibly

Picture = NDArray[Any]
Curve = Sequence[tuple[float, float, float]]  # (optimiser step, tokens seen, loss)
NOT_MEASURED = "not measured"


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


@dataclass(frozen=True)
class DrawingCard:
    """Images drawn from one text, beside the image that the text was written for and what its image tokens keep of it."""

    prompt: str
    real: Picture | None
    drawn: Sequence[Picture]
    caption: str = ""
    reconstruction: Picture | None = None


@dataclass(frozen=True)
class QuestionRow:
    """One question about an image; `p_yes` in [0, 1] where it has a yes/no answer."""

    question: str
    reference: str
    response: str
    right: bool
    image: Picture | None = None
    p_yes: float | None = None


@dataclass(frozen=True)
class FindingRow:
    """AUROC of one finding by each route; None or NaN is shown as not measured. `positives` counts test images with it."""

    name: str
    original: float | None = None
    reconstruction: float | None = None
    drawn: float | None = None
    reading: float | None = None
    positives: int | None = None


@dataclass(frozen=True)
class PageContent:
    """All that the page shows. Whatever is left empty is shown as not measured.

    `facts`: name -> value of the run (recipe, sizes, minutes of each stage, versions). `summary`: what `summary.json` holds.
    `train_loss` and `unseen_loss`: task -> curve, on the training batches and on patients never trained on.
    `stage_changes`: the steps at which a new stage of training began. `notes`: what falls short, one sentence each.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    reconstructions: Sequence[Reconstruction] = ()
    reports: Sequence[ReportCard] = ()
    drawings: Sequence[DrawingCard] = ()
    overview: Image.Image | None = None  # of `glance`
    questions: Sequence[QuestionRow] = ()
    findings: Sequence[FindingRow] = ()
    train_loss: Mapping[str, Curve] = field(default_factory=dict)
    unseen_loss: Mapping[str, Curve] = field(default_factory=dict)
    stage_changes: Sequence[float] = ()
    notes: Sequence[str] = ()
    simulated: bool = True


# ------------------------------------------------------------------------------------------------------ the summary


@dataclass(frozen=True)
class Score:
    """One row of the score table. A baseline or ceiling is a key of the summary, or a number that holds always."""

    label: str
    key: str
    baseline: str | float | None
    baseline_name: str
    ceiling: str | float | None
    ceiling_name: str
    meaning: str
    interval: tuple[str, str] | None = None
    count: str | None = None
    scale: tuple[float, float] | None = (0.0, 1.0)  # ends of the drawn scale; None: a bare number
    lower_is_better: bool = False


SCORES: tuple[Score, ...] = (
    Score(
        "Report findings, micro-F1",
        "report.micro_f1",
        "report.baseline_micro_f1",
        "the best of: one fixed set of findings, the commonest report, shuffled reports",
        "report.reference_micro_f1",
        "the same labeller on the radiologist's own reports",
        "How well the findings stated in generated reports agree with those that are in the images.",
        interval=("report.micro_f1_low", "report.micro_f1_high"),
        count="report.n",
    ),
    Score(
        "Report findings, macro-F1",
        "report.macro_f1",
        "report.baseline_macro_f1",
        "the best fixed set of findings, said of every image",
        "report.reference_macro_f1",
        "the same labeller on the radiologist's own reports",
        "The same with every finding counted alike, so that rare ones weigh as much as frequent ones.",
        count="report.n",
    ),
    Score(
        "Report findings, side right",
        "report.side_accuracy",
        "report.side_baseline",
        "the commonest side of each finding in training",
        "report.side_reference",
        "the radiologist's own reports",
        "Where a report states a finding that is in the image, and on which side: the share of sides that are right.",
        interval=("report.side_low", "report.side_high"),
        count="report.side_n",
    ),
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
    ),
    Score(
        "Drawn images, AUROC",
        "image.auroc",
        "image.auroc_shuffled",
        "images drawn for other reports",
        "image.auroc_real",
        "the same classifier on real test images",
        "Whether a classifier finds in a drawn image what the patient has whose report it was drawn from.",
        interval=("image.auroc_low", "image.auroc_high"),
        count="image.n",
        scale=(0.4, 1.0),
    ),
    Score(
        "Drawn images, AUROC for what was asked",
        "image.auroc_asked",
        "image.auroc_asked_shuffled",
        "images drawn for other reports",
        "image.auroc_asked_real",
        "the same classifier on real test images",
        "The same for the findings that the report states, whatever else the patient has: what the drawing was asked for.",
        interval=("image.auroc_asked_low", "image.auroc_asked_high"),
        count="image.n",
        scale=(0.4, 1.0),
    ),
    Score(
        "Drawn images, MS-SSIM between two of one report",
        "image.ms_ssim_between_draws",
        "image.ms_ssim_own_shifted",
        "a patient's own image against itself, moved by 2 % of its width and with noise",
        None,
        "",
        "How alike two drawings of one report are: below the baseline they are different patients, not one copied.",
        interval=("image.ms_ssim_between_draws_low", "image.ms_ssim_between_draws_high"),
        count="image.ms_ssim_n",
        lower_is_better=True,
    ),
    Score(
        "Image tokens, AUROC after reconstruction",
        "image_tokenizer.auroc_reconstruction",
        0.5,
        "chance",
        "image_tokenizer.auroc_original",
        "the same classifier on the original images",
        "How much of what a classifier needs survives the way through image tokens and back.",
        scale=(0.4, 1.0),
    ),
    Score(
        "Image tokens, L1 error",
        "image_tokenizer.l1",
        None,
        "",
        0.0,
        "no difference",
        "Mean difference of a pixel between original and reconstruction, where black is 0 and white is 1.",
        scale=None,
        lower_is_better=True,
    ),
    Score(
        "Image tokens, codebook in use",
        "image_tokenizer.codebook_use",
        None,
        "",
        1.0,
        "every code",
        "Share of the codebook that occurs in encoded images.",
    ),
    Score(
        "Language, perplexity ratio",
        "language.perplexity_ratio",
        None,
        "",
        1.0,
        "the base model itself",
        "Perplexity on general text, tuned model over base model: 1 means that no language was lost.",
        scale=None,
        lower_is_better=True,
    ),
)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    return float(value) if math.isfinite(value) else None


def _look_up(summary: Mapping[str, Any], key: str | float | None) -> float | None:
    """The number at "group.name", None where it is missing; a number stands for itself."""
    if key is None or isinstance(key, int | float):
        return key
    group, _, name = key.partition(".")
    inner = summary.get(group)
    return _number(inner.get(name)) if isinstance(inner, Mapping) else None


def _text(value: float | None, missing: str = NOT_MEASURED) -> str:
    return missing if value is None else f"{value:.3f}"


def score_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of label, number with its interval, trivial baseline, ceiling and n; the first is the head. Missing: "not measured"."""
    rows: list[tuple[str, ...]] = [("score", "model", "baseline", "ceiling", "n")]
    for score in SCORES:
        value = _text(_look_up(summary, score.key))
        low, high = (_look_up(summary, key) for key in score.interval or (None, None))
        if low is not None and high is not None and value != NOT_MEASURED:
            value += f" ({low:.3f} to {high:.3f})"
        count = _look_up(summary, score.count)
        limits = ["-" if key is None else _text(_look_up(summary, key)) for key in (score.baseline, score.ceiling)]
        rows.append((score.label, value, *limits, "" if count is None else f"{count:.0f}"))
    return rows


def score_table(summary: Mapping[str, Any]) -> str:
    """The scores as a short plain-text table."""
    rows = score_rows(summary)
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


# --------------------------------------------------------------------------------------------------------- elements


def _as_image(picture: Picture) -> Image.Image:
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(np.nan_to_num(pixels.astype(np.float64)), 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(pixels.squeeze())


def _image(picture: Picture, about: str, longest: int = 320) -> str:
    """An <img> with the picture inside."""
    image = _as_image(picture)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88, method=4)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(about)}" {size} loading="lazy">'


def _figure(picture: Picture, caption: str, about: str = "") -> str:
    return f"<figure>{_image(picture, about or caption)}<figcaption>{escape(caption)}</figcaption></figure>"


_ROWS = ("radiograph", "from its image tokens", "drawn from its report")


def glance(cards: Sequence[DrawingCard], columns: int = 6, size: int = 176) -> Image.Image | None:
    """One picture of a few patients, one a column: the radiograph, what its image tokens keep of it, and what is drawn from
    its report, with the card's caption below. None where no card has all three.
    """
    whole = [c for c in cards if c.real is not None and c.reconstruction is not None and c.drawn][:columns]
    if not whole:
        return None
    gap, line = 4, 18
    sheet = Image.new("L", (len(whole) * (size + gap) - gap, 3 * (size + gap) + 2 * line), 0)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, card in enumerate(whole):
        for row, picture in enumerate((card.real, card.reconstruction, card.drawn[0])):
            tile = _as_image(np.asarray(picture)).resize((size, size), Image.Resampling.LANCZOS)
            tile = mark_visibly(tile) if row == 2 else tile
            place = column * (size + gap), row * (size + gap)
            sheet.paste(tile, place)
            if column == 0:
                pen.text((place[0] + 4, place[1] + 2), _ROWS[row], fill=255, font=font, stroke_width=1, stroke_fill=0)
        lines = textwrap.wrap(card.caption, size // 7, max_lines=2, placeholder=" ...")
        pen.multiline_text((column * (size + gap), 3 * (size + gap)), "\n".join(lines), fill=210, font=font, spacing=2)
    return sheet


def _section(anchor: str, title: str, meaning: str, body: str) -> str:
    body = body or f'<p class="none">{NOT_MEASURED.capitalize()} in this run.</p>'
    return (
        f'<section id="{anchor}"><h2>{escape(title)}</h2>'
        f'<p class="meaning"><b>What this shows.</b> {escape(meaning)}</p>{body}</section>'
    )


def _score_card(score: Score, summary: Mapping[str, Any]) -> str:
    value, baseline, ceiling = (_look_up(summary, key) for key in (score.key, score.baseline, score.ceiling))
    low, high = (_look_up(summary, key) for key in score.interval or (None, None))
    count = _look_up(summary, score.count)
    head = f'<span class="big">{value:.3f}</span>' if value is not None else f'<span class="none">{NOT_MEASURED}</span>'
    if value is not None and low is not None and high is not None:
        head += f' <span class="range">95%: {low:.3f} to {high:.3f}</span>'
    lines = []
    if score.baseline is not None:
        lines.append(f'<li><i class="key base"></i><b>{_text(baseline)}</b> {escape(score.baseline_name)}</li>')
    if score.ceiling is not None:
        mark = '<i class="key top"></i>' if score.scale else ""
        lines.append(f"<li>{mark}<b>{_text(ceiling)}</b> {escape(score.ceiling_name)}</li>")
    if count is not None:
        lines.append(f'<li class="count">n = {count:,.0f}</li>')
    return (
        f'<article class="score"><h3>{escape(score.label)}</h3><p class="head">{head}</p>'
        f"{_meter(score, value, baseline, ceiling, low, high)}<ul>{''.join(lines)}</ul>"
        f'<p class="small">{escape(score.meaning)}</p></article>'
    )


def _meter(
    score: Score,
    value: float | None,
    baseline: float | None,
    ceiling: float | None,
    low: float | None,
    high: float | None,
) -> str:
    """A scale with the baseline (hollow bar), the ceiling (full bar), the value (dot) and its interval."""
    if score.scale is None or value is None:
        return ""
    first, last = score.scale

    def at(x: float) -> float:
        return 6 + 288 * min(max((x - first) / (last - first), 0), 1)

    parts = ['<line class="track" x1="6" x2="294" y1="16" y2="16"/>']
    start = at(baseline) if baseline is not None else 6
    parts.append(f'<line class="gain" x1="{start:.1f}" x2="{at(value):.1f}" y1="16" y2="16"/>')
    if low is not None and high is not None:
        parts.append(f'<line class="interval" x1="{at(low):.1f}" x2="{at(high):.1f}" y1="16" y2="16"/>')
    if baseline is not None:
        parts.append(f'<rect class="base" x="{at(baseline) - 2:.1f}" y="7" width="4" height="18" rx="1"/>')
    if ceiling is not None:
        parts.append(f'<rect class="top" x="{at(ceiling) - 2:.1f}" y="7" width="4" height="18" rx="1"/>')
    parts.append(f'<circle class="value" cx="{at(value):.1f}" cy="16" r="6"/>')
    ends = f'<text x="4" y="38">{first:g}</text><text x="296" y="38" text-anchor="end">{last:g}</text>'
    label = escape(f"{score.label}: {_text(value)}; baseline {_text(baseline)}; ceiling {_text(ceiling)}")
    return f'<svg class="meter" viewBox="0 0 300 42" role="img" aria-label="{label}">{"".join(parts)}{ends}</svg>'


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


def _curve_panel(task: str, train: Curve, unseen: Curve, changes: Sequence[float], last_step: float) -> str:
    seen, held = _thinned(_finite(train)), _finite(unseen)
    both = np.concatenate([seen, held])
    if not len(both):
        return ""
    width, height, left, right, top, bottom = 340, 210, 38, 10, 10, 30
    low, high = float(both[:, 2].min()), float(np.quantile(both[:, 2], 0.99))  # one spike may not flatten the rest
    margin = 0.06 * (high - low) or 0.1
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        return left + (width - left - right) * step / max(last_step, 1)

    def y(loss: float) -> float:
        return top + (height - top - bottom) * (1 - (min(max(loss, low), high) - low) / (high - low))

    def line(points: NDArray[np.float64], name: str) -> str:
        path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, _, loss in points)
        return f'<polyline class="{name}" points="{path}"/>'

    parts = []
    for tick in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(0, last_step):
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 14}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<text x="{width - right}" y="{height - 1}" text-anchor="end">optimiser step</text>')
    for i, change in enumerate(changes, 2):
        if 0 < change < last_step:
            parts.append(
                f'<line class="change" x1="{x(change):.1f}" x2="{x(change):.1f}" y1="{top}" y2="{height - bottom}"/>'
            )
            parts.append(f'<text x="{x(change) + 4:.1f}" y="{top + 10}">stage {i}</text>')
    if len(seen):
        parts.append(line(seen, "train"))
    if len(held):
        parts.append(line(held, "unseen"))
        parts.extend(f'<circle class="unseen" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.6"/>' for s, _, v in held)
    final = f"unseen patients {held[-1, 2]:.3f}" if len(held) else f"train {seen[-1, 2]:.3f}"
    tokens = f"{_short(float(both[:, 1].max()))} tokens"
    label = escape(f"loss of {task}, at the end {final}")
    return (
        f'<figure class="panel"><figcaption><b>{escape(task)}</b><span>end: {escape(final)} · {tokens}</span></figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def _curves(content: PageContent) -> str:
    tasks = list(dict.fromkeys([*content.train_loss, *content.unseen_loss]))
    all_curves = [*content.train_loss.values(), *content.unseen_loss.values()]
    last_step = max((float(p[0]) for curve in all_curves for p in curve if math.isfinite(p[0])), default=0.0)
    panels = [
        _curve_panel(t, content.train_loss.get(t, ()), content.unseen_loss.get(t, ()), content.stage_changes, last_step)
        for t in tasks
    ]
    if not any(panels):
        return ""
    legend = (
        '<p class="legend"><span><svg viewBox="0 0 28 10"><line class="train" x1="1" x2="27" y1="5" y2="5"/></svg>training</span>'
        '<span><svg viewBox="0 0 28 10"><line class="unseen" x1="1" x2="27" y1="5" y2="5"/>'
        '<circle class="unseen" cx="14" cy="5" r="2.6"/></svg>unseen patients</span></p>'
    )
    return f'{legend}<div class="panels">{"".join(panels)}</div>'


def _language_table(summary: Mapping[str, Any]) -> str:
    """Language before, between and after the stages; "" where it was not measured."""
    group = summary.get("language") or {}
    heads = ("after", "perplexity on general text", "of the base model's", "loss on held-out instructions")
    keys = ("perplexity", "perplexity_ratio", "instruction_loss")
    rows = []
    for entry in group.get("trace") or ():
        cells = "".join(f"<td>{_text(_number(entry.get(key)))}</td>" for key in keys)
        rows.append(f'<tr><th scope="row">{escape(str(entry.get("after", "")))}</th>{cells}</tr>')
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return f'<table class="language"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


# --------------------------------------------------------------------------------------------------------- findings

_ROUTES = (  # attribute of FindingRow, heading, marker centred on (0, 0)
    ("original", "original", '<circle class="m0" cx="0" cy="0" r="5"/>'),
    ("reconstruction", "reconstructed", '<rect class="m1" x="-4.5" y="-4.5" width="9" height="9"/>'),
    ("drawn", "drawn", '<path class="m2" d="M0 -6 L5.8 4.6 L-5.8 4.6 Z"/>'),
    ("reading", "read by the LLM", '<path class="m3" d="M0 -6.2 L6.2 0 L0 6.2 L-6.2 0 Z"/>'),
)


def _finding_table(rows: Sequence[FindingRow]) -> str:
    if not rows:
        return ""
    first, last = 0.3, 1.0

    def at(value: float) -> float:
        return 8 + 284 * min(max((value - first) / (last - first), 0), 1)

    scale = "".join(
        f'<text x="{at(v):.1f}" y="12" text-anchor="middle">{v:g}</text>' for v in (0.4, 0.5, 0.6, 0.8, 1.0)
    )
    grid = "".join(
        f'<line class="{"chance" if v == 0.5 else "grid"}" x1="{at(v):.1f}" x2="{at(v):.1f}" y1="0" y2="24"/>'
        for v in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    )
    lines = []
    for row in rows:
        values = [_number(getattr(row, name)) for name, _, _ in _ROUTES]
        known = [v for v in values if v is not None]
        span = (
            f'<line class="track" x1="{at(min(known)):.1f}" x2="{at(max(known)):.1f}" y1="12" y2="12"/>'
            if known
            else ""
        )
        marks = "".join(
            f'<g transform="translate({at(v):.1f} 12)">{mark}</g>'
            for v, (_, _, mark) in zip(values, _ROUTES, strict=True)
            if v is not None
        )
        cells = "".join(f'<td class="num">{_text(v, "–")[:5]}</td>' for v in values)
        positives = "" if row.positives is None else f" <small>{row.positives}</small>"
        lines.append(
            f'<tr><th scope="row">{escape(row.name)}{positives}</th><td class="strip"><svg viewBox="0 0 300 24" '
            f'role="img" aria-hidden="true">{grid}{span}{marks}</svg></td>{cells}</tr>'
        )
    keys = "".join(
        f'<span><svg viewBox="-8 -8 16 16" class="dot">{mark}</svg>{escape(heading)}</span>'
        for _, heading, mark in _ROUTES
    )
    heads = "".join(f'<th scope="col" class="num">{escape(heading)}</th>' for _, heading, _ in _ROUTES)
    return (
        f'<p class="legend">{keys}<span><svg viewBox="0 0 16 16" class="dot"><line class="chance" x1="8" x2="8" y1="0" y2="16"/>'
        f'</svg>chance</span></p><div class="scroll"><table class="findings"><thead><tr><th scope="col">finding '
        f'<small>· test images with it</small></th><th class="strip"><svg viewBox="0 0 300 16" aria-hidden="true">{scale}</svg>'
        f"</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


# ---------------------------------------------------------------------------------------------------------- samples


def _reconstruction_grid(pairs: Sequence[Reconstruction]) -> str:
    if not pairs:
        return ""
    items = []
    for pair in pairs:
        error = "" if pair.l1 is None else f" · L1 {pair.l1:.3f}"
        items.append(
            f'<div class="pair">{_figure(pair.original, "original", f"original {pair.caption}")}'
            f"{_figure(pair.reconstruction, f'from its tokens{error}', f'reconstruction {pair.caption}')}"
            f"<p>{escape(pair.caption)}</p></div>"
        )
    return f'<div class="pairs">{"".join(items)}</div>'


def _tags(card: ReportCard) -> str:
    kinds = (("right", "✓", card.right), ("missed", "−", card.missed), ("invented", "+", card.invented))
    tags = [
        f'<li class="tag {kind}"><span aria-hidden="true">{symbol}</span> {escape(name)} <small>{kind}</small></li>'
        for kind, symbol, names in kinds
        for name in names
    ]
    return f'<ul class="tags">{"".join(tags) or "<li class=none>neither report names a finding</li>"}</ul>'


def _report_cards(cards: Sequence[ReportCard]) -> str:
    items = [
        f'<article class="card report">{_figure(card.image, card.caption, f"radiograph {card.caption}")}<div>'
        f'<div class="texts"><div><h3>Reference</h3><p>{escape(card.reference)}</p></div>'
        f"<div><h3>Generated</h3><p>{escape(card.generated)}</p></div></div>{_tags(card)}</div></article>"
        for card in cards
    ]
    return "".join(items)


def _drawing_cards(cards: Sequence[DrawingCard]) -> str:
    items = []
    for card in cards:
        real = (
            _figure(card.real, "the image it was written for", f"radiograph that this was written for: {card.prompt}")
            if card.real is not None
            else ""
        )
        if card.reconstruction is not None:
            real += _figure(card.reconstruction, "the same from its image tokens")
        drawn = "".join(
            f'<div class="drawn">{_figure(p, f"drawn by the model, {i}")}</div>' for i, p in enumerate(card.drawn, 1)
        )
        caption = f'<p class="small">In the image: {escape(card.caption)}</p>' if card.caption else ""
        items.append(
            f'<article class="card drawing"><blockquote>{escape(card.prompt)}</blockquote>{caption}'
            f'<div class="strip-of-images">{real}{drawn}</div></article>'
        )
    return "".join(items)


def _question_table(rows: Sequence[QuestionRow]) -> str:
    if not rows:
        return ""
    lines = []
    for row in rows:
        thumbnail = _image(row.image, "radiograph asked about", 96) if row.image is not None else ""
        verdict = '<span class="tag right">✓ right</span>' if row.right else '<span class="tag wrong">✗ wrong</span>'
        p_yes = _number(row.p_yes)
        probability = "" if p_yes is None else f" <small>p(yes) {p_yes:.2f}</small>"
        lines.append(
            f'<tr><td class="thumb">{thumbnail}</td><td data-name="question">{escape(row.question)}</td>'
            f'<td data-name="answer">{escape(row.response)}{probability}</td>'
            f'<td data-name="truth">{escape(row.reference)}</td><td>{verdict}</td></tr>'
        )
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("", "Question", "Answer of the model", "Truth", ""))
    return f'<table class="questions"><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


# ------------------------------------------------------------------------------------------------------------- page

_STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#1e2427;--soft:#5b656a;--line:#dfddd5;--accent:#0b6573;
--right:#1a6aa6;--missed:#a35c00;--invented:#9c2f78;--track:#e4e2da;--serif:Charter,"Bitstream Charter","Sitka Text",Cambria,Georgia,serif;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
@media(prefers-color-scheme:dark){:root{--paper:#14181a;--card:#1b2023;--ink:#e4e6e3;--soft:#9aa5a9;--line:#31393d;--accent:#63bccb;
--right:#79b8ec;--missed:#e8aa5a;--invented:#e58cc4;--track:#31393d}}
*{box-sizing:border-box}html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 var(--sans);font-variant-numeric:tabular-nums}
main,header,footer{max-width:1120px;margin:auto;padding:0 24px}
header{padding-top:56px}h1,h2{font-family:var(--serif);font-weight:600;line-height:1.15;letter-spacing:-.01em;text-wrap:balance}
h1{font-size:clamp(30px,5vw,46px);margin:0 0 14px}h2{font-size:27px;margin:0 0 8px}
h3{font-size:14px;font-weight:600;margin:0 0 4px}p{margin:0 0 12px;max-width:72ch}small,.small{font-size:13px;color:var(--soft)}
section{padding:44px 0 8px;border-top:1px solid var(--line);margin-top:40px}
.meaning{color:var(--soft);margin-bottom:22px}.meaning b{color:var(--ink);font-weight:600}.none{color:var(--soft);font-style:italic}
.lead{color:var(--soft);margin:0 0 18px;max-width:none}.lead span{white-space:nowrap}
.notices{margin:0 0 22px;padding:9px 14px;list-style:none;border:1px solid var(--line);border-left:4px solid var(--missed);background:var(--card);border-radius:4px;font-size:14px;max-width:86ch}
.notices li:first-child{font-weight:600}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:22px 0 0;font-size:15px}a{color:var(--accent);text-underline-offset:3px}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(165px,1fr));gap:12px 24px;margin:0}
.facts div{border-top:1px solid var(--line);padding-top:6px}.facts dt{font-size:13px;color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}
.scores{display:grid;grid-template-columns:repeat(auto-fill,minmax(290px,1fr));gap:16px}
.score,.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:18px}
.score{display:flex;flex-direction:column}.score .small{margin:auto 0 0;padding-top:10px}
.head{margin:0}.big{font:600 34px/1.2 var(--serif)}.head .none{font-size:20px;line-height:41px}.range{font-size:13px;color:var(--soft);white-space:nowrap}
.score ul{list-style:none;margin:4px 0 0;padding:0;font-size:14px}.score li{padding:1px 0 1px 14px;text-indent:-14px;line-height:1.4}.score li.count,.score li:not(:has(.key)){padding-left:0;text-indent:0}.score li b{font-weight:600;margin-right:4px}.count{color:var(--soft)}
.key{display:inline-block;width:5px;height:13px;border-radius:1px;margin-right:8px;vertical-align:-1px;border:1px solid var(--ink)}
.key.top{background:var(--ink)}
svg{display:block;width:100%;height:auto;overflow:visible}svg text{fill:var(--soft);font:11px var(--sans)}
.track{stroke:var(--track);stroke-width:6;stroke-linecap:round}.gain{stroke:var(--accent);stroke-width:6;opacity:.45}
.interval{stroke:var(--accent);stroke-width:2}rect.base{fill:var(--card);stroke:var(--ink)}rect.top{fill:var(--ink)}
circle.value{fill:var(--accent);stroke:var(--card);stroke-width:2}.meter{margin:6px 0 2px;max-width:340px}
.legend{display:flex;flex-wrap:wrap;gap:6px 20px;font-size:14px}.legend span{display:inline-flex;align-items:center;gap:7px}
.legend svg{width:28px}.legend svg.dot{width:14px}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:16px}
.panel{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 14px 8px;margin:0}
.panel figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px;margin:0 0 8px}
.panel figcaption b{font-size:15px;font-weight:600;color:var(--ink)}
.grid{stroke:var(--line);stroke-width:1}.chance{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 2}.change{stroke:var(--soft);stroke-dasharray:4 3}
.train{fill:none;stroke:var(--soft);stroke-width:1.2;opacity:.8}.unseen{fill:none;stroke:var(--accent);stroke-width:2.2;stroke-linejoin:round}
circle.unseen{fill:var(--accent);stroke:none}
figure{margin:0}figcaption{font-size:13px;color:var(--soft);margin-top:5px;line-height:1.35}
img{display:block;width:100%;height:auto;border-radius:4px;background:#000}
.glance img{min-width:640px}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:24px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:0 4px}.pair p{grid-column:1/-1;font-size:13px;margin:2px 0 0}
.card{margin-bottom:16px}.report{display:grid;grid-template-columns:220px 1fr;gap:22px}
.texts{display:grid;grid-template-columns:1fr 1fr;gap:22px}.texts h3{color:var(--soft);font-weight:500}
.texts p{font-family:var(--serif);font-size:16.5px;line-height:1.5;overflow-wrap:anywhere;white-space:pre-line}
.tags{list-style:none;display:flex;flex-wrap:wrap;gap:6px;margin:4px 0 0;padding:0}
.tag{display:inline-block;border:1px solid currentColor;border-radius:4px;padding:1px 9px;font-size:14px;white-space:nowrap}.tag small{color:inherit;opacity:.85}
.tag span{font-weight:700}.right{color:var(--right)}.missed{color:var(--missed);border-style:dashed}.invented,.wrong{color:var(--invented);background:color-mix(in srgb,var(--invented) 10%,transparent)}
blockquote{margin:0 0 14px;font:italic 18px/1.45 var(--serif);max-width:68ch;overflow-wrap:anywhere}
.strip-of-images{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px}
.drawn figcaption{color:var(--accent)}.drawn img{outline:2px solid var(--accent);outline-offset:-2px}
table{border-collapse:collapse;width:100%;font-size:15px}th{text-align:left;font-weight:500}thead th{font-size:13px;color:var(--soft);vertical-align:bottom}
td,th{padding:7px 12px 7px 0;border-bottom:1px solid var(--line)}.num{text-align:right;width:84px}.strip{min-width:210px;padding:0 16px 0 0}
.findings tbody th{white-space:nowrap}.findings td.strip{padding-top:0;padding-bottom:0}.scroll{overflow-x:auto}
.findings .track{stroke-width:3}.m0{fill:var(--soft)}.m1{fill:none;stroke:var(--ink);stroke-width:1.8}.m2{fill:var(--invented)}.m3{fill:var(--accent)}
.thumb{width:76px}.thumb img{width:64px}.questions td{vertical-align:middle}.questions small{display:block}
.notes li{max-width:72ch;margin-bottom:8px}footer{color:var(--soft);font-size:14px;padding-top:28px;padding-bottom:48px;border-top:1px solid var(--line);margin-top:44px}
@media(max-width:700px){main,header,footer{padding-left:16px;padding-right:16px}header{padding-top:32px}.report,.texts{grid-template-columns:1fr;gap:14px}
.report>figure{max-width:240px}.strip-of-images{grid-template-columns:1fr 1fr}.facts{grid-template-columns:1fr 1fr}section{padding-top:30px;margin-top:28px}
.findings .num{display:none}.findings g>*{transform:scale(1.5)}.findings thead text{font-size:19px}.strip{min-width:0;width:62%;padding-right:4px}.findings tbody th{white-space:normal}
.questions thead{display:none}.questions tr{display:grid;grid-template-columns:76px 1fr;padding:10px 0;border-bottom:1px solid var(--line)}
.questions td{border:0;padding:1px 0;grid-column:2}.questions .thumb{grid-column:1;grid-row:1/6}
.questions td[data-name]::before{content:attr(data-name) " ";color:var(--soft);font-size:13px}.questions td:last-child{padding-top:5px}.questions small{display:inline}}
@media print{body{background:#fff}nav{display:none}.card,.score,.pair,.panel,tr{break-inside:avoid}}
"""

_SECTIONS = (
    ("glance", "At a glance"),
    ("scores", "Scores"),
    ("reports", "Reports"),
    ("questions", "Questions"),
    ("drawings", "Drawn images"),
    ("findings", "Findings"),
    ("tokens", "Image tokens"),
    ("training", "Training"),
    ("limits", "What falls short"),
    ("run", "This run"),
)


def _render(content: PageContent) -> str:
    notices = ["For research only. Not a medical device; not for diagnosis or treatment."]
    if content.simulated:
        notices.append(
            "Simulated radiographs: projected from a CT with findings drawn into it. No image shows a patient."
        )
    notices.append("Images marked as drawn are synthetic.")
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in content.facts.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in content.notes)
    titles = dict(_SECTIONS)
    sections = {
        "glance": (
            "Patients that the model has never seen, one a column. Top: the radiograph. Middle: the same after the way through "
            "image tokens, which is all that the language model sees of it. Bottom: drawn by the model from the report alone, so "
            "it should show the same findings in another patient.",
            ""
            if content.overview is None
            else f'<div class="scroll glance">{_image(np.asarray(content.overview), "radiographs, their reconstructions, and drawings", 2000)}</div>',
        ),
        "scores": (
            "Each number stands between a trivial baseline (hollow bar), which needs no look at the image, and a ceiling "
            "(full bar), which is the best that can be expected. Only the way from the baseline is what the model has learned. "
            "All are measured on patients it was not trained on; ranges are 95% bootstrap intervals over patients.",
            f'<div class="scores">{"".join(_score_card(score, content.summary) for score in SCORES)}</div>',
        ),
        "reports": (
            "Reports written for unseen images, beside the reference. ✓ findings that both name, − findings that only the "
            "reference names (missed), + findings that only the generated report names (invented).",
            _report_cards(content.reports),
        ),
        "questions": (
            "Questions about unseen images. p(yes) is the probability that the model gives to yes against no.",
            _question_table(content.questions),
        ),
        "drawings": (
            "Images that the model drew from a text, framed in colour, beside the image that the text was written for. They "
            "should agree in the findings and not in every detail: the text says nothing about the rest.",
            _drawing_cards(content.drawings),
        ),
        "findings": (
            "AUROC of each finding: 0.5 is chance, 1 perfect. The first three are one classifier’s, on original, reconstructed "
            "and drawn images; the last is the language model’s own reading by p(yes). Few positives make a number uncertain.",
            _finding_table(content.findings),
        ),
        "tokens": (
            "Unseen radiographs and what is left of them after the image tokenizer: the language model sees no more than this. "
            "L1 is the mean difference of a pixel (black 0, white 1).",
            _reconstruction_grid(content.reconstructions),
        ),
        "training": (
            "Loss (nats a token) of each task. Where unseen patients stay above training or turn upward, the model memorises. "
            "The table shows what became of plain language: perplexity rises where it is forgotten.",
            _curves(content) + _language_table(content.summary),
        ),
        "limits": (
            "Known weaknesses of this run, to be read with the numbers above.",
            f'<ul class="notes">{notes}</ul>' if notes else '<p class="none">Nothing noted.</p>',
        ),
        "run": ("What was run, on what, and for how long.", f'<dl class="facts">{facts}</dl>' if facts else ""),
    }
    first = " · ".join(f"<span>{escape(f'{k}: {v}')}</span>" for k, v in list(content.facts.items())[:4])
    lead = f'<p class="lead">{first}</p>' if first else ""
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in _SECTIONS)
    body = "".join(_section(anchor, titles[anchor], *sections[anchor]) for anchor, _ in _SECTIONS)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(content.title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><header><h1>{escape(content.title)}</h1>{lead}<ul class="notices">'
        f"{''.join(f'<li>{escape(notice)}</li>' for notice in notices)}</ul><nav>{links}</nav></header>\n"
        f"<main>{body}</main>\n<footer>{escape(notices[0])} Written by llmcxr.</footer></body></html>\n"
    )


def write_page(path: Path, content: PageContent) -> None:
    """Write the results page as one self-contained HTML file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(_render(content), encoding="utf-8")
