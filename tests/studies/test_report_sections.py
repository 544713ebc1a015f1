"""Sections of reports in the forms that occur; nothing crashes, no word is lost, and long texts cost no more than their
length."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from growth import grows_with_length
from hypothesis import example, given
from hypothesis import strategies as st

from llmcxr.studies.report_cleaning import clean_text, is_no_text
from llmcxr.studies.report_headings import read_heading
from llmcxr.studies.report_sections import ReportSections, parse_report, report_text
from llmcxr.studies.study import Study

RULE = " " + "_" * 78 + "\n"
FINAL = " " * 33 + "FINAL REPORT\n"
MIMIC = (
    FINAL
    + """ EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___ year old woman with ?pleural effusion  // ?pleural effusion
 
 TECHNIQUE:  Chest PA and lateral
 
 COMPARISON:  ___
 
 FINDINGS: 
 
 Cardiac size cannot be evaluated.  Large left pleural effusion is new.  Small
 right effusion is new.  There is no pneumothorax.
 
 IMPRESSION: 
 
 Large left pleural effusion
"""  # noqa: W291, W293 (blank lines of one space, as MIMIC-CXR is published)
)


def test_mimic_style():
    sections = parse_report(MIMIC)
    assert sections.findings == (
        "Cardiac size cannot be evaluated. Large left pleural effusion is new. Small right effusion is new. "
        "There is no pneumothorax."
    )
    assert sections.impression == "Large left pleural effusion"
    assert sections.structure == "headings" and sections.reason == ""
    assert sections.other == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___ year old woman with ?pleural effusion // ?pleural effusion",
        "technique": "Chest PA and lateral",
        "comparison": "___",
    }


# kind -> (report, findings, impression)
KINDS = {
    "in any case, on one line": ("Findings: Clear lungs. Impression: Normal.", "Clear lungs.", "Normal."),
    "small letters throughout": ("findings: clear lungs. impression: normal.", "clear lungs.", "normal."),
    "on one line without full stops": (
        "INDICATION: cough FINDINGS: clear lungs IMPRESSION: normal",
        "clear lungs",
        "normal",
    ),
    "capitals throughout": ("FINDINGS: LUNGS ARE CLEAR. IMPRESSION: NORMAL.", "LUNGS ARE CLEAR.", "NORMAL."),
    "without a colon": ("Findings\nClear lungs.\n\nImpression\nNormal.", "Clear lungs.", "Normal."),
    "markdown": ("**Findings:** Clear lungs.\n\n## IMPRESSION\nNormal.", "Clear lungs.", "Normal."),
    "line breaks as exports write them": ("FINDINGS: Clear.\\n\\nIMPRESSION: Normal.", "Clear.", "Normal."),
    "repeated": ("FINDINGS: a.\nIMPRESSION: b.\nFINDINGS: c.\nIMPRESSION: d.", "a. c.", "b. d."),
    "joined": ("FINDINGS AND IMPRESSION: Normal.", "", "Normal."),
    "joined by a stroke": ("IMPRESSION/FINDINGS: Normal.", "", "Normal."),
    "joined with something else": ("IMPRESSION & RECOMMENDATION: Nodule. CT.", "", "Nodule. CT."),
    "misspelt": ("FINIDNGS: Clear lungs.\nIMPRSSION: Normal.\nINDCATION: Cough.", "Clear lungs.", "Normal."),
    "first letter lost": ("INDINGS: Clear lungs.\nMPRESSION: Normal.", "Clear lungs.", "Normal."),
    "preliminary, with no other": ("PRELIMINARY FINDINGS: Edema.\nIMPRESSION: Edema.", "Edema.", "Edema."),
    "preliminary, with another": ("PRELIMINARY IMPRESSION: Edema.\nIMPRESSION: Normal.", "", "Normal."),
    "not that of the referrer": ("CLINICAL IMPRESSION: Edema?\nFINDINGS: Clear.\nIMPRESSION: Normal.", "Clear.", "Normal."),
    "views": (
        "INDICATION: Cough.\n \n PA AND LATERAL VIEWS OF THE CHEST:  Clear lungs.\n \n IMPRESSION: Normal.",
        "Clear lungs.",
        "Normal.",
    ),
    "a view with its time": ("PORTABLE AP CHEST FILM, ___ AT 5:04 A.M.:  Small effusion.", "Small effusion.", ""),
    "a view below an empty findings": ("FINDINGS:\n \n CHEST, TWO VIEWS:  Clear lungs.", "Clear lungs.", ""),
    "a view below an empty impression": ("IMPRESSION:\n PA AND LATERAL CHEST:\n 1. No pneumonia.", "", "1. No pneumonia."),
    "a view as the title": ("CHEST, TWO VIEWS:\n\nHISTORY: Cough.\n\nIMPRESSION: Normal.", "", "Normal."),
    "a title is no view": ("AP CHEST, 9:40 A.M., ON ___\n \n HISTORY: Tube.\n \n IMPRESSION: Edema.", "", "Edema."),
    "an examination of views": ("EXAMINATION:\nChest: Frontal and lateral views\nFINDINGS: Clear lungs.", "Clear lungs.", ""),
    "organs": (
        "FINDINGS:\nLUNGS:  Clear.\nHEART AND MEDIASTINUM:  Normal.\nET TUBE: In place.\nIMPRESSION:  Normal.",
        "Lungs: Clear. Heart and mediastinum: Normal. ET tube: In place.",
        "Normal.",
    ),
    "organs without findings": ("TECHNIQUE: PA.\n\nLUNGS: Clear.\nBONES: Normal.", "Lungs: Clear. Bones: Normal.", ""),
    "unknown capitals within a section": ("FINDINGS: Clear.\nNOTE: Rotated.\nIMPRESSION: Normal.", "Clear. NOTE: Rotated.", "Normal."),
    "words in a sentence": (
        "FINDINGS: Small effusion. In comparison: smaller. As in the\n history: aspiration is likely. Comparison: unchanged.\n"
        " IMPRESSION: Agree with the impression: no edema.",
        "Small effusion. In comparison: smaller. As in the history: aspiration is likely. Comparison: unchanged.",
        "Agree with the impression: no edema.",
    ),
    "prose that ends in a colon": (
        " IMPRESSION:\n AP chest compared to ___, 5:04 a.m.:\n \n Small effusion.",
        "",
        "AP chest compared to ___, 5:04 a.m.: Small effusion.",
    ),
    "no heading": ("No acute\ndisease. Ratio 1:2, see note: fine.", "", "No acute disease. Ratio 1:2, see note: fine."),
    "no heading, under a title": ("CHEST, TWO VIEWS\nThe lungs are clear.", "", "The lungs are clear."),
    "body after the last heading": ("COMPARISON: ___.\n \n Heart is large.\n \n No edema.", "", "Heart is large. No edema."),
    "body after what was compared and taken": (
        "INDICATION: Tube.\n \n Comparison is made to the study of ___ at 7:30.\n \n Portable film is submitted.\n \n Edema is new.",
        "",
        "Edema is new.",
    ),
    "body before notes of calls": ("HISTORY: Tube.\n \n Edema is mild.\n \n NOTIFICATION: Called at 9.", "", "Edema is mild."),
    "findings without a heading": (
        "INDICATION: Cough.\n \n The lungs are clear.\n \n IMPRESSION: No pneumonia.",
        "The lungs are clear.",
        "No pneumonia.",
    ),
    "body in the paragraph of a heading": ("COMPARISON: None. The heart is large.", "", "The heart is large."),
    "body on a line of its own": ("HISTORY: Cough\nThe heart is large.", "", "The heart is large."),
    "body in the recommendations": ("INDICATION: Cough.\nRECOMMENDATION(S): The lungs are clear.", "", "The lungs are clear."),
    "only asked for": ("INDICATION: Known left pneumothorax. Evaluate for change.", "", ""),
    "only compared": ("TECHNIQUE: Portable.\nCOMPARISON: Multiple chest radiographs, most recent from ___.", "", ""),
    "a report that is one heading": ("REPORT: Patchy opacities.", "", "Patchy opacities."),
    "a report that is one heading of the examination": ("CXR: Patchy opacities.", "Patchy opacities.", ""),
    "the same by what was examined": ("CHEST: Patchy opacities.", "Patchy opacities.", ""),
    "findings of a kind": ("RADIOGRAPHIC FINDINGS: Patchy opacities.", "Patchy opacities.", ""),
    "a note before a history": (
        "Day 4: patchy opacities, intubated. History: Man of 54 with fever.",
        "",
        "Day 4: patchy opacities, intubated.",
    ),
    "a wet read above": (
        f"WET READ: ___ ___ 10:01 PM\n  Pneumothorax.\n WET READ VERSION #1\n{RULE}{FINAL} FINDINGS: No pneumothorax.\n",
        "No pneumothorax.",
        "",
    ),
    "a wet read with sections above": (f"WET READ: Edema.\n IMPRESSION: Edema.\n{RULE}{FINAL} IMPRESSION: Normal.\n", "", "Normal."),
    "a wet read within": (f"{FINAL} HISTORY: Tube.\n \n Tube is in place.\n \n WET READ: ___ 9:11 PM\n Edema.\n", "", "Tube is in place."),
    "a wet read alone": ("WET READ: ___ ___ 10:01 PM\n  No edema.\n WET READ VERSION #1\n", "", "No edema."),
    "a preliminary report above": (f"PRELIMINARY REPORT\n Edema.\n{FINAL} IMPRESSION: Normal.\n", "", "Normal."),
    "a preliminary report alone": ("PRELIMINARY REPORT\nFINDINGS: Clear.\nIMPRESSION: Normal.", "Clear.", "Normal."),
    "provisional findings above": (f"PROVISIONAL FINDINGS IMPRESSION (PFI): ___\n Edema.\n{FINAL} FINDINGS: Clear.\n", "Clear.", ""),
    "an addendum above": (f"FINAL ADDENDUM\n ADDENDUM  It is right.\n{RULE}{FINAL} IMPRESSION: Left nodule.\n", "", "It is right. Left nodule."),
    "an addendum with sections": (
        f"ADDENDUM:\n FINDINGS: Right nodule.\n IMPRESSION: Right.\n{RULE}{FINAL} FINDINGS: Nodule.\n IMPRESSION: Nodule.\n",
        "Right nodule. Nodule.",
        "Right. Nodule.",
    ),
    "an addendum below": ("IMPRESSION: Left nodule.\n\nADDENDUM: It is right.", "", "It is right. Left nodule."),
    "an addendum to a body without a heading": (
        f"ADDENDUM\n It is right.\n{RULE}{FINAL} COMPARISON: None.\n \n Left nodule is seen.\n",
        "",
        "It is right. Left nodule is seen.",
    ),
    "CheXpert Plus": (
        "NARRATIVE:\nChest 1 view, 8-8-2005\n\nHISTORY: 61 years\n\nIMPRESSION:\n\n1.TUBE IN PLACE.\n\n2.NO EDEMA.\n\n"
        "END OF IMPRESSION:\n\nSUMMARY: 2-ABNORMAL\nI have personally reviewed the images.\n\nACCESSION NUMBER:\n12\n",
        "",
        "1.TUBE IN PLACE. 2.NO EDEMA.",
    ),
    "a summary is the conclusion": ("FINDINGS: Small effusion.\nSUMMARY: Effusion.", "Small effusion.", "Effusion."),
    "Windows line ends": ("FINDINGS:\r\n Clear.\r\n\r\nIMPRESSION:\r\n Normal.\r\n", "Clear.", "Normal."),
    "cut off in a heading": ("INDICATION: Cough.\n\nCOMPARISON: None.\n\nIMPRESS", "", ""),
    "empty sections": ("FINDINGS: N/A\nIMPRESSION: nan", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_reports(kind):
    text, findings, impression = KINDS[kind]
    found = parse_report(text)
    assert (found.findings, found.impression) == (findings, impression), found
    assert bool(found.reason) == (not findings and not impression) == (not found.structure)


@pytest.mark.parametrize(
    "text", ["", " \n", "nan", "NaN", "None", "none.", "N/A", "null", "<NA>", "-", "___", "XXXX XXXX", "?"]
)
def test_cells_without_text(text):
    assert is_no_text(text)
    assert parse_report(text) == ReportSections(reason="no text")


def test_why_nothing_was_found():
    final = f"WET READ: Edema.\n{RULE}{FINAL} INDICATION: Cough.\n"
    assert parse_report(final).reason == "only a provisional reading"
    assert parse_report("INDICATION: Cough.").reason == "nothing that describes the image"
    assert parse_report("FINDINGS:\nIMPRESSION:\n").reason == "headings without text"


def test_how_sections_were_found():
    structures = {
        "headings": "IMPRESSION: Normal.",
        "a list of views": "CHEST, TWO VIEWS: Clear lungs.",
        "no headings": "Clear lungs.",
        "paragraphs without a heading": "COMPARISON: None.\n\nClear lungs.",
        "sentences": "COMPARISON: None. The lungs are clear.",
        "a provisional reading": "WET READ: Edema.",
    }
    assert {parse_report(text).structure: text for text in structures.values()} == structures


def test_headings_that_are_near_others():
    assert read_heading("COMPRESSION").kind == "unknown"
    assert read_heading("INFLATION").kind == "unknown"
    assert read_heading("CHEST TUBE").kind == "organ"
    assert read_heading("CHEST").kind == "view"
    assert read_heading("REASON FOR EXAM").name == read_heading("ndication").name == "indication"
    assert read_heading("REFERENCE EXAM").name == "comparison"


def test_blanks_collapse():
    assert clean_text("XXXX XXXX and __ , [**2101-1-1**] ____ x xxxx-year-old") == "___ and ___ , ___ x ___-year-old"
    assert clean_text("fractionXXXX XXX a_b") == "fractionXXXX XXX a_b"
    assert clean_text("[**Name [**Dr**] x**] [**open") == "___ [**open"


PIECES = """FINDINGS:|impression:|Impression:|WET READ:|ADDENDUM|FINAL REPORT|INDICATION:|COMPARISON: none.|LUNGS:|CHEST, AP:
SUMMARY:|NOTE:|XXXX|__|[**|**]|no|Edema.|The lungs are clear.|_|?|:|\\n|<br>|nan|PRELIMINARY REPORT|1.|**|##| """
pieces = st.sampled_from(
    ["\n", "\n\n", "\n \n", "\r\n", "\n____________\n", "\nFINAL REPORT\n", *re.split(r"[|\n]", PIECES)]
)
no_colons = st.text(st.characters(exclude_characters=":"), max_size=200)
texts = st.one_of(no_colons, st.lists(pieces, max_size=30).map(" ".join), st.lists(pieces).map("\n".join))


