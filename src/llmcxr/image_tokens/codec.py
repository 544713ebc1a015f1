"""ImageCodec: radiographs to a grid of codes and back, whatever network does it.

Shapes: B images, S side in pixels, g side of the code grid, K codes in the codebook, D dimension of a code vector.
Pixels: float [B, 1, S, S] in [-1, 1], bone white. Codes: int64 [B, g, g] in [0, K).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor


class ImageCodec(Protocol):
    """What the rest of llmcxr needs of an image tokenizer."""

    fingerprint: str  # of the weights on disk: codes of two codecs must never be mixed

    @property
    def image_size(self) -> int:
        """S."""

    @property
    def grid(self) -> int:
        """g."""

    @property
    def codebook(self) -> Tensor:
        """Code vectors [K, D]."""

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 1, S, S] -> codes [B, g, g]."""

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, g, g] -> images float32 [B, 1, S, S] in [-1, 1]."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors."""
