"""Kinds of statements that were misread: each with sentences that are invented for it."""

from __future__ import annotations

import pytest
from growth import grows_with_length

from llmcxr.labelling.rules import RuleLabeller

LABELLER = RuleLabeller()
PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED = 1, 0, -1, None

KINDS: dict[str, list[tuple[str, str, int | None]]] = {
    "a denial that holds a word of doubt": [
        ("Effusion is not apparent.", "pleural effusion", ABSENT),
        ("Previously noted mass is no longer apparent.", "mass", ABSENT),
        ("There is no apparent edema.", "pulmonary edema", ABSENT),
        ("Apparent nodule in the left base.", "nodule", PRESENT),
        ("No suspicious nodule.", "nodule", ABSENT),
        ("No possible mass.", "mass", ABSENT),
    ],
    "denials that deny a change, or nothing": [
        ("The opacity has not cleared.", "opacity", PRESENT),
        ("The edema has not yet resolved.", "pulmonary edema", PRESENT),
        ("Without resolution of the left effusion.", "pleural effusion", PRESENT),
        ("No clearing of the infiltrate.", "opacity", PRESENT),
        ("The effusion has not worsened.", "pleural effusion", PRESENT),
        ("Nodule has not changed.", "nodule", PRESENT),
        ("The chest tube has not been removed.", "support device", PRESENT),
        ("Not negative for pneumothorax.", "pneumothorax", PRESENT),
        ("No worsening pneumothorax.", "pneumothorax", NOT_MENTIONED),
        ("No increasing effusion.", "pleural effusion", NOT_MENTIONED),
        ("No new nodule.", "nodule", ABSENT),
        ("No large pneumothorax.", "pneumothorax", ABSENT),
    ],
    "what has gone in part, or wholly": [
        ("Almost complete resolution of the edema.", "pulmonary edema", PRESENT),
        ("The opacity has partially cleared.", "opacity", PRESENT),
        ("Incompletely resolved pneumothorax.", "pneumothorax", PRESENT),
        ("The atelectasis is nearly resolved.", "atelectasis", PRESENT),
        ("Nearly resolved right effusion.", "pleural effusion", PRESENT),
        ("The effusion is resolving.", "pleural effusion", PRESENT),
        ("Decrease in the pneumothorax.", "pneumothorax", PRESENT),
        ("The effusion has completely resolved.", "pleural effusion", ABSENT),
        ("Interval clearing of the infiltrate.", "opacity", ABSENT),
        ("Pneumothorax has not recurred.", "pneumothorax", ABSENT),
        ("The right opacity and the left effusion have resolved.", "opacity", ABSENT),
    ],
    "if any": [
        ("Minimal if any effusion.", "pleural effusion", UNCERTAIN),
        ("Pneumothorax, if present, is tiny.", "pneumothorax", UNCERTAIN),
        ("If there is an effusion it is small.", "pleural effusion", UNCERTAIN),
        ("Edema is mild if any. Cardiomegaly.", "cardiomegaly", PRESENT),
        ("Effusions are small if any, cardiomegaly is stable.", "cardiomegaly", PRESENT),
    ],
    "what cannot be excluded": [
        ("Cannot entirely exclude pneumonia.", "opacity", UNCERTAIN),
        ("Can't rule out an effusion.", "pleural effusion", UNCERTAIN),
        ("A small pneumothorax could not be excluded.", "pneumothorax", UNCERTAIN),
        ("Nodule is hard to exclude.", "nodule", UNCERTAIN),
        ("It is difficult to exclude a mass.", "mass", UNCERTAIN),
        ("Rule out pneumonia.", "opacity", NOT_MENTIONED),
        ("Pneumothorax has been ruled out.", "pneumothorax", ABSENT),
    ],
    "how far a doubt reaches": [
        ("Possible pneumonia with small effusion.", "pleural effusion", PRESENT),
        ("Possible pneumonia with pleural effusion.", "pleural effusion", PRESENT),
        ("Possible effusion, cardiomegaly.", "cardiomegaly", PRESENT),
        ("Possible effusion, edema, or pneumonia.", "pulmonary edema", UNCERTAIN),
        ("Effusion with possible pneumonia.", "pleural effusion", PRESENT),
        ("Opacities concerning for aspiration versus atelectasis.", "opacity", PRESENT),
        ("Opacities concerning for aspiration versus atelectasis.", "atelectasis", UNCERTAIN),
        ("Opacity, which may be due to atelectasis.", "atelectasis", UNCERTAIN),
        ("May be secondary to edema or mass.", "mass", UNCERTAIN),
        ("Opacity may be compatible with mild edema.", "pulmonary edema", UNCERTAIN),
        ("There is a suspected left nodule.", "nodule", UNCERTAIN),
        ("There is suspected edema.", "pulmonary edema", UNCERTAIN),
        ("Effusions are presumed.", "pleural effusion", UNCERTAIN),
        ("Pneumonia should be considered.", "opacity", UNCERTAIN),
        ("A trace effusion may be present.", "pleural effusion", UNCERTAIN),
        ("?nodule at the left apex.", "nodule", UNCERTAIN),
        ("Atelectasis, less likely pneumonia.", "atelectasis", PRESENT),
        ("Atelectasis, less likely pneumonia.", "opacity", UNCERTAIN),
        ("Suspected pneumonia and known cardiomegaly.", "cardiomegaly", PRESENT),
        ("Edema, likely chronic.", "pulmonary edema", PRESENT),
        ("Opacity consistent with pneumonia.", "opacity", PRESENT),
    ],
    "lists without commas": [
        ("No consolidation small effusion or pneumothorax.", "pleural effusion", ABSENT),
        ("There is no pneumothorax large pleural effusion.", "pleural effusion", ABSENT),
        ("No evidence of edema effusion or mass.", "mass", ABSENT),
        ("no edema mild cardiomegaly no effusion", "cardiomegaly", PRESENT),
        ("No effusion, mild edema, small pneumothorax.", "pneumothorax", PRESENT),
        ("No edema, small effusion.", "pleural effusion", PRESENT),
        ("No consolidation, large effusion or pneumothorax.", "pleural effusion", ABSENT),
        ("No consolidation, small effusion, or pneumothorax.", "pneumothorax", ABSENT),
    ],
    "answers after a colon": [
        ("Pneumothorax: none.", "pneumothorax", ABSENT),
        ("Pneumothorax - none.", "pneumothorax", ABSENT),
        ("Edema, none. Effusion, small.", "pulmonary edema", ABSENT),
        ("Effusion: NO.", "pleural effusion", ABSENT),
        ("Effusion: No\nPneumothorax: small\nMass: none.", "pleural effusion", ABSENT),
        ("Effusion: No\nPneumothorax: small\nMass: none.", "pneumothorax", PRESENT),
        ("Effusion: No\nPneumothorax: small\nMass: none.", "mass", ABSENT),
        ("Nodule: not seen. Mass: small.", "nodule", ABSENT),
        ("Mass: small.", "mass", PRESENT),
        ("Heart: enlarged. Lungs: clear.", "cardiomegaly", PRESENT),
        ("Heart: enlarged. Lungs: clear.", "opacity", ABSENT),
        ("Pleural effusion: No. Pneumothorax: small.", "pneumothorax", PRESENT),
    ],
    "sections that ask or tell of the past": [
        ("INDICATION: effusion. FINDINGS: No mass.", "pleural effusion", NOT_MENTIONED),
        ("HISTORY: Left nodule.\n \nThe lungs are clear.", "nodule", ABSENT),
        ("REASON FOR EXAM: Pneumothorax.\n\nTECHNIQUE: AP.\n\nFINDINGS:\n\nEffusion.", "pneumothorax", NOT_MENTIONED),
        ("REASON FOR EXAM: Pneumothorax.\n\nTECHNIQUE: AP.\n\nFINDINGS:\n\nEffusion.", "pleural effusion", PRESENT),
        ("CLINICAL INFORMATION:\n\nPneumonia.\n\nIMPRESSION: Edema.", "opacity", NOT_MENTIONED),
        ("COMPARISON: film with edema. IMPRESSION: effusion.", "pulmonary edema", NOT_MENTIONED),
        ("Evaluate for pneumothorax.", "pneumothorax", NOT_MENTIONED),
        ("The sensitivity for detecting a nodule is limited.", "nodule", NOT_MENTIONED),
        ("Study limited to detect pneumothorax.", "pneumothorax", NOT_MENTIONED),
        ("Exam is limited for detection of small effusions.", "pleural effusion", NOT_MENTIONED),
        ("Effusion cannot be assessed.", "pleural effusion", NOT_MENTIONED),
    ],
    "what only looks like the finding": [
        ("Pericardial effusion.", "pleural effusion", NOT_MENTIONED),
        ("Pleural or pericardial effusions.", "pleural effusion", PRESENT),
        ("Soft tissue emphysema.", "hyperinflation", NOT_MENTIONED),
        ("Subcutaneous and mediastinal emphysema.", "hyperinflation", NOT_MENTIONED),
        ("Emphysema in the soft tissues of the neck.", "hyperinflation", NOT_MENTIONED),
        ("Emphysema is severe.", "hyperinflation", PRESENT),
        ("Decreased bone density.", "opacity", NOT_MENTIONED),
        ("Metallic density over the left shoulder.", "opacity", NOT_MENTIONED),
        ("Rounded density overlying the right fifth rib.", "opacity", NOT_MENTIONED),
        ("Diffuse interstitial opacities.", "opacity", NOT_MENTIONED),
        ("Diffuse interstitial opacities.", "interstitial markings", PRESENT),
        ("Interstitial and airspace opacities.", "opacity", PRESENT),
        ("Ankle edema.", "pulmonary edema", NOT_MENTIONED),
        ("Thyroid mass.", "mass", NOT_MENTIONED),
        ("Hilar mass.", "mass", PRESENT),
        ("Blunting of the left angle consistent with scarring.", "pleural effusion", NOT_MENTIONED),
        ("Blunting of the left costophrenic angle.", "pleural effusion", PRESENT),
        ("External monitor leads.", "support device", NOT_MENTIONED),
        ("Telemetry leads overlie the chest.", "support device", NOT_MENTIONED),
        ("Pacemaker leads.", "support device", PRESENT),
        ("Status post CABG.", "support device", NOT_MENTIONED),
        ("S/p removal of the right chest tube.", "support device", NOT_MENTIONED),
        ("Status post removal of the pacemaker with new PICC.", "support device", PRESENT),
        ("A nodule is a nipple shadow.", "nodule", NOT_MENTIONED),
        ("A skin fold is not a pneumothorax.", "pneumothorax", ABSENT),
        ("Pneumomediastinum.", "pneumothorax", NOT_MENTIONED),
        ("Lung volumes are low normal.", "hypoinflation", NOT_MENTIONED),
        ("Low lung volumes with increased markings.", "hyperinflation", NOT_MENTIONED),
    ],
    "the size of the heart": [
        ("Heart size at the upper limit of normal.", "cardiomegaly", UNCERTAIN),
        ("Cardiac size is top-normal.", "cardiomegaly", UNCERTAIN),
        ("The heart is big.", "cardiomegaly", PRESENT),
        ("The heart remains enlarged.", "cardiomegaly", PRESENT),
        ("Unremarkable heart and lungs.", "cardiomegaly", ABSENT),
        ("Heart size normal, lungs hyperinflated.", "cardiomegaly", ABSENT),
        ("Heart is not enlarged.", "cardiomegaly", ABSENT),
    ],
    "the aorta": [
        ("Calcified and tortuous thoracic aorta.", "tortuous aorta", PRESENT),
        ("Ectatic and calcified aorta.", "tortuous aorta", PRESENT),
        ("Prominent calcifications of the aorta.", "tortuous aorta", NOT_MENTIONED),
        ("Aortic calcification.", "tortuous aorta", NOT_MENTIONED),
        ("Aorta is normal.", "tortuous aorta", ABSENT),
    ],
    "seen elsewhere, not here": [
        ("The nodule seen on prior CT is not visible.", "nodule", ABSENT),
        ("Effusion noted on the previous film is no longer seen.", "pleural effusion", ABSENT),
        ("PREVIOUSLY DESCRIBED MASS IS NOT WELL SEEN.", "mass", ABSENT),
    ],
}
CASES = [(kind, *case) for kind, cases in KINDS.items() for case in cases]


@pytest.mark.parametrize(("kind", "text", "finding", "state"), CASES)
def test_statements(kind, text, finding, state):
    assert LABELLER.read(text).states.get(finding) == state, kind


def test_other_sentences_do_not_change_a_statement():
    """Each is read alike between two others, in capitals, and after a heading."""
    for kind, text, finding, state in CASES:
        if "sections" in kind:
            continue
        for form in (f"The trachea is midline. {text} Bones are intact.", text.upper(), f"FINDINGS: {text}"):
            assert LABELLER.read(form).states.get(finding) == state, form


@pytest.mark.parametrize(
    "unit",
    [
        "left effusion and no mass or opacity ",
        "the heart ",
        "no ",
        "calcified ",
        "blunting of the ",
        "edema, or mass, ",
    ],
)
def test_time_grows_no_faster_than_the_length(unit):
    assert grows_with_length(LABELLER.read, unit)
