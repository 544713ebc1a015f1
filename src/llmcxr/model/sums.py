"""SHA256SUMS of a model folder: what its files were when it was made (`sha256sum -c` reads it), so that damage is
found.

Hashing gigabytes takes seconds, so a file whose size and time of change are those of an earlier check is not read
again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from llmcxr.foundation.artifacts import atomic_path, file_hashes, sha256, write_json, writing
from llmcxr.foundation.assets import cache_folder
from llmcxr.foundation.errors import UserError

SUMS = "SHA256SUMS"
_UPDATE = ".update"  # a file and the sums with it, on their way into the folder


def unpacked_models() -> Path:
    """The folder in the user's cache in which packed models lie unpacked."""
    return cache_folder() / "models"


def remedy(folder: Path) -> str:
    """What to do about a damaged model folder: a sentence."""
    if folder.resolve().parent == unpacked_models().resolve():
        return f"Delete the folder {folder}: it is made anew from the packed model."
    if (folder / "packed.json").exists():
        return "Fetch the packed model again (in a clone: git checkout, or git lfs pull where it is stored so)."
    return (
        f"Copy or fetch the model again; where a run made it, delete {folder} and run that again: only this is made "
        f"anew."
    )


def _files(folder: Path) -> list[Path]:
    """All but the sums themselves, what file managers leave behind, and what is on its way."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over every other file of `folder`."""
    lines = [f"{sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in _files(folder)]
    with atomic_path(folder / SUMS) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def put_json(folder: Path, name: str, value: Any) -> None:
    """Put what is learned of a model later into its `folder`, packed or not, as the file `name`, and into its sums where it has
    some. After a kill all is as it was, or the next who reads the sums ends it.

    `UserError` where another file is not the one that the sums describe: new ones would hide it.
    """
    if not (folder / SUMS).exists():
        write_json(folder / name, value)
        return
    check_sums(folder)
    with atomic_path(folder / _UPDATE) as update:
        write_json(update / name, value)
        others = [line for line in read_sums(folder).splitlines() if not line.endswith(f"  {name}")]
        lines = sorted([*others, f"{sha256(update / name)}  {name}"], key=lambda line: line.partition("  ")[2])
        (update / SUMS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    _end_update(folder)


def _end_update(folder: Path) -> None:
    """Move in what is whole and on its way: it need not be the process that made it."""
    update = folder / _UPDATE
    if update.is_dir():
        with writing(folder), suppress(FileNotFoundError):  # another process does the same
            for path in sorted(update.iterdir()):
                os.replace(path, folder / path.name)
            update.rmdir()


def read_sums(folder: Path) -> str:
    """The text of SHA256SUMS. `UserError` where it cannot be read."""
    _end_update(folder)
    try:
        return (folder / SUMS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / SUMS} cannot be read ({error}). {remedy(folder)}") from error


def check_sums(folder: Path) -> None:
    """`UserError` where a file of `folder` is missing or not the one of which its sums were made.

    In a packed model no other file may be there; an ordinary one may have been given a card.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(read_sums(folder).splitlines(), 1):
        digest, _, name = line.partition("  ")
        path = PurePosixPath(name)
        if len(digest) != 64 or not name or path.is_absolute() or ".." in path.parts:
            raise UserError(f"{folder / SUMS}, line {number}: is not a hash and a file of the model. {remedy(folder)}")
        sums[name] = digest
    if (folder / "packed.json").exists():
        if unknown := [p for p in _files(folder) if p.relative_to(folder).as_posix() not in sums]:
            raise UserError(f"{unknown[0]} is not part of the packed model that {SUMS} describes. {remedy(folder)}")
        sums.setdefault("adapters.safetensors", "")
    paths = {name: folder / name for name in sorted(sums)}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing: the model is not the one that {SUMS} describes. {remedy(folder)}")
    try:
        found = file_hashes(list(paths.values()), unpacked_models() / "file_hashes")
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error}). Check it and its permissions.") from error
    if damaged := [path for name, path in paths.items() if found[path] != sums[name]]:
        change = (
            "" if remedy(folder).startswith(("Delete", "Fetch")) else f" If you changed it, delete {folder / SUMS}."
        )
        raise UserError(
            f"{damaged[0]} is damaged or was changed: the model is not the one that {SUMS} describes. "
            f"{remedy(folder)}{change}"
        )
