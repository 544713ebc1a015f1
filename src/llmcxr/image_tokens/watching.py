"""What one looks at while the image tokenizer is trained: curves, and validation images beside what its codes keep, in TensorBoard.

Shapes: n images shown, S side in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmcxr.foundation.optional import require
from llmcxr.image_tokens.classifier import batch_of
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.studies.pixel_store import Images
from llmcxr.studies.radiographs import to_uint8

_SHOWN = 8


def tensorboard() -> Any:
    """The package's writer. `UserError` where it cannot be had."""
    require("tensorboard", "image_tokenizer.pictures_every", "image_tokenizer.pictures_every=0")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


class Watching:
    """Writes into `folder`/logs; what a training that was resumed wrote after its checkpoint is hidden."""

    def __init__(self, folder: Path, images: Images) -> None:
        """`images` uint8 [N, S, S], of which the first few are shown."""
        self.folder, self.images = folder / "logs", images[np.arange(min(_SHOWN, len(images)))]
        self.writer: Any = None

    def write(self, step: int, tokenizer: ImageTokenizer, terms: dict[str, float], device: torch.device) -> None:
        """The running means of the losses, and a grid: originals above, reconstructions by the weights of this step below."""
        if self.writer is None:
            self.writer = tensorboard()(str(self.folder), purge_step=step)
        for name, value in terms.items():
            self.writer.add_scalar(f"image_tokenizer/{name}", value, step)
        if len(self.images):
            x = batch_of(self.images, np.arange(len(self.images)), device)
            tokenizer.eval()
            again = to_uint8(tokenizer.decode(tokenizer.encode(x))[:, 0].cpu().numpy())
            tokenizer.train()
            grid = np.concatenate([np.concatenate(list(row), axis=1) for row in (self.images, again)])
            self.writer.add_image("validation", grid, step, dataformats="HW")
        self.writer.flush()
