"""One radiograph with its report and what is known of it: the type that every source produces."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError
from llmcxr.studies.findings import Finding, LabelSet, UncertainLabels, is_finding, label_value, normal_form

Split = Literal["train", "validate", "test"]
SPLITS: tuple[Split, ...] = ("train", "validate", "test")


@dataclass(frozen=True, slots=True)
class Study:
    """One image.

    `labels` maps a finding's name to 1 (present), 0 (absent) or -1 (uncertain); a name that is missing is unknown,
    never negative. `truth` is filled only where the findings are known exactly (the phantom): bit i of the mask
    image marks where finding i of `truth` lies.
    """

    image_id: str
    patient_id: str
    study_id: str
    image_path: str  # absolute, or relative to the run folder
    split: Split
    view: str = ""  # a name in `studies/views.py`: "PA", "AP", "LATERAL", ...; "" unknown
    order: int | None = None  # 0 is the first of all studies that the patient had; None unknown
    findings_text: str = ""
    impression_text: str = ""
    labels: dict[str, int] = field(default_factory=dict)
    truth: tuple[Finding, ...] = ()
    mask_path: str = ""


@dataclass(frozen=True)
class RuleCount:
    """How much data there is after a rule of a cohort."""

    rule: str
    images: int
    studies: int
    patients: int


@dataclass
class Collection:
    """Studies that were chosen, how many were not, by reason, and what was left after each rule."""

    studies: list[Study]
    dropped: Counter[str] = field(default_factory=Counter)
    rules: list[RuleCount] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # rules that could do nothing, and why

    def as_json(self) -> dict[str, Any]:
        """What was left after each rule, what was left out by reason, and which rule did nothing."""
        return {
            "rules": [asdict(rule) for rule in self.rules],
            "left_out": dict(self.dropped),
            "without_effect": self.notes,
        }

    def told(self) -> list[str]:
        """The same as lines for people."""
        lines = [f"{r.rule}: {r.images:,} images, {r.patients:,} patients" for r in self.rules if len(self.rules) > 1]
        lines += [f"left out {count:,}: {reason}" for reason, count in self.dropped.most_common()]
        return lines + self.notes


def write_manifest(path: Path, studies: Sequence[Study]) -> None:
    """Write `manifest.parquet`, one row an image; labels and truth are JSON text."""
    import pandas as pd  # slow to load, and not needed for using a model

    names = [f.name for f in fields(Study)]
    columns: dict[str, list[Any]] = {name: [getattr(study, name) for study in studies] for name in names}
    columns["labels"] = [json.dumps(labels) for labels in columns["labels"]]
    columns["truth"] = [json.dumps([vars(finding) for finding in truth]) for truth in columns["truth"]]
    frame = pd.DataFrame(columns, columns=names).astype({"order": "Int64"})  # which has a place for "unknown"
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)


def read_manifest(path: Path) -> list[Study]:
    """Read what `write_manifest` wrote. `UserError` where the file is missing, broken or lacks a column."""
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Run `llmcxr run` or its `studies` stage first.") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable parquet file ({error}). Delete it and run the `studies` stage again."
        ) from error
    missing = [f.name for f in fields(Study) if f.name not in frame.columns]
    if missing:
        raise UserError(
            f"{path} lacks the columns {missing}. It was written by another version: run the `studies` stage again."
        )
    orders = [None if pd.isna(order) else int(order) for order in frame["order"]]
    columns = {f.name: frame[f.name].tolist() for f in fields(Study)} | {"order": orders}
    del frame
    columns["labels"] = [json.loads(text) for text in columns["labels"]]
    columns["truth"] = [tuple(Finding(**finding) for finding in json.loads(text)) for text in columns["truth"]]
    return [Study(*values) for values in zip(*columns.values(), strict=True)]


def label_matrix(
    studies: Sequence[Study], findings: Sequence[str], uncertain: UncertainLabels = "left_out"
) -> np.ndarray:
    """Labels float32 [N, F]: 1 present, 0 absent, NaN unknown; uncertain ones NaN, or as `uncertain` says."""
    return np.array(
        [[label_value(s.labels.get(f), uncertain) for f in findings] for s in studies], dtype=np.float32
    ).reshape(len(studies), len(findings))


def sided_labels(studies: Sequence[Study], findings: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """(names [M], labels float32 [N, M] as `label_matrix`): `findings`, then "left X" and "right X" of those with sides.

    What learns from findings alone can know that there is an effusion without knowing where. Sides come from `truth`;
    findings that never stand on one side alone there have none. NaN where a finding is there on an unknown side.
    """
    plain = label_matrix(studies, findings)
    names, columns = list(findings), [plain]
    for name, present in zip(findings, plain.T, strict=True):
        sides = tuple(f"{side} {name}" for side in ("left", "right"))
        told = np.array([shown_labels(study.truth, (name, *sides))[1:] for study in studies]).reshape(-1, 2)
        if {(1.0, 0.0), (0.0, 1.0)} <= {tuple(row) for row in told.tolist()}:
            names += sides
            there = np.where((told == 0).all(1, keepdims=True), np.nan, told)  # labelled, but not in `truth`
            columns.append(np.where((present == 0)[:, None], 0, there).astype(np.float32))
    return tuple(names), np.concatenate(columns, axis=1)


def shown_labels(findings: Sequence[Finding], names: Sequence[str]) -> np.ndarray:
    """Labels float32 [M] of `names`, as `sided_labels` has them, where an image shows `findings` and no others."""
    known, labels = LabelSet(names), []
    for name in names:
        side, _, rest = name.partition(" ")
        side = side if side in ("left", "right") and rest in known else ""
        wanted = normal_form(rest if side else name)
        own = {f.side for f in findings if normal_form(f.name) == wanted}
        told = not side or "" not in own
        labels.append(float(bool(own & {side, "both"} if side else own)) if told else np.nan)
    return np.array(labels, dtype=np.float32)


def known_findings(studies: Sequence[Study]) -> tuple[str, ...]:
    """Findings that occur both present and absent, in the order of their first mention; none where there are no labels."""
    states: dict[str, set[int]] = {}
    for study in studies:
        for name, state in study.labels.items():
            states.setdefault(name, set()).add(state)
    return tuple(name for name, found in states.items() if {0, 1} <= found and is_finding(name))
