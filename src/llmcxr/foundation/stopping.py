"""How work is stopped: Ctrl-C and the end that a system asks for (SIGTERM, a closed terminal) are one thing.

`timeout`, Slurm and containers send SIGTERM, and kill half a minute later.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

# How a system asks a process to end.
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def exit_code(stop: KeyboardInterrupt) -> int:
    """What a shell expects of a process that `stop` ended: 128 and the number of the signal."""
    return 128 + (stop.args[0] if stop.args else signal.SIGINT)


@contextmanager
def _handled(signals: Sequence[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """`handler` for those of the signals that are not ignored (nohup), where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in signals}
    before = {s: own for s, own in before.items() if own is not None and own != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


@contextmanager
def ends_like_interrupts() -> Iterator[None]:
    """Within it, a system that asks the process to end raises `KeyboardInterrupt`, as Ctrl-C does, with its signal's
    number.

    Of processes that a launcher started, those that wait for the main one are left to end at once.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    with _handled([] if os.environ.get("RANK", "0") != "0" else ENDING, interrupt):
        yield


class Stop:
    """Whether the end was asked for: work that changes its state in steps looks here between two, and saves."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_between_steps(say: bool) -> Iterator[Stop]:
    """Within it, the first Ctrl-C, SIGTERM or closed terminal sets the flag that is given (and `say`s so); a second
    Ctrl-C interrupts at once."""
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        if say and stop.signal is None:
            once_more = " (Ctrl-C again: at once, without)" if number == signal.SIGINT else ""
            print(f"\nstopping after this step; its state is saved{once_more}", file=sys.stderr, flush=True)
        stop.signal = stop.signal or number

    with _handled([signal.SIGINT, *ENDING], note):
        yield stop
