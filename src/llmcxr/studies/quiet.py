"""Decoders warn of much that does not matter: what matters raises, or becomes a remark on the image."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_inside: list[Any] = []  # of the first reader, once for each that is at work


@contextmanager
def no_warnings() -> Iterator[None]:
    """Within it no warning is shown. Threads share the filters: the first reader sets them, the last puts them back."""
    with _lock:
        if not _inside:
            first: Any = warnings.catch_warnings()
            first.__enter__()
            warnings.simplefilter("ignore")
        _inside.append(_inside[0] if _inside else first)
    try:
        yield
    finally:
        with _lock:
            first = _inside.pop()
            if not _inside:
                first.__exit__(None, None, None)
