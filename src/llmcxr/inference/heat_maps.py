"""Pictures of how a model sees an image: heat maps over it, and what its image tokens keep of it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from llmcxr import __version__
from llmcxr.foundation.artifacts import atomic_path
from llmcxr.inference.explanation import Explanation
from llmcxr.inference.provenance import mark_visibly, save_marked_png
from llmcxr.studies.radiographs import to_uint8

_SIDE, _GAP, _LINES = 320, 4, 54  # pixels of a tile, between tiles, and of the text below
_FOR, _AGAINST = np.array([255, 60, 0]), np.array([0, 130, 255])  # colours of what speaks for a text, and against it
_MOST = 0.65  # opacity of the largest value


def _tile(pixels: np.ndarray) -> Image.Image:
    """Float [S, S] in [-1, 1] as a picture."""
    return Image.fromarray(to_uint8(pixels)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def overlay(pixels: np.ndarray, explanation: Explanation) -> Image.Image:
    """Float [S, S] in [-1, 1] under the heat map: what speaks for the text is red, what speaks against it blue."""
    heat = explanation.heat_map(_SIDE)
    heat = heat / max(float(np.abs(heat).max()), 1e-9)
    opacity = _MOST * np.abs(heat)[..., None]
    colour = np.where(heat[..., None] > 0, _FOR, _AGAINST)
    grey = np.asarray(_tile(pixels), dtype=np.float64)[..., None]
    return Image.fromarray(np.rint((1 - opacity) * grey + opacity * colour).astype(np.uint8))


def _sheet(tiles: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Tiles side by side with a caption below each."""
    sheet = Image.new("RGB", (len(tiles) * (_SIDE + _GAP) - _GAP, _SIDE + _LINES))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x = column * (_SIDE + _GAP)
        sheet.paste(tile, (x, 0))
        lines = textwrap.wrap(caption, _SIDE // 7, max_lines=3, placeholder=" ...")
        pen.multiline_text((x + 4, _SIDE + 2), "\n".join(lines), fill=(210, 210, 210), font=font, spacing=2)
    return sheet


def save_heat_maps(path: Path, pixels: np.ndarray, found: Sequence[Explanation]) -> None:
    """Write a radiograph [S, S] in [-1, 1], and its overlay for each text, as one PNG."""
    captions = [
        "as the model reads it",
        *(f"{one.text} ({'log-odds' if one.finding else 'log p'} {one.value:.1f})" for one in found),
    ]
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", f"llmcxr {__version__}")
    about.add_itxt("Comment", "Where a model looked (red: for, blue: against). For research only; not for diagnosis.")
    with atomic_path(path) as temporary:
        tiles = [_tile(pixels), *(overlay(pixels, one) for one in found)]
        _sheet(tiles, captions).save(temporary, format="PNG", pnginfo=about)


def save_reconstruction(path: Path, pixels: np.ndarray, kept: np.ndarray) -> None:
    """Write a radiograph and what image tokens keep of it ([S, S] in [-1, 1] each) side by side; the second is marked."""
    tiles = [_tile(pixels), mark_visibly(_tile(kept))]
    sheet = _sheet(tiles, ["as the model reads it", "what its image tokens keep of it"])
    save_marked_png(path, sheet, Comment="Left: a radiograph. Right: made from its image tokens. For research only.")
