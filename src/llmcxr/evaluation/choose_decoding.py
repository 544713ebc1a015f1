"""How a model should write and draw: a grid over its ways of decoding, on validation patients only.

Test patients take no part, so that what is chosen is not fitted to what is measured. Each row of the grid is kept as it is
finished, and not tried again.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llmcxr.evaluation.predict import ModelUnderTest
from llmcxr.evaluation.scoring import number
from llmcxr.foundation.artifacts import fingerprint, read_json, write_json
from llmcxr.foundation.errors import UserError
from llmcxr.model.decoding import DecodingSettings
from llmcxr.tasks.cxr_to_report import ReportMeasurement
from llmcxr.tasks.measurement import Cases, Measurement
from llmcxr.tasks.report_to_cxr import DrawingMeasurement

_GUIDANCE = (1.0, 1.5, 2.0, 3.0)
_CANDIDATES = (1, 4)
Goal = tuple[
    Measurement, str, tuple[str, ...]
]  # the score by which ways are chosen; others stand beside it in the table
_REPORT: Goal = (ReportMeasurement(), "micro_f1", ("macro_f1", "side_accuracy", "distinct"))
_DRAWING: Goal = (DrawingMeasurement(), "auroc_asked", ("auroc", "ssim_between_drawn"))


def _grid(model: ModelUnderTest) -> list[tuple[Goal, dict[str, Any]]]:
    """What the model can be asked to do, each way with the settings that it takes."""
    info, clinical = model.model.info, model.model.image_tokenizer.clinical is not None
    grid: list[tuple[Goal, dict[str, Any]]] = []
    if info.findings_first:
        for guidance, candidates, sides in product(_GUIDANCE, _CANDIDATES, (False, True)):
            row = {"report_guidance": guidance, "report_candidates": candidates, "ask_sides": sides}
            grid.append((_REPORT, row))
    guidances = _GUIDANCE if info.unguided_share else _GUIDANCE[:1]
    several = _CANDIDATES if info.findings_first and clinical else _CANDIDATES[:1]
    drawings = list(product(guidances, several))
    if len(drawings) > 1:
        grid += [(_DRAWING, {"drawing_guidance": g, "drawing_candidates": c}) for g, c in drawings]
    return grid


def _tried(cases: Cases, model: ModelUnderTest, measurement: Measurement, settings: dict[str, Any]) -> dict[str, Any]:
    """What the measurement gives under `settings`."""
    own = model.model.asker
    decoding = replace(DecodingSettings(), **settings)
    model.model.asker = replace(own, info=replace(own.info, decoding=decoding))
    try:
        predictions, place = [], cases.seed
        for group in measurement.asks(cases):
            asks = [replace(ask, shown=False, repeated=False) for ask in group]
            predictions += measurement.answer(model, asks, place)
            place += len(group)
    finally:
        model.model.asker = own
    values = measurement.score(predictions, cases)
    if not isinstance(values, dict):
        raise UserError(f"decoding cannot be chosen on the validation patients: {values}.")
    return {name: known for name, value in values.items() if (known := number(value)) is not None}


def choose_decoding(path: Path, cases: Cases, model: ModelUnderTest, images: int) -> str:
    """Try the grid on `cases` (of the validation split), keep the table in `path`, and say what the recipe should set.

    `UserError` where the model has one way only, or the data gives nothing to choose by.
    """
    grid = _grid(model)
    if not grid:
        raise UserError(
            "this model can be asked in one way only: it names no findings first (tuning.findings_first) and has learned no drawing "
            "without a report (tuning.unguided_share), so there is nothing to choose."
        )
    if why := cases.unreadable():
        raise UserError(f"decoding cannot be chosen: {why}.")
    cases = replace(cases, counts={**cases.counts, "reports": images, "drawings": images}, bootstrap=0)
    about = fingerprint(asdict(replace(model.model.info, decoding=DecodingSettings())), images, len(cases.test))
    kept = read_json(path) if path.exists() else {}
    rows: list[dict[str, Any]] = kept["rows"] if kept.get("model") == about else []
    for (measurement, *_), settings in tqdm(grid, desc="decoding", unit="way"):
        if not any(row["settings"] == settings for row in rows):
            rows.append({"settings": settings, "scores": _tried(cases, model, measurement, settings)})
            write_json(path, {"model": about, "images": images, "split": "validate", "rows": rows})
    return _said(rows, [what for what in (_REPORT, _DRAWING) if any(what is tried for tried, _ in grid)])


def _said(rows: list[dict[str, Any]], tried: list[Goal]) -> str:
    """The table, and the recipe's lines for the best rows; of equal ones the first, which costs least."""
    lines, chosen = [], []
    for _, by, beside in tried:
        own = [row for row in rows if by in row["scores"]]
        if not own:
            continue
        best = max(own, key=lambda row: row["scores"][by])
        names = list(own[0]["settings"])
        lines.append("  ".join(name.rjust(len(name)) for name in (*names, by, *beside)))
        for row in own:
            cells = [f"{row['settings'][name]}".rjust(len(name)) for name in names]
            cells += [f"{row['scores'].get(name, float('nan')):.3f}".rjust(len(name)) for name in (by, *beside)]
            lines.append("  ".join(cells) + ("  <- best" if row is best else ""))
        lines.append("")
        chosen += [f"{name}: {str(value).lower()}" for name, value in best["settings"].items()]
    return "\n".join([*lines, "In the recipe:", "tuning:", f"  decoding: {{{', '.join(chosen)}}}"])
