"""How unlike its training radiographs an image is to a model: what its image tokens lose of it, and how likely they are.

Neither alone is enough: noise is made of likely codes but cannot be drawn, and a real radiograph is drawn well enough by codes that
stand where no training image had them (benchmarks/outside.py).
Letters: N images, S side in pixels, L codes of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmcxr.inference.policies import Asker
from llmcxr.model.outside import WARNED, OutsideLimits


@dataclass(frozen=True)
class Outside:
    """How unlike a model's training radiographs an image is."""

    l1: float  # mean absolute error of its reconstruction, as a share of the range of pixels
    code_nats: float  # mean -log p of its codes in a drawing without a report
    score: float | None = None  # see `OutsideLimits`; None, as the next, where the model does not say what is usual
    more_unlike_than: float | None = None  # share of unseen images of the kind it was trained on

    @property
    def warned(self) -> bool:
        """Whether answers about the image mean little."""
        return self.more_unlike_than is not None and self.more_unlike_than >= WARNED

    def told(self) -> str:
        """What the numbers mean, a sentence."""
        if self.more_unlike_than is None:
            return "what is usual was not measured of this model (llmcxr measure-outside)"
        share = f"more unlike its training radiographs than {self.more_unlike_than:.0%} of unseen ones of their kind"
        if not self.warned:
            return share
        return f"outside what this model was trained on: {share}; its answers mean little"


def statistics(asker: Asker, pixels: np.ndarray, reconstructions: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Of images and their reconstructions [N, S, S] in [-1, 1] with codes [N, L]: float64 [N, 2], as in `OutsideLimits`."""
    l1 = np.abs(pixels.astype(np.float64) - reconstructions).mean((1, 2)) / 2
    prompts = asker.prompts([asker.drawing("")] * len(codes), "image")
    likelihoods = asker.backend.code_log_probabilities(prompts, codes)
    own = np.take_along_axis(likelihoods, codes[..., None].astype(np.int64), 2)[..., 0]
    return np.stack([np.log(np.maximum(l1, 1e-6)), -own.mean(1, dtype=np.float64)], axis=1)


def outside(found: np.ndarray, limits: OutsideLimits | None) -> Outside:
    """What statistics [2] of an image say under `limits`."""
    l1, nats = float(np.exp(found[0])), float(found[1])
    if limits is None:
        return Outside(l1, nats)
    score = float(limits.score(found[None])[0])
    return Outside(l1, nats, score, limits.share_below(score))
