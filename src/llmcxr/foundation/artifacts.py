"""Files of a run: atomic writes, fingerprints, and the record that lets a finished stage be skipped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmcxr.foundation.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file or folder name beside `path`; on success it replaces `path`, on failure it is removed.

    A reader therefore sees the old content or the whole new one, also after a kill or on a full disk.
    """
    path = Path(path)
    holder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary = holder / path.name
        yield temporary
        if temporary.is_dir() and path.is_dir():  # a folder cannot be renamed over a full one
            os.rename(path, holder / "old")
        try:
            os.replace(temporary, path)
        except OSError:
            if (holder / "old").exists():
                os.rename(holder / "old", path)
            raise
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error}. Free disk space or check its permissions, then run again."
        ) from error
    finally:
        if holder is not None:
            shutil.rmtree(holder, ignore_errors=True)


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

    Weights are many gigabytes, so `memo` (a JSON file) keeps each file's hash, and a file whose size and time of change are the same
    is not read again. A memo that cannot be read or written is done without. Raises OSError where a file cannot be read.
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


def content_fingerprint(path: Path, memo: Path) -> str:
    """Twelve hex digits that identify a file, or the model in a folder (names and contents of the files that loaders read).

    "" for what is not there. `memo` as in `file_hashes`. Moving or copying does not change the result.
    Raises `UserError` where a file cannot be read.
    """
    path = path.expanduser()
    try:
        files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
        files = [p for p in files if p == path or (p.suffix in _MODEL_FILES and p.name[0] != "." and p.is_file())]
        hashes = file_hashes(files, memo)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}). Check it and its permissions.") from error
    names = [
        (file.name if path.is_dir() else "", hashlib.sha256(bytes.fromhex(hashes[file]) + b"\0").hexdigest()[:12])
        for file in files
    ]
    return fingerprint(names) if files else ""
