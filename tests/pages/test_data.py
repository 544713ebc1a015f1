"""The data page: what stands on it is what was counted, escaped, and nothing has to be there."""

from __future__ import annotations

import re

import numpy as np
import pytest
from test_results import HOSTILE, Reader
from toy_data import toy_studies, write_toy_page

from llmcxr.labelling.registry import build_labeller
from llmcxr.pages.data import label_rows, report_lengths, write_data_page
from llmcxr.pages.questions import QuestionSamples, sample_questions
from llmcxr.studies import image_notes
from llmcxr.studies.study import Study
from llmcxr.synthesis.pairs import QaPair, write_pairs


def read(path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    reader.text = re.sub(r"\s+", " ", reader.text)
    return reader


def test_labels_are_counted_with_those_that_nobody_knows():
    assert label_rows(toy_studies()) == [
        {"name": "mass", "present": 2, "absent": 1, "uncertain": 1, "unknown": 1},
        {"name": "other", "present": 0, "absent": 1, "uncertain": 0, "unknown": 4},
    ]


def test_lengths_of_reports():
    found = report_lengths(toy_studies())
    assert (found["reports"], found["distinct"], found["times"], found["most_frequent"]) == (4, 3, 2, "Clear lungs.")
    assert (found["median"], found["longest"]) == (2, 7) and sum(count for *_, count in found["bars"]) == 4
    assert report_lengths([]) == {}
    long = [Study(str(k), "p", "s", "x", "train", findings_text="a " * k) for k in range(1, 500)]
    bars = report_lengths(long)["bars"]
    assert sum(count for *_, count in bars) == 499 and all(a < b for a, b, _ in bars) and len(bars) == 24


def test_everything_stands_on_it(tmp_path):
    write_toy_page(tmp_path / "data.html")
    page = read(tmp_path / "data.html")
    for part in (
        "images: 5",
        "patients: 4",
        "reports: 4",
        "remark mass",
        "noted mass",
        "mass 1",
        "2 times (50 %)",
        "3 sentences of 2",
        "rejected: not in the image3",
        "made from reports by a chat LLM",
    ):
        assert part in page.text, part
    assert "30% lost: a.png" in page.text.replace("30 %", "30%")
    assert "mass: 2, 1 of them left out" in page.text and "a (patient p1, train); b (patient p1, train)" in page.text
    assert "under the same terms" in page.text
    write_toy_page(tmp_path / "data.html", simulated=True)
    assert "under the same terms" not in read(tmp_path / "data.html").text


def test_all_text_is_escaped_and_nothing_is_fetched(tmp_path):
    write_toy_page(tmp_path / "data.html", HOSTILE)
    source = (tmp_path / "data.html").read_text(encoding="utf-8")
    page = read(tmp_path / "data.html")
    assert "<script" not in source and HOSTILE in page.text
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe") and not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "#").startswith("#")


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_has_to_be_there(count, tmp_path):
    studies = [Study("a", "p", "s", "a.png", "train")][:count]
    nothing: dict = {"studies": {}, "patients": {}, "rules": [], "left_out": {}, "noted": {}, "examples": {}}
    nothing |= {"prior_references": {"sentences": 0}, "without_effect": [], "images": image_notes.counts([])}
    nothing["copies"] = dict.fromkeys(("groups", "images", "across patients", "across splits", "patients moved"), 0)
    nothing["copies"]["examples"] = []
    pixels = np.zeros((count, 8, 8), np.uint8)
    write_data_page(
        tmp_path / "data.html",
        "t",
        "",
        True,
        tmp_path,
        studies,
        pixels,
        [],
        nothing,
        [],
        QuestionSamples([], [], False),
    )
    text = read(tmp_path / "data.html").text
    for said in ("Nothing was left out", "No image has a label", "There are no reports", "No two images are the same"):
        assert said in text


def test_samples_are_of_the_llm_where_there_are_some_else_of_rules(tmp_path):
    study = Study("a", "p", "s", "a.png", "train", impression_text="Left pneumothorax.", labels={"pneumothorax": 1})
    hidden = Study("b", "q", "t", "b.png", "test", impression_text="Left pneumothorax.", labels={"pneumothorax": 1})
    rules = sample_questions(tmp_path, [hidden, study], build_labeller("rules"))
    assert [s.image_id for s, _, _ in rules.studies] == ["a"] and rules.counts == [] and not rules.by_llm
    assert "Left pneumothorax." in {p.evidence for p in rules.studies[0][2]}
    kept = QaPair("a", "s", "Is there a pneumothorax?", "Yes.", "presence", "llm", verdict="entailed")
    gone = QaPair("a", "s", "Why?", "Trauma.", "open", "llm", verdict="rejected", reason="not in the image")
    write_pairs(tmp_path / "kept" / "part-0.parquet", [kept, kept])
    write_pairs(tmp_path / "rejected" / "part-0.parquet", [gone])
    found = sample_questions(tmp_path, [hidden, study], build_labeller("rules"))
    assert found.counts == [("entailed", 2), ("rejected: not in the image", 1)] and found.by_llm
    assert found.studies == [(study, "Left pneumothorax.", [kept, kept, gone])]
