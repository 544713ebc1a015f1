"""How work is stopped: Ctrl-C and the end that a system asks for (SIGTERM, a closed terminal) are one thing, and
leave nothing.

`timeout`, Slurm and containers send SIGTERM, and kill half a minute later.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


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
    """Within it, a system that asks the process to end raises `KeyboardInterrupt`, as Ctrl-C does, with the signal's
    number.

    Of processes that a launcher started, those that wait for the main one are left to end at once.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    with _handled([] if os.environ.get("RANK", "0") != "0" else _ENDING, interrupt):
        yield


class Stop:
    """Whether the end was asked for: work that changes its state in steps looks here between two, and saves."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_between_steps(say: bool) -> Iterator[Stop]:
    """Within it, the first Ctrl-C, SIGTERM or closed terminal sets the flag that is given (and `say`s so); a second
    Ctrl-C
    interrupts at once."""
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        if say and stop.signal is None:
            once_more = " (Ctrl-C again: at once, without)" if number == signal.SIGINT else ""
            print(f"\nstopping after this step; its state is saved{once_more}", file=sys.stderr, flush=True)
        stop.signal = stop.signal or number

    with _handled([signal.SIGINT, *_ENDING], note):
        yield stop


def _end_with_parent() -> None:
    """Let this worker process end as soon as the one that started it does, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


Submit = Callable[..., Future[Any]]


@contextmanager
def worker_processes(count: int) -> Iterator[Submit]:
    """Up to `count` fresh processes, and what gives them work (as `Executor.submit`); left early, they are ended at once.

    They end with this one, also where it is killed, and leave its signals to it. A future raises `BrokenProcessPool` where
    one of them dies.
    """
    context = multiprocessing.get_context("spawn")  # fork would copy torch's threads
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, context, _end_with_parent)  # starts multiprocessing's own helper, too

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        blocks = hasattr(signal, "pthread_sigmask")  # what is blocked here stays blocked in processes that are started
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, *_ENDING]) if blocks else set()
        try:
            return pool.submit(function, *arguments)
        finally:
            if blocks:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield submit
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise
    pool.shutdown()


def in_workers(function: Callable[[T], object], items: Sequence[T], count: int) -> Generator[object, None, None]:
    """What `function` gives for the `items`, as it comes, from `count` worker processes. Close it to end them at once."""
    with worker_processes(count) as submit:
        for future in as_completed([submit(function, item) for item in items]):
            yield future.result()
