"""The images of a run in one file, pixels.npy: uint8 [N, S, S] (0 is -1, 255 is 1), row i of which is study i.

Rows are read as they are asked for, so a selection of rows costs no memory.
Letters: N images, S side in pixels.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from llmcxr.foundation.artifacts import atomic_path, cannot_write
from llmcxr.foundation.devices import core_count
from llmcxr.foundation.errors import UserError
from llmcxr.studies.geometry import CENTRE_CROP, Geometry
from llmcxr.studies.image_notes import UNREADABLE, ImageNote, read_image
from llmcxr.studies.study import Study

logger = logging.getLogger(__name__)

_BLOCK = 1024  # images in memory at once while the file is written
_TOO_MANY = 0.1  # share of unreadable images (of more than three) that is a wrong path, not a few bad files


class PixelStore:
    """Rows of a pixels.npy on disk; indexed as an array is, by a row, a slice or an array of rows, it reads those rows.

    Read, not mapped: where a system reads megabytes ahead of a page that is missing, rows in random order took ten times as long.
    """

    def __init__(self, path: Path, rows: np.ndarray | None = None) -> None:
        """Open a file that `write` made; only its `rows` int [N] count (None: all). `UserError` where it is missing or broken."""
        self.path = Path(path).resolve()
        try:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115
            np.lib.format.read_magic(self._file)
            (count, *side), _, kind = np.lib.format.read_array_header_1_0(self._file)
            self._first, self._shape = self._file.tell(), tuple(side)
            length = self._first + count * int(np.prod(side))
            if len(side) != 2 or kind != np.uint8 or os.path.getsize(self.path) < length:
                raise ValueError(f"{kind} of shape {(count, *side)} in {os.path.getsize(self.path)} bytes")
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist. Run the `studies` stage first.") from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is not readable ({error}). Delete it and run the `studies` stage again."
            ) from error
        self._rows, self._lock = np.arange(count) if rows is None else rows, threading.Lock()
        _OPEN.add(self)

    @classmethod
    def open(cls, path: Path) -> PixelStore:
        """All rows of a file. `UserError` where it is missing or broken."""
        return cls(path)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S)."""
        return len(self), *self._shape

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return np.dtype(np.uint8)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [S, S] for a row, [n, S, S] for several."""
        chosen = self._rows[index]
        images = np.empty((chosen.size, int(np.prod(self._shape))), dtype=np.uint8)
        for image, row in zip(images, chosen.flat, strict=True):
            if self._read(image.data, self._first + int(row) * image.size) < image.size:
                raise UserError(f"{self.path} was cut off while it was read. Run the `studies` stage again.")
        return images.reshape(*chosen.shape, *self._shape)

    def _read(self, into: memoryview, place: int) -> int:
        if hasattr(os, "preadv"):  # leaves alone the place in the file, which forked processes share
            return os.preadv(self._file.fileno(), [into], place)
        with self._lock:
            self._file.seek(place)
            return self._file.readinto(into) or 0

    def select(self, rows: Sequence[int] | np.ndarray) -> PixelStore:
        """The store of these rows only; nothing is read."""
        return PixelStore(self.path, self._rows[np.asarray(rows, dtype=np.int64)])

    def close(self) -> None:
        """Let go of the file; the store is empty then."""
        self._file.close()
        self._rows = self._rows[:0]

    def __reduce__(self) -> tuple[Any, ...]:  # to other processes the path travels, not the pixels
        return PixelStore, (self.path, self._rows)

    @staticmethod
    def write(
        path: Path,
        studies: Sequence[Study],
        root: Path,
        size: int,
        geometry: Geometry = CENTRE_CROP,
        leave_out_implausible: bool = False,
    ) -> tuple[list[Study], list[ImageNote]]:
        """Read the images of `studies` (relative paths are below `root`) into the file, on all cores.

        Returns the studies kept, in order, row by row those of the file, and a note on the image of every study; the
        first three that are left out are logged. A store that is open on the file is closed. Raises `UserError` where
        the disk is too small, where nothing is left, or as soon as more than three and more than a tenth of all images
        cannot be read.
        """
        for store in [store for store in _OPEN if store.path == Path(path).resolve()]:
            store.close()
        kept: list[Study] = []
        notes: list[ImageNote] = []
        faults: list[str] = []  # other modalities and implausible images are none: a folder may hold many

        def load(study: Study) -> tuple[np.ndarray | None, ImageNote]:
            return read_image(study, root, size, geometry, leave_out_implausible)

        with (
            atomic_path(path) as temporary,
            open(temporary, "w+b") as file,
            _reading_threads() as pool,
            tqdm(total=len(studies), desc="reading images", unit="image") as bar,
        ):
            _write_header(file, len(studies), size)
            _reserve(file, file.tell() + len(studies) * size**2, path)
            for first in range(0, len(studies), _BLOCK):
                for study, (image, note) in zip(
                    studies[first : first + _BLOCK], pool.map(load, studies[first : first + _BLOCK]), strict=True
                ):
                    notes.append(note)
                    if image is None:
                        if len(notes) - len(kept) <= 3:
                            logger.warning("left out: %s", note.error or f"{note.image_path} ({note.left_out})")
                        if note.left_out == UNREADABLE:
                            faults.append(note.error)
                    else:
                        kept.append(study)
                        file.write(image.tobytes())
                    bar.update()
                if len(faults) > max(3, _TOO_MANY * len(studies)):
                    break
            if len(faults) > max(3, _TOO_MANY * len(studies)) or (notes and not kept):
                raise UserError(_too_many(notes, faults, len(studies)))
            file.truncate()
            file.seek(0)
            _write_header(file, len(kept), size)  # as long as before: numpy leaves room for any N
        return kept, notes


Images = PixelStore | np.ndarray  # uint8 [N, S, S], read as `images[rows]`
_OPEN: weakref.WeakSet[PixelStore] = weakref.WeakSet()


def _too_many(notes: Sequence[ImageNote], faults: Sequence[str], count: int) -> str:
    if not faults:
        return (
            f"none of {count} images can be used. The first: {notes[0].error or notes[0].image_path} "
            f"({notes[0].left_out})"
        )
    return (
        f"{len(faults)} of {count} images cannot be read, too many to go on. The first: {faults[0]}\n"
        f"Check the folder of the images in the recipe's source."
    )


@contextmanager
def _reading_threads() -> Iterator[ThreadPoolExecutor]:
    """One a core; where reading is broken off, what waits is not read any more."""
    pool = ThreadPoolExecutor(core_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size)}
    np.lib.format.write_array_header_1_0(file, header)


def _reserve(file: BinaryIO, length: int, path: Path) -> None:
    """Take the room now, where the system can: a disk that is too small is known before hours are spent."""
    try:
        file.flush()
        os.posix_fallocate(file.fileno(), 0, length)
    except AttributeError:  # Windows, macOS
        return
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):  # others: a file system that cannot reserve
            raise cannot_write(path, error, needed=length) from error
