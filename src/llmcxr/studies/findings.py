"""Findings, and the list of them that data knows: names as the user spells them, compared by a normal form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np

# A label is 1 (present), 0 (absent) or -1 (uncertain); a finding without one is not mentioned, hence unknown.
UncertainLabels = Literal["left_out", "positive", "negative"]


@dataclass(frozen=True)
class Finding:
    """A finding that is known to be in the image. Empty strings mean "not stated"."""

    name: str
    side: str = ""  # "left", "right", "both" (patient's side; patient's right is at the image's left)
    severity: str = ""  # "mild", "moderate", "severe"
    place: str = ""  # e.g. "lower lobe", "base"
    kind: str = ""  # e.g. "pacemaker" for a support device


def normal_form(name: str) -> str:
    """By what names compare: "Pleural_Effusion", "pleural effusion" and "Pleural  Effusion" are one finding."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


NO_FINDING = "No Finding"  # as CheXpert spells it
# What data sets call the absence of all findings; it is never a finding itself.
_NO_FINDING = {"no finding", "no findings", "no abnormal finding", "normal", "none", "healthy"}


def is_finding(name: str) -> bool:
    """Whether a label names a finding, not the absence of all ("No Finding", "no_finding", "normal")."""
    return normal_form(name) not in _NO_FINDING


def label_value(state: int | None, uncertain: UncertainLabels = "left_out") -> float:
    """A label as a number: 1 present, 0 absent, NaN unknown. The one place that says what an uncertain label counts as.

    The field's numbers differ by it: CheXpert's "U-Ones" is `positive`, "U-Zeros" `negative`, "U-Ignore" `left_out`
    (Irvin et al., AAAI 2019); F1 of generated reports by CheXbert is often taken with `positive`.
    """
    if state == -1:
        return {"left_out": np.nan, "positive": 1.0, "negative": 0.0}[uncertain]
    return np.nan if state is None else float(state)


class LabelSet(Sequence[str]):
    """The findings that data (or a model, a labeller, a judge) knows, in order, each in the spelling it was given.

    Looking a name up goes by `normal_form`; iteration gives the user's spelling. Two names of one form are the first.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        spellings: dict[str, str] = {}
        for name in names:
            spellings.setdefault(normal_form(name), name)
        self._names = tuple(spellings.values())
        self._places = {form: place for place, form in enumerate(spellings)}

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...
    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        return self._names[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and normal_form(name) in self._places

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSet) and list(self._places) == list(other._places)

    def __hash__(self) -> int:
        return hash(tuple(self._places))

    def __repr__(self) -> str:
        return f"LabelSet({list(self._names)})"

    def place(self, name: str) -> int:
        """Place of a finding in the list. KeyError where it is not there."""
        return self._places[normal_form(name)]

    def spelling(self, name: str) -> str:
        """The finding as this list spells it. KeyError where it is not there."""
        return self._names[self.place(name)]

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names` that are not in this list."""
        return tuple(name for name in names if name not in self)
