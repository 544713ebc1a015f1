"""The phantom corpus: real reports, each with a simulated radiograph that shows what its tags say."""

from __future__ import annotations

import functools
import hashlib
import math
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from llmcxr.foundation.artifacts import atomic_path, fingerprint
from llmcxr.foundation.assets import fetch
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import setting
from llmcxr.labelling.rules import label_report
from llmcxr.sources.phantom.anatomy import Case, case_for
from llmcxr.sources.phantom.atlas import ATLAS_VERSION, load_atlas
from llmcxr.sources.phantom.projection import RENDER_VERSION, render
from llmcxr.sources.phantom.reports import (
    IndianaReport,
    can_be_mirrored,
    clean_text,
    findings_of,
    mirror_findings,
    mirror_words,
    read_reports,
    with_sides,
)
from llmcxr.studies.findings import Finding
from llmcxr.studies.labels import PHANTOM_FINDINGS
from llmcxr.studies.study import SPLITS, Collection, Split, Study

_SHARES: dict[Split, float] = {"train": 0.7, "validate": 0.1, "test": 0.2}


@dataclass(frozen=True)
class PhantomSettings:
    """How many radiographs to simulate, and how."""

    image_size: int = setting(128, "pixels a side of the square pictures, a multiple of 32")
    train: int = setting(2000, "number of studies for training")
    validate: int = setting(200, "number of studies for validation")
    test: int = setting(400, "number of studies for the test")
    seed: int = setting(0, "fixes patients, reports and pictures")
    abnormal_share: float = setting(0.7, "share of studies whose report has a finding that is drawn")
    mirrored_share: float = setting(
        0.0,
        "share of training studies whose report has left and right exchanged, in its words and in the picture, so that a "
        "side cannot be guessed from the wording",
    )
    workers: int = setting(0, "processes that render; 0: one a core")

    def faults(self) -> list[str]:
        faults = []
        if self.image_size < 32 or self.image_size % 32:
            faults.append(f"image_size: {self.image_size} is not a positive multiple of 32")
        faults += [
            f"{n}: {getattr(self, n)} is negative"
            for n in ("train", "validate", "test", "workers")
            if getattr(self, n) < 0
        ]
        faults += [
            f"{n}: {getattr(self, n)} is not between 0 and 1"
            for n in ("abnormal_share", "mirrored_share")
            if not 0 <= getattr(self, n) <= 1
        ]
        return faults


@dataclass(frozen=True)
class UsableReport:
    """A report whose text is clean and whose tags can be drawn."""

    uid: str
    findings_text: str
    impression_text: str
    findings: tuple[Finding, ...]


def usable_reports(reports: Sequence[IndianaReport]) -> tuple[list[UsableReport], Counter[str]]:
    """The reports that can be used, and how many were left out, by reason."""
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
        texts = clean_text(report.findings), clean_text(report.impression)
        if not any(texts):
            dropped["blanks leave no sentence"] += 1
            continue
        told = label_report(" ".join(texts))
        drawn = {f.name for f in findings}
        if any(told.get(name) == 0 for name in drawn):
            dropped["text denies a tagged finding"] += 1
            continue
        if any(state == 1 and name not in drawn for name, state in told.items()):
            dropped["text tells a finding that is not tagged"] += 1
            continue
        usable.append(UsableReport(report.uid, *texts, with_sides(findings, " ".join(texts))))
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
    other = UsableReport(report.uid, findings_text, impression_text, mirror_findings(report.findings))
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
            abnormal = bool(rng.uniform() < settings.abnormal_share)
            group = groups[abnormal]
            if not group:
                raise UserError(
                    f"no {'abnormal' if abnormal else 'normal'} report for the split {split}; change abnormal_share or {split}."
                )
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


def _render_all(jobs: Sequence[_Job], workers: int, done: int) -> None:
    bar = tqdm(total=len(jobs) + done, initial=done, desc="phantom radiographs", unit="image")
    workers = min(workers or os.cpu_count() or 1, math.ceil(len(jobs) / 16))
    with bar:
        if workers <= 1:
            for job in jobs:
                _render_job(job)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")  # fork would copy torch's threads
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = [pool.submit(_render_job, job) for job in jobs]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BrokenProcessPool as error:
                raise UserError(
                    "a rendering process died: too little memory (each needs 0.6 GB), or the calling script lacks "
                    "`if __name__ == '__main__':`. Set workers to 1 or mend the script; finished pictures are kept."
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def collect(settings: PhantomSettings, folder: Path) -> Collection:
    """Render the corpus into `folder` (images/ and masks/) and return its studies; paths are relative to `folder`.

    Pictures that are there and whole are kept, so an interrupted run goes on where it stopped. Raises `UserError` where
    an asset cannot be fetched or a file not be written.
    """
    folder = Path(folder)
    reports, dropped = _usable_of(fetch("indiana-reports") / "NLMCXR_reports.tgz")
    load_atlas()  # build the cache once, before any worker needs it
    studies, jobs = [], []
    for split, image_id, report, case in plan(settings, reports):
        present = {f.name for f in case.findings}
        study = Study(
            image_id=image_id,
            patient_id=image_id,
            study_id=f"{image_id}-{report.uid}",
            image_path=f"images/{image_id}.png",
            split=split,
            view="PA",
            findings_text=report.findings_text,
            impression_text=report.impression_text,
            labels={name: int(name in present) for name in PHANTOM_FINDINGS},
            truth=case.findings,
            mask_path=f"masks/{image_id}.png",
        )
        studies.append(study)
        jobs.append(
            _Job(folder / study.image_path, folder / study.mask_path, case.seed, report.findings, settings.image_size)
        )
    todo = [job for job in jobs if not _is_done(job)]
    if todo:
        _render_all(todo, settings.workers, len(jobs) - len(todo))
    return Collection(studies, dropped.copy())
