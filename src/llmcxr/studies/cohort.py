"""Which studies take part, and in which split: filters that count what they drop, and patient-disjoint splits."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import Settings, setting
from llmcxr.studies.report_sections import ReportPart, report_text
from llmcxr.studies.study import SPLITS, Collection, Split, Study

DEFAULT_FRACTIONS: dict[str, float] = {"train": 0.8, "validate": 0.1, "test": 0.1}


@dataclass(frozen=True)
class CohortSettings(Settings):
    views: list[str] = setting([], "views to keep, e.g. [AP, PA]; empty keeps every view, also an unknown one")
    earliest_only: bool = setting(False, "keep only each patient's earliest study (fewer references to earlier images)")
    sections: ReportPart = setting("findings_and_impression", "the report text that is learned")


def select_cohort(studies: Sequence[Study], settings: CohortSettings) -> Collection:
    """Keep the studies that pass every filter, in order; each dropped one is counted under its first reason.

    The earliest study is the patient's earliest of all `studies` given, not of those that pass the other filters:
    a follow-up report does not become a first one because the first had no impression. Where no study has the report text
    (data of labels alone), none is dropped for that. The result may be empty.
    """
    reported = any(report_text(study, settings.sections) for study in studies)
    views = {view.upper() for view in settings.views}
    earliest: dict[str, int] = {}
    for study in studies:
        earliest[study.patient_id] = min(study.order, earliest.get(study.patient_id, study.order))
    result = Collection([])
    for study in studies:
        if views and study.view.upper() not in views:
            reason = f"view {study.view.upper()}" if study.view else "view unknown"
        elif settings.earliest_only and study.order > earliest[study.patient_id]:
            reason = "not the patient's earliest study"
        elif reported and not report_text(study, settings.sections):
            reason = f"no {settings.sections.replace('_', ' ')}"
        else:
            result.studies.append(study)
            continue
        result.dropped[reason] += 1
    return result


def split_of(patient_id: str, seed: int, fractions: Mapping[str, float]) -> Split:
    """The split of a patient by a hash of seed and id alone, so that it stays when other patients come or go."""
    draw, total = float(stream(seed, "split", patient_id).random()), 0.0
    used = [name for name in SPLITS if fractions.get(name, 0) > 0]
    for name in used:
        total += fractions[name]
        if draw < total:
            return name
    return used[-1]  # the fractions sum to 1 up to rounding


def assign_splits(studies: Sequence[Study], seed: int, fractions: Mapping[str, float]) -> list[Study]:
    """Give a split to each study whose split is "": its patient's, where another study states one, else by hash."""
    stated: dict[str, Split] = {study.patient_id: study.split for study in studies if study.split}
    result = []
    for study in studies:
        if not study.split:
            if study.patient_id not in stated:
                stated[study.patient_id] = split_of(study.patient_id, seed, fractions)
            study = dataclasses.replace(study, split=stated[study.patient_id])
        result.append(study)
    return result


def check_splits(studies: Sequence[Study]) -> None:
    """Raise `UserError` where a split is unknown or a patient is in two splits (test results would be too good)."""
    splits: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for study in studies:
        if study.split not in SPLITS:
            raise UserError(f"image {study.image_id} has the split {study.split!r}; splits are {', '.join(SPLITS)}.")
        splits[study.patient_id][study.split] += 1
    if shared := [patient for patient, counts in splits.items() if len(counts) > 1]:
        raise UserError(
            f"{len(shared)} patient{'s are' if len(shared) > 1 else ' is'} in more than one split, "
            f"e.g. {shared[0]} ({dict(splits[shared[0]])}). Correct the split column, "
            f"or leave it out so that splits are made by patient."
        )
