"""The numbers of image tokenizers as tables for people, and pictures to look at beside them.

Shapes: S side in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llmcxr.evaluation.tokenizer_table import Measured
from llmcxr.foundation.artifacts import atomic_path


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join([_line(head), _line(["---"] * len(head)), *map(_line, rows)])


def with_interval(value: float | None, interval: Sequence[float | None], digits: int = 3) -> str:
    """0.012 (0.003 to 0.020); what is not known (None, NaN) is left out."""
    if value is None or value != value:
        return "-"
    low, high = interval
    known = low is not None and high is not None and low == low
    return f"{value:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if known else "")


def _known(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _shown_at(row: Mapping[str, Any]) -> str:
    own = row["painted_at"]
    return f"{row['size']} px" + (f", painted at {own}" if own != row["size"] else "")


def tokenizer_table(rows: Sequence[Mapping[str, Any]], evaluator: str = "", judge: str = "") -> str:
    """One line a data set, tokenizer and size, of what `tokenizer_table.numbers` gives. `evaluator` and `judge` name the networks
    behind the Fréchet distance and the AUROC; columns that nothing fills are left out."""
    columns: list[tuple[str, list[str]]] = [
        ("data", [f"{r['data']} ({r['n']:,})" for r in rows]),
        ("tokenizer", [r["tokenizer"] for r in rows]),
        ("numbers an image", [f"{r['numbers']:,}" for r in rows]),
        ("shown at", [_shown_at(r) for r in rows]),
        ("L1 (share of the range)", [f"{r['l1']:.4f}" for r in rows]),
        ("PSNR (dB)", [_known(r["psnr"], 1) for r in rows]),
        ("MS-SSIM", [f"{r['ms_ssim']:.3f}" for r in rows]),
        ("LPIPS (VGG-16)", [_known(r["lpips"], 3) for r in rows]),
        ("power kept by octave, from Nyquist down", [" ".join(_known(v, 2) for v in r["octaves"]) for r in rows]),
        (f"Fréchet distance ({evaluator})", [_known(r["fd"], 2) for r in rows]),
        (
            f"loss of mean AUROC (95 %), judge {judge}",
            [with_interval(a["loss"], a["interval"]) if (a := r.get("auroc")) else "-" for r in rows],
        ),
        ("codebook in use", [f"{r['codebook_use']:.3f}" if "codebook_use" in r else "-" for r in rows]),
        ("perplexity", [f"{r['perplexity']:.0f}" if "perplexity" in r else "-" for r in rows]),
    ]
    filled = [(name, cells) for name, cells in columns if set(cells) != {"-"}]
    return table([name for name, _ in filled], list(zip(*[cells for _, cells in filled], strict=True)))


def findings_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Loss of AUROC by finding, a column a tokenizer and size; findings with too few cases are named below. "" where none is known."""
    parts = []
    for data in dict.fromkeys(r["data"] for r in rows):
        own = [r for r in rows if r["data"] == data and r.get("auroc")]
        if not own:
            continue
        # Blocks of the same grid and size under one heading each; originals differ by size alone.
        names = [f"{r['tokenizer']} ({r['numbers']}), {_shown_at(r)}" for r in own]
        found = own[0]["auroc"]["by_finding"]
        lines, few = [], []
        for name, first in found.items():
            if first["original"] is None:
                few.append(name)
                continue
            losses = [r["auroc"]["by_finding"][name] for r in own]
            cells = [with_interval(f["loss"], f["interval"]) for f in losses]
            lines.append([name, str(first["positives"]), f"{first['original']:.3f}", *cells])
        parts.append(table([f"loss of AUROC, {data}", "with it", "AUROC of originals", *names], lines))
        if few:
            parts.append(f"Too few cases: {', '.join(few)}.")
    return "\n\n".join(parts)


def write_pictures(path: Path, measured: Sequence[Measured]) -> None:
    """A PNG: for each data set a row of originals and below it what each way of painting keeps, all at the largest size."""
    strips = []
    for one in measured:
        size = max(one.originals)
        ways = [one.originals[size], *(way for way in one.painted if way.size == size)]
        strips += [np.concatenate(way.shown, axis=1) for way in ways]
    width = max(strip.shape[1] for strip in strips)
    sheet = np.concatenate([np.pad(s, ((0, 0), (0, width - s.shape[1]))) for s in strips])
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")


def picture_rows(measured: Sequence[Measured]) -> list[str]:
    """What each row of `write_pictures` shows, from the top."""
    rows = []
    for one in measured:
        size = max(one.originals)
        rows.append(f"{one.data}: original")
        rows += [f"{one.data}: {way.name} ({way.grid**2:,})" for way in one.painted if way.size == size]
    return rows
