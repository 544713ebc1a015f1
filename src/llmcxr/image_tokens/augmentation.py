"""Training images of the image tokenizer varied, so that few of them teach as many would.

Shapes: B images of a step, S side in pixels. Pixels: float32 [B, 1, S, S] in [-1, 1].
All is drawn for all images of a step, so that it is the same however they are shared out to processes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def varied(x: Tensor, rows: int, part: slice, share: float, generator: np.random.Generator) -> Tensor:
    """Images x [B, 1, S, S], the `part` of a step of `rows`, for a tokenizer: about `share` of them changed.

    Turned by up to 8 degrees, enlarged by up to a quarter, moved by up to 6 %, mirrored half of the time (what is painted is
    compared with what was seen, so sides stay true), and shown through another gamma, gain and offset. The rest keeps its grain
    untouched.
    """
    if share == 0:
        return x
    draw = {
        name: torch.from_numpy(generator.uniform(low, high, rows).astype(np.float32)).to(x.device)[part]
        for name, low, high in (
            ("changed", 0, 1), ("angle", -8, 8), ("enlarged", -0.02, 0.22), ("mirror", -1, 1), ("dx", -0.12, 0.12), ("dy", -0.12, 0.12),
            ("gamma", -0.5, 0.5), ("gain", 0.85, 1.1), ("offset", -0.1, 0.1),
        )
    }  # fmt: skip
    angle, scale = draw["angle"] * (math.pi / 180), torch.exp(-draw["enlarged"])
    mirror = draw["mirror"].sign()
    affine = torch.stack(
        [
            torch.stack([scale * mirror * angle.cos(), -scale * angle.sin(), draw["dx"]], -1),
            torch.stack([scale * mirror * angle.sin(), scale * angle.cos(), draw["dy"]], -1),
        ],
        1,
    )
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    shape = (-1, 1, 1, 1)
    other = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(-1, 1)
    other = ((other + 1) / 2) ** torch.exp2(draw["gamma"]).view(shape) * 2 - 1
    other = (other * draw["gain"].view(shape) + draw["offset"].view(shape)).clamp(-1, 1)
    y = torch.where(draw["changed"].view(shape) < share, other, x)
    return y.contiguous(memory_format=torch.channels_last)