@given(st.one_of(texts, st.text()))
@example("XXXX_ [**[****]**] __ _XXXX_XXXX")
def test_cleaning_is_idempotent(text):
    once = clean_text(text)
    assert clean_text(once) == once
    assert not re.search(r"\s\s|\n", once)


MARKS = {"wet", "read", "final", "preliminary", "ap", "version"}


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[a-z]+", clean_text(text).lower()))


@given(texts)
def test_no_word_is_lost_or_made_up(text):
    found = parse_report(text)
    kept = words(" . ".join([found.findings, found.impression, *found.other.values()]))
    names = words(" . ".join(found.other))  # an unknown heading is a key, one for all that are the same
    # Text inside one [**...**] mark is a de-identification blank; joining sections can put the two halves together.
    if "[**" not in text and not is_no_text(text):
        whole = words(text.replace("\\n", "\n").replace("<br>", "\n"))
        headings = [w for w in {*re.findall(r"[^\n:]+(?=:)", text), *whole, *kept} if read_heading(w).kind != "unknown"]
        free = MARKS | set(words(" . ".join(headings)))
        assert all(n == kept[w] or w in free or (w in names and kept[w] < n) for w, n in whole.items())
        assert all(w in whole or w in free for w in kept)


prose = st.lists(
    st.sampled_from(["The lungs are clear.", "No edema.", "Heart size is 1.2 normal.", "small effusion"]), min_size=1
).map(" ".join)


