"""What makes a model's probabilities of findings mean what they say: calibration.json of a model folder, packed or not.

A probability p becomes sigmoid(slope * logit(p) + intercept), each finding with its own slope and intercept (Platt, 1999). Slopes
are above 0, so no order changes. Values hold where findings are as frequent as among the patients of the fit: their numbers are
kept beside. Fitted by `evaluation/calibration.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit, softmax

from llmcxr.foundation.artifacts import read_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import (
    Count,
    Number,
    Range,
    Settings,
    SettingsError,
    Share,
    build_settings,
    settings_to_dict,
)
from llmcxr.model.sums import put_json, remedy
from llmcxr.studies.findings import LabelSet

CALIBRATION = "calibration.json"
_SURE = 1e-6  # float32 cannot say more; the logit of 0 has no end


@dataclass(frozen=True)
class FindingMap(Settings):
    """How p(yes) of one finding is mapped, and of how many images it was known there (`present` of `known`)."""

    slope: Annotated[float, Range(0, 1000, above=True)]
    intercept: Annotated[float, Range(-1000, 1000)]
    present: Number
    known: Number

    def __call__(self, p: ArrayLike) -> np.ndarray:
        """p in [0, 1], of any shape, to calibrated p."""
        return expit(self.slope * bounded_logit(p) + self.intercept)


@dataclass(frozen=True)
class FittedOn(Settings):
    """The patients to whom a calibration was fitted."""

    data: str  # what they are from
    split: str
    images: Count
    patients: Count
    fingerprint: str  # of patients and what is known of them


@dataclass(frozen=True)
class Calibration(Settings):
    """calibration.json."""

    findings: dict[str, FindingMap]  # every finding of the model
    method: str  # that cross-validation over these patients chose
    log_loss: dict[str, float]  # of each method that was tried, in nats a label, on patients left out of its fit
    fitted_on: FittedOn
    sides: tuple[str, ...] = ()  # findings whose side was known there
    side_temperature: Annotated[float, Range(0, 1000, above=True)] = 1.0  # by which log p of sides is divided
    doubt_stated: Share | None = None  # a finding that a report states is doubted where p is below; None: not chosen
    doubt_denied: Share | None = None  # one that it denies, where p is above
    format: Annotated[int, Range(1, 1)] = 1

    def probabilities(self, p_yes: Mapping[str, float]) -> dict[str, float]:
        """Calibrated p of findings, however spelt; one that is not known here is given back as it is."""
        known = LabelSet(self.findings)
        return {
            name: float(self.findings[known.spelling(name)](p)) if name in known else p for name, p in p_yes.items()
        }

    def side_probabilities(self, p: ArrayLike) -> np.ndarray:
        """Calibrated p of sides: float64 [n, 3] of p [n, 3], rows sum to 1."""
        return softmax(np.log(np.maximum(np.asarray(p, float), _SURE)) / self.side_temperature, axis=-1)


def bounded_logit(p: ArrayLike) -> np.ndarray:
    """log(p / (1 - p)), of p no nearer to 0 and 1 than float32 can tell."""
    return logit(np.asarray(p, float).clip(_SURE, 1 - _SURE))


def load_calibration(folder: Path) -> Calibration | None:
    """The calibration of the model in `folder`; None where it has none. `UserError` where the file is not one."""
    path = folder / CALIBRATION
    if not path.exists():
        return None
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise UserError(f"{path} should hold an object.")
        return build_settings(Calibration, values, str(path))
    except SettingsError as error:
        raise UserError(f"{error}\n{remedy(folder)}") from error
    except UserError as error:
        raise UserError(f"{str(error).splitlines()[0]} {remedy(folder)}") from error


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Put calibration.json into a model folder, packed or not (`sums.put_json`)."""
    put_json(folder, CALIBRATION, settings_to_dict(calibration))
