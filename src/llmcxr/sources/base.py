"""What every source of data offers, and what all of them share: how a report becomes a study's text, how studies are
put in order and into splits, and what is counted on the way. One file a data set; nothing else asks which one it is.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.texts import is_text
from llmcxr.sources.times import StudyKey, ranks
from llmcxr.studies.cohort import DEFAULT_FRACTIONS, assign_splits, check_splits
from llmcxr.studies.reports import Report, read_report
from llmcxr.studies.study import Study
from llmcxr.studies.views import VIEWS, normal_view

_EXAMPLES = 3  # of each reason
_MANY = 20  # studies; nobody has most of a data set


class Tally:
    """What of a data set was left out, and what was kept although something is amiss: counts by reason, with
    examples."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def leave_out(self, reason: str, example: str = "") -> None:
        """Count a row, image or study that is not used."""
        self.left_out[reason] += 1
        self._keep(reason, example)

    def note(self, reason: str, example: str = "") -> None:
        """Count one that is used, with what is amiss."""
        self.noted[reason] += 1
        self._keep(reason, example)

    def clear(self) -> None:
        """Begin anew."""
        self.__init__()  # type: ignore[misc]

    def reasons(self) -> str:
        """All reasons for leaving out, for an error message."""
        return ", ".join(f"{reason}: {count:,}" for reason, count in self.left_out.most_common()) or "nothing was found"

    def _keep(self, reason: str, example: str) -> None:
        kept = self.examples.setdefault(reason, [])
        example = example.encode(errors="backslashreplace").decode()  # the name of a file can be no text
        if example and len(kept) < _EXAMPLES and example not in kept:
            kept.append(example if len(example) <= 200 else example[:200] + " ...")


class Source(Protocol):
    """A data set as it lies on disk (or is simulated), read to studies.

    A new one is a file like `openi.py` with a settings class, whose `build` makes the source, and one line in
    `registry.py`. It is loaded with every recipe, so libraries that are slow to load are imported in its functions.
    """

    about: str  # a sentence or two for the model card: what it is, and its licence
    simulated: bool  # whether its radiographs are of no patient
    tally: Tally  # filled while `studies` reads

    def check(self) -> None:
        """`UserError` for files of the user's that are not there, before anything runs."""

    def fingerprint(self) -> Any:
        """JSON-able: all that its studies depend on, contents of index files included (not of images)."""

    def studies(self, folder: Path, image_size: int) -> Sequence[Study]:
        """All usable studies, each with its split. What has to be made (simulated images) goes into the run's `folder`."""

    # What `plan` reckons with before the data are read.

    @property
    def on_disk(self) -> bool:
        """Whether `studies` only reads what is there: nothing is made or fetched."""

    @property
    def assumed_images(self) -> int | None:
        """How many images there will be, where that is known."""

    @property
    def assumed_words(self) -> tuple[int, int]:
        """Words of the findings and of the impression of a report."""

    @property
    def assumed_reports(self) -> Sequence[str]:
        """All texts that its reports can have, where they are given (one line a class)."""

    @property
    def findings(self) -> Sequence[str]:
        """Names of the labels that its studies will have, where they are known before the data are read."""


@functools.lru_cache(1024)  # images of one study follow one another, with one report
def read_text(report: str = "", findings: str = "", impression: str = "") -> Report:
    """`read_report`, once for all images of a study."""
    return read_report(report, findings, impression)


def study_text(tally: Tally, example: str, text: Report) -> tuple[str, str]:
    """(findings, impression) of a study; why there is none, and what is odd, is noted."""
    if text.problem:
        reason = "image without a report" if text.problem == "no text" else f"report: {text.problem}"
        tally.note(reason, f"{example}: {text.excerpt}" if text.excerpt else example)
    for reason, piece in text.warnings:
        tally.note(f"report: {reason}", f"{example}: {piece}")
    return text.findings, text.impression


