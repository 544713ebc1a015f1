"""The vLLM backend against a stand-in of vLLM's interface: what our own engine answers, or an error that says what vLLM cannot."""

from __future__ import annotations

import importlib
import inspect
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import vllm_stand_in
from conftest import build_model, build_tokenizer

from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.architecture import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.inference.backend import GREEDY, Request, Sampling
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.inference.vllm_backend import ranges_without
from llmcxr.instructions.rendering import render_prompt
from llmcxr.model.folder import ModelInfo, save_model
from llmcxr.tasks import cxr_vqa, report_to_cxr
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K, S, SPARE = 16, 32, 5
SMALL = ArchitectureSettings(S, [32, 32, 32, 64], codebook_size=K, code_dim=8)
ENTRY = "llmcxr.inference.vllm_grammar:AllowedTokens"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("vllm")
    ImageTokenizer(SMALL).save_pretrained(home / "codec")
    codec = ImageTokenizer.from_pretrained(home / "codec")
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model("llama", vocabulary.first_id + K + SPARE, False)
    grow_language_model(model, vocabulary, 0.3 * torch.randn(K, 32, generator=torch.Generator().manual_seed(0)))
    info = ModelInfo("toy", K, codec.grid, S, codec.fingerprint, "chat", None, ("mass",), "impression", "0")
    save_model(home / "model", model, vocabulary, home / "codec", info, None)
    return home / "model"


@pytest.fixture
def both(folder, tmp_path, monkeypatch) -> tuple[LlmCxr, LlmCxr]:
    """The same model in our own engine and in vLLM, which finds the logits processor as in an installation."""
    vllm_stand_in.install(monkeypatch)
    installed = tmp_path / "site" / "llmcxr_entry-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: llmcxr-entry\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[vllm.logits_processors]\nllmcxr = {ENTRY}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return (
        LlmCxr.from_pretrained(folder, "cpu", "float32"),
        LlmCxr.from_pretrained(folder, "cpu", "float32", backend="vllm"),
    )


def requests_of(model: LlmCxr, sampling: Sampling) -> list[Request]:
    """More than are in progress at once, of both kinds in turn."""
    template, vocabulary = model.asker.template, model.asker.vocabulary
    found = []
    for i in range(6):
        codes = np.full(model.info.grid**2, i, np.uint16)
        asked = (
            (cxr_vqa.TASK.prompt(codes, "Is there a mass?"), "text"),
            (report_to_cxr.TASK.prompt(f"Report {i}."), "image"),
        )
        found += [
            Request(render_prompt(turns, template, vocabulary, grammar), grammar, sampling) for turns, grammar in asked
        ]
    return found


def test_greedy_responses_are_those_of_our_own_engine(both):
    own, other = (m.asker.backend.generate(requests_of(m, Sampling(max_new_tokens=9))) for m in both)
    for a, b in zip(own, other, strict=True):
        assert a.text == b.text and a.complete == b.complete
        assert (a.codes is None) == (b.codes is None) and (a.codes is None or (a.codes == b.codes).all())


def test_hot_responses_are_valid_and_belong_to_their_request_alone(both):
    backend = both[1].asker.backend
    requests = requests_of(both[1], Sampling(temperature=2.0, max_new_tokens=30, seed=3))
    found = backend.generate(requests)
    for request, response in zip(requests, found, strict=True):
        if request.grammar == "image":
            assert response.codes.shape == (both[1].info.grid ** 2,) and response.codes.max() < K
    again = [backend.generate([request])[0] for request in reversed(requests)][::-1]
    assert [r.text for r in again] == [r.text for r in found]
    assert len({r.text for r in found if r.codes is None}) > 1


def test_likelihoods_are_those_of_our_own_engine(both):
    prompts = [request.prompt for request in requests_of(both[0], GREEDY)][:4]
    texts = ["Yes.", "The heart is large.", "", "No. 12"]
    own, other = (m.asker.backend.log_likelihoods(prompts, texts) for m in both)
    np.testing.assert_allclose(own, other, atol=1e-3)
    own, other = (m.asker.backend.answer_probabilities(prompts, ("Yes.", "No.")) for m in both)
    np.testing.assert_allclose(own, other, atol=1e-4)
    assert other.dtype == np.float32 and np.allclose(other.sum(1), 1)
    assert both[1].asker.backend.answer_probabilities([], ("Yes.", "No.")).shape == (0, 2)
    images = [np.linspace(-1, 1, S * S, dtype=np.float32).reshape(S, S)]
    assert both[0].finding_probabilities(images[0]) == pytest.approx(both[1].finding_probabilities(images[0]), abs=1e-4)


def test_what_vllm_cannot_do_is_an_error(both):
    backend = both[1].asker.backend
    with pytest.raises(UserError, match="guidance"):
        backend.generate([Request([1, 5], "text", Sampling(guidance=2.0), negative=[1])])
    with pytest.raises(UserError, match="repetition"):
        backend.generate([Request([1, 5], "text", Sampling(repetition_penalty=1.2))])
    with pytest.raises(UserError, match="too long"):
        backend.generate([Request([5] * 3000, "text", GREEDY)])


def test_without_vllm_and_without_the_entry_point(folder, monkeypatch):
    with pytest.raises(UserError, match=r"llmcxr\[vllm\]") as caught:
        LlmCxr.from_pretrained(folder, "cpu", backend="vllm")
    assert "fetch the model again" not in str(caught.value)
    vllm_stand_in.install(monkeypatch)
    monkeypatch.setattr("llmcxr.inference.vllm_backend.entry_points", lambda group: ())
    with pytest.raises(UserError, match="logits processor"):
        LlmCxr.from_pretrained(folder, "cpu", backend="vllm")


def test_the_entry_point_is_the_class(monkeypatch):
    vllm_stand_in.install(monkeypatch)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["vllm.logits_processors"] == {"llmcxr": ENTRY}
    module, name = ENTRY.split(":")
    processor = getattr(importlib.import_module(module), name)
    for bad in ([], [[3, 2]], [[1]], 7, [[-1, 3]], [["a", 3]]):
        with pytest.raises(ValueError, match="llmcxr_allowed"):
            processor.validate_params(vllm_stand_in.SamplingParams(extra_args={"llmcxr_allowed": bad}))
    assert processor(None, torch.device("cpu"), False).new_req_logits_processor(vllm_stand_in.SamplingParams()) is None
    assert not processor(None, torch.device("cpu"), False).is_argmax_invariant()


def test_ranges():
    assert ranges_without([0, 3, 4, 9], 10) == [[1, 3], [5, 9]]
    assert ranges_without([], 4) == [[0, 4]] and ranges_without([0, 1], 2) == []


def test_the_stand_in_has_vllms_own_signatures():
    vllm = pytest.importorskip("vllm", reason="vLLM (extra vllm) is not installed: it needs a GPU")
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, BatchUpdate

    for own, real in ((vllm_stand_in.AdapterLogitsProcessor, AdapterLogitsProcessor), (vllm_stand_in.LLM, vllm.LLM)):
        for name in ("__init__", "update_state", "apply", "generate"):
            if hasattr(own, name):
                parameters = inspect.signature(getattr(real, name)).parameters
                assert set(inspect.signature(getattr(own, name)).parameters) <= set(parameters)
    for own, real in ((vllm_stand_in.SamplingParams, vllm.SamplingParams), (vllm_stand_in.BatchUpdate, BatchUpdate)):
        assert set(inspect.signature(own).parameters) <= set(inspect.signature(real).parameters)
