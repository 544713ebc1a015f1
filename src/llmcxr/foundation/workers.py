"""Work that is shared over the cores of one machine, for what is done once to every file or text of a data set."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.stopping import worker_processes

T = TypeVar("T")
R = TypeVar("R")

_WORTH = 4000  # items; starting processes takes seconds


def in_processes(
    function: Callable[[T], R], items: Sequence[T], desc: str, unit: str, chunk: int = 500, worth: int = _WORTH
) -> Iterator[R]:
    """`map(function, items)` on all cores, in order and with a progress bar; in this process where the items are few.

    `function` and items travel to other processes, so the function is one of a module's top level (or a partial of one). Results come as
    they are ready, and no more than a few chunks are ahead. `UserError` where a process dies.
    """
    from llmcxr.foundation.devices import core_count  # torch, which the processes themselves do not need

    bar = tqdm(total=len(items), desc=desc, unit=unit)
    count = min(core_count(), math.ceil(len(items) / chunk))
    with bar:
        if len(items) < worth or count < 2:
            for item in items:
                yield function(item)
                bar.update()
            return
        with worker_processes(count) as submit:
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
                    f"{desc}: a process died: too little memory, or the calling script lacks `if __name__ == '__main__':`. Give it fewer "
                    "cores (taskset) or mend the script, then run again; what is done is kept."
                ) from error


def _each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    return [function(item) for item in items]
