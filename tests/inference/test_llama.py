"""The layers of a Llama laid out for decoding give what transformers gives, and are taken only where they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer
from peft import LoraConfig, inject_adapter_in_model
from transformers import DynamicCache

from llmcxr.foundation.errors import UserError
from llmcxr.inference import transformers_backend
from llmcxr.inference.backend import Request, Sampling
from llmcxr.inference.llama import Llama, is_stock_llama
from llmcxr.inference.slots import SlotCache
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.templates import build_template
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K, L = 8, 70  # an image is longer than the blocks in which memory grows
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}
ROPE["original_max_position_embeddings"] = 32
IDS = torch.randint(0, 300, (3, 100), generator=torch.Generator().manual_seed(0))


def build(dtype=torch.float32, int8=False, **extra) -> TransformersBackend:
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model("llama", vocabulary.first_id + K, True, **extra).to(dtype)
    grow_language_model(model, vocabulary, 0.2 * torch.randn(K, 32, generator=torch.Generator().manual_seed(1)))
    return TransformersBackend(model, vocabulary, build_template("chat", vocabulary.tokenizer), L, int8)


def requests(count=16) -> list[Request]:
    """Texts and images of prompts of many lengths, some guided."""
    random, result = np.random.default_rng(0), []
    for i in range(count):
        prompt, other = (random.integers(3, 300, n).tolist() for n in (5 + 4 * i, 9))
        sampling = Sampling([0.0, 1.0][i % 2], max_new_tokens=3 + i, seed=i, guidance=2.0)
        result.append(Request(prompt, ("text", "image")[i % 3 == 0], sampling, other if i % 4 == 0 else None))
    return result


def tokens(backend, asked) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in asked]
    for number, token in backend.stream(asked):
        found[number].append(token)
    return found


@pytest.mark.parametrize("extra", [{}, {"rope_parameters": ROPE}, {"head_dim": 16}])
@pytest.mark.parametrize("step_by_step", [False, True])
@torch.no_grad()
def test_logits_are_those_of_transformers(extra, step_by_step):
    model = build_model("llama", 300, True, **extra)
    llama, expected = Llama(model), model(IDS).logits
    first = 40 if step_by_step else 70
    cache = DynamicCache()
    states = [llama.read(IDS[:, :30], 0, cache), llama.read(IDS[:, 30:first], 30, cache)]
    slots = SlotCache(IDS.device, exact=True)
    slots.admit(cache, torch.arange(3), torch.full((3,), first), 3)
    for t in range(first, 100):
        places, seen = slots.begin_step()
        states.append(llama.step(IDS[:, t : t + 1], places, seen, slots)[:, None])
        slots.end_step()
    found = llama.logits(torch.cat(states, 1).flatten(0, 1), 0, None)
    torch.testing.assert_close(found.view_as(expected), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(llama.logits(states[0][:, 0], 7, 90), found.view_as(expected)[:, 0, 7:90])


@pytest.mark.parametrize(("dtype", "int8", "most"), [(torch.bfloat16, False, 0.02), (torch.float32, True, 0.05)])
@torch.no_grad()
def test_rounding_is_as_small_as_it_should_be(dtype, int8, most):
    model = build_model("llama", 300, True)
    expected = model(IDS).logits.flatten(0, 1)
    llama = Llama(model.to(dtype), int8)
    found = llama.logits(llama.read(IDS, 0, DynamicCache()).flatten(0, 1), 0, None)
    assert 0 < (found - expected).norm() / expected.norm() < most


def test_responses_are_those_of_the_stock_forward(monkeypatch):
    backend, asked = build(), requests()
    found = tokens(backend, asked)
    assert backend._llama is not None
    monkeypatch.setattr(transformers_backend, "is_stock_llama", lambda model: False)
    assert tokens(backend, asked) == found and backend._llama is None


@pytest.mark.parametrize(("dtype", "int8"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)])
def test_a_request_is_answered_as_if_it_were_alone(dtype, int8, monkeypatch):
    backend, asked = build(dtype, int8), requests()
    alone = [tokens(backend, [one])[0] for one in asked]
    assert tokens(backend, asked) == alone
    monkeypatch.setattr(transformers_backend, "ROWS", 7)
    assert tokens(backend, asked[::-1]) == alone[::-1]


def test_only_what_it_computes_is_taken_for_a_stock_llama():
    assert is_stock_llama(build_model("llama", 300))
    for other in (
        *(build_model(kind, 300) for kind in ("qwen3", "neox", "gpt2", "gemma3")),
        build_model("llama", 300, attention_bias=True),
        build_model("llama", 300, mlp_bias=True),
        build_model("llama", 300, hidden_act="gelu"),
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["up_proj"]), build_model("llama", 300)),
    ):
        assert not is_stock_llama(other)
    watched = build_model("llama", 300)
    watched.model.layers[1].mlp.register_forward_hook(lambda *_: None)  # who looks at a layer expects it to run
    assert not is_stock_llama(watched)


def test_weights_that_change_are_read_anew():
    backend, asked = build(), requests(3)
    before = tokens(backend, asked)
    with torch.no_grad():
        backend.model.model.layers[0].mlp.down_proj.weight.neg_()
    changed = tokens(backend, asked)
    assert changed != before
    fresh = TransformersBackend(backend.model, backend.vocabulary, backend.template, L)
    assert tokens(fresh, asked) == changed


def test_eight_bits_are_refused_where_there_are_none():
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    template = build_template("chat", vocabulary.tokenizer)
    with pytest.raises(UserError, match="Llama family on the CPU; this one is GPTNeoXForCausalLM on cpu"):
        TransformersBackend(build_model("neox", 400), vocabulary, template, L, int8=True)
