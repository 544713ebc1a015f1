"""What a task is: its items, how the model is asked, how a response is read, and how well it did. One file a task.

Training, `LlmCxr` and evaluation all go through the same `Task`, so the way a model is asked can never differ from the way
it was trained. A module of this package that defines `TASK` is found by `tasks()`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.labelling.base import Labeller
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.report_sections import ReportPart
from llmcxr.studies.study import Study


@dataclass(frozen=True)
class TaskData:
    """What items are made from: the studies of one split, in a stage's cohort, and all that is known of them."""

    studies: Sequence[Study]
    codes: Mapping[str, np.ndarray]  # image_id -> uint16 [L]
    findings: LabelSet  # that are known both present and absent in training
    labeller: Labeller
    part: ReportPart
    options: Mapping[str, Any]  # settings of tuning and of the stage that one task reads


class Items(Protocol):
    """The items of one task, of which the mixture draws."""

    def __len__(self) -> int: ...

    def example(self, item: int, rng: np.random.Generator) -> InstructionExample:
        """Item number `item` in a wording drawn from `rng`."""


class Task(Protocol):
    """One thing that a model is trained to do, used for, and measured on."""

    name: str  # as recipes, curves and predictions call it
    about: str  # one line for people

    def items(self, data: TaskData) -> Items:
        """What can be learned from."""

    def prompt(self, **given: Any) -> tuple[Turn, ...]:
        """The turns that ask for a response (None: to be generated), as in training."""


@functools.cache
def tasks() -> dict[str, Task]:
    """Every task of this package by name, in the order of their modules' names."""
    found = {}
    package = importlib.import_module("llmcxr.tasks")
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        task = getattr(importlib.import_module(f"llmcxr.tasks.{module}"), "TASK", None)
        if task is not None:
            found[task.name] = task
    return found
