"""Rows of texts in Parquet files: frozen dataclasses of which every field is a string, written and read in batches.

Millions of them fit where a million Python objects would not: `TextRows` keeps each text of a column once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args, get_type_hints, overload

import numpy as np

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError

if TYPE_CHECKING:  # recipes are read, and commands say their help, without it
    import pyarrow.parquet as pq

Row = TypeVar("Row")

_BATCH = 16_384  # rows of a row group, and those that are Python objects at a time


def write_rows(path: Path, kind: type[Row], rows: Iterable[Row]) -> int:
    """Write a Parquet file, atomically, in as little memory as one batch takes; how many rows there were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, count = _names(kind), 0
    schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in names])
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        stream = iter(rows)
        while batch := list(islice(stream, _BATCH)):
            columns = [pa.array([getattr(row, name) for row in batch], pa.string()) for name in names]
            writer.write_table(pa.table(columns, schema=schema))
            count += len(batch)
    return count


def read_rows(path: Path, kind: type[Row], source: str) -> Iterator[Row]:
    """The rows of a file as they are read.

    `UserError` where it is missing, broken or of another version; `source` is the command that makes the file.
    """
    names, allowed = _names(kind), _allowed(kind)
    with _File(path, names, source) as held:
        for batch in held.iter_batches(_BATCH, columns=names):
            columns = [batch.column(name).to_pylist() for name in names]
            _check(dict(zip(names, columns, strict=True)), allowed, path, source)
            for row in zip(*columns, strict=True):
                yield kind(*row)


class TextRows(Sequence[Row], Generic[Row]):
    """The rows of a file in memory: of each column its different texts once, and four bytes a row."""

    def __init__(self, path: Path, kind: type[Row], source: str) -> None:
        """`UserError` as `read_rows`."""
        names, allowed = _names(kind), _allowed(kind)
        self._kind = kind
        with _File(path, names, source) as held:
            table = held.read(columns=names).unify_dictionaries()
        columns = [table.column(name).combine_chunks() for name in names]
        self._texts = [column.dictionary for column in columns]
        self._places = [column.indices.to_numpy(zero_copy_only=False) for column in columns]
        values = {name: own.to_pylist() for name, own in zip(names, self._texts, strict=True) if name in allowed}
        _check(values, allowed, path, source)

    def __len__(self) -> int:
        return len(self._places[0])

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return self._rows([places[at] for places in self._places])
        return self._kind(*(own[int(p[at])].as_py() for own, p in zip(self._texts, self._places, strict=True)))

    def __iter__(self) -> Iterator[Row]:
        for begin in range(0, len(self), _BATCH):
            yield from self[begin : begin + _BATCH]

    def _rows(self, places: Sequence[np.ndarray]) -> list[Row]:
        import pyarrow as pa

        columns = [own.take(pa.array(p)).to_pylist() for own, p in zip(self._texts, places, strict=True)]
        return [self._kind(*row) for row in zip(*columns, strict=True)]


class _File:
    """A Parquet file that is open for reading, and whose faults are a `UserError`."""

    def __init__(self, path: Path, names: Sequence[str], source: str) -> None:
        self._path, self._names, self._source = path, names, source

    def __enter__(self) -> pq.ParquetFile:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(self._path)
            texts = [field.name for field in schema if field.type == pa.string() and not field.nullable]
            if not (missing := [name for name in self._names if name not in texts]):
                self._held = pq.ParquetFile(self._path, read_dictionary=list(self._names))
                return self._held
        except (OSError, pa.ArrowException) as error:
            raise self._fault(error) from error
        raise UserError(
            f"{self._path} lacks the columns of text {', '.join(missing)}: it is something else, or another version wrote it. "
            f"Remove it and make it again ({self._source})."
        )

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        self._held.close()
        if isinstance(error, OSError | pa.ArrowException):
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> UserError:
        if isinstance(error, FileNotFoundError):
            return UserError(f"{self._path} does not exist. It comes of {self._source}: run that first.")
        return UserError(
            f"{self._path} is not a readable parquet file ({error}). Remove it and make it again ({self._source})."
        )


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _allowed(kind: type[Any]) -> dict[str, tuple[str, ...]]:
    """The values that a column may have, of those whose type lists them (`Literal`)."""
    return {name: get_args(hint) for name, hint in get_type_hints(kind).items() if get_args(hint)}


def _check(columns: dict[str, list[str]], allowed: dict[str, tuple[str, ...]], path: Path, source: str) -> None:
    for name, values in allowed.items():
        if odd := set(columns[name]).difference(values):
            raise UserError(
                f"{path} has the {name} {min(odd, key=str)!r}, which is none of {', '.join(filter(None, values))}. "
                f"Remove it and make it again ({source})."
            )
