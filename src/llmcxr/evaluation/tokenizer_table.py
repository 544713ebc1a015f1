"""What any image tokenizer keeps of any radiographs: one table, and a grid of pictures to look at.

Beside it, with as many numbers as there are tokens: plain averages of pixel blocks, painted by bilinear interpolation (each a number, where
a token is one of K).

Shapes: N images, S side in pixels, g side of the code grid, K codes. Pixels: uint8 [N, S, S], 0 black.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.image_tokens.classifier import batch_of
from llmcxr.image_tokens.clinical_features import FeatureNetwork
from llmcxr.image_tokens.codec import ImageCodec
from llmcxr.metrics.images import ms_ssim
from llmcxr.metrics.reconstruction import frechet_distance, perplexity, power_by_octave, psnr
from llmcxr.studies.radiographs import to_uint8

_BATCH = 16
BLOCKS = "averages of pixel blocks"


class _Sums:
    """What is added up over images for one way of painting them again."""

    def __init__(self) -> None:
        self.l1: list[float] = []
        self.psnr: list[float] = []
        self.ms_ssim: list[float] = []
        self.power: list[np.ndarray] = []
        self.features: list[np.ndarray] = []

    def add(self, original: np.ndarray, again: np.ndarray) -> None:
        """Images [B, S, S] in [0, 1]."""
        self.l1 += np.abs(original - again).mean((1, 2)).tolist()
        self.psnr += [psnr(a, b) for a, b in zip(original, again, strict=True)]
        self.ms_ssim += [ms_ssim(a, b) for a, b in zip(original, again, strict=True)]
        self.power.append(power_by_octave(again))


def block_averages(images: torch.Tensor, grid: int) -> torch.Tensor:
    """[B, 1, S, S] -> the same, of which only the means of grid x grid blocks are known."""
    small = F.adaptive_avg_pool2d(images, grid)
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)


@torch.inference_mode()
def measure_tokenizer(
    codec: ImageCodec, images: Iterable[np.ndarray], device: torch.device, clinical: FeatureNetwork | None = None
) -> dict[str, Any]:
    """Numbers on uint8 images [S, S] as they come: of the codec, and of block averages under `BLOCKS`.

    L1 (share of the range), PSNR (dB) and MS-SSIM are means over images; `octaves` is the power of all reconstructions over that of
    all originals, from the finest octave on (below 1 blur, above speckle); `fd` the Fréchet distance of `clinical`'s pooled features.
    """
    ways, original_power, original_features = (
        {"tokenizer": _Sums(), BLOCKS: _Sums()},
        list[np.ndarray](),
        list[np.ndarray](),
    )
    counts = np.zeros(len(codec.codebook), int)

    def take(batch: np.ndarray) -> None:
        x = batch_of(batch, np.arange(len(batch)), device)
        codes = codec.encode(x)
        counts[:] += np.bincount(codes.flatten().cpu().numpy(), minlength=len(counts))
        painted = {"tokenizer": codec.decode(codes), BLOCKS: block_averages(x, codec.grid)}
        original = batch.astype(np.float64) / 255
        original_power.append(power_by_octave(original))
        if clinical is not None:
            original_features.append(clinical.feature_maps(x)[1].float().cpu().numpy())
        for name, y in painted.items():
            again = (y[:, 0].float().cpu().numpy().clip(-1, 1) + 1) / 2
            ways[name].add(original, again)
            if clinical is not None:
                ways[name].features.append(clinical.feature_maps(y)[1].float().cpu().numpy())

    waiting: list[np.ndarray] = []
    for image in images:
        waiting.append(image)
        if len(waiting) == _BATCH:
            take(np.stack(waiting))
            waiting.clear()
    if waiting:
        take(np.stack(waiting))
    result: dict[str, Any] = {"n": len(ways["tokenizer"].l1)}
    for name, sums in ways.items():
        result[name] = {
            "l1": float(np.mean(sums.l1)),
            "psnr": float(np.mean(sums.psnr)),
            "ms_ssim": float(np.mean(sums.ms_ssim)),
            "octaves": (np.sum(sums.power, 0) / np.sum(original_power, 0)).tolist(),
        }
        if clinical is not None:
            result[name]["fd"] = frechet_distance(np.concatenate(original_features), np.concatenate(sums.features))
    result["tokenizer"] |= {"codebook_use": float((counts > 0).mean()), "perplexity": perplexity(counts)}
    return result


@torch.inference_mode()
def write_grid(path: Path, codec: ImageCodec, images: np.ndarray, device: torch.device) -> None:
    """A PNG: originals uint8 [N, S, S] in the first row, what the tokens keep below, block averages in the third."""
    x = batch_of(images, np.arange(len(images)), device)
    rows = [x, codec.decode(codec.encode(x)), block_averages(x, codec.grid)]
    sheet = np.concatenate([np.concatenate(list(to_uint8(row[:, 0].float().cpu().numpy())), axis=1) for row in rows])
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")


def table_text(measured: dict[str, Any], evaluator: str) -> str:
    """The table for people. `evaluator` names the network behind `fd`."""
    names = ["tokenizer", BLOCKS]
    octaves = measured["tokenizer"]["octaves"]
    rows: list[tuple[str, list[str]]] = [
        ("L1 (share of the range)", [f"{measured[n]['l1']:.4f}" for n in names]),
        ("PSNR (dB)", [f"{measured[n]['psnr']:.1f}" for n in names]),
        ("MS-SSIM", [f"{measured[n]['ms_ssim']:.3f}" for n in names]),
    ]
    for k in range(len(octaves)):
        what = f"power kept, Nyquist{f'/{2**k}' if k else ''} to Nyquist/{2 ** (k + 1)}"
        rows.append((what, [f"{measured[n]['octaves'][k]:.2f}" for n in names]))
    if "fd" in measured["tokenizer"]:
        rows.append((f"Fréchet distance, {evaluator}", [f"{measured[n]['fd']:.2f}" for n in names]))
    own = measured["tokenizer"]
    rows += [
        ("codebook in use", [f"{own['codebook_use']:.3f}", "-"]),
        ("perplexity", [f"{own['perplexity']:.0f}", "-"]),
    ]
    lines = [f"| {measured['n']:,} images | tokenizer | {BLOCKS} |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(values)} |" for name, values in rows)])
