"""Tags of the Indiana reports become findings; blanks in the text are cleaned; nothing is dropped uncounted."""

import dataclasses
import io
import tarfile
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.foundation.assets import fetch
from llmcxr.foundation.errors import UserError
from llmcxr.labelling.registry import build_labeller
from llmcxr.sources.phantom.reports import (
    IndianaReport,
    fill_blanks,
    findings_of,
    mirror_words,
    parse_tag,
    read_reports,
    with_sides,
)
from llmcxr.sources.phantom.settings import PhantomSettings
from llmcxr.sources.phantom.source import PHANTOM_FINDINGS, UsableReport, mirrored, plan, split_of, usable_reports
from llmcxr.studies.findings import Finding

TAGS = [
    ("Pleural Effusion/left/small", Finding("pleural effusion", "left", "mild")),
    ("Pleural Effusion/bilateral/large", Finding("pleural effusion", "both", "severe")),
    ("Costophrenic Angle/right/blunted", Finding("pleural effusion", "right", "mild", "costophrenic angle")),
    ("Cardiomegaly", Finding("cardiomegaly")),
    ("Cardiomegaly/borderline", Finding("cardiomegaly", severity="mild", kind="borderline")),
    ("Cardiac Shadow/enlarged/severe", Finding("cardiomegaly", severity="severe")),
    ("Opacity/lung/base/left/patchy", Finding("opacity", "left", "", "base", "patchy")),
    ("Pneumonia/lower lobe/right", Finding("opacity", "right", "", "lower lobe")),
    ("Opacity/lung/bilateral/interstitial/diffuse", Finding("interstitial markings", "both")),
    ("Pulmonary Atelectasis/base/bilateral/mild", Finding("atelectasis", "both", "mild", "base")),
    ("Pneumothorax/apex/right/small", Finding("pneumothorax", "right", "mild", "apex")),
    ("Lung/hypoinflation/mild", Finding("hypoinflation", severity="mild")),
    ("Diaphragm/bilateral/flattened", Finding("hyperinflation")),
    ("Diaphragm/right/elevated/mild", Finding("elevated diaphragm", "right", "mild")),
    ("Pulmonary Congestion", Finding("pulmonary edema", "both", "mild")),
    ("Nodule/lung/bilateral/multiple", Finding("nodule", "both", kind="multiple")),
    ("Calcinosis/lung/hilum/lymph nodes/right", Finding("granuloma", "right", "", "hilum", "nodes")),
    ("Calcified Granuloma/lung/upper lobe/left", Finding("granuloma", "left", "", "upper lobe")),
    ("Aorta, Thoracic/tortuous/moderate", Finding("tortuous aorta", severity="moderate")),
    ("Hernia, Hiatal/large", Finding("hiatal hernia", severity="severe")),
    ("Scoliosis/thoracic vertebrae/right/mild", Finding("scoliosis", "right", "mild")),
    ("Implanted Medical Device/left", Finding("support device", "left", kind="pacemaker")),
    ("Surgical Instruments/mediastinum", Finding("support device", place="mediastinum", kind="sternal wires")),
    ("Catheters, Indwelling/right", Finding("support device", "right", kind="central line")),
]


@pytest.mark.parametrize(("tag", "finding"), TAGS)
def test_tag_means_one_finding(tag: str, finding: Finding) -> None:
    assert parse_tag(tag) == (finding,)


@pytest.mark.parametrize(
    "tag",
    [
        "Thoracic Vertebrae/degenerative/mild",
        "Osteophyte/thoracic vertebrae/multiple",
        "Kyphosis",
        "Arthritis",
        "Atherosclerosis/aorta",
    ],
)
def test_frontally_neutral_tags(tag: str) -> None:
    assert parse_tag(tag) == "neutral"


@pytest.mark.parametrize(
    "tag",
    ["Cicatrix/lung/apex", "Pneumonectomy/lung/left", "Fractures, Bone/ribs/left", "Opacity/ribs/anterior", "Nonsense"],
)
def test_tags_that_cannot_be_drawn(tag: str) -> None:
    assert parse_tag(tag) == "cannot draw"