@given(prose, prose)
def test_sections_come_back_from_their_own_form(findings, impression):
    once = parse_report(f"FINDINGS: {findings}\n\nIMPRESSION: {impression}")
    assert (once.findings, once.impression) == (findings, impression)
    assert parse_report(impression).impression == impression


LONG_TEXTS = {
    "open brackets": "[**", "brackets": "[**]", "blanks": "_ ", "underscores": "_", "x": "XXXX_", "spaces": " ", "capitals": "A ",
    "headings": "FINDINGS:\n", "other headings": "A: x\n", "headings in lines": "a. Findings: ", "views": "CHEST:\n", "paragraphs": "Clear.\n\n",
    "indications": "INDICATION: x.\n\nThe lungs are clear.\n\n", "addenda": "ADDENDUM\nx.\n", "wet reads": "WET READ: x\n",
    "rules": "x\n" + "_" * 20 + "\n", "final reports": "FINAL REPORT\nx\n", "preliminary": "PRELIMINARY REPORT\nx\n", "list": "1. ",
    "sentences": "The lungs are clear. ", "one sentence": "the ", "small letters": "no. ", "breaks": "<br>", "clinical": "clinical ",
}  # fmt: skip


@pytest.mark.parametrize("name", LONG_TEXTS)
def test_long_texts_cost_no_more_than_their_length(name):
    assert grows_with_length(parse_report, LONG_TEXTS[name])


def test_a_square_is_noticed():
    assert not grows_with_length(re.compile("x*y").search, "x", short=1_000)


@given(st.one_of(texts, st.text()))
def test_either_text_or_a_reason(text):
    found = parse_report(text)
    assert bool(found.reason) == (not found.findings and not found.impression) == (not found.structure)


def test_report_text():
    study = Study("i", "p", "s", "i.png", "train", findings_text="Heart\nnormal", impression_text="No XXXX disease.")
    assert report_text(study, "impression") == "No ___ disease."
    assert report_text(study, "findings_and_impression") == "Heart normal. No ___ disease."
    only = Study("i", "p", "s", "i.png", "train", findings_text="Heart normal")
    assert report_text(only, "impression") == ""
    assert report_text(only, "findings_and_impression") == "Heart normal"
    assert report_text(Study("i", "p", "s", "i.png", "train"), "findings_and_impression") == ""
