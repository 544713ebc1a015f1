"""Whether an image is outside what a model was trained on: statistics by hand, and warnings once an image."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from test_policies import LIMIT, Blocks, G, K, S, asker

from llmcxr import cli
from llmcxr.foundation.errors import OutsideWarning, UserError
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.model.outside import OutsideLimits, read_limits, write_limits
from llmcxr.model.sums import check_sums, write_sums
from llmcxr.stages.outside import limits_of
from llmcxr.studies.radiographs import from_uint8, to_uint8
from llmcxr.tasks import report_to_cxr

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (3, S, S)).astype(np.float32)


class Encoding(Blocks):
    """Blocks that are as bright as the image there."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        means = torch.nn.functional.avg_pool2d(images, S // G)[:, 0]
        return (means[..., None] - self.codebook[:, 0]).abs().argmin(-1)


def limits(low: float, high: float) -> OutsideLimits:
    """Of a model whose unseen images have scores from `low` to `high`."""
    scores = tuple(np.linspace(low, high, 101).tolist())
    return OutsideLimits(100, (-3.0, 2.0), (0.1, 0.1), scores)


def model(own: OutsideLimits | None) -> LlmCxr:
    return LlmCxr(asker(), Encoding(), limits=own)  # type: ignore[arg-type]


def test_statistics_are_what_is_lost_and_how_likely_the_codes_are():
    own = model(None)
    found = own.statistics(list(IMAGES))
    codes = own.encode(list(IMAGES))
    lost = np.abs(own.decode(codes) - IMAGES).mean((1, 2)) / 2
    np.testing.assert_allclose(found[:, 0], np.log(lost), rtol=1e-5)
    prompts = own.asker.prompts([report_to_cxr.TASK.prompt("")] * 3)
    likelihoods = own.asker.backend.code_log_probabilities(prompts, codes)
    by_hand = [-np.mean([rows[i, c] for i, c in enumerate(own)]) for rows, own in zip(likelihoods, codes, strict=True)]
    np.testing.assert_allclose(found[:, 1], by_hand, rtol=1e-5)
    assert 0 < found[0, 1] < 2 * np.log(K)
    look = own.outside(IMAGES[0])
    assert (
        look.l1 == pytest.approx(lost[0])
        and look.score is None
        and not look.warned
        and "was not measured" in look.told()
    )


def test_limits_are_of_the_unseen_images():
    usual = RNG.normal((-3, 4), (0.2, 0.5), (2000, 2))
    own = OutsideLimits.of(usual)
    assert own.images == 2000 and np.allclose(own.means, (-3, 4), atol=0.05)
    warned = [own.share_below(score) >= 0.99 for score in own.score(usual)]
    assert 0.005 <= np.mean(warned) <= 0.0125
    assert own.share_below(np.median(own.score(usual))) == pytest.approx(0.5, abs=0.02)
    far = own.score(np.array([[0.0, 4.0], [-3.0, 9.0], [-9.0, -9.0]]))
    assert own.share_below(far[0]) == own.share_below(far[1]) == 1
    assert far[2] == 0 and own.share_below(far[2]) == 0, "what is drawn too well, of too likely codes, is not unlike"
    with pytest.raises(ValueError):
        OutsideLimits.of(usual[:10])


def test_a_run_measures_its_validation_images():
    pixels = to_uint8(RNG.uniform(-1, 1, (52, S, S)))
    own = model(None)
    found = limits_of(own, pixels)
    assert found == OutsideLimits.of(own.statistics(list(from_uint8(pixels)))) and found.images == 52
    assert limits_of(own, pixels[:49]) is None
    with pytest.raises(UserError, match="32 pixels a side, the model's 64"):
        limits_of(own, np.zeros((60, 32, 32), np.uint8))


def test_limits_lie_in_the_model_folder(tmp_path):
    assert read_limits(tmp_path) is None
    (tmp_path / "llmcxr.json").write_text("{}")
    write_sums(tmp_path)
    write_limits(tmp_path, limits(0, 3))
    check_sums(tmp_path)
    assert "outside.json" in (tmp_path / "SHA256SUMS").read_text() and read_limits(tmp_path) == limits(0, 3)
    for text in ('{"images": 100}', '{"images": 100, "means": [1, 2], "deviations": [0, 1], "scores": [1]}', "{"):
        (tmp_path / "outside.json").write_text(text)
        with pytest.raises(UserError, match=r"outside\.json"):
            read_limits(tmp_path)


def test_every_way_of_asking_warns_once_an_image(tmp_path):
    for ask in (
        lambda m, image: m.report(image, LIMIT, 1),
        lambda m, image: m.ask(image, "Is there a mass?", LIMIT),
        lambda m, image: m.finding_probabilities(image),
        lambda m, image: m.explain(image, "mass"),
    ):
        own = model(limits(0, 1e-6))
        assert own.outside(IMAGES[0]).warned, "looking is no asking: the warning is still to come"
        with pytest.warns(OutsideWarning, match="outside what this model was trained on: more unlike .* than 100%"):
            ask(own, IMAGES[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ask(own, IMAGES[0])
        with pytest.warns(OutsideWarning):
            ask(own, IMAGES[1])


@pytest.mark.parametrize("own", [limits(0, 1e6), None])
def test_usual_images_are_not_warned_of(own):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(own).finding_probabilities(IMAGES[0])
        assert not model(own).outside(IMAGES[0]).warned


def test_the_command_line_says_it_in_one_line():
    script = (
        "import warnings; from llmcxr import cli; from llmcxr.foundation.errors import OutsideWarning; cli._prepare()\n"
        "for image in 'ab': warnings.warn(f'{image}: outside', OutsideWarning)\n"
        "warnings.warn('of another library')"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    assert said.startswith("llmcxr: a: outside\nllmcxr: b: outside\n") and "UserWarning: of another library" in said
    assert cli._show_warning is not warnings.showwarning
