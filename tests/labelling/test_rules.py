"""Sentences with hand-written labels, in the styles of radiologists and of a model that has lost its grammar."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.foundation import devices
from llmcxr.foundation.workers import in_processes
from llmcxr.labelling import registry, terms
from llmcxr.labelling.base import Mention, unreadable
from llmcxr.labelling.registry import build_labeller, label_studies
from llmcxr.labelling.rules import RuleLabeller
from llmcxr.sources.phantom.source import PHANTOM_FINDINGS
from llmcxr.studies.findings import Finding
from llmcxr.studies.study import Study

LABELLER = RuleLabeller()

CASES: list[tuple[str, dict[str, int]]] = [
    # affirmed, one or more phrases a finding
    ("Mild cardiomegaly.", {"cardiomegaly": 1}),
    ("The heart is mildly enlarged.", {"cardiomegaly": 1}),
    ("Enlarged cardiac silhouette with tortuous aorta.", {"cardiomegaly": 1, "tortuous aorta": 1}),
    ("The thoracic aorta is ectatic and unfolded.", {"tortuous aorta": 1}),
    ("Calcified hilar lymph nodes and a calcified granuloma.", {"granuloma": 1}),
    ("Sequela of prior granulomatous disease.", {"granuloma": 1}),
    ("Patchy airspace disease in the right base.", {"opacity": 1}),
    ("Low lung volumes with bibasilar subsegmental atelectasis.", {"hypoinflation": 1, "atelectasis": 1}),
    ("Lungs are hypoinflated with bronchovascular crowding.", {"hypoinflation": 1, "interstitial markings": 1}),
    ("Hyperexpanded lungs with flattened diaphragms, suggesting COPD.", {"hyperinflation": 1}),
    ("Blunting of the left costophrenic angle.", {"pleural effusion": 1}),
    ("Tiny left apical pneumothorax.", {"pneumothorax": 1}),
    ("Eventration of the right hemidiaphragm.", {"elevated diaphragm": 1}),
    ("The right hemidiaphragm is mildly elevated.", {"elevated diaphragm": 1}),
    ("Pulmonary vascular congestion.", {"pulmonary edema": 1}),
    ("Prominent interstitial markings.", {"interstitial markings": 1}),
    ("A 3 cm mass in the left upper lobe.", {"mass": 1}),
    (
        "A 6 mm nodule in the right lung. Hiatal hernia. Dextroscoliosis.",
        {"nodule": 1, "hiatal hernia": 1, "scoliosis": 1},
    ),
    ("Left-sided pacemaker with leads in place.", {"support device": 1}),
    ("Right PICC tip in the SVC.", {"support device": 1}),
    # not the finding, though a word of it is there
    ("Pericardial effusion. Subcutaneous emphysema. Soft tissue mass.", {}),
    ("Degenerative changes of the spine. Old rib fractures.", {}),
    # denied
    ("No pleural effusion or pneumothorax.", {"pleural effusion": 0, "pneumothorax": 0}),
    (
        "No focal consolidation, pleural effusion, mass, or pneumothorax.",
        {"opacity": 0, "pleural effusion": 0, "mass": 0, "pneumothorax": 0},
    ),
    ("Without effusion, edema.", {"pleural effusion": 0, "pulmonary edema": 0}),
    ("The lungs are clear of focal airspace disease.", {"opacity": 0}),
    ("Lungs are free of infiltrate, negative for pneumothorax.", {"opacity": 0, "pneumothorax": 0}),
    ("The pneumothorax has resolved. Interval resolution of the edema.", {"pneumothorax": 0, "pulmonary edema": 0}),
    ("Pneumothorax is not seen.", {"pneumothorax": 0}),
    ("Neither effusion nor pneumothorax is identified.", {"pleural effusion": 0, "pneumothorax": 0}),
    ("Endotracheal tube and lines have been removed.", {"support device": 0}),
    # normal statements
    ("Heart size is normal.", {"cardiomegaly": 0}),
    ("The cardiomediastinal silhouette is within normal limits.", {"cardiomegaly": 0}),
    ("Heart is not enlarged.", {"cardiomegaly": 0}),
    ("The heart is not significantly enlarged.", {"cardiomegaly": 0}),
    ("The lungs are clear.", {"opacity": 0, "atelectasis": 0, "pulmonary edema": 0, "mass": 0, "nodule": 0}),
    ("The lungs are not clear.", {}),
    # uncertain
    ("Heart size upper limits of normal.", {"cardiomegaly": -1}),
    ("The heart is borderline in size.", {"cardiomegaly": -1}),
    ("Possible small effusion.", {"pleural effusion": -1}),
    ("Effusion cannot be excluded.", {"pleural effusion": -1}),
    ("Cannot exclude a pneumothorax.", {"pneumothorax": -1}),
    ("Question of a nodule in the left lung.", {"nodule": -1}),
    ("Opacity which may represent atelectasis.", {"opacity": 1, "atelectasis": -1}),
    ("Atelectasis versus pneumonia.", {"atelectasis": -1, "opacity": -1}),
    ("Left basilar atelectasis or infiltrate.", {"atelectasis": -1, "opacity": -1}),
    # scope
    ("No pneumothorax but there is a small effusion.", {"pneumothorax": 0, "pleural effusion": 1}),
    ("No change in the right effusion.", {"pleural effusion": 1}),
    ("No cardiomegaly with small bilateral effusions.", {"cardiomegaly": 0, "pleural effusion": 1}),
    ("Mild cardiomegaly, no edema or effusion.", {"cardiomegaly": 1, "pulmonary edema": 0, "pleural effusion": 0}),
    ("No new, worsening, or enlarging nodule.", {"nodule": 0}),
    ("No pneumothorax, mild cardiomegaly.", {"pneumothorax": 0, "cardiomegaly": 1}),
    ("No effusion and the heart is enlarged.", {"pleural effusion": 0, "cardiomegaly": 1}),
    # over sentences: affirmed, then uncertain, then denied
    ("No effusion on the left. Small right effusion.", {"pleural effusion": 1}),
    ("No nodule. Possible nodule.", {"nodule": -1}),
    # history, questions, hypotheses
    ("History of pneumothorax. Evaluate for pneumonia.", {}),
    ("If there is concern for effusion, repeat the study.", {}),
    # ungrammatical
    ("no pneumothorax mild cardiomegaly no effusion", {"pneumothorax": 0, "cardiomegaly": 1, "pleural effusion": 0}),
    ("cardiomegaly cardiomegaly cardiomegaly no no", {"cardiomegaly": 1}),
    ("FINDINGS: effusion IMPRESSION: no pneumothorax", {"pleural effusion": 1, "pneumothorax": 0}),
    ("1. effusion.2. no edema.", {"pleural effusion": 1, "pulmonary edema": 0}),
    ("HEART IS\nENLARGED", {"cardiomegaly": 1}),
    ("", {}),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_labels(text, expected):
    found = LABELLER.read(text).states
    if "COPD" not in text:
        assert found == expected
    else:  # "suggesting COPD" is uncertain, the rest of the sentence is not
        assert found == {"hyperinflation": 1}


SIDES = [
    ("Small left pleural effusion.", {"pleural effusion": "left"}),
    ("Blunting of the right costophrenic angle.", {"pleural effusion": "right"}),
    ("Right pleural effusion and left basilar atelectasis.", {"pleural effusion": "right", "atelectasis": "left"}),
    ("Effusion on the right, opacity on the left.", {"pleural effusion": "right", "opacity": "left"}),
    ("Bibasilar opacities.", {"opacity": "both"}),
    ("Effusions, right greater than left.", {"pleural effusion": "both"}),
    ("Left effusion. Right effusion.", {"pleural effusion": "both"}),
    ("No right effusion. Left effusion.", {"pleural effusion": "left"}),
    ("Left lingular nodule, possible right apical pneumothorax.", {"nodule": "left", "pneumothorax": "right"}),
    ("Minimal opacities in the lung bases.", {"opacity": "both"}),
    ("The left hemidiaphragm is elevated.", {"elevated diaphragm": "left"}),
    ("Pleural effusion. Left-sided pacemaker. Left ventricular enlargement.", {}),
]


@pytest.mark.parametrize(("text", "expected"), SIDES)
def test_sides(text, expected):
    assert LABELLER.read(text).sides() == expected


def test_case_and_wrapping_do_not_matter():
    for text, _ in CASES:
        forms = (text.upper(), text.lower(), text.replace(" ", "\n "))
        assert len({str(LABELLER.read(form).states) for form in forms}) == 1


WORDS = """no not possible heart enlarged normal left right bilateral effusion opacity or and but , . ; is seen may
represent lungs clear mass nodule calcified aorta tortuous the ___ XXXX IMPRESSION: versus excluded cannot"""
words = st.sampled_from(WORDS.split())


@given(st.one_of(st.text(max_size=200), st.lists(words, max_size=40).map(" ".join)))
def test_any_text_gives_valid_labels(text):
    reading = LABELLER.read(text)
    labels, sides = reading.states, reading.sides()
    assert set(labels) <= set(LABELLER.findings) and set(labels.values()) <= {-1, 0, 1}
    assert set(sides) <= set(LABELLER.sided) and set(sides.values()) <= {"left", "right", "both"}
    assert all(labels.get(name) in (1, -1) for name in sides)
    assert {m.finding for m in reading.mentions} == set(labels)
    assert all(0 <= m.start < m.end <= len(text) for m in reading.mentions)


def test_evidence_stands_where_it_is_said():
    text = "FINDINGS:  Small\n LEFT\npleural  EFFUSION vs. nodule.\n\n  \u0130. The heart  is normal; lungs\tclear."
    found = [(text[m.start : m.end], m.finding, m.state, m.side) for m in LABELLER.read(text).mentions]
    assert found[:3] == [
        ("EFFUSION", "pleural effusion", -1, "left"),
        ("nodule", "nodule", -1, "left"),
        ("heart  is normal", "cardiomegaly", 0, ""),
    ]
    assert {
        ("lungs\tclear", name, 0, "") for name in ("opacity", "atelectasis", "pulmonary edema", "mass", "nodule")
    } == set(found[3:])
    assert LABELLER.read("No mass.").mentions == (Mention("mass", 0, 3, 7),)


def test_what_is_affirmed_with_its_side():
    reading = LABELLER.read("Left effusion. Possible right effusion. Cardiomegaly. No left nodule. Possible mass.")
    assert set(reading.stated()) == {Finding("pleural effusion", "both"), Finding("cardiomegaly")}


def test_labellers_know_their_own_findings():
    assert unreadable(LABELLER, PHANTOM_FINDINGS) == ()
    assert unreadable(LABELLER, ["Pleural_Effusion", "COVID-19", "Support  Device"]) == ("COVID-19",)
    assert build_labeller("rules") is build_labeller("rules")
    nothing = build_labeller("none")
    assert not nothing.findings and nothing.read("Large effusion.").states == {}


def test_reports_without_labels_are_labelled_by_what_they_say():
    def study(k: int, text: str, **labels: int) -> Study:
        return Study(f"{k}", f"{k}", f"{k}", f"{k}.png", "train", impression_text=text, labels=labels)

    bare = [
        study(0, "Large left effusion. Possible mass."),
        study(1, "No effusion."),
        study(2, "No change."),
        study(3, ""),
    ]
    told = [{"mass": -1, "pleural effusion": 1}, {"pleural effusion": 0}, {}, {}]  # not mentioned is not denied
    assert [s.labels for s in label_studies(bare, LABELLER)] == told
    labelled = [*bare, study(4, "No mass.", covid=1)]
    assert label_studies(labelled, LABELLER) == labelled  # the data's own labels are never mixed with others
    assert label_studies(bare, build_labeller("none")) == bare


def test_reports_are_labelled_alike_by_parallel_processes(monkeypatch):
    studies = [
        Study(f"{k}", f"{k}", f"{k}", "i.png", "train", impression_text=f"Nodule of {k} mm. {CASES[k % len(CASES)][0]}")
        for k in range(40)
    ] * 2  # two images share a report
    alone = label_studies(studies, LABELLER_OF_ALL)
    here = functools.partial(in_processes, chunk=15, worth=10)
    monkeypatch.setattr(registry, "in_processes", here)
    monkeypatch.setattr(devices, "core_count", lambda: 2)
    assert label_studies(studies, LABELLER_OF_ALL) == alone
    assert alone[3].labels == LABELLER.read(studies[3].impression_text).states and alone[43].labels == alone[3].labels


LABELLER_OF_ALL = build_labeller("rules")
CHEXPERT = [
    ("Mild cardiomegaly. No effusion.", {"Cardiomegaly": 1, "Pleural Effusion": 0}),
    ("Widened mediastinum.", {"Enlarged Cardiomediastinum": 1}),
    ("Cardiomediastinal silhouette is normal.", {"Enlarged Cardiomediastinum": 0, "Cardiomegaly": 0, "No Finding": 1}),
    ("Right lower lobe pneumonia.", {"Pneumonia": 1}),
    ("Focal consolidation.", {"Consolidation": 1}),
    ("Hazy opacity.", {"Lung Opacity": 1}),
    ("A nodule and a mass.", {"Lung Lesion": 1}),
    ("Pulmonary metastases.", {"Lung Lesion": 1}),
    ("Possible edema.", {"Edema": -1}),
    ("Calcified pleural plaques.", {"Pleural Other": 1}),
    ("Old rib fractures. No acute fracture.", {"Fracture": 1}),
    ("No fracture. Fractured sternal wires.", {"Fracture": 0, "Support Devices": 1, "No Finding": 1}),
    ("PICC in place.", {"Support Devices": 1, "No Finding": 1}),
    ("", {}),
]


@pytest.mark.parametrize(("text", "expected"), CHEXPERT)
def test_the_fourteen_observations(text, expected):
    assert build_labeller("chexpert").read(text).states == expected


def test_vocabularies_name_terms_that_exist():
    for vocabulary in (terms.FINDINGS, terms.CHEXPERT):
        assert {term for named in vocabulary.values() for term in named} <= set(terms.PRESENT)
    assert terms.SIDED <= set(terms.PRESENT) >= set(terms.UNRELATED) and set(terms.DOUBTFUL) <= set(terms.PRESENT)
    assert {term for named, _ in terms.ABSENT for term in named} <= set(terms.PRESENT)
    assert len(build_labeller("chexpert").findings) == 14 and len(LABELLER.findings) == 17
    assert "Lung Lesion" in build_labeller("chexpert").sided and "Edema" not in build_labeller("chexpert").sided
    assert unreadable(build_labeller("chexpert"), ["Pleural_Effusion", "granuloma"]) == ("granuloma",)


@given(st.text(max_size=80))
def test_many_texts_are_read_like_one(text):
    for name in ("rules", "chexpert", "none"):
        labeller = build_labeller(name)
        assert labeller.read_all([text, "Mass."]) == [labeller.read(text), labeller.read("Mass.")]
