"""Sections of reports in the styles that occur; nothing crashes and no word is lost."""

from __future__ import annotations

import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llmcxr.studies.report_sections import ReportSections, clean_text, parse_report, report_text
from llmcxr.studies.study import Study

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with ?pleural effusion  // ?pleural effusion

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  ___

 FINDINGS:

 Cardiac size cannot be evaluated.  Large left pleural effusion is new.  Small
 right effusion is new.  There is no pneumothorax.

 IMPRESSION:

 Large left pleural effusion
"""


def test_mimic_style():
    sections = parse_report(MIMIC)
    assert sections.findings == (
        "Cardiac size cannot be evaluated. Large left pleural effusion is new. Small right effusion is new. "
        "There is no pneumothorax."
    )
    assert sections.impression == "Large left pleural effusion"
    assert sections.other == {
        "preamble": "FINAL REPORT",
        "examination": "CHEST (PA AND LAT)",
        "indication": "___ year old woman with ?pleural effusion // ?pleural effusion",
        "technique": "Chest PA and lateral",
        "comparison": "___",
    }


def test_headings_in_any_case_and_on_one_line():
    expected = ReportSections("Clear lungs.", "Normal.")
    assert parse_report("Findings: Clear lungs. Impression: Normal.") == expected
    assert parse_report("findings:Clear lungs.\nCONCLUSION : Normal.") == expected
    assert parse_report("FINDINGS AND IMPRESSION: Normal.") == ReportSections("", "Normal.")


def test_repeated_headings_are_joined():
    assert parse_report("FINDINGS: a.\nIMPRESSION: b.\nFINDINGS: c.\nIMPRESSION: d.") == ReportSections(
        "a. c.", "b. d."
    )


def test_no_heading_is_the_impression():
    assert parse_report("No acute\ndisease. Ratio 1:2, see note: fine.") == ReportSections(
        "", "No acute disease. Ratio 1:2, see note: fine."
    )
    assert parse_report("") == parse_report(" \n") == ReportSections()


def test_body_under_no_heading_of_its_own():
    sections = parse_report("INDICATION: Cough.\n\nCOMPARISON: None.\n\nThe lungs are clear.\nHeart normal.")
    assert sections == ReportSections(
        "", "The lungs are clear. Heart normal.", {"indication": "Cough.", "comparison": "None."}
    )
    assert parse_report("INDICATION: Cough.").impression == ""


def test_blanks_collapse():
    assert clean_text("XXXX XXXX and __ , [**2101-1-1**] ____ x xxxx-year-old") == "___ and ___ , ___ x ___-year-old"
    assert clean_text("fractionXXXX XXX a_b") == "fractionXXXX XXX a_b"


pieces = st.sampled_from(
    [
        "FINDINGS:",
        "impression:",
        "XXXX",
        "__",
        "[**",
        "**]",
        "\n",
        "\n\n",
        " ",
        "no",
        "Edema.",
        "CHEST, AP:",
        "_",
        "?",
        ":",
    ]
)
texts = st.one_of(st.text(max_size=200), st.lists(pieces, max_size=30).map(" ".join), st.lists(pieces).map("".join))


@given(texts)
def test_cleaning_is_idempotent(text):
    once = clean_text(text)
    assert clean_text(once) == once
    assert not re.search(r"\s\s|\n", once)


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[a-z]+", clean_text(text).lower()))


@given(texts)
def test_no_word_is_lost(text):
    sections = parse_report(text)
    found = words(
        f"{sections.findings} {sections.impression} " + " ".join(f"{k} {v}" for k, v in sections.other.items())
    )
    headings = {"findings", "impression", "preamble", "chest", "ap"}  # one key stands for repeated headings
    # text inside one [**...**] mark is a de-identification blank; joining sections can put the two halves together
    if "[**" not in text:
        assert all(found[word] == count for word, count in words(text).items() if word not in headings)


def test_report_text():
    study = Study("i", "p", "s", "i.png", "train", findings_text="Heart\nnormal", impression_text="No XXXX disease.")
    assert report_text(study, "impression") == "No ___ disease."
    assert report_text(study, "findings_and_impression") == "Heart normal. No ___ disease."
    only = Study("i", "p", "s", "i.png", "train", findings_text="Heart normal")
    assert report_text(only, "impression") == ""
    assert report_text(only, "findings_and_impression") == "Heart normal"
    assert report_text(Study("i", "p", "s", "i.png", "train"), "findings_and_impression") == ""
