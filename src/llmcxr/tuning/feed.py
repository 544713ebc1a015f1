"""From the mixture to the batches of each step: rendered by all processes together, ahead of training, the same in any number.

Each process renders its part of a window of examples, and all give each other theirs; so every process knows all batches of
a step, in the order that the seed gives, and takes its share of them.

Rendering runs in a thread, not in DataLoader's processes: those would copy all items where processes are not forked (Windows,
Apple), and forking beside GPUs and other processes' connections is unsafe. Fast tokenizers let other threads run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from llmcxr.foundation.processes import Processes
from llmcxr.instructions.example import InstructionExample
from llmcxr.instructions.mixture import Mixture
from llmcxr.instructions.rendering import RenderedExample
from llmcxr.tuning.batches import Batch, collate, plan_batches

WINDOW = 512  # examples that are rendered and sorted by length together

Render = Callable[[InstructionExample], RenderedExample | None]  # None: left out, too long


def share(batches: Sequence[Batch], processes: Processes) -> Iterator[tuple[int, bool, bool, Batch]]:
    """(number, idle, last, batch) for this process.

    All processes have equally many, so that they meet; where there is none left, an idle one repeats the first batch.
    """
    for first in range(0, len(batches), processes.count):
        number = first + processes.rank
        idle = number >= len(batches)
        yield number, idle, first + processes.count >= len(batches), batches[0 if idle else number]


class Feed:
    """The batches of a mixture, `batches_per_step` a step, each of at most `tokens_per_batch` padded tokens."""

    def __init__(
        self,
        mixture: Mixture,
        render: Render,
        tokens_per_batch: int,
        batches_per_step: int,
        seed: int,
        processes: Processes,
    ) -> None:
        self._mixture, self._render, self._processes, self._seed = mixture, render, processes, seed
        self._tokens_per_batch, self._batches_per_step = tokens_per_batch, batches_per_step
        self.too_long: Counter[str] = Counter()  # examples so far, "TASK, cut" and "TASK, left out"
        self.too_long_before: Counter[str] = Counter()  # the same before the present window

    def _own_part(self, first: int) -> list[RenderedExample | None]:
        """Of the window that begins at example `first`, what this process renders."""
        indices = range(first, min(first + WINDOW, len(self._mixture)))
        return [self._render(self._mixture[i]) for i in indices[self._processes.rank :: self._processes.count]]

    def _windows(self, window: int) -> Iterator[tuple[int, list[RenderedExample]]]:
        """(first example, rendered examples) of each window from number `window` on; the next one is rendered meanwhile."""
        starts = range(window * WINDOW, len(self._mixture), WINDOW)
        with ThreadPoolExecutor(1, "render") as thread:
            ahead: Future[list[RenderedExample | None]] | None = None
            for first in starts:
                own = ahead.result() if ahead is not None else self._own_part(first)
                if first != starts[-1]:
                    ahead = thread.submit(self._own_part, first + WINDOW)
                parts = self._processes.gather(own)
                self.too_long_before = Counter(self.too_long)  # a resumed window is rendered, and counted, again
                kept = []
                for offset in range(min(WINDOW, len(self._mixture) - first)):
                    rendered = parts[offset % len(parts)][offset // len(parts)]
                    if rendered is None or rendered.cut:
                        what = "left out" if rendered is None else "cut"
                        self.too_long[f"{self._mixture.task(first + offset)}, {what}"] += 1
                    if rendered is not None:
                        kept.append(rendered)
                yield first, kept

    def batches(self, window: int, done: int) -> Iterator[tuple[int, int, Batch]]:
        """(window, batches of it done after this one, batch) from batch `done` of window `window` on."""
        for first, rendered in self._windows(window):
            lengths = np.array([len(r.ids) for r in rendered], dtype=np.int64)
            for number, group in enumerate(plan_batches(lengths, self._tokens_per_batch, self._seed + first)):
                if first > window * WINDOW or number >= done:
                    yield first // WINDOW, number + 1, collate([rendered[i] for i in group])

    def steps(self, window: int, done: int) -> Iterator[tuple[int, int, list[Batch]]]:
        """(window, batches of it done after this step, the step's batches over all processes)."""
        batches: list[Batch] = []
        for place in self.batches(window, done):
            batches.append(place[2])
            if len(batches) == self._batches_per_step:
                yield place[0], place[1], batches
                batches = []
        if batches:
            yield place[0], place[1], batches
