"""The mixture of tasks as a deterministic sequence: example i is the same in any process, and resume is an index.

Each task goes through its items in a fresh order every epoch; phrasing and choice of questions are drawn afresh too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.instructions.example import InstructionExample


class TaskItems(Protocol):
    """What a task offers."""

    def __len__(self) -> int: ...

    def example(self, item: int, rng: np.random.Generator) -> InstructionExample:
        """Item number `item` in this epoch's wording."""


class Mixture:
    """`len(mixture)` examples drawn from tasks by weight."""

    def __init__(self, tasks: Mapping[str, TaskItems], weights: Mapping[str, float], length: int, seed: int) -> None:
        """Weights need not sum to 1; `UserError` where a task with weight has no items. The order of `tasks` decides what is
        drawn, that of the weights does not."""
        wanted = {task for task, weight in weights.items() if weight > 0}
        if not wanted:
            raise UserError("mixture: every weight is 0.")
        names = [task for task in tasks if task in wanted and len(tasks[task])]
        if empty := sorted(wanted.difference(names)):
            raise UserError(
                f"mixture: the tasks {empty} have a weight but no data. Set their weights to 0 or provide the data."
            )
        share = np.array([weights[task] for task in names], dtype=float)
        self._tasks = tasks
        self._names = names
        self._seed = seed
        self._choice = stream(seed, "mixture").choice(len(names), size=length, p=share / share.sum())
        self._turn = np.zeros(length, dtype=np.int64)  # how many examples of the same task came before
        for k in range(len(names)):
            where = np.flatnonzero(self._choice == k)
            self._turn[where] = np.arange(len(where))
        # A permutation of 370,000 items takes 7 ms, so each is made once; at the turn of an epoch two are in use.
        self._order = lru_cache(maxsize=2 * len(names))(self._draw_order)

    def _draw_order(self, task: str, epoch: int) -> np.ndarray:
        """Items of a task in the order of an epoch."""
        return stream(self._seed, task, "epoch", epoch).permutation(len(self._tasks[task]))

    def __len__(self) -> int:
        return len(self._choice)

    def counts(self) -> dict[str, int]:
        """Examples of each task."""
        return {task: int((self._choice == k).sum()) for k, task in enumerate(self._names)}

    def task(self, index: int) -> str:
        """Task of example `index`."""
        return self._names[self._choice[index]]

    def __getitem__(self, index: int) -> InstructionExample:
        task = self.task(index)
        items = self._tasks[task]
        epoch, place = divmod(int(self._turn[index]), len(items))
        return items.example(int(self._order(task, epoch)[place]), stream(self._seed, task, "wording", epoch, place))
