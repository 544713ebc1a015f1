"""What a task is: its items, and how the model is asked. One file a task.

Training, `LlmCxr` and evaluation all go through the same `Task`, so the way a model is asked can never differ from the way
it was trained. A module of this package that defines `TASK` is found by `tasks()`; nothing else lists tasks.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from llmcxr.instructions.example import Grammar, Turn
from llmcxr.instructions.mixture import TaskItems
from llmcxr.instructions.questions import QuestionAnswer
from llmcxr.labelling.base import Labeller
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.report_sections import ReportPart
from llmcxr.studies.study import Split, Study


@dataclass(frozen=True)
class TaskData:
    """What items are made from: the studies of one split, in a stage's cohort, and all that is known of them."""

    split: Split
    studies: Sequence[Study] = ()
    codes: Mapping[str, np.ndarray] = field(default_factory=dict)  # image_id -> uint16 [L]
    findings: LabelSet = field(default_factory=LabelSet)  # that are known both present and absent in training
    labeller: Labeller | None = None
    part: ReportPart = "findings_and_impression"
    questions: Sequence[QuestionAnswer] = ()
    texts: Sequence[str] = ()  # of the base model itself
    findings_first: Sequence[
        str
    ] = ()  # tasks that should name findings first; of another split: those that do in training
    options: Mapping[str, Any] = field(default_factory=dict)  # settings of tuning and of its stage, by name


class Items(TaskItems, Protocol):
    """The items of one task, of which the mixture draws."""

    findings_first: bool = False  # whether a turn of each example names the findings before its response
    note: str = ""  # what was asked for and could not be had, for people


class Task(Protocol):
    """One thing that a model is trained to do, used for, and measured on."""

    name: str  # as recipes, curves and predictions call it
    about: str  # one line for people
    place: int  # among the tasks, which decides what the mixture draws: a new task takes the next number
    grammar: Grammar = "text"  # what its response is
    can_name_findings: bool = False  # whether a turn before its response can name the findings

    def items(self, data: TaskData) -> Items:
        """What can be learned from."""

    @property
    def prompt(self) -> Callable[..., tuple[Turn, ...]]:
        """The turns that ask for a response (None: to be generated), as in training; what it takes is the task's own."""


@functools.cache
def tasks() -> dict[str, Task]:
    """Every task of this package by name, in their order."""
    package = importlib.import_module("llmcxr.tasks")
    modules = [importlib.import_module(f"llmcxr.tasks.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    found: list[Task] = [module.TASK for module in modules if hasattr(module, "TASK")]
    return {task.name: task for task in sorted(found, key=lambda task: (task.place, task.name))}
