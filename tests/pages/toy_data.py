"""The data of a small run, in which whatever a run can name is called by one word."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmcxr.pages.data import write_data_page
from llmcxr.pages.questions import QuestionSamples
from llmcxr.studies import image_notes
from llmcxr.studies.image_notes import ImageNote
from llmcxr.studies.study import Study
from llmcxr.synthesis.pairs import QaPair

S = 16


def toy_studies(word: str = "mass") -> list[Study]:
    """Five images of four patients: two present, one uncertain, one absent, one unknown; a report stands twice."""
    rows = [
        ("a", "p1", "train", {word: 1}, "Clear lungs."),
        ("b", "p1", "train", {word: 1}, "Clear lungs."),
        ("c", "p2", "train", {word: -1, "other": 0}, f"Perhaps {word}, of three words or more."),
        ("d", "p3", "validate", {word: 0}, ""),
        ("e", "p4", "test", {}, word),
    ]
    return [
        Study(i, p, f"s{i}", f"{i}.png", split, view="PA", impression_text=text, labels=labels)  # type: ignore[arg-type]
        for i, p, split, labels, text in rows
    ]


def write_toy_page(path: Path, word: str = "mass", simulated: bool = False) -> None:
    """A page of `toy_studies` on which every part is filled."""
    studies = toy_studies(word)
    pixels = np.random.default_rng(0).integers(0, 256, (len(studies), S, S), dtype=np.uint8)
    notes = [
        ImageNote(s.image_id, s.image_path, 20, 20, word, (word,), lost=0.3 if s.image_id == "a" else 0.0)
        for s in studies
    ]
    notes[1] = ImageNote("b", "b.png", 20, 20, word, (), implausible=word)
    notes.append(ImageNote("gone", "gone.png", 20, 20, word, (), implausible=word, left_out="implausible"))
    summary = {
        "studies": {"train": 3, "validate": 1, "test": 1},
        "patients": {"train": 2, "validate": 1, "test": 1},
        "rules": [{"rule": "all", "images": 9, "patients": 5}, {"rule": word, "images": 5, "patients": 4}],
        "left_out": {word: 4, "rare": 1},
        "noted": {f"noted {word}": 1},
        "examples": {word: [f"{word} 1", "2"]},
        "without_effect": [word],
        "prior_references": {"sentences": 3, "reports": 2, "emptied": 0, "cues": {word: 2, "unchanged": 1}},
        "images": image_notes.counts(notes),
        "copies": {"groups": 1, "images": 2, "across patients": 0, "across splits": 0, "patients moved": 0}
        | {"examples": [["a", "b"]]},
    }
    pairs = [
        QaPair("a", "sa", f"Is there {word}?", "Yes.", "presence", "llm", word, word, "entailed"),
        QaPair("a", "sa", f"Why {word}?", word, "open", "llm", "", "", "rejected", "not in the image"),
    ]
    questions = QuestionSamples([("entailed", 7), ("rejected: not in the image", 3)], [(studies[0], word, pairs)], True)
    write_data_page(
        path, word, word, simulated, path.parent, studies, pixels, notes, summary, [f"remark {word}"], questions
    )
