"""Pictures of the phantom: the same case gives the same bits, findings are where they belong and change nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from llmcxr.foundation import devices
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings
from llmcxr.sources.phantom import atlas as atlas_module
from llmcxr.sources.phantom.anatomy import case_for, from_atlas, to_atlas
from llmcxr.sources.phantom.atlas import Atlas, load_atlas
from llmcxr.sources.phantom.contact_sheet import EXAMPLES
from llmcxr.sources.phantom.drawing import DRAW
from llmcxr.sources.phantom.projection import Rendering, render
from llmcxr.sources.phantom.settings import PhantomSettings
from llmcxr.sources.phantom.source import PHANTOM_FINDINGS, PhantomSource
from llmcxr.studies.findings import Finding


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return load_atlas()


def shown(atlas: Atlas, *findings: Finding, seed: int = 3, size: int = 64) -> Rendering:
    return render(atlas, case_for(findings, seed), size)


def test_every_finding_can_be_drawn_and_has_an_example() -> None:
    assert set(DRAW) == set(PHANTOM_FINDINGS)
    assert {f.name for findings in EXAMPLES for f in findings} == set(PHANTOM_FINDINGS)


@pytest.mark.parametrize(
    "finding", [f for findings in EXAMPLES for f in findings], ids=lambda f: "-".join(filter(None, vars(f).values()))
)
def test_example_changes_the_picture_and_has_a_mask(atlas: Atlas, finding: Finding) -> None:
    normal, rendering = shown(atlas), shown(atlas, finding)
    assert rendering.image.dtype == rendering.masks.dtype == np.uint8 and rendering.image.shape == (64, 64)
    assert set(np.unique(rendering.masks)) == {0, 1}
    inside = rendering.masks == 1
    change = np.abs(rendering.image.astype(int) - normal.image)
    assert change[inside].mean() > 0.8 and change[inside].max() >= 8


LOCAL = [
    Finding("opacity", "right", "moderate", "upper lobe"),
    Finding("pleural effusion", "right", "moderate"),
    Finding("mass", "left", "severe"),
    Finding("hiatal hernia", severity="severe"),
    Finding("support device", "left", kind="pacemaker"),
]


@pytest.mark.parametrize("finding", LOCAL, ids=lambda f: f.name)
def test_a_local_finding_leaves_the_rest_of_the_picture_alone(atlas: Atlas, finding: Finding) -> None:
    normal, rendering = shown(atlas, size=128), shown(atlas, finding, size=128)
    distance = ndimage.distance_transform_edt(rendering.masks == 0)
    far = distance > 14  # 33 mm: beyond the edge enhancement
    assert far.sum() > 2000
    assert np.array_equal(rendering.image[far], normal.image[far])
    assert np.abs(rendering.image.astype(int) - normal.image)[~far].max() > 25


@pytest.mark.parametrize(
    "finding",
    [
        Finding("pleural effusion", "right", "moderate"),
        Finding("pneumothorax", "right", "moderate"),
        Finding("opacity", "right", "severe", "lower lobe"),
        Finding("atelectasis", "right", "moderate", "base"),
        Finding("granuloma", "right", kind="multiple"),
        Finding("support device", "right", kind="pacemaker"),
    ],
    ids=lambda f: f.name,
)
def test_the_patients_right_is_at_the_images_left(atlas: Atlas, finding: Finding) -> None:
    right = shown(atlas, finding).masks == 1
    left = shown(atlas, Finding(finding.name, "left", finding.severity, finding.place, finding.kind)).masks == 1
    columns = np.arange(64)
    assert (right * columns).sum() / right.sum() < 30 and (left * columns).sum() / left.sum() > 34


def test_effusion_brightens_the_lower_part_of_its_side(atlas: Atlas) -> None:
    change = shown(atlas, Finding("pleural effusion", "right", "severe")).image.astype(int) - shown(atlas).image
    assert change[32:, :28].mean() > 10 and change[:14].max() <= 0 + 3 and np.abs(change[:, 44:]).max() == 0


def test_pneumothorax_is_darker_and_inflation_moves_the_domes(atlas: Atlas) -> None:
    left = shown(atlas, Finding("pneumothorax", "left", "severe"))
    change = left.image.astype(int) - shown(atlas).image
    assert change[left.masks == 1].mean() < -5 and np.abs(change[:, :20]).max() == 0
    area = [
        (shown(atlas, *f).image[20:, 8:24] < 110).sum()
        for f in ([Finding("hyperinflation", severity="severe")], [], [Finding("hypoinflation", severity="severe")])
    ]
    assert area[0] > area[1] > area[2]


def test_heart_grows_with_severity(atlas: Atlas) -> None:
    width = [
        np.count_nonzero((shown(atlas, Finding("cardiomegaly", severity=s, kind=k)).masks == 1).any(0))
        for s, k in (("mild", "borderline"), ("mild", ""), ("moderate", ""), ("severe", ""))
    ]
    assert width == sorted(width) and len(set(width)) == 4


def test_scoliosis_is_convex_to_its_side(atlas: Atlas) -> None:
    for side, sign in (("left", 1), ("right", -1)):
        spine = shown(atlas, Finding("scoliosis", side, "severe")).masks == 1
        middle = [columns.mean() for row in spine if (columns := np.flatnonzero(row)).size]
        apex = np.mean(middle[22:34]) - (np.mean(middle[:6]) + np.mean(middle[-6:])) / 2
        assert sign * apex > 2  # pixels of 5 mm; the patient's left is at the image's right


def test_bits_of_the_mask_follow_the_order_of_findings(atlas: Atlas) -> None:
    findings = (
        Finding("support device", "left", kind="pacemaker"),
        Finding("pleural effusion", "right", "severe"),
        Finding("cardiomegaly", severity="mild"),
    )
    together = shown(atlas, *findings).masks
    assert set(np.unique(together)) <= set(range(8))
    device, fluid = together & 1 > 0, together & 2 > 0
    assert device[:, :20].sum() == 0 and fluid[:, 40:].sum() == 0 and (together & 4 > 0).any()


def test_same_patient_at_another_resolution(atlas: Atlas) -> None:
    case = case_for([Finding("pleural effusion", "left", "moderate")], 9)
    small, large = render(atlas, case, 64), render(atlas, case, 128)
    halved = large.image.reshape(64, 2, 64, 2).mean((1, 3))
    assert np.abs(halved - small.image).mean() < 4
    assert np.mean((large.masks[::2, ::2] > 0) == (small.masks > 0)) > 0.97


def test_same_bits_whatever_the_threads(atlas: Atlas) -> None:
    case = case_for([Finding("pulmonary edema", "both", "severe"), Finding("interstitial markings", "both", "mild")], 5)
    threads = torch.get_num_threads()
    first = render(atlas, case, 64)
    torch.set_num_threads(2)
    try:
        second = render(atlas, case, 64)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(first.image, second.image) and np.array_equal(first.masks, second.masks)


def test_unstated_sides_and_severities_are_stated_in_the_case() -> None:
    for seed in range(20):
        effusion, aorta, device = case_for(
            [Finding("pleural effusion"), Finding("tortuous aorta"), Finding("support device", kind="pacemaker")], seed
        ).findings
        assert effusion.side in ("left", "right") and effusion.severity in ("mild", "moderate")
        assert aorta.side == "" and aorta.severity
        assert device == Finding("support device", "left", kind="pacemaker")


def test_impossible_requests_are_refused(atlas: Atlas) -> None:
    with pytest.raises(UserError, match="multiple of 32"):
        render(atlas, case_for([], 0), 100)
    with pytest.raises(UserError, match="9 findings"):
        render(atlas, case_for([Finding("nodule", "left", "mild")] * 9, 0), 64)


def test_warp_is_undone_by_its_inverse() -> None:
    anatomy = case_for([Finding("cardiomegaly", severity="severe"), Finding("scoliosis", "left", "severe")], 2).anatomy
    places = np.random.default_rng(0).uniform((-90, -60, -90), (90, 90, 80), (200, 3)).astype(np.float32)
    assert np.abs(to_atlas(anatomy, from_atlas(anatomy, places)) - places).max() < 0.5


def test_atlas_is_normal_and_rebuilt_when_damaged(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lung = atlas.lung["right"] | atlas.lung["left"]
    assert 0.10 < atlas.density[lung].mean() / 100 < 0.3
    assert atlas.density[:, [0, -1]].max() == 0  # rays that miss the body meet air
    damaged = tmp_path / "atlas.npz"
    damaged.write_bytes(b"PK\x03\x04 cut off")
    monkeypatch.setattr(atlas_module, "atlas_path", lambda: damaged)
    monkeypatch.setattr(atlas_module, "build_atlas", lambda ct, organs: atlas)
    load_atlas.cache_clear()
    try:
        load_atlas()
        load_atlas.cache_clear()
        monkeypatch.setattr(
            atlas_module, "build_atlas", lambda ct, organs: pytest.fail("the mended cache was not used")
        )
        assert np.array_equal(load_atlas().density, atlas.density)
    finally:
        load_atlas.cache_clear()


def test_corpus_is_marked_resumable_and_the_same_for_any_number_of_workers(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(devices, "core_count", lambda: 1)
    source = PhantomSource(PhantomSettings(train=14, validate=3, test=5, seed=7))
    one = source.studies(tmp_path / "one", 32)
    monkeypatch.setattr(devices, "core_count", lambda: 2)
    two = source.studies(tmp_path / "two", 32)
    assert one == two and len(one) == source.assumed_images == 22 and sum(source.tally.left_out.values()) > 500
    for study in one:
        a, b = (tmp_path / folder / study.image_path for folder in ("one", "two"))
        assert a.read_bytes() == b.read_bytes()
        with Image.open(a) as picture:
            assert "SIMULATED" in picture.text["Description"] and picture.mode == "L" and picture.size == (32, 32)
        assert sorted(study.labels) == sorted(PHANTOM_FINDINGS)
        assert {f.name for f in study.truth} == {name for name, present in study.labels.items() if present}
        mask = np.asarray(Image.open(tmp_path / "one" / study.mask_path))
        assert np.bitwise_or.reduce(mask, axis=None) < 2 ** len(study.truth)

    first, second, third = one[:3]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*.png")}
    (tmp_path / "one" / first.image_path).unlink()
    cut = tmp_path / "one" / second.image_path
    cut.write_bytes(cut.read_bytes()[:200])
    source.studies(tmp_path / "one", 32)
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*.png")}
    remade = {p.stem for p in after if after[p] != before[p]}
    assert (
        after.keys() == before.keys() and remade == {first.image_id, second.image_id} and third.image_id not in remade
    )
    assert cut.read_bytes() == (tmp_path / "two" / second.image_path).read_bytes()


def test_settings_refuse_the_impossible() -> None:
    with pytest.raises(UserError, match=r"(?s)test.*mirrored_share"):
        build_settings(PhantomSettings, {"test": -1, "mirrored_share": 2.0})