words = st.sampled_from(
    sorted({w for tag, _ in TAGS for w in tag.split("/")} | {"", " ", "diffuse", "abdomen", "heart", "ribs"})
)


@given(st.one_of(st.text(), st.lists(words, min_size=1, max_size=7).map("/".join)))
def test_any_tag_is_understood_or_counted(tag: str) -> None:
    verdict = parse_tag(tag)
    if isinstance(verdict, str):
        assert verdict in ("neutral", "cannot draw")
    else:
        for finding in verdict:
            assert finding.name in PHANTOM_FINDINGS
            assert finding.side in ("", "left", "right", "both")
            assert finding.severity in ("", "mild", "moderate", "severe")
    reports = [IndianaReport("1", "Text.", "", (tag,))]
    usable, dropped = usable_reports(reports)
    assert len(usable) + sum(dropped.values()) == 1


def report(*tags: str, findings: str = "Heart is large.", impression: str = "Large heart.") -> IndianaReport:
    return IndianaReport("1", findings, impression, tags)


def test_repeated_tags_are_one_finding_with_the_worst_severity() -> None:
    assert findings_of(report("Aorta/tortuous", "Aorta, Thoracic/tortuous/mild")) == (
        Finding("tortuous aorta", severity="mild"),
    )
    assert findings_of(report("Cardiomegaly/mild", "Cardiac Shadow/enlarged/severe")) == (
        Finding("cardiomegaly", severity="severe"),
    )
    assert findings_of(report("Aorta/tortuous", "Calcinosis/aorta")) == (Finding("tortuous aorta", kind="calcified"),)
    both = findings_of(report("Opacity/lung/base/left", "Opacity/lung/base/right"))
    assert both == (Finding("opacity", "left", "", "base"), Finding("opacity", "right", "", "base"))


def test_reasons_for_leaving_out() -> None:
    assert findings_of(report("normal")) == findings_of(report("Calcinosis/aorta")) == ()
    assert findings_of(report("Cardiomegaly", "Cicatrix/lung")) == "tag cannot be drawn: cicatrix"
    assert (
        findings_of(report("Lung/hypoinflation", "Emphysema")) == "contradicting tags: hypoinflation and hyperinflation"
    )
    many = [
        f"Nodule/lung/{p}/{s}" for p in ("base", "apex", "hilum", "upper lobe", "lower lobe") for s in ("left", "right")
    ]
    assert findings_of(report(*many)) == "more than 8 findings"
    _, dropped = usable_reports(
        [
            report("No Indexing"),
            report("normal", findings="XXXX.", impression=""),
            report("normal", findings="", impression=""),
            report(),
        ]
    )
    assert dropped == {"not indexed": 2, "blanks leave no sentence": 1, "no text": 1}


def test_reports_that_the_labeller_reads_otherwise_are_kept_for_the_test_alone() -> None:
    denied = [report("Pleural Effusion/left", findings=f"No effusion {k}.", impression="") for k in range(40)]
    untagged = [report("normal", findings=f"Severe cardiomegaly {k}.", impression="") for k in range(40)]
    kept, dropped = usable_reports([*denied, *untagged])
    reasons = ("text denies a tagged finding", "text tells a finding that is not tagged")
    assert {split_of(r) for r in kept} == {"test"} and 4 < len(kept) < 40
    counts = Counter(r.disagreement for r in kept)
    assert all(dropped[reason] + counts[reason] == 40 for reason in reasons)
    agreeing = [usable(k, k % 2 == 0) for k in range(200)]
    drawn = [r for split, _, r, _ in plan(PhantomSettings(train=50, validate=20, test=200), [*agreeing, *kept])]
    assert {r.disagreement for r in drawn[:70]} == {""} and {r.disagreement for r in drawn[70:]} == {"", *reasons}


def test_blanks_are_filled_or_their_sentence_dropped() -> None:
    assert (
        fill_blanks("1. Normal chest x-XXXX. 2.  No XXXX of effusion.")
        == "Normal chest x-ray. No evidence of effusion."
    )
    assert fill_blanks("The XXXX was called at XXXX. Lungs are clear. . ") == "Lungs are clear."
    assert fill_blanks("XXXX opacities in the left base.") == "Opacities in the left base."
    assert fill_blanks("Blunted left costophrenic XXXX.") == "Blunted left costophrenic angle."
    assert fill_blanks("") == ""


