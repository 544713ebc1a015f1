"""Reports as data sets give them: what is usable, what is counted, what is warned of; and the language they are in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.studies.report_language import is_english
from llmcxr.studies.reports import LONG, Report, read_report
from llmcxr.studies.sentences import is_technical, says_what_is_seen, sentences

ENGLISH = [
    "No pneumothorax.",
    "Cardiomegaly.",
    "Normal.",
    "No acute cardiopulmonary abnormality.",
    "Emphysema, old granulomata, ET tube, DES in the LAD.",
    "Cardiomegaly, mild edema, small left effusion, bibasilar atelectasis, NG tube, PICC.",
    "Sjögren syndrome. The lungs are clear.",
    "THE LUNGS ARE CLEAR.",
    "___",
    "",
]
OTHERS = [
    "Kein Pneumothorax.",
    "Beidseitige Pleuraergüsse, links mehr als rechts.",
    "Infiltrat im rechten Unterlappen.",
    "Pas d'épanchement pleural. Silhouette cardiaque normale.",
    "Sin derrame pleural.",
    "sin hallazg patolog",
    "No derrame pleural ni neumotorax.",
    "Non versamento pleurico. Ombra cardiaca nei limiti.",
    "Não há sinais de pneumotórax.",
    "Geen pneumothorax of pleuravocht.",
    "Ingen pleuravæske.",
    "Płuca bez zmian naciekowych.",
    "Plevral effüzyon yok.",
    "Нет пневмоторакса.",
    "胸部X線写真に異常なし。",
    "Κανένα εύρημα.",
    "Zwischen Lungenspitze und Zwerchfell sieht man weder Erguss noch Infiltrat, Trachea mittelständig.",
]


@pytest.mark.parametrize("text", ENGLISH)
def test_english(text):
    assert is_english(text)


@pytest.mark.parametrize("text", OTHERS)
def test_other_languages_are_never_read(text):
    assert not is_english(text)
    report = read_report(f"FINDINGS: {text}")
    assert (report.findings, report.impression, report.problem) == ("", "", "not in English")
    assert report.excerpt.startswith("FINDINGS: ")
    assert read_report(impression=text).problem == "not in English"


def test_sections_that_the_data_give_apart():
    report = read_report("FINDINGS: other.", findings=" Clear\nlungs. ", impression="nan")
    assert (report.findings, report.impression, report.problem) == ("Clear lungs.", "", "")
    report = read_report("FINDINGS: Clear lungs.\nIMPRESSION: Normal.", findings="None", impression="N/A")
    assert (report.findings, report.impression, report.structure) == ("Clear lungs.", "Normal.", "headings")


def test_why_a_report_is_not_used():
    assert read_report().problem == read_report("nan", "N/A").problem == "no text"
    report = read_report("INDICATION: Cough.")
    assert (report.problem, report.excerpt) == ("nothing that describes the image", "INDICATION: Cough.")


def test_warnings_of_reports_that_are_used():
    assert read_report("IMPRESSION: Normal.").warnings == ()
    lost = read_report("The lungs are clear \ufffd such as before.")
    assert lost.impression and lost.warnings == (
        ("lost characters (U+FFFD)", "The lungs are clear \ufffd such as before."),
    )
    long = read_report("The man had fever. " * LONG)
    assert long.impression and [reason for reason, _ in long.warnings] == [f"more than {LONG} words (a case history?)"]
    assert len(long.warnings[0][1]) < 200


@given(st.text(max_size=80), st.text(max_size=40), st.text(max_size=40))
def test_a_report_has_text_or_a_reason(whole, findings, impression):
    report = read_report(whole, findings, impression)
    assert bool(report.problem) == (not report.findings and not report.impression)


def test_sentences():
    assert sentences("1. Tube 5.4 cm above, seen by Dr. ___ at 9 a.m. today. No edema! 2. Normal") == [
        "1. Tube 5.4 cm above, seen by Dr. ___ at 9 a.m. today.",
        "No edema!",
        "2. Normal",
    ]


@given(st.lists(st.sampled_from(["No edema.", "1.", "a", "Dr.", "?", "x.y", "(T.)"]), max_size=12).map(" ".join))
def test_sentences_are_the_text(text):
    assert " ".join(sentences(text)) == text


def test_what_says_what_is_seen():
    for sentence in (
        "The lungs are clear.",
        "No pleural effusion.",
        "ET tube ends above the carina.",
        "Stable cardiomegaly.",
    ):
        assert says_what_is_seen(sentence) and not is_technical(sentence)
    for sentence in (
        "___-year-old man with pneumonia.",
        "Evaluate for effusion.",
        "?pneumothorax",
        "Comparison is made to the study of ___ at 7:30.",
        "Portable chest film ___ at 5:03 is submitted.",
        "Findings were discussed with Dr. ___.",
        "Cough.",
    ):
        assert not says_what_is_seen(sentence)


def test_what_is_far_too_long_is_no_report():
    """It is counted, not read: reading takes time in proportion."""
    found = read_report("IMPRESSION: Clear. " * 10_000)
    assert found == Report(problem="more than 100,000 characters", excerpt=found.excerpt) and len(found.excerpt) < 201
    assert read_report(findings="Clear. " * 20_000, impression="Clear.").problem == found.problem
