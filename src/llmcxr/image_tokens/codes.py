"""The code store: every image encoded once, with the fingerprint of the tokenizer that made the codes.

Shapes: N images, L = g * g codes an image, row by row from the top left.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.classifier import batch_of
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.studies.pixel_store import Images

_KEY = b"image_tokenizer"


def encode_images(tokenizer: ImageTokenizer, images: Images, device: torch.device, batch_size: int = 64) -> np.ndarray:
    """uint8 images [N, S, S] -> codes uint16 [N, L]."""
    parts = []
    for first in tqdm(range(0, len(images), batch_size), desc="encode", unit="batch"):
        rows = np.arange(first, min(first + batch_size, len(images)))
        codes = tokenizer.encode(batch_of(images, rows, device))
        parts.append(codes.flatten(1).cpu().numpy().astype(np.uint16))
    return np.concatenate(parts)


def write_codes(path: Path, image_ids: list[str], codes: np.ndarray, tokenizer_fingerprint: str) -> None:
    """Write codes uint16 [N, L] as parquet: image_id, codes."""
    table = pa.table(
        {"image_id": image_ids, "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), codes.shape[1])}
    )
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({_KEY: tokenizer_fingerprint.encode()}), temporary)


def read_codes(path: Path, tokenizer_fingerprint: str) -> dict[str, np.ndarray]:
    """image_id -> codes uint16 [L]. `UserError` where another tokenizer made them: the two must never be mixed."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}). Run the `codes` stage again.") from error
    found = (table.schema.metadata or {}).get(_KEY, b"").decode()
    if found != tokenizer_fingerprint:
        raise UserError(
            f"{path} was made by image tokenizer {found or 'unknown'}, not by {tokenizer_fingerprint}. Run the `codes` stage again."
        )
    codes = np.stack(table["codes"].to_numpy(zero_copy_only=False)) if len(table) else np.zeros((0, 0), np.uint16)
    return dict(zip(table["image_id"].to_pylist(), codes.astype(np.uint16), strict=True))
