"""Pages in one file: pictures as data inside it, and the template engine that escapes all text.

Pictures are [H, W] arrays, uint8 (0 black, 255 white) or float in [0, 1]; they are embedded as WebP.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[Any]
TERMS = (
    "This page holds pictures and texts of the data: it is under the same terms as they are. Pass it on only to whom you may "
    "pass on the data."
)


def as_image(picture: Picture | Image.Image) -> Image.Image:
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(np.nan_to_num(pixels.astype(np.float64)), 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(pixels.squeeze())


def embedded(picture: Picture | Image.Image, longest: int = 320) -> dict[str, Any]:
    """Attributes of an <img> with the picture inside."""
    image = as_image(picture)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88, method=4)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"src": f"data:image/webp;base64,{data}", "width": image.width, "height": image.height}


def page_environment(**named: Any) -> jinja2.Environment:
    """Templates of this folder, in which `named` can be used."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    environment.globals.update(embedded=embedded, style=style, terms=TERMS, **named)
    return environment
