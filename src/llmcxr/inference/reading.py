"""Images in whatever form they come, to codes, and how unlike a model's training radiographs they are; codes to images.

Pixels are float32 [S, S] in [-1, 1], bone white.
Letters: N images, S side in pixels, L = g * g codes of an image, K codes in the codebook.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from llmcxr.foundation.errors import OutsideWarning, UserError
from llmcxr.foundation.texts import path_of
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.inference.outside import Outside, outside, statistics
from llmcxr.inference.policies import Asker
from llmcxr.model.outside import OutsideLimits
from llmcxr.studies.radiographs import load_square

ImageLike = str | Path | Image.Image | np.ndarray
_AT_ONCE = 32  # images in the image tokenizer together
_REMEMBERED = 1000  # images of which it is known whether they are outside


@dataclass(frozen=True)
class ReadImage:
    """Codes uint16 [L] of an image, and how unlike the model's training radiographs it is (None: given as codes, or not known)."""

    codes: np.ndarray
    outside: Outside | None = None


class ImageReader:
    """What a model sees of images, and shows of codes."""

    def __init__(self, asker: Asker, image_tokenizer: ImageTokenizer, limits: OutsideLimits | None) -> None:
        """`limits` as in `LlmCxr`."""
        self.asker, self.info, self.image_tokenizer, self.limits = asker, asker.info, image_tokenizer, limits
        self._looked: dict[bytes, Outside] = {}
        self._warned: set[bytes] = set()

    def pixels(self, image: ImageLike) -> np.ndarray:
        """Float32 [S, S] in [-1, 1] of an image that is not given as codes. `UserError` where it cannot be read."""
        size = self.info.image_size
        if isinstance(image, str | Path):
            image = path_of(image)
        if isinstance(image, Path | Image.Image):
            return load_square(image, size, self.info.geometry)
        try:
            own = image.detach().float().cpu() if isinstance(image, torch.Tensor) else image
            pixels = np.asarray(own, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"an image should be a path, a PIL image or an array of numbers, is {repr(image)[:80]}."
            ) from error
        if pixels.shape != (size, size):
            raise UserError(
                f"an image given as an array should be [{size}, {size}] in [-1, 1], is {list(pixels.shape)}."
            )
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -1 and high <= 1):  # also where a value is not a number
            raise UserError(f"an image given as an array should be in [-1, 1], is in [{low:g}, {high:g}].")
        if low == high:
            raise UserError(f"an image given as an array is {low:g} everywhere: it shows nothing.")
        return pixels

    def _codes(self, codes: np.ndarray) -> np.ndarray:
        L, K = self.info.grid**2, self.info.codebook_size
        if len(codes) != L or codes.min() < 0 or codes.max() >= K:
            raise UserError(f"codes of an image should be {L} whole numbers from 0 to {K - 1}, are {repr(codes)[:80]}.")
        return codes.astype(np.uint16)

    def _read(self, image: ImageLike) -> np.ndarray:
        """Pixels float32 [S, S], or codes uint16 [L] where it is given as codes."""
        if isinstance(image, np.ndarray) and image.ndim == 1 and image.size and image.dtype.kind in "iu":
            return self._codes(image)
        return self.pixels(image)

    def read_each(self, images: Sequence[ImageLike], look: bool = True) -> list[ReadImage | UserError]:
        """See `LlmCxr.read_each`; without a `look` it is not said whether images are outside."""
        result: list[ReadImage | UserError] = []
        for first in range(0, len(several(images, "images")), _AT_ONCE):
            read: list[np.ndarray | UserError] = []
            for image in images[first : first + _AT_ONCE]:
                try:
                    read.append(self._read(image))
                except UserError as error:
                    read.append(error)
            pixels = [one for one in read if isinstance(one, np.ndarray) and one.ndim == 2]
            codes = self._encoded(np.stack(pixels)) if pixels else np.zeros((0, 0))
            looks = self._look(pixels, codes) if look and self.limits is not None else [None] * len(pixels)
            encoded = iter(map(ReadImage, codes, looks))
            for one in read:
                if isinstance(one, UserError):
                    result.append(one)
                else:
                    result.append(next(encoded) if one.ndim == 2 else ReadImage(one))
        return result

    def _look(self, pixels: Sequence[np.ndarray], codes: np.ndarray) -> list[Outside]:
        """How unlike the training radiographs images with these codes [N, L] are, which is remembered."""
        keys = [_key(image) for image in pixels]
        new = [i for i, key in enumerate(keys) if key not in self._looked]
        if new:
            if len(self._looked) + len(new) > _REMEMBERED:
                self._looked = {key: look for key in keys if (look := self._looked.get(key))}
            chosen = codes[new]
            found = statistics(self.asker, np.stack([pixels[i] for i in new]), self.decode(chosen), chosen)
            self._looked |= {keys[i]: outside(own, self.limits) for i, own in zip(new, found, strict=True)}
        return [self._looked[key] for key in keys]

    def asked_about(self, images: Sequence[ImageLike]) -> np.ndarray:
        """Codes [N, L] of images that are asked about; an `OutsideWarning`, once an image, where answers mean little."""
        codes = list[np.ndarray]()
        for image, found in zip(images, self.read_each(images), strict=True):
            if isinstance(found, UserError):
                raise found
            codes.append(found.codes)
            key = _key(found.codes)
            if found.outside and found.outside.warned and key not in self._warned:
                self._warned.add(key)
                name = f"{image}: " if isinstance(image, str | Path) else ""
                warnings.warn(f"{name}{found.outside.told()}", OutsideWarning, stacklevel=3)
        return np.stack(codes) if codes else np.zeros((0, self.info.grid**2), dtype=np.uint16)

    def _encoded(self, pixels: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(pixels).unsqueeze(1).to(self.image_tokenizer.codebook.device)
        return self.image_tokenizer.encode(given).flatten(1).cpu().numpy().astype(np.uint16)

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        """Codes uint16 [N, L]. `UserError` for the first image that cannot be read."""
        codes = list[np.ndarray]()
        for found in self.read_each(images, look=False):
            if isinstance(found, UserError):
                raise found
            codes.append(found.codes)
        return np.stack(codes) if codes else np.zeros((0, self.info.grid**2), dtype=np.uint16)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [N, L] -> images float32 [N, S, S] in [-1, 1]."""
        g, S = self.info.grid, self.info.image_size
        grid = torch.from_numpy(np.asarray(codes).astype(np.int64)).reshape(-1, g, g)
        device = self.image_tokenizer.codebook.device
        parts = grid.split(_AT_ONCE) if len(grid) else ()
        images = [self.image_tokenizer.decode(part.to(device)).squeeze(1).cpu().numpy() for part in parts]
        return np.concatenate(images) if images else np.zeros((0, S, S), dtype=np.float32)

    def outside(self, image: ImageLike) -> Outside:
        """See `LlmCxr.outside`."""
        pixels = self.pixels(image)
        return self._look([pixels], self.encode([pixels]))[0]

    def statistics(self, images: Sequence[ImageLike]) -> np.ndarray:
        """See `LlmCxr.statistics`."""
        pixels = np.stack([self.pixels(image) for image in images])
        codes = self.encode(list(pixels))
        return statistics(self.asker, pixels, self.decode(codes), codes)


def several(given: Sequence[Any], what: str) -> Sequence[Any]:
    """`UserError` where it is one of them instead of several."""
    if isinstance(given, str | Path | Image.Image):
        raise UserError(f"{what} should be a list, are {repr(given)[:80]}. Put it in brackets.")
    return given


def _key(values: np.ndarray) -> bytes:
    return hashlib.sha256(values.tobytes()).digest()