def study_view(tally: Tally, *texts: str) -> str:
    """The view by its name in `studies/views.py`, of the first text that says one; unknown ones are noted."""
    view = next((view for text in texts if (view := normal_view(text))), "")
    if not view:
        tally.note("view unknown")
    elif view not in VIEWS:
        tally.note(f"view of another name: {view}")
    return view


def finish(
    studies: list[Study], times: Mapping[StudyKey, float | None], seed: int, tally: Tally, nothing: str
) -> list[Study]:
    """Give each study its place in the patient's order, its split and an absolute image path (those of settings begin
    where llmcxr is started, those of a manifest in the run's folder), and check that no patient is in two splits.

    `times`: patient and study -> when it was made, of **all** studies that the data know, those without an image or a
    report too, so that a follow-up never becomes the first. Raises `UserError` where there are no studies; `nothing`
    then says where they were looked for.
    """
    if not studies:
        raise UserError(f"{nothing} (left out: {tally.reasons()}).")
    patient, most = Counter(patient for patient, _ in {(s.patient_id, s.study_id) for s in studies}).most_common(1)[0]
    if most >= _MANY and 2 * most > len({(s.patient_id, s.study_id) for s in studies}):
        tally.note(
            "one patient has most of the studies (a placeholder? they are all in one split)",
            f"{patient}: {most:,} studies",
        )
    order = ranks(times)
    unordered = {patient for (patient, _), place in order.items() if place is None}
    for patient in sorted({s.patient_id for s in studies} & unordered):
        tally.note("patient of several studies whose order is not known", patient)
    done = [
        dataclasses.replace(s, order=order.get((s.patient_id, s.study_id)), image_path=os.path.abspath(s.image_path))
        for s in studies
    ]
    done = assign_splits(done, seed, DEFAULT_FRACTIONS)
    check_splits(done)
    return done


def folders_below(root: Path, depth: int, skip: str = r"p\d+|s\d+|patient\d+|study\d+|\..*") -> Iterator[Path]:
    """`root` and the folders in it down to `depth`, nearest first; those named like `skip` (patients and studies, of
    which there are hundreds of thousands) are not entered."""
    level = [root]
    for _ in range(depth + 1):
        yield from level
        level = [
            Path(entry.path)
            for folder in level
            for entry in sorted(_entries(folder), key=lambda e: e.name)
            if entry.is_dir() and not re.fullmatch(skip, entry.name)
        ]


def files_below(root: Path, wanted: Callable[[str], bool], skip: str = r"\..*") -> Iterator[Path]:
    """All files in `root`, at any depth and in order of their names, whose name is `wanted`; folders like `skip` are
    not entered."""
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not re.fullmatch(skip, name))
        yield from (Path(folder, name) for name in sorted(names) if wanted(name))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (PermissionError, NotADirectoryError):
        return []
    except FileNotFoundError as error:
        raise UserError(f"the folder {folder} does not exist. Set its path in the recipe's source.") from error


class FilesByName:
    """Finds files of a data set by the name that its tables give, wherever below the root they lie.

    The tables' own place is tried first, then every suffix of images, then a file of that name (and in the folders that
    the name says) anywhere below the root, whose folders are listed once, when a name is first missed.
    """

    SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".dcm")

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stems: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path | None:
        """The file; None where there is none, or where several could be meant."""
        for suffix in self.SUFFIXES:
            if os.path.isfile(path := self.root / (name + suffix)):  # False for what the system refuses as a name
                return path
        if self._stems is None:
            self._stems = {}
            for path in files_below(self.root, lambda n: n.lower().endswith(self.SUFFIXES[1:])):
                for key in {path.name, path.stem} if is_text(str(path)) else ():
                    self._stems.setdefault(key, []).append(path)
        folders, _, last = name.strip("/").rpartition("/")
        stem = re.sub(r"\.(png|jpe?g|dcm)$", "", last, flags=re.IGNORECASE)
        found = self._stems.get(last) or self._stems.get(stem) or []
        # Another folder's file of the same name is another image.
        found = [path for path in found if not folders or path.parent.as_posix().endswith(f"/{folders}")]
        return found[0] if len(found) == 1 and found[0].is_file() else None
