"""References to earlier studies: what counts as one, what looks like one, and what the policies do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.studies.prior_references import cues_of, drop_references, edit_prior_references
from llmcxr.studies.study import Study

REFERENCES = [
    "Heart size is unchanged.",
    "Stable cardiomegaly.",
    "Stable right basilar granuloma.",
    "No significant interval change.",
    "There has been no change in the effusion.",
    "As compared to the previous radiograph, the effusion is larger.",
    "The pleural effusion has decreased in size.",
    "Small right pleural effusion increased.",
    "Decreased pulmonary edema.",
    "Slightly increased pulmonary edema.",
    "New right lower lobe opacity.",
    "The nodule is again seen.",
    "The lungs remain clear.".replace("remain", "remains"),
    "The central line has been removed.",
    "Right chest tube is now in place.",
    "Nodules are better seen on the prior CT.",
    "Nodules are best evaluated on recent chest CT.",
    "Worsening bibasilar opacities.",
    "Resolved left effusion.",
    "Pre-existing opacities persist.",
    "Comparison is made to ___.",
    "No prior studies are available.",
    "Opacity is larger than three days ago.",
]
OF_THIS_IMAGE = [
    "Degenerative changes of the spine.",
    "Mild chronic interstitial changes.",
    "Clips from prior cholecystectomy.",
    "Sequela of prior granulomatous infection.",
    "Old healed rib fractures.",
    "Increased interstitial markings.",
    "There is mild increase in interstitial markings.",
    "Increased AP diameter of the chest.",
    "Decreased lung volumes.",
    "The left effusion is larger than the right.",
    "Increased density on the left compared to the right.",
    "Follow-up radiographs are recommended.",
    "Repeat imaging when edema has improved is advised.",
    "The patient is clinically stable.",
    "Evaluate for new onset of heart failure.",
    "No displaced fracture.",
    "The remainder of the lungs is clear.",
    "The NG tube is against the wall.",
    "Sensitivity for effusion is reduced on supine views.",
]


@pytest.mark.parametrize("sentence", REFERENCES)
def test_references(sentence):
    assert cues_of(sentence)
    assert cues_of(sentence.upper())


@pytest.mark.parametrize("sentence", OF_THIS_IMAGE)
def test_what_only_looks_like_a_reference(sentence):
    assert not cues_of(sentence)


def test_the_sentence_goes_and_the_others_stay():
    edited = drop_references("1. Heart is unchanged. 2. No edema seen by Dr. ___ at 9 a.m. today.\nNew   effusion.")
    assert edited.text == "2. No edema seen by Dr. ___ at 9 a.m. today."
    assert edited.dropped == ("1. Heart is unchanged.", "New effusion.")


sentences = st.lists(st.sampled_from([*REFERENCES, *OF_THIS_IMAGE]), max_size=8)


@given(sentences)
def test_dropping_is_exact_and_idempotent(said):
    edited = drop_references(" ".join(said))
    assert edited.text == " ".join(s for s in said if s in OF_THIS_IMAGE)
    assert edited.dropped == tuple(s for s in said if s in REFERENCES)
    assert drop_references(edited.text).text == edited.text


def study(name: str, findings: str, impression: str, image: str = "1") -> Study:
    return Study(
        f"{name}-{image}", name, name, "i.png", "train", findings_text=findings, impression_text=impression,
        labels={"effusion": 1},
    )  # fmt: skip


def test_policies_and_their_counts():
    studies = [
        study("a", "Effusion is unchanged. No edema.", "New effusion."),
        study("a", "Effusion is unchanged. No edema.", "New effusion.", "2"),  # the lateral view of the same study
        study("b", "", "Stable chest."),
        study("c", "No edema.", "Normal."),
        study("d", "", ""),
    ]
    kept, counts = edit_prior_references(studies, "keep")
    assert kept == studies
    assert (counts.sentences, counts.reports, counts.emptied) == (3, 2, 0)
    dropped, counts = edit_prior_references(studies, "drop")
    assert [(s.findings_text, s.impression_text) for s in dropped] == [
        ("No edema.", ""), ("No edema.", ""), ("", ""), ("No edema.", "Normal."), ("", ""),
    ]  # fmt: skip
    assert all(s.labels == {"effusion": 1} for s in dropped)
    assert (counts.sentences, counts.reports, counts.emptied) == (3, 2, 1)
    assert counts.cues == {"unchanged": 1, "new": 1, "stable": 1}
    assert counts.examples == ["Effusion is unchanged.", "New effusion.", "Stable chest."]
    assert "3 sentences of 2 reports" in counts.said("drop") and "1 report" in counts.said("drop")
