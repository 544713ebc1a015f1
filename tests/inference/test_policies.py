"""What is done with a model beyond asking it once, step by step by hand, on a toy model and a toy codec."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer

from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.inference import policies
from llmcxr.inference.backend import CANDIDATE, DRAWING, GREEDY, Sampling
from llmcxr.inference.explanation import beliefs
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.inference.policies import Asker, drawings, reports, with_sides_asked
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.example import Turn
from llmcxr.instructions.questions import LIST_QUESTION, NOTHING, listed_findings, presence_question
from llmcxr.instructions.templates import build_template
from llmcxr.model.decoding import DecodingSettings
from llmcxr.model.folder import ModelInfo
from llmcxr.studies.study import shown_labels
from llmcxr.tasks import cxr_to_report, report_to_cxr
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K, G, S = 16, 4, 64
BOTH = ("cxr_to_report", "report_to_cxr")
CODES = np.random.default_rng(0).integers(0, K, (2, G * G)).astype(np.uint16)
TEXTS = ["Left effusion.", "Clear."]
LIMIT, DRAW = Sampling(max_new_tokens=6), Sampling(temperature=1.0, seed=1)
REPORT, WANTED = cxr_to_report.PHRASINGS[0], report_to_cxr.PHRASINGS[0]
INFO = ModelInfo(
    base="toy",
    codebook_size=K,
    grid=G,
    image_size=S,
    image_tokenizer="",
    template="chat",
    system_prompt=None,
    findings=("Mass", "Nodule"),
    report="findings_and_impression",
    version="0",
    findings_first=BOTH,
)


class Blocks:
    """A codec whose images are blocks as bright as their codes; the clinical network is a real one."""

    fingerprint, image_size, grid = "", S, G
    codebook = torch.linspace(-1, 1, K)[:, None]

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.clinical = ClinicalFeatures(("mass", "nodule"), S).eval()
        with torch.no_grad():
            self.clinical.network.classifier.weight *= 0.01  # untrained, it would be sure of everything

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        blocks = self.codebook[codes, 0].repeat_interleave(S // G, 1).repeat_interleave(S // G, 2)
        return blocks[:, None].contiguous()


@functools.cache
def codec() -> Blocks:
    return Blocks()


@functools.cache
def backend() -> TransformersBackend:
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model("llama", vocabulary.first_id, True)
    grow_language_model(model, vocabulary, 0.2 * torch.randn(K, 32, generator=torch.Generator().manual_seed(1)))
    return TransformersBackend(model, vocabulary, build_template("chat", vocabulary.tokenizer), G * G)


def asker(**changes) -> Asker:
    own = backend()
    return Asker(own, own.template, own.vocabulary, dataclasses.replace(INFO, **changes))


def written(conversations, sampling=LIMIT, negative=None) -> list[str]:
    return asker().texts(conversations, sampling, negative)


def drawn(conversations, sampling=DRAW, negative=None) -> np.ndarray:
    return np.stack([r.codes for r in asker().responses(conversations, "image", sampling, negative)])


def test_findings_are_named_before_a_report():
    found = written([(Turn(LIST_QUESTION, c),) for c in CODES])
    turns = [(Turn(LIST_QUESTION, c, f), Turn(REPORT)) for c, f in zip(CODES, found, strict=True)]
    assert reports(asker(), CODES, LIMIT) == written(turns)
    # Guided: away from the report of a normal image.
    led = dataclasses.replace(LIMIT, guidance=3.0)
    normal = [(Turn(LIST_QUESTION, c, NOTHING), Turn(REPORT)) for c in CODES]
    expected = written(turns, led, normal)
    assert reports(asker(), CODES, led) == expected != written(turns)
    assert reports(asker(decoding=DecodingSettings(report_guidance=3.0)), CODES, LIMIT) == expected
    # As in the paper.
    for first in ((), ("report_to_cxr",)):
        plain = asker(findings_first=first)
        assert reports(plain, CODES, LIMIT) == written([(Turn(REPORT, c),) for c in CODES])
        for refused in (lambda: reports(plain, CODES, led), lambda: reports(plain, CODES, LIMIT, 2)):  # noqa: B023
            with pytest.raises(UserError, match="names no findings first"):
                refused()


def test_findings_are_named_before_a_drawing():
    stated = written([(Turn(report_to_cxr.STATED_QUESTION, t),) for t in TEXTS], GREEDY)
    turns = [(Turn(report_to_cxr.STATED_QUESTION, t, s), Turn(WANTED)) for t, s in zip(TEXTS, stated, strict=True)]
    np.testing.assert_array_equal(drawings(asker(), codec(), TEXTS, DRAW), drawn(turns))
    # Guided: away from the same instruction without a report, which must have been learned.
    strong = dataclasses.replace(DRAW, guidance=3.0)
    guided = drawn(turns, strong, [(Turn(WANTED),)] * 2)
    assert not np.array_equal(guided, drawn(turns))
    with pytest.raises(UserError, match="cannot be guided"):
        drawings(asker(), codec(), TEXTS, strong)
    learned = asker(unguided_share=0.1, decoding=DecodingSettings(drawing_guidance=3.0))
    for sampling in (strong, DRAW):
        np.testing.assert_array_equal(drawings(learned, codec(), TEXTS, sampling), guided)
    for first in ((), ("cxr_to_report",)):
        plain = asker(findings_first=first)
        np.testing.assert_array_equal(drawings(plain, codec(), TEXTS, DRAW), drawn([(Turn(WANTED, t),) for t in TEXTS]))
        with pytest.raises(UserError, match="names no findings first in report_to_cxr"):
            drawings(plain, codec(), TEXTS, DRAW, 2)


def test_of_reports_the_one_is_kept_that_states_what_was_named(monkeypatch):
    codes = np.concatenate([CODES, CODES[:1, ::-1]])
    found = written([(Turn(LIST_QUESTION, c),) for c in codes])

    def told(texts):
        return asker().log_likelihoods([(Turn(report_to_cxr.STATED_QUESTION, text),) for text in texts], found)

    first, kept = reports(asker(), codes, LIMIT, 1), reports(asker(), codes, LIMIT, 4)
    assert (told(kept) >= told(first) - 1e-3).all() and kept != first
    assert reports(asker(decoding=DecodingSettings(report_candidates=4)), codes, LIMIT) == kept
    # The first candidate is what it would be alone, and the others are not copies of it, however it is drawn.
    for sampling in (LIMIT, dataclasses.replace(CANDIDATE, max_new_tokens=6, guidance=2.0)):
        made = []
        with monkeypatch.context() as patch:
            generate = backend().generate
            patch.setattr(backend(), "generate", lambda *a, _to=made, _of=generate: _to.append(_of(*a)) or _to[-1])
            reports(asker(), codes, sampling, 4)
        _, greedy, free = made
        assert len(greedy) == 3 and len(free) == 9 and [r.text for r in greedy] != [r.text for r in free[:3]]
    with pytest.raises(UserError, match="should be 1 to"):
        reports(asker(), codes, LIMIT, 0)


def test_of_drawings_the_one_is_kept_that_shows_what_was_stated():
    stated = written([(Turn(report_to_cxr.STATED_QUESTION, t),) for t in TEXTS], GREEDY)
    turns = [report_to_cxr.TASK.prompt(t, s) for t, s in zip(TEXTS, stated, strict=True)]
    candidates = drawn(turns * 3)
    clinical = codec().clinical
    wanted = torch.from_numpy(np.stack([shown_labels(listed_findings(s), clinical.findings) for s in stated * 3]))
    pictures = codec().decode(torch.from_numpy(candidates.astype(int)).reshape(-1, G, G))
    values = clinical.log_likelihoods(pictures, wanted).reshape(3, 2)
    assert len(values.unique()) == 6
    best = [candidates[2 * k + i] for i, k in enumerate(values.argmax(0).tolist())]
    np.testing.assert_array_equal(drawings(asker(), codec(), TEXTS, DRAW, 3), best)
    own = asker(decoding=DecodingSettings(drawing_candidates=3), findings_first=("report_to_cxr",))
    np.testing.assert_array_equal(drawings(own, codec(), TEXTS, DRAW), best)
    led = drawings(asker(unguided_share=0.1), codec(), TEXTS, dataclasses.replace(DRAW, guidance=3.0), 3)
    assert led.shape == (2, G * G) and not np.array_equal(led, best)
    with pytest.raises(UserError, match="should be 1 to"):
        drawings(asker(), codec(), TEXTS, DRAW, 0)
    blind = Blocks()
    blind.clinical = None
    with pytest.raises(UserError, match="has no clinical network"):
        drawings(asker(), blind, TEXTS, DRAW, 2)


def test_sides_are_asked_for_one_by_one(monkeypatch):
    codes = np.zeros((3, G * G), int)
    codes[2] = 1
    asked = []
    own = asker(decoding=DecodingSettings(ask_sides=True))

    def likelihoods(prompts, answers):
        """The nodule, which the data spells with a capital, is on both sides, all else on the left."""
        asked.extend(zip(prompts, answers, strict=True))
        (nodule,) = own.prompts([(Turn("On which side is the Nodule?", codes[2]),)])
        return np.array(
            [float(a == ("Both sides." if p == nodule else "Left.")) for p, a in zip(prompts, answers, strict=True)]
        )

    monkeypatch.setattr(backend(), "log_likelihoods", likelihoods)
    lists = ["Cardiomegaly; right opacity.", NOTHING, "Right mass; left nodule; scoliosis."]
    assert with_sides_asked(own, codes, lists) == [
        "Cardiomegaly; left opacity.",
        NOTHING,
        "Left mass; bilateral nodule; scoliosis.",
    ]
    assert len(asked) == 3 * 3 and {answer for _, answer in asked} == {"Left.", "Right.", "Both sides."}
    # The report is written of the list with the sides that were asked for.
    seen = []
    generate = backend().generate

    def with_a_list(requests):
        seen.append(requests)
        responses = generate(requests)
        return [dataclasses.replace(r, segments=("Right mass.",)) for r in responses] if len(seen) == 1 else responses

    monkeypatch.setattr(backend(), "generate", with_a_list)
    reports(own, codes[:1], Sampling(max_new_tokens=2))
    assert [r.prompt for r in seen[1]] == own.prompts([cxr_to_report.TASK.prompt(codes[0], "Left mass.")])


def test_the_same_conversation_is_answered_anew_each_time_and_each_seed_otherwise(monkeypatch):
    seeds = []
    monkeypatch.setattr(backend(), "generate", lambda asked: seeds.extend(r.sampling.seed for r in asked))
    for seed in (0, 1):
        asker().responses([(Turn("a"),), (Turn("b"),)] * 3, "image", Sampling(seed=seed))
    assert seeds[:2] == [0, 0] and seeds[6:8] == [1, 1], "the first is what it is alone"
    assert seeds[2] == seeds[3] and len(set(seeds)) == 6, "candidates of one seed are not those of the next"


def test_a_finding_is_asked_for_as_in_training_whoever_asks():
    own = asker(findings=("Mass", "Pleural Effusion"))
    p = policies.presence_answers(own, CODES[:2], ["pleural_effusion", "mass", "cough"])
    assert p.shape == (2, 3, 2) and np.allclose(p.sum(-1), 1)
    model = LlmCxr(own, codec())
    questions = [presence_question("Pleural Effusion"), presence_question("Mass"), presence_question("cough")]
    np.testing.assert_allclose(p[1, :, 0], model.yes_probabilities(CODES[1], questions), atol=1e-6)
    np.testing.assert_allclose(p[1, :2, 0], model.presence_probabilities(CODES[1], own.info.findings[::-1]), atol=1e-6)
    np.testing.assert_allclose(
        np.log(p[..., 0] / p[..., 1])[:, :2], beliefs(own, CODES[:2], ["pleural effusion", "mass"]).T, atol=1e-4
    )


def test_a_model_without_findings_says_so():
    model = LlmCxr(asker(findings=()), codec())
    with pytest.raises(UserError, match="asked about no finding in tuning"):
        model.finding_probabilities(np.zeros((S, S)))
    assert model.yes_probabilities(CODES[0], []).shape == model.presence_probabilities(CODES[0], []).shape == (0,)
    assert model.reports(CODES[:0]) == [] and policies.reports(asker(), CODES[:0], GREEDY, 3) == []
    assert model.draw_codes([], DRAWING, 2).shape == (0, G * G)