@given(st.text(alphabet="aX .1Z\n)", max_size=80))
def test_no_blank_survives_cleaning(text: str) -> None:
    cleaned = fill_blanks(text)
    assert "XXXX" not in cleaned and cleaned == cleaned.strip()


def test_open_sides_are_taken_from_the_text() -> None:
    text = "There is a small left pleural effusion. No right pneumothorax. Opacities in both bases."
    found = with_sides(
        [Finding("pleural effusion"), Finding("pneumothorax"), Finding("opacity"), Finding("atelectasis")], text
    )
    assert [f.side for f in found] == ["left", "", "both", ""]
    assert with_sides([Finding("opacity", "right")], "Left opacity.") == (Finding("opacity", "right"),)


def usable(i: int, abnormal: bool) -> UsableReport:
    return UsableReport(
        str(i), f"Sentence {i}.", "No acute disease.", (Finding("cardiomegaly", severity="mild"),) if abnormal else ()
    )


REPORTS = [usable(i, i % 2 == 0) for i in range(400)]


def test_splits_share_no_text_whatever_the_spelling() -> None:
    shares = [sum(split_of(r) == s for r in REPORTS) / len(REPORTS) for s in ("train", "validate", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.06)
    shouted = UsableReport("x", "SENTENCE  7", "no acute disease", ())
    assert split_of(shouted) == split_of(usable(7, False))
    settings = PhantomSettings(train=60, validate=20, test=20, seed=4)
    texts: dict[str, set[str]] = {}
    for split, _, drawn, _ in plan(settings, REPORTS):
        texts.setdefault(split, set()).add(drawn.findings_text + drawn.impression_text)
    assert not texts["train"] & (texts["test"] | texts["validate"]) and not texts["test"] & texts["validate"]


def test_a_study_depends_on_seed_and_number_alone() -> None:
    few = {
        image_id: (drawn, case)
        for _, image_id, drawn, case in plan(PhantomSettings(train=5, validate=2, test=3, seed=1), REPORTS)
    }
    many = {
        image_id: (drawn, case)
        for _, image_id, drawn, case in plan(PhantomSettings(train=9, validate=4, test=8, seed=1), REPORTS)
    }
    assert all(many[image_id] == study for image_id, study in few.items())
    other = {image_id for _, image_id, _, _ in plan(PhantomSettings(train=5, validate=2, test=3, seed=2), REPORTS)}
    assert not other & set(many)


def test_share_of_abnormal_reports_and_rare_findings() -> None:
    rare = UsableReport("rare", "A mass.", "", (Finding("mass", "left", "mild"),))
    pool = [r for r in REPORTS if split_of(r) == "train"] + [rare] * (split_of(rare) == "train")
    drawn = [r for split, _, r, _ in plan(PhantomSettings(train=600, validate=0, test=0), pool) if split == "train"]
    assert sum(bool(r.findings) for r in drawn) / 600 == pytest.approx(0.7, abs=0.06)
    assert split_of(rare) == "train"  # its own chance is then about 12 times that of a common report
    assert sum(r.uid == "rare" for r in drawn) / 600 > 3 / 140


def archive(path, members: dict[str, bytes]):  # type: ignore[no-untyped-def]
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


XML = b"""<eCitation><MedlineCitation><Article><Abstract>
<AbstractText Label="FINDINGS">Small left  effusion.</AbstractText><AbstractText Label="IMPRESSION"/></Abstract></Article></MedlineCitation>
<MeSH><major>Pleural Effusion/left/small</major></MeSH></eCitation>"""


def test_read_reports(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = archive(tmp_path / "a.tgz", {"r/10.xml": XML, "r/9.xml": XML, "r/readme.txt": b"x"})
    assert [r.uid for r in read_reports(path)] == ["9", "10"]
    assert read_reports(path)[0] == IndianaReport("9", "Small left effusion.", "", ("Pleural Effusion/left/small",))


def test_damaged_archives_are_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="bad.tgz"):
        read_reports(tmp_path / "bad.tgz")
    (tmp_path / "cut.tgz").write_bytes(archive(tmp_path / "b.tgz", {"1.xml": XML}).read_bytes()[:60])
    with pytest.raises(UserError, match="cut.tgz"):
        read_reports(tmp_path / "cut.tgz")
    with pytest.raises(UserError, match="7.xml"):
        read_reports(archive(tmp_path / "c.tgz", {"7.xml": XML[:40]}))
    with pytest.raises(UserError, match="no XML"):
        read_reports(archive(tmp_path / "d.tgz", {"x.txt": b""}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Left base. RIGHT apex, left-sided, leftward.", "Right base. LEFT apex, right-sided, rightward."),
        ("Dextroscoliosis; LUL and rll.", "Levoscoliosis; RUL and lll."),
        ("The upright cleft is bright; fell full.", "The upright cleft is bright; fell full."),
    ],
)
def test_words_for_sides_are_exchanged(text: str, expected: str) -> None:
    assert mirror_words(text) == expected


@given(st.text("leftrighLRuo dxv-.", max_size=60))
def test_exchanged_twice_is_as_before(text: str) -> None:
    assert mirror_words(mirror_words(text)).lower() == text.lower()


def test_mirrored_real_reports_tell_the_same_on_the_other_side() -> None:
    usable, _ = usable_reports(read_reports(fetch("indiana-reports") / "NLMCXR_reports.tgz"))
    labeller = build_labeller("rules")
    opposite = {"left": "right", "right": "left", "both": "both", "": ""}
    changed = 0
    for report in usable:
        other = mirrored(report, frozenset())
        if other == report:
            continue
        changed += 1
        assert [opposite[f.side] for f in report.findings] == [f.side for f in other.findings]
        texts = ((r.findings_text, r.impression_text) for r in (report, other))
        for one, two in zip(*texts, strict=True):
            told = [labeller.read(text) for text in (one, two)]
            assert mirror_words(two) == one and told[0].states == told[1].states
            assert {name: opposite[side] for name, side in told[0].sides().items()} == told[1].sides()
    assert changed > 400  # of about 700 that tell a side


def test_what_cannot_be_mirrored_stays_as_it_is() -> None:
    opacity = Finding("opacity", "right", place="middle lobe")
    for findings, text in [
        ((opacity,), "Right opacity."),
        ((Finding("opacity", "left"),), "Opacity at the left heart border."),
        ((Finding("opacity", "left"),), "An opacity."),
        ((Finding("opacity", "both"),), "Opacities, left more than right."),
        ((), "The left lung is clear."),
    ]:
        report = UsableReport("1", text, "", findings)
        assert mirrored(report, frozenset()) == report
    report = UsableReport("1", "Left nodule.", "", (Finding("nodule", "left"),))
    other = UsableReport("1", "Right nodule.", "", (Finding("nodule", "right"),))
    assert mirrored(report, frozenset()) == other
    assert mirrored(report, frozenset({"right nodule"})) == report


def test_mirroring_is_of_training_alone_and_shares_no_text_with_the_other_splits() -> None:
    sides = [
        UsableReport(f"{k}", f"{side.capitalize()} nodule {k // 2}.", "", (Finding("nodule", side),))
        for k in range(400)
        for side in ("left", "right")
    ]
    sides += [usable(k, False) for k in range(801, 901)]
    settings = PhantomSettings(train=300, validate=30, test=30)
    share = dataclasses.replace(settings, mirrored_share=0.5)
    plain, half = (list(plan(s, sides)) for s in (settings, share))
    texts: dict[str, set[str]] = {"train": set(), "validate": set(), "test": set()}
    for split, _, report, _ in half:
        texts[split].add(report.findings_text)
    assert not texts["train"] & (texts["validate"] | texts["test"])
    assert [p for p in plain if p[0] != "train"] == [h for h in half if h[0] != "train"]
    pairs = [(p[2], h[2]) for p, h in zip(plain, half, strict=True) if p[0] == "train" and p[2].findings]
    changed = [(p, h) for p, h in pairs if p != h]
    assert all(mirror_words(h.findings_text) == p.findings_text for p, h in changed)
    assert 0.2 < len(changed) / len(pairs) < 0.5  # half of them, less those whose mirrored text is another split's
