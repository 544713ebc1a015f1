"""What reads findings from text: the one interface of every labeller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmcxr.studies.findings import Finding, LabelSet


@dataclass(frozen=True)
class Mention:
    """Evidence: a finding at characters [start, end) of the text that was read."""

    finding: str  # as the labeller spells it
    state: int  # 1 affirmed, 0 denied, -1 uncertain
    start: int
    end: int
    side: str = ""  # "left", "right", "both"; "" where the text does not say


@dataclass(frozen=True)
class Reading:
    """What a text says. `states`: finding -> 1, 0 or -1; a finding that is not mentioned has no entry."""

    states: dict[str, int]
    mentions: tuple[Mention, ...] = ()

    def stated(self) -> tuple[Finding, ...]:
        """The findings that are affirmed, each with the side that the text states ("" where it states none)."""
        sides = self.sides()
        return tuple(Finding(name, sides.get(name, "")) for name, state in self.states.items() if state == 1)

    def sides(self) -> dict[str, str]:
        """The side of each finding that is affirmed or doubted with one; mentions on both sides together are "both"."""
        found: dict[str, set[str]] = {}
        for mention in self.mentions:
            if mention.side and mention.state != 0:
                found.setdefault(mention.finding, set()).add(mention.side)
        return {name: next(iter(sides)) if len(sides) == 1 else "both" for name, sides in found.items()}


class Labeller(Protocol):
    """Text -> findings present, absent, uncertain or not mentioned, with evidence."""

    @property
    def findings(self) -> LabelSet:
        """All that it can read."""

    @property
    def sided(self) -> LabelSet:
        """Those of them whose side it reads, too."""

    def read(self, text: str) -> Reading:
        """What one text says. Never raises."""

    def read_all(self, texts: Sequence[str]) -> list[Reading]:
        """The same of many, in order; faster where a labeller reads several at once."""


def unreadable(labeller: Labeller, findings: Sequence[str]) -> tuple[str, ...]:
    """Those of `findings` that the labeller does not know: scores of them are left out, and this is said."""
    return labeller.findings.missing(findings)
