"""Files of a run: atomic writes, fingerprints, and the record that lets a finished stage be skipped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmcxr.foundation.errors import UserError

_HALF = ".partial"  # end of the names of folders in which outputs are made
_LEFT = re.compile(rf"\..+\.[a-z0-9_]{{8}}\{_HALF}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_output(path: Path, folder: bool = False) -> None:
    """`UserError` where an output cannot be written as `path`, or would take the place of what is never replaced.

    That is all but a regular file that may be written (`folder`: all but a folder). Nothing is made.
    """
    place = _place(path)
    if place.exists() and place.is_dir() != folder:
        what = "a file, where a folder is to be written" if place.is_file() else "a folder. Name a file"
        raise UserError(f"cannot write {path}: it is {what}.")
    above = place.parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: {above} is no folder that can be written. Name another place.")


def check_new_folder(path: Path) -> None:
    """`UserError` as `check_output`, and for a folder that holds anything: what is in it would be gone."""
    check_output(path, folder=True)
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"cannot write {path}: it is a folder that is not empty. Name a new one.")


def _place(path: Path) -> Path:
    """Where `path` leads through links. `UserError` for a device, a pipe or a file that is read-only."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Path(os.path.realpath(path))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Name another place.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"cannot write {path}: it is a device, a pipe or a socket, not a file. Name another place.")
    if stat.S_ISREG(mode) and not (mode & 0o222 and os.access(path, os.W_OK)):  # to root the system allows all
        raise UserError(f"cannot write {path}: it is read-only. Name another place, or make it writable (chmod u+w).")
    return Path(os.path.realpath(path))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file or folder name beside `path`; on success it replaces `path`, on failure it is removed.

    A reader therefore sees the old content or the whole new one, also after a kill or on a full disk. Links are
    written through,
    a file keeps its permissions. `UserError` where the system cannot write, with the reason and sizes, and for what
    is never
    replaced (`check_output`).
    """
    path, holder = Path(path), None
    place = _place(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(_HALF, f".{place.name[:100]}.", place.parent))
        temporary = holder / place.name
        yield temporary
        if temporary.is_dir() and place.is_dir():  # a folder cannot be renamed over a full one
            os.rename(place, holder / "old")
        elif place.is_file():
            shutil.copymode(place, temporary)
        try:
            os.replace(temporary, place)
        except OSError:
            if (holder / "old").exists():
                os.rename(holder / "old", place)
            raise
    except UserError:
        raise
    except Exception as error:
        if (fault := _system_fault(error)) is None:
            raise
        raise cannot_write(path, fault, holder) from error
    finally:
        if holder is not None:
            shutil.rmtree(holder, ignore_errors=True)


def _system_fault(error: Exception) -> OSError | None:
    """What the system said, where it is behind an error: safetensors and tokenizers have it in their text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    number = None
    if found := re.search(r"\b(?:os error|errno) (\d+)", str(error), re.IGNORECASE):
        number = int(found[1])
    if number is None:
        return error if isinstance(error, OSError) else None
    return OSError(number, os.strerror(number))


def cannot_write(path: Path, fault: OSError, written: Path | None = None, needed: int | None = None) -> UserError:
    """What to tell of a `fault` in writing `path`; `written` is the file or folder as far as it came, `needed` its
    bytes if known."""
    reason = str(fault) if fault.errno is None else os.strerror(fault.errno)
    if fault.errno not in _FULL:
        if fault.filename and _HALF not in str(fault.filename):  # what is copied, or a folder above
            reason += f" ({fault.filename})"
        return UserError(f"cannot write {path}: {reason}. Check the place and its permissions, then run again.")
    files = [p for p in (written.rglob("*") if written and written.is_dir() else [written]) if p and p.is_file()]
    takes = f"{_size(sum(p.stat().st_size for p in files))} of it were written"
    if needed is not None:
        takes = f"it takes {_size(needed)}"
    near = next(p for p in Path(os.path.abspath(path)).parents if p.exists())
    return UserError(
        f"cannot write {path}: {reason} ({takes}, {_size(shutil.disk_usage(near).free)} are free). Free disk space, "
        "or name a place "
        "on a larger disk (of a run: `runs`), then run again."
    )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes to `path` in place: `UserError` with the reason where the system cannot."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (fault := _system_fault(error)) is None:
            raise
        raise cannot_write(path, fault) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of their temporary folders anywhere in `folder`, which nobody else writes in
    now."""
    for parent, folders, _ in os.walk(folder):
        for name in [name for name in folders if _LEFT.fullmatch(name)]:
            shutil.rmtree(Path(parent) / name, ignore_errors=True)
            folders.remove(name)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; `UserError` names the file where it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Run the stage that writes it first.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}). Check it and its permissions.") from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number or nesting without end
        raise UserError(
            f"{path} is not readable as JSON ({error}). Delete it and run the stage that writes it again."
        ) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """Twelve hex digits that identify JSON-able values and the contents of files (given as `Path`)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            digest.update(bytes.fromhex(sha256(part)))
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def file_hashes(files: Sequence[Path], memo: Path) -> dict[Path, str]:
    """SHA-256 of each file, in hex.

    Weights are many gigabytes, so `memo` (a JSON file) keeps each file's hash, and a file whose size and time of change
    are the same is not read again. A memo that cannot be read or written is done without. Raises OSError where a file
    cannot be read.
    """
    try:
        known = read_json(memo) if memo.exists() else {}
    except (UserError, OSError):
        known = {}
    known = known if isinstance(known, dict) else {}
    now: dict[str, Any] = {}
    result: dict[Path, str] = {}
    for file in files:
        state = file.stat()
        key, entry = str(file.resolve()), known.get(str(file.resolve()))
        same = isinstance(entry, list) and entry[:2] == [state.st_size, state.st_mtime_ns] and len(entry[2]) == 64
        now[key] = entry if same else [state.st_size, state.st_mtime_ns, sha256(file)]
        result[file] = now[key][2]
    if memo.parent.is_dir() and any(known.get(key) != entry for key, entry in now.items()):
        with suppress(UserError):
            write_json(memo, {key: entry for key, entry in known.items() if os.path.exists(key)} | now)
    return result


# What loaders of models read; a folder may hold much else (optimizer states, logs, pictures).
_MODEL_FILES = {".json", ".safetensors", ".bin", ".gguf", ".model", ".txt", ".jinja"}


def content_fingerprint(path: Path, memo: Path, without: Sequence[str] = ()) -> str:
    """Twelve hex digits that identify a file, or the model in a folder (names and contents of the files that loaders read,
    `without` those names).

    "" for what is not there. `memo` as in `file_hashes`. Moving or copying does not change the result.
    Raises `UserError` where a file cannot be read.
    """
    path = path.expanduser()
    try:
        files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
        files = [p for p in files if p == path or (p.suffix in _MODEL_FILES and p.name[0] != "." and p.is_file())]
        files = [p for p in files if p == path or p.name not in without]
        hashes = file_hashes(files, memo)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}). Check it and its permissions.") from error
    names = [
        (file.name if path.is_dir() else "", hashlib.sha256(bytes.fromhex(hashes[file]) + b"\0").hexdigest()[:12])
        for file in files
    ]
    return fingerprint(names) if files else ""
