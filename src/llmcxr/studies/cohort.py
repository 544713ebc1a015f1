"""Which studies take part, and in which split: rules that count what they drop, patient-disjoint splits, and copies."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import Settings, setting
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.report_sections import ReportPart, report_text
from llmcxr.studies.study import SPLITS, Collection, RuleCount, Split, Study
from llmcxr.studies.views import normal_view, wanted_views

if TYPE_CHECKING:
    from llmcxr.studies.pixel_store import Images  # torch

DEFAULT_FRACTIONS: dict[str, float] = {"train": 0.8, "validate": 0.1, "test": 0.1}


@dataclass(frozen=True)
class CohortRules(Settings):
    views: list[str] = setting(
        [], "views to keep, e.g. [frontal] or [AP, PA]; empty keeps every view, also an unknown one"
    )
    earliest_only: bool = setting(False, "keep only each patient's earliest study (fewer references to earlier images)")
    labels: list[str] = setting(
        [], "findings that must be known, present or absent; empty keeps studies without labels too"
    )


@dataclass(frozen=True)
class CohortSettings(CohortRules):
    sections: ReportPart = setting("findings_and_impression", "the report text that is learned")


Rule = tuple[str, Callable[[Study], str]]  # what it asks for, and why a study does not pass ("" where it does)


def _rules(studies: Sequence[Study], settings: CohortRules, notes: list[str]) -> list[Rule]:
    """The rules in the order in which they are applied; `notes` takes those that can do nothing."""
    rules: list[Rule] = []
    if settings.views:
        views = wanted_views(settings.views)

        def view(study: Study) -> str:
            name = normal_view(study.view)
            return "" if name in views else f"view {name}" if name else "view unknown"

        rules.append((f"views {', '.join(sorted(views))}", view))
    if settings.earliest_only and (rule := _earliest(studies, notes)):
        rules.append(("the patient's earliest study", rule))
    sections: ReportPart | None = getattr(settings, "sections", None)
    if sections and any(report_text(study, sections) for study in studies):
        name = sections.replace("_", " ")
        rules.append((name, lambda study: "" if report_text(study, sections) else f"no {name}"))
    if settings.labels:
        wanted = LabelSet(settings.labels)

        def labelled(study: Study) -> str:
            known = LabelSet(name for name, state in study.labels.items() if state in (0, 1))
            return "a label that is asked for is not known" if known.missing(wanted) else ""

        rules.append((f"known {', '.join(wanted)}", labelled))
    return rules


def _earliest(studies: Sequence[Study], notes: list[str]) -> Callable[[Study], str] | None:
    """The rule, or None where it can do nothing."""
    own: defaultdict[str, set[str]] = defaultdict(set)
    for study in studies:
        own[study.patient_id].add(study.study_id)
    several = {patient for patient, found in own.items() if len(found) > 1}
    if not any(s.order for s in studies) and all(s.order is None for s in studies if s.patient_id in several):
        notes.append(
            f"earliest_only does nothing: of none of the {len(several):,} patients of several studies their order is "
            f"known"
            if several
            else "earliest_only does nothing: every patient has one study"
        )
        return None

    def rule(study: Study) -> str:
        if study.order is None:
            return "not known which study is the patient's earliest" if study.patient_id in several else ""
        return "not the patient's earliest study" if study.order else ""

    return rule


def select_cohort(studies: Sequence[Study], settings: CohortRules) -> Collection:
    """Keep the studies that pass every rule, in order; each dropped one is counted under its first reason, and `rules`
    says what was left after each.

    The earliest study is the first of all that the patient had (`Study.order` is 0), not of those that are in the data
    or pass the other rules: a follow-up does not become a first study because the first had no image or no impression.
    Where the order of studies is known of nobody, the rule cannot be applied, and `notes` says so. Where no study has
    the report text (data of labels alone), none is dropped for that. The result may be empty.
    """
    result = Collection(list(studies))
    result.rules.append(count_of("all", result.studies))
    for name, reason in _rules(studies, settings, result.notes):
        kept = []
        for study in result.studies:
            if why := reason(study):
                result.dropped[why] += 1
            else:
                kept.append(study)
        result.studies = kept
        result.rules.append(count_of(name, kept))
    return result


def count_of(rule: str, studies: Sequence[Study]) -> RuleCount:
    """Images, studies and patients after a rule."""
    patients = {s.patient_id for s in studies}
    return RuleCount(rule, len(studies), len({(s.patient_id, s.study_id) for s in studies}), len(patients))


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


@dataclass(frozen=True)
class Copies:
    """Images that are the same pixel for pixel, and who has them."""

    groups: list[list[Study]]  # two or more images each

    def counts(self) -> dict[str, int]:
        """How many groups there are in all, with more than one patient, and with more than one split."""
        return {
            "groups": len(self.groups),
            "images": sum(map(len, self.groups)),
            "across patients": sum(len({s.patient_id for s in g}) > 1 for g in self.groups),
            "across splits": sum(len({s.split for s in g}) > 1 for g in self.groups),
        }


def find_copies(studies: Sequence[Study], images: Images) -> Copies:
    """Groups of studies whose `images` (uint8 [N, S, S]) are equal in every pixel."""
    groups: defaultdict[bytes, list[Study]] = defaultdict(list)
    for row, study in enumerate(tqdm(studies, desc="looking for copies", unit="image")):
        groups[hashlib.blake2b(np.ascontiguousarray(images[row]).data, digest_size=16).digest()].append(study)
    return Copies([group for group in groups.values() if len(group) > 1])


def into_one_split(studies: Sequence[Study], copies: Copies) -> tuple[list[Study], int]:
    """(studies, patients moved): patients who share an image are one for the splits, and go where the first of
    training, validation and test has one of them, so that nothing is tested that was seen in training.

    What is tested is then a part of the stated test split, never more than it.
    """
    leader: dict[str, str] = {}

    def find(patient: str) -> str:
        while (above := leader.get(patient, patient)) != patient:
            patient = above
        return patient

    for group in copies.groups:
        first, *others = dict.fromkeys(find(s.patient_id) for s in group)
        leader.update(dict.fromkeys(others, first))
    split: dict[str, Split] = {}
    for study in studies:
        head = find(study.patient_id)
        split[head] = min(split.get(head, study.split), study.split, key=SPLITS.index)
    moved = {s.patient_id for s in studies if split[find(s.patient_id)] != s.split}
    return [dataclasses.replace(s, split=split[find(s.patient_id)]) for s in studies], len(moved)
