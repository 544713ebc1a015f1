"""Work that is shared over the cores of one machine, for what is done once to every file or text of a data set."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

from tqdm import tqdm

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.stopping import ENDING

T = TypeVar("T")
R = TypeVar("R")

_WORTH = 4000  # items; starting processes takes seconds


def in_processes(
    function: Callable[[T], R],
    items: Sequence[T],
    desc: str,
    unit: str,
    chunk: int = 500,
    worth: int = _WORTH,
    done: int = 0,
) -> Iterator[R]:
    """`map(function, items)` on all cores, in order and with a progress bar; in this process where the items are few.

    `function` and items travel to other processes, so the function is one of a module's top level (or a partial of
    one). Results come as they are ready, and no more than a few chunks are ahead. `done` items were done before, and
    the bar says so. `UserError` where a process dies.
    """
    from llmcxr.foundation.devices import core_count  # torch, which the processes themselves do not need

    bar = tqdm(total=done + len(items), initial=done, desc=desc, unit=unit)
    count = min(core_count(), math.ceil(len(items) / chunk))
    with bar:
        if len(items) < worth or count < 2:
            for item in items:
                yield function(item)
                bar.update()
            return
        with _worker_processes(count) as submit:
            chunks = (items[i : i + chunk] for i in range(0, len(items), chunk))
            waiting = deque(submit(_each, function, c) for c in itertools.islice(chunks, 3 * count))
            try:
                while waiting:
                    results = waiting.popleft().result()
                    waiting.extend(submit(_each, function, c) for c in itertools.islice(chunks, 1))
                    yield from results
                    bar.update(len(results))
            except BrokenProcessPool as error:
                raise UserError(
                    f"{desc}: a process died: too little memory, or the calling script lacks `if __name__ == "
                    f"'__main__':`. Give it fewer cores (taskset) or mend the script, then run again; what is done is "
                    f"kept."
                ) from error


def _each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    return [function(item) for item in items]


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
def _worker_processes(count: int) -> Iterator[Submit]:
    """Up to `count` fresh processes, and what gives them work (as `Executor.submit`); left early, they end at once.

    They end with this one, also where it is killed, and leave its signals to it. A future raises `BrokenProcessPool`
    where one of them dies.
    """
    context = multiprocessing.get_context("spawn")  # fork would copy torch's threads
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, context, _end_with_parent)  # starts multiprocessing's own helper, too

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        blocks = hasattr(signal, "pthread_sigmask")  # what is blocked here stays blocked in processes that are started
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, *ENDING]) if blocks else set()
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
