"""Settings of the phantom, apart from what renders so that they are read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcxr.foundation.settings import Number, Seed, Settings, Share, setting

if TYPE_CHECKING:
    from llmcxr.sources.phantom.source import PhantomSource


@dataclass(frozen=True)
class PhantomSettings(Settings):
    """How many radiographs to simulate, and how."""

    train: Number = setting(2000, "number of studies for training")
    validate: Number = setting(200, "number of studies for validation")
    test: Number = setting(400, "number of studies for the test")
    seed: Seed = setting(0, "fixes patients, reports and pictures")
    mirrored_share: Share = setting(
        0.0,
        "share of training studies whose report has left and right exchanged, in its words and in the picture, so that "
        "a side cannot be guessed from the wording",
    )

    def build(self, seed: int, access: str) -> PhantomSource:
        """The source that renders these studies. It states all splits, and fetches what it needs by itself."""
        from llmcxr.sources.phantom.source import PhantomSource

        return PhantomSource(self)
