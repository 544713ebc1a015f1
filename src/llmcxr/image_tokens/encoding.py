"""A data set straight from its files to codes, without keeping pixels: in parts that survive a kill, over several processes.

Shapes: N images, S side in pixels, L = g * g codes an image.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcxr.foundation.artifacts import atomic_path, write_json
from llmcxr.foundation.devices import freed_memory_kept
from llmcxr.image_tokens.classifier import batch_of
from llmcxr.image_tokens.codec import ImageCodec
from llmcxr.image_tokens.codes import write_codes
from llmcxr.studies.geometry import CENTRE_CROP, Geometry
from llmcxr.studies.image_files import read_squares

if TYPE_CHECKING:
    from llmcxr.foundation.processes import Processes

PART = 1024  # images of a part: what a kill can cost
_BATCH = 16
_KEY = b"part"


def encode_files(
    codec: ImageCodec,
    ids: Sequence[str],
    paths: Sequence[Path],
    folder: Path,
    processes: Processes,
    geometry: Geometry = CENTRE_CROP,
    part: int = PART,
) -> tuple[int, int]:
    """Write `folder`/codes.parquet (as `codes.write_codes`) and unreadable.json (image_id: reason): (images encoded, unreadable).

    Files are decoded in worker processes while batches run on the device. Each process of a launcher takes every so-many-th
    part; parts that are there, of the same tokenizer, files and geometry, are kept, so a killed run goes on with the same result.
    """
    names = [folder / "parts" / f"{first // part:06d}.parquet" for first in range(0, len(ids), part)]
    rows = [slice(first, min(first + part, len(ids))) for first in range(0, len(ids), part)]
    keys = [_key(codec, [*ids[r], *map(str, paths[r])], geometry) for r in rows]
    own = range(processes.rank, len(names), processes.count)
    todo = [k for k in own if not _is_done(names[k], keys[k])]
    read = read_squares([p for k in todo for p in paths[rows[k]]], codec.image_size, geometry)
    with freed_memory_kept():
        for k in todo:
            squares = itertools.islice(read, rows[k].stop - rows[k].start)
            _write_part(names[k], ids[rows[k]], squares, codec, processes, keys[k])
    result = [0, 0]

    def join() -> None:
        tables = pa.concat_tables([pq.read_table(name) for name in names])
        errors = tables["error"].to_pylist()
        kept = tables.filter(pa.array([e is None for e in errors]))
        unreadable = {i: e for i, e in zip(tables["image_id"].to_pylist(), errors, strict=True) if e is not None}
        L = codec.grid**2
        codes = np.array(kept["codes"].to_pylist(), dtype=np.uint16).reshape(-1, L)
        write_codes(folder / "codes.parquet", kept["image_id"].to_pylist(), codes, codec.fingerprint)
        write_json(folder / "unreadable.json", unreadable)
        result[:] = [len(kept), len(unreadable)]

    processes.wait()
    processes.on_main(join)
    return result[0], result[1]


def _key(codec: ImageCodec, named: Sequence[str], geometry: Geometry) -> bytes:
    """What a part's result depends on."""
    text = json.dumps([codec.fingerprint, repr(geometry), *named])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest().encode()


def _is_done(path: Path, key: bytes) -> bool:
    try:
        return (pq.read_schema(path).metadata or {}).get(_KEY) == key
    except (OSError, pa.ArrowException):
        return False


def _write_part(
    path: Path,
    ids: Sequence[str],
    squares: Iterable[np.ndarray | str],
    codec: ImageCodec,
    processes: Processes,
    key: bytes,
) -> None:
    """Encode images as they come, `_BATCH` at a time: the same batches whenever the part is written."""
    codes: list[list[int]] = []
    errors: list[str | None] = []
    waiting: list[np.ndarray] = []

    def encode() -> None:
        batch = batch_of(np.stack(waiting), np.arange(len(waiting)), processes.device)
        codes.extend(codec.encode(batch).flatten(1).tolist())
        waiting.clear()

    for square in squares:
        errors.append(square if isinstance(square, str) else None)
        if not isinstance(square, str):
            waiting.append(square)
        if len(waiting) == _BATCH:
            encode()
    if waiting:
        encode()
    encoded = iter(codes)
    columns = {
        "image_id": pa.array(list(ids), pa.string()),
        "codes": pa.array([None if e else next(encoded) for e in errors], pa.list_(pa.uint16())),
        "error": pa.array(errors, pa.string()),
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata({_KEY: key}), temporary)
