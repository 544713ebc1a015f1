"""Where a model looked, on a toy model: by hand, and where it is known that one code alone counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_policies import CODES, G, K, asker, codec

from llmcxr.foundation.errors import UserError
from llmcxr.inference.backend import GREEDY
from llmcxr.inference.explanation import (
    beliefs,
    explanations,
    likely_alternatives,
    mean_falls,
    patches,
    replaced,
    stretched,
)
from llmcxr.inference.heat_maps import overlay, save_heat_maps, save_reconstruction
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.instructions.example import InstructionExample
from llmcxr.instructions.rendering import render
from llmcxr.tasks import cxr_to_report, cxr_vqa, report_to_cxr

IMAGE = CODES[0]


def test_log_probabilities_of_codes_are_those_of_the_stock_model():
    own = asker()
    prompts = own.prompts([report_to_cxr.TASK.prompt(""), report_to_cxr.TASK.prompt("A longer report than none.")])
    found = own.backend.code_log_probabilities(prompts, CODES)
    assert found.shape == (2, G * G, K) and found.dtype == np.float32
    first = own.vocabulary.first_id
    for prompt, codes, given_back in zip(prompts, CODES, found, strict=True):
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *own.vocabulary.encode_codes(codes)]])
            logits = own.backend.model(ids).logits[0, len(prompt) - 1 : -1, first : first + K]
        np.testing.assert_allclose(given_back, logits.log_softmax(-1).numpy(), atol=1e-4)
    # The prompt and the codes are what training saw.
    turns = report_to_cxr.TASK.prompt("", None, codes=CODES[0])
    trained = render(InstructionExample("report_to_cxr", turns), own.template, own.vocabulary).ids.tolist()
    assert trained[: len(prompts[0]) + G * G] == [*prompts[0], *own.vocabulary.encode_codes(CODES[0])]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.data())
def test_patches_cover_the_grid(g, data):
    side = data.draw(st.integers(1, g))
    masks = patches(g, side)
    assert masks.any(0).all() and masks.any(1).all() and masks.sum(1).max() <= side * side
    # From every side alike, at the edges, too: what is always replaced together is smaller than two steps.
    for i in range(g * g):
        assert masks[masks[:, i]].all(0).sum() < (2 * max(1, side // 2)) ** 2


def test_a_code_is_replaced_by_another_that_is_likely_there():
    own = asker()
    chances = np.exp(own.backend.code_log_probabilities(own.prompts([report_to_cxr.TASK.prompt("")]), IMAGE[None])[0])
    found = likely_alternatives(own, IMAGE, 400)
    assert found.shape == (400, G * G) and found.max() < K and not (found == IMAGE).any()
    chances[np.arange(G * G), IMAGE] = 0
    shares = np.stack([np.bincount(column, minlength=K) for column in found.T]) / 400
    assert np.abs(shares - chances / chances.sum(1, keepdims=True)).max() < 0.12
    assert (likely_alternatives(own, IMAGE, 3) == likely_alternatives(own, IMAGE, 3)).all()


def test_the_map_is_largest_where_alone_something_counts():
    masks = patches(G, 2)
    others = replaced(IMAGE, np.stack([IMAGE + 1 + i for i in range(len(masks))]), masks)
    for p, mask in enumerate(masks):
        assert (others[p] == np.where(mask, IMAGE + 1 + p, IMAGE)).all()
    for place in range(G * G):
        after = np.where(others[:, place] == IMAGE[place], 5.0, 2.0)  # nats: three less without that code
        falls = mean_falls(np.array([5.0]), after[None], masks)[0]
        assert falls.argmax() == place and falls[place] == 3 and (np.delete(falls, place) <= 1.5).all()
        row, column = np.unravel_index(stretched(falls.reshape(G, G), 64).argmax(), (64, 64))
        assert (row // 16, column // 16) == divmod(place, G)


def test_beliefs_are_log_odds_of_findings_and_likelihoods_of_sentences():
    own, sentence = asker(), "There is a mass."
    found = beliefs(own, CODES, [sentence, "mass", "Nodule"])
    for row, question in ((1, "Is there a Mass?"), (2, "Is there a Nodule?")):  # as the model spells them
        p = own.backend.answer_probabilities(
            own.prompts([cxr_vqa.TASK.prompt(c, question) for c in CODES]), ("Yes.", "No.")
        )
        np.testing.assert_allclose(found[row], np.log(p[:, 0] / p[:, 1]), atol=1e-3)
    named = own.texts([report_to_cxr.TASK.list_prompt(sentence)], GREEDY)[0]
    told = own.log_likelihoods([cxr_to_report.TASK.prompt(c, named) for c in CODES], [sentence] * 2)
    told += own.log_likelihoods([cxr_to_report.TASK.list_prompt(c) for c in CODES], [named] * 2)
    np.testing.assert_allclose(found[0], told, rtol=1e-4)
    plain = asker(findings_first=())
    np.testing.assert_allclose(
        beliefs(plain, CODES, [sentence])[0],
        plain.log_likelihoods([cxr_to_report.TASK.prompt(c) for c in CODES], [sentence] * 2),
        rtol=1e-4,
    )


def test_texts_are_explained_alike_alone_and_together():
    own = asker()
    both = list(explanations(own, IMAGE, ["mass", "No mass."]))
    assert [e.finding for e in both] == ["Mass", None]
    for one in both:
        alone = next(iter(explanations(own, IMAGE, [one.text])))
        assert one.falls.shape == (G, G) and one.falls.dtype == np.float32 and np.ptp(one.falls) > 0
        np.testing.assert_allclose(alone.falls, one.falls, atol=1e-3)
        np.testing.assert_allclose(alone.value, one.value, rtol=1e-4)
        assert one.heat_map(64).shape == (64, 64)


def test_an_empty_text_is_refused():
    with pytest.raises(UserError, match="finding or sentence"):
        LlmCxr(asker(), codec()).explain(np.linspace(-1, 1, 64 * 64).reshape(64, 64), " ")


def test_heat_maps_are_red_where_a_place_speaks_for_the_text(tmp_path):
    one = next(iter(explanations(asker(), IMAGE, ["mass"])))
    falls = np.zeros((G, G), np.float32)
    falls[0, 0], falls[3, 3] = 2, -2
    one = type(one)(one.text, one.finding, one.value, falls)
    drawn = np.asarray(overlay(np.zeros((64, 64), np.float32), one)).astype(int)
    assert drawn[4, 4, 0] > drawn[4, 4, 2] + 100 and drawn[-4, -4, 2] > drawn[-4, -4, 0] + 100
    assert np.ptp(drawn[160, 160]) <= 1, "nothing is said of the middle"
    save_heat_maps(tmp_path / "map.png", np.zeros((64, 64), np.float32), [one, one])
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 3 * 300 and "not for diagnosis" in picture.text["Comment"]
        assert "Synthetic" not in picture.text, "it is the radiograph itself"
    save_reconstruction(tmp_path / "seen.png", np.zeros((64, 64), np.float32), np.zeros((64, 64), np.float32))
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.text["Synthetic"] == "true"
