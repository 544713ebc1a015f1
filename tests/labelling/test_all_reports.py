"""All reports of a data set: each text once, on several processes as on one, and gone on with after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest

from llmcxr.labelling.all_reports import read_all
from llmcxr.labelling.base import Reading
from llmcxr.labelling.registry import build_labeller, label_studies
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.study import Study

TEXTS = [f"Small left effusion, {k} cm. No pneumothorax." for k in range(30)]


class Counting:
    """A labeller that counts what it reads, and stops at a text."""

    findings = sided = LabelSet(["effusion"])

    def __init__(self, last: str = "") -> None:
        self.read_texts: list[str] = []
        self.last = last

    def read(self, text: str) -> Reading:
        if text == self.last:
            raise KeyboardInterrupt
        self.read_texts.append(text)
        return Reading({"effusion": 1})

    def read_all(self, texts: Sequence[str]) -> list[Reading]:
        return [self.read(text) for text in texts]

    def each(self, texts: Sequence[str]) -> Iterator[dict[str, int]]:
        return (self.read(text).states for text in texts)


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    kept = tmp_path / "labels.partial.jsonl"
    with pytest.raises(KeyboardInterrupt):
        read_all(TEXTS, Counting(TEXTS[20]).each, "key", kept)
    with open(kept, "a") as stream:
        stream.write('["cut off')
    labeller = Counting()
    assert read_all([*TEXTS, TEXTS[0]], labeller.each, "key", kept) == dict.fromkeys(TEXTS, {"effusion": 1})
    assert labeller.read_texts == TEXTS[20:]


def test_labels_of_another_labeller_are_not_taken(tmp_path):
    kept = tmp_path / "labels.partial.jsonl"
    read_all(TEXTS, Counting().each, "another", kept)
    labeller = Counting()
    read_all(TEXTS, labeller.each, "key", kept)
    assert labeller.read_texts == TEXTS and len(kept.read_text().splitlines()) == 31


def test_images_of_a_study_share_their_report(tmp_path):
    studies = [Study(str(k), "p", "s", "x.png", "train", impression_text=TEXTS[k // 2]) for k in range(4)]
    labeller = Counting()
    assert [s.labels for s in label_studies(studies, labeller, tmp_path / "k")] == [{"effusion": 1}] * 4
    assert labeller.read_texts == TEXTS[:2]


def test_a_data_set_that_is_done_is_not_read_again(tmp_path):
    kept = tmp_path / "labels.partial.jsonl"
    studies = [Study(str(k), "p", str(k), "x.png", "train", impression_text=text) for k, text in enumerate(TEXTS)]
    wanted = label_studies(studies, build_labeller("rules"), kept)
    before = kept.read_text()
    assert label_studies(studies, build_labeller("rules"), kept) == wanted and kept.read_text() == before
    assert json.loads(before.splitlines()[1])[1] == wanted[0].labels != {}


def test_no_finding_is_no_label():
    """CheXpert's labeller says it, as its tables do; a study is labelled with findings alone, from either."""
    study = Study("i", "p", "s", "i.png", "train", impression_text="No pleural effusion. No pneumothorax.")
    (labelled,) = label_studies([study], build_labeller("chexpert"))
    assert build_labeller("chexpert").read(study.impression_text).states["No Finding"] == 1
    assert labelled.labels == {"Pleural Effusion": 0, "Pneumothorax": 0}
