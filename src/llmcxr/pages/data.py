"""The data of a run as one HTML file: what was kept, what was left out and why, and what it looks like.

Words and markup are in data.html.j2 and what it extends. Pixels are uint8 [N, S, S], row i of study i.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError
from llmcxr.pages.pictures import Picture, page_environment
from llmcxr.pages.questions import QuestionSamples
from llmcxr.studies.image_notes import ImageNote
from llmcxr.studies.pixel_store import Images
from llmcxr.studies.radiographs import network_square, read_radiograph, to_uint8
from llmcxr.studies.study import SPLITS, Study

_EACH = 3  # pictures of a finding
_FINDINGS = 16  # that are shown in pictures: the most frequent
_ODD = 8  # pictures of each reason to doubt
_GROUPS = 8  # of copies
_BINS = 24  # of the lengths of reports
_TEXT = 140  # letters of a report beside a picture
STATES = {1: "present", 0: "absent", -1: "uncertain"}


def _report(study: Study) -> str:
    return " ".join(filter(None, (study.findings_text, study.impression_text)))


def label_rows(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Of each finding, the most frequent first: its name, and how many images are present, absent, uncertain,
    unknown."""
    counts: dict[str, Counter[int]] = {}
    for study in studies:
        for name, state in study.labels.items():
            counts.setdefault(name, Counter())[state] += 1
    rows = [
        {"name": name, "unknown": len(studies) - own.total()} | {word: own[state] for state, word in STATES.items()}
        for name, own in counts.items()
    ]
    return sorted(rows, key=lambda row: -row["present"])


def report_lengths(studies: Sequence[Study]) -> dict[str, Any]:
    """Words of the reports: a histogram [(least, most, count)], their median and most; how many texts there are, how
    often the most frequent stands. Empty where there are no reports."""
    texts = Counter(filter(None, map(_report, studies)))
    if not texts:
        return {}
    words = np.repeat([len(text.split()) for text in texts], list(texts.values()))
    last = int(np.quantile(words, 0.995)) + 1  # a few very long ones may not flatten the rest
    edges = np.unique(np.linspace(0, last, min(_BINS, last) + 1).astype(int))
    counts, _ = np.histogram(words.clip(max=last), edges)
    text, times = texts.most_common(1)[0]
    return {
        "bars": [(int(a), int(b), int(c)) for a, b, c in zip(edges, edges[1:], counts, strict=False)],
        "highest": int(counts.max()),
        "median": int(np.median(words)),
        "longest": int(words.max()),
        "reports": texts.total(),
        "distinct": len(texts),
        "most_frequent": text[:_TEXT],
        "times": times,
    }


class _Pictures:
    """Pictures of images, of those that were left out too, where their files can be read."""

    def __init__(self, folder: Path, studies: Sequence[Study], pixels: Images) -> None:
        self.folder, self.pixels = folder, pixels
        self.row = {study.image_id: i for i, study in enumerate(studies)}

    def kept(self, image_id: str) -> Picture:
        return np.asarray(self.pixels[[self.row[image_id]]])[0]

    def any(self, note: ImageNote) -> Picture | None:
        if note.image_id in self.row:
            return self.kept(note.image_id)
        try:
            return to_uint8(network_square(read_radiograph(self.folder / note.image_path), 320))
        except UserError:
            return None


def _examples(studies: Sequence[Study], names: Sequence[str], pictures: _Pictures) -> list[dict[str, Any]]:
    """Images with each finding, in training where there are some: the first of as many patients."""
    training = [s for s in studies if s.split == "train"] or studies
    result = []
    for name in names:
        shown: dict[str, Study] = {}
        for study in training:
            if study.labels.get(name) == 1 and study.patient_id not in shown:
                shown[study.patient_id] = study
                if len(shown) == _EACH:
                    break
        cards = [{"image": pictures.kept(s.image_id), "text": _shortened(_report(s))} for s in shown.values()]
        result.append({"name": name, "cards": cards})
    return [example for example in result if example["cards"]]


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT else text[:_TEXT].rsplit(" ", 1)[0] + " ..."


def _odd(notes: Sequence[ImageNote], pictures: _Pictures) -> list[dict[str, Any]]:
    """Images that do not look like radiographs, by reason."""
    groups: dict[str, list[ImageNote]] = {}
    for note in notes:
        if note.implausible:
            groups.setdefault(note.implausible, []).append(note)
    return [
        {
            "reason": reason,
            "count": len(own),
            "left_out": sum(bool(note.left_out) for note in own),
            "cards": [
                {"image": picture, "path": note.image_path}
                for note in own[:_ODD]
                if (picture := pictures.any(note)) is not None
            ],
        }
        for reason, own in groups.items()
    ]


def _copies(studies: Sequence[Study], groups: Sequence[Sequence[str]], pictures: _Pictures) -> list[dict[str, Any]]:
    """Groups of images that are the same in every pixel."""
    shown = []
    for group in groups[:_GROUPS]:
        own = [studies[pictures.row[image_id]] for image_id in group if image_id in pictures.row]
        if own:
            about = [f"{s.image_id} (patient {s.patient_id}, {s.split})" for s in own]
            shown.append({"image": pictures.kept(own[0].image_id), "images": about})
    return shown


def _table(counts: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    return [
        {"reason": reason, "count": count, "examples": examples.get(reason, ())}
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


def write_data_page(
    path: Path,
    title: str,
    about: str,
    simulated: bool,
    folder: Path,
    studies: Sequence[Study],
    pixels: Images,
    notes: Sequence[ImageNote],
    summary: Mapping[str, Any],
    remarks: Sequence[str],
    questions: QuestionSamples,
) -> None:
    """Write the page, atomically.

    `about` says what the data are and under which terms; image paths are below `folder`; `summary` is what
    `studies.json` holds; `remarks` are what the data cannot give; `questions` were made from reports.
    """
    pictures, labels = _Pictures(folder, studies, pixels), label_rows(studies)
    worst = sorted((note for note in notes if note.lost > 0.1), key=lambda note: -note.lost)[:_ODD]
    facts = {
        "images": f"{len(studies):,}",
        "studies": f"{len({(s.patient_id, s.study_id) for s in studies}):,}",
        "patients": f"{len({s.patient_id for s in studies}):,}",
        "reports": f"{sum(bool(_report(s)) for s in studies):,}",
    }
    html = (
        page_environment()
        .get_template("data.html.j2")
        .render(
            title=title,
            facts=facts,
            about=about,
            simulated=simulated,
            splits=[(s, summary["studies"].get(s, 0), summary["patients"].get(s, 0)) for s in SPLITS],
            rules=summary["rules"],
            left_out=_table(summary["left_out"], summary["examples"]),
            noted=_table(summary["noted"], summary["examples"]),
            remarks=[*summary["without_effect"], *remarks],
            views=Counter(s.view or "unknown" for s in studies).most_common(),
            labels=labels,
            lengths=report_lengths(studies),
            references=summary["prior_references"],
            examples=_examples(studies, [row["name"] for row in labels[:_FINDINGS]], pictures),
            questions=questions,
            asked=[(pictures.kept(study.image_id), text, pairs) for study, text, pairs in questions.studies],
            odd=_odd(notes, pictures),
            copies=summary["copies"],
            copied=_copies(studies, summary["copies"]["examples"], pictures),
            images=summary["images"],
            worst=[
                {"image": picture, "lost": note.lost, "path": note.image_path}
                for note in worst
                if (picture := pictures.any(note)) is not None
            ],
        )
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
