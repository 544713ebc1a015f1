"""What a run lets its model know of images that it was not trained on (model/outside.py)."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from llmcxr.foundation.errors import UserError
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.model.outside import FEWEST, OutsideLimits
from llmcxr.studies.pixel_store import Images
from llmcxr.studies.radiographs import from_uint8

MOST = 1000  # images: more say little more
_AT_ONCE = 16


def limits_of(model: LlmCxr, images: Images) -> OutsideLimits | None:
    """From unseen images uint8 [N, S, S] of the kind that the model was trained on; None where they are too few."""
    if len(images) < FEWEST:
        return None
    if images.shape[1] != model.info.image_size:
        raise UserError(
            f"the run's images are {images.shape[1]} pixels a side, the model's {model.info.image_size}. Prepare a run of that size."
        )
    count, parts = min(MOST, len(images)), []
    for first in tqdm(range(0, count, _AT_ONCE), desc="outside", unit="batch"):
        rows = np.arange(first, min(first + _AT_ONCE, count))
        parts.append(model.statistics(list(from_uint8(images[rows]))))
    return OutsideLimits.of(np.concatenate(parts))
