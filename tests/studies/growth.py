"""How the time of a reader of texts grows with their length."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

ATTEMPTS = 4  # what disturbs one is not there in all; a square is


def grows_with_length(read: Callable[[str], object], piece: str, short: int = 4_000, factor: int = 16) -> bool:
    """Whether a text `factor` times as long takes about so many times as long, and not the square of it.

    Only this thread's time counts, without collections of what the tests before have left; true if one attempt shows it.
    """

    def seconds(length: int) -> float:
        text = piece * (length // len(piece)) + "x"
        begin = time.thread_time()
        read(text)
        return time.thread_time() - begin

    gc.collect()
    gc.disable()
    try:
        return any(seconds(factor * short) < factor**1.5 * seconds(short) + 0.01 for _ in range(ATTEMPTS))
    finally:
        gc.enable()
