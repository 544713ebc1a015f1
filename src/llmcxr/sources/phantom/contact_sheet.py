"""Sheets of small pictures, for looking at what the phantom draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.sources.phantom.anatomy import case_for
from llmcxr.sources.phantom.atlas import load_atlas
from llmcxr.sources.phantom.projection import render
from llmcxr.studies.findings import Finding

_CAPTION = 14
EXAMPLES: tuple[tuple[Finding, ...], ...] = (
    (),
    *((Finding("cardiomegaly", severity=s, kind=k),) for s, k in (("mild", "borderline"), ("mild", ""), ("moderate", ""), ("severe", ""))),
    (Finding("pleural effusion", "right", "mild", "costophrenic angle"),),
    *((Finding("pleural effusion", s, d),) for s, d in (("right", "mild"), ("left", "moderate"), ("right", "severe"), ("both", "mild"))),
    *((Finding("opacity", s, d, p, k),) for s, d, p, k in (
        ("right", "mild", "lower lobe", ""), ("right", "moderate", "upper lobe", ""), ("left", "severe", "lower lobe", ""),
        ("right", "severe", "middle lobe", ""), ("left", "moderate", "base", "streaky"), ("both", "moderate", "base", "patchy"),
        ("left", "moderate", "upper lobe", "round"))),
    *((Finding("atelectasis", s, d, "base"),) for s, d in (("left", "mild"), ("both", "moderate"), ("right", "severe"))),
    *((Finding("pneumothorax", s, d, p),) for s, d, p in (("right", "mild", "apex"), ("left", "moderate", ""), ("right", "severe", ""))),
    *((Finding("hyperinflation", severity=s),) for s in ("mild", "moderate", "severe")),
    *((Finding("hypoinflation", severity=s),) for s in ("mild", "moderate", "severe")),
    *((Finding("elevated diaphragm", s, d),) for s, d in (("right", "mild"), ("left", "moderate"), ("right", "severe"))),
    *((Finding("pulmonary edema", "both", s),) for s in ("mild", "moderate", "severe")),
    *((Finding("interstitial markings", "both", s),) for s in ("mild", "moderate", "severe")),
    *((Finding("mass", s, d),) for s, d in (("right", "mild"), ("left", "severe"))),
    *((Finding("nodule", s, d, "", k),) for s, d, k in (("right", "mild", ""), ("left", "severe", ""), ("both", "moderate", "multiple"))),
    *((Finding("granuloma", s, "", p, k),) for s, p, k in (("right", "upper lobe", ""), ("left", "", "multiple"), ("right", "hilum", "nodes"))),
    *((Finding("tortuous aorta", severity=d, kind=k),) for d, k in (("mild", ""), ("severe", ""), ("moderate", "calcified"))),
    *((Finding("hiatal hernia", severity=s),) for s in ("mild", "severe")),
    *((Finding("scoliosis", s, d),) for s, d in (("right", "mild"), ("left", "severe"))),
    *((Finding("support device", s, "", p, k),) for s, p, k in (
        ("left", "", "pacemaker"), ("right", "", "port"), ("left", "", "central line"), ("", "mediastinum", "sternal wires"),
        ("right", "abdomen", "clips"), ("", "", "tube"), ("", "", "valve"))),
)  # fmt: skip


def _sheet(tiles: list[tuple[str, NDArray[np.uint8]]], columns: int) -> Image.Image:
    size = len(tiles[0][1])
    rows = -(-len(tiles) // columns)
    sheet = Image.new("L", (columns * (size + 2), rows * (size + 2 + _CAPTION)), 32)
    pen = ImageDraw.Draw(sheet)
    for i, (caption, tile) in enumerate(tiles):
        x, y = (i % columns) * (size + 2), (i // columns) * (size + 2 + _CAPTION)
        sheet.paste(Image.fromarray(tile), (x, y + _CAPTION))
        pen.text((x + 2, y + 1), caption[: size // 6], fill=230)
    return sheet


def contact_sheet(path: Path, image_size: int = 256, seed: int = 0) -> None:
    """Write a PNG of 4 x 6 normal patients."""
    atlas = load_atlas()
    _save(
        _sheet(
            [(f"patient {seed + i}", render(atlas, case_for((), seed + i), image_size).image) for i in range(24)], 6
        ),
        path,
    )


def _caption(findings: tuple[Finding, ...]) -> str:
    return (
        ", ".join(" ".join(w for w in (f.severity, f.side, f.kind, f.name, f.place) if w) for f in findings) or "normal"
    )


def finding_sheet(path: Path, image_size: int = 256, seed: int = 0, outline: bool = False) -> None:
    """Write a PNG with every finding by severity, side and kind, all in the patient of `seed`; `outline` marks the masks."""
    atlas, tiles = load_atlas(), []
    for findings in EXAMPLES:
        rendering = render(atlas, case_for(findings, seed), image_size)
        image = rendering.image.copy()
        if outline:
            mask = rendering.masks > 0
            edge = mask & ~(np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1))
            image[edge] = 255
        tiles.append((_caption(findings), image))
    _save(_sheet(tiles, 8), path)


def _save(sheet: Image.Image, path: Path) -> None:
    with atomic_path(Path(path)) as temporary:
        sheet.save(temporary, format="PNG")
