"""Every generated image says that it is synthetic: always in its metadata, and visibly unless that is switched off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from llmcxr import __version__
from llmcxr.foundation.artifacts import atomic_path
from llmcxr.studies.radiographs import to_uint8


def mark_visibly(image: Image.Image) -> Image.Image:
    """Write "SYNTHETIC" into the lower left corner."""
    marked = image.copy()
    size = max(10, image.height // 16)
    ImageDraw.Draw(marked).text((size // 2, image.height - 2 * size), "SYNTHETIC", fill=255, font_size=size)
    return marked


def save_marked_png(path: Path, image: Image.Image, **about: str) -> None:
    """Write a picture that is, or holds, generated radiographs as a PNG whose metadata say so, with `about` beside it."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Synthetic", "true")
    info.add_text("Software", f"llmcxr {__version__}")
    for key, text in about.items():
        info.add_itxt(key, text)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def save_synthetic(path: Path, pixels: np.ndarray, prompt: str, visible: bool = True) -> None:
    """Write float [S, S] in [-1, 1] as an 8-bit PNG with its origin in the metadata."""
    image = Image.fromarray(to_uint8(pixels))
    comment = "Generated radiograph. For research only; not for diagnosis."
    save_marked_png(path, mark_visibly(image) if visible else image, Prompt=prompt, Comment=comment)
