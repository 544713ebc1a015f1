"""outside.json: how unlike a model's training radiographs unseen images of the same kind are, kept in the model folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from llmcxr.foundation.artifacts import read_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Range, Settings, SettingsError, build_settings
from llmcxr.model.sums import put_json, remedy

NAME = "outside.json"
FEWEST = 50  # unseen images of which a 99th percentile can be said
WARNED = 0.99  # share of unseen images beyond which an image is outside


@dataclass(frozen=True)
class OutsideLimits(Settings):
    """What is usual of unseen images of the kind that a model was trained on.

    An image has two statistics: log of the mean absolute error of its reconstruction, and mean -log p of its codes in a drawing
    without a report. Its score is the length of the vector of both in standard deviations above the mean; below it counts 0.
    """

    images: Annotated[int, Range(FEWEST, 10_000_000)]
    means: tuple[float, ...]  # of the two statistics
    deviations: tuple[Annotated[float, Range(0, 1e9, above=True)], ...]
    scores: tuple[float, ...]  # of those images, at the percentiles 0, 1, ..., 100

    def faults(self) -> list[str]:
        """Impossible combinations."""
        faults = [] if len(self.means) == len(self.deviations) == 2 else ["means and deviations: should be two each"]
        if len(self.scores) != 101 or list(self.scores) != sorted(self.scores):
            faults.append("scores: should be 101 that rise")
        return faults

    @classmethod
    def of(cls, statistics: np.ndarray) -> OutsideLimits:
        """From the statistics [N, 2] of unseen images. ValueError for fewer than `FEWEST`."""
        if len(statistics) < FEWEST:
            raise ValueError(f"{len(statistics)} images are too few")
        means, deviations = statistics.mean(0), np.maximum(statistics.std(0), 1e-6)
        scores = _scores(statistics, means, deviations)
        percentiles = np.percentile(scores, np.arange(101))
        return cls(len(statistics), tuple(means.tolist()), tuple(deviations.tolist()), tuple(percentiles.tolist()))

    def score(self, statistics: np.ndarray) -> np.ndarray:
        """[N, 2] -> float64 [N], from 0."""
        return _scores(statistics, np.array(self.means), np.array(self.deviations))

    def share_below(self, score: float) -> float:
        """Share of the unseen images whose score is smaller, to the percent."""
        return max(0, int(np.searchsorted(self.scores, score)) - 1) / 100


def _scores(statistics: np.ndarray, means: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.maximum((statistics - means) / deviations, 0), axis=1)


def read_limits(folder: Path) -> OutsideLimits | None:
    """outside.json of a model folder, packed or not; None where it has none. `UserError` where it is damaged."""
    path = Path(folder) / NAME
    if not path.exists():
        return None
    try:
        return build_settings(OutsideLimits, read_json(path), str(path))
    except SettingsError as error:
        raise UserError(f"{error}\n{remedy(Path(folder))}") from error


def write_limits(folder: Path, limits: OutsideLimits) -> None:
    """Put outside.json into a model folder, packed or not (`sums.put_json`)."""
    put_json(Path(folder), NAME, asdict(limits))
