"""What a labeller reads in all reports of a data set: each text once, and kept as it goes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

States = dict[str, int]
_FLUSH = 1000  # texts


def read_all(
    texts: Iterable[str], read: Callable[[Sequence[str]], Iterable[States]], key: str, kept: Path | None = None
) -> dict[str, States]:
    """Text -> what it says of findings (1, 0, -1), of every text; `read` gives those of several texts, in order, as it
    goes.

    `kept` is a file that takes what is read as it goes; one that is there, of the same `key` (the labeller), is gone on
    with. The caller removes it when the labels are safe.
    """
    todo = list(dict.fromkeys(texts))
    before = _read_kept(kept, key) if kept is not None else {}
    found = {text: before[name] for text in todo if (name := _name(text)) in before}
    todo = [text for text in todo if text not in found]
    if not todo:
        return found
    stream = None
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        stream = open(kept, "a" if before else "w", encoding="utf-8")  # noqa: SIM115
        if not before:
            stream.write(json.dumps(key) + "\n")
    try:
        for count, (text, states) in enumerate(zip(todo, read(todo), strict=True), 1):
            found[text] = states
            if stream is not None:
                stream.write(json.dumps([_name(text), states]) + "\n")
                if count % _FLUSH == 0:
                    stream.flush()
    finally:
        if stream is not None:
            stream.close()
    return found


def _name(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _read_kept(path: Path, key: str) -> dict[str, States]:
    """What a run that was cut off had read; nothing of another labeller. A line that was cut off is read anew."""
    found: dict[str, States] = {}
    if not path.exists():
        return found
    with open(path, encoding="utf-8", errors="replace") as lines:
        if next(lines, "").strip() != json.dumps(key):
            return found
        for line in lines:
            try:
                name, states = json.loads(line)
            except ValueError:
                continue
            found[name] = states
    return found
