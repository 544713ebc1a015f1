"""QLoRA: frozen 4-bit layers, trained adapters and rows, and an ordinary checkpoint at the end."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
from conftest import build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from llmcxr.foundation.errors import UserError
from llmcxr.tuning.four_bit import dequantize_linears, quantize_linears
from llmcxr.tuning.settings import TuningSettings
from llmcxr.tuning.tunable import MasterAdamW, TunableModel
from llmcxr.vocabulary.growing import is_tied
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K = 8
IDS = torch.tensor([[5, 340, 345, 17, 2, 60], [9, 8, 7, 341, 342, 343]])
KINDS = [("llama", True), ("neox", False), ("qwen3", True), ("gemma3", True), ("phi", False), ("gpt2", True)]


def tunable(kind="llama", tied=True, dtype=torch.float32, method="qlora") -> TunableModel:
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    settings = dataclasses.replace(TuningSettings(), method=method, lora_rank=4)
    model = build_model(kind, vocabulary.first_id + 3, tied, width=64)
    for p in model.parameters():  # as when loaded: rotary frequencies stay in float32
        p.data = p.data.to(dtype)
    rows = 0.2 * torch.randn(K, 64, generator=torch.Generator().manual_seed(1))
    return TunableModel(model, vocabulary, rows, settings)


def loss_of(model) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(IDS).logits[:, :-1].float().flatten(0, 1), IDS[:, 1:].flatten())


def test_without_the_package_it_is_said(monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name == "bitsandbytes":
            raise ImportError("No module named 'bitsandbytes'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(UserError, match=r"qlora needs the package bitsandbytes.*pip install \"llmcxr\[qlora\]\""):
        tunable()


@pytest.fixture
def bnb():
    return pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_four_bits_and_back(bnb, kind, tied):
    model = build_model(kind, 340, tied, width=64)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    head = model.get_output_embeddings().weight
    quantize_linears(model)
    layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) >= 6 and all(m.in_features % 64 == 0 for m in layers)
    assert all(m.weight.quant_state.quant_type == "nf4" for m in layers)
    assert model.get_output_embeddings().weight is head and head.dtype == torch.float32
    with torch.no_grad():
        packed = model(IDS[:, :1]).logits
        dequantize_linears(model, {})
        torch.testing.assert_close(model(IDS[:, :1]).logits, packed, atol=1e-4, rtol=1e-4)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    for n, p in after.items():
        assert p.shape == before[n].shape and p.dtype == torch.float32, n
        # NF4's widest gap is 0.3 of the largest of its 64 values.
        if p.ndim == 2:
            old, new = (w.T if "c_" in n else w for w in (before[n], p.detach()))  # GPT-2's layers stand the other way
            scale = old.reshape(-1, 64).abs().amax(1) if old.numel() % 64 == 0 else old.abs().max()
            assert ((new - old).reshape(-1, 64).abs().amax(1) <= 0.165 * scale).all(), n
        else:
            assert torch.equal(p, before[n]), n


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_learns_and_merges_to_an_ordinary_checkpoint(bnb, kind, tied, dtype, tmp_path):
    t = tunable(kind, tied, dtype)
    assert all(("lora" in n) != n.endswith("rows") for n in t.trainable())
    assert {p.dtype for n, g, p in t.groups() if g == "body"} == {dtype}
    start, optimizer, losses = t.state(), MasterAdamW(t), []
    for step in range(6):
        if step == 3:  # evaluation between steps leaves the weights usable for training
            with torch.no_grad():
                t.model.eval()(IDS)
            t.model.train()
        loss = loss_of(t.model)
        losses.append(loss.item())
        loss.backward()
        optimizer.step({"body": 0.01, "rows": 0.02}, 1.0)
    assert losses[-1] < losses[0]
    assert not [n for n, p in t.state().items() if torch.equal(p, start[n])], "adapters and rows are all trained"
    with torch.no_grad():
        before = t.model.eval()(IDS).logits.float()
        merged = t.merge()
        after = merged(IDS).logits.float()
    atol = 2e-4 if dtype == torch.float32 else 0.05 * before.std().item()
    assert (after - before).abs().mean() < atol
    assert is_tied(merged) == tied and not [n for n, p in merged.named_parameters() if p.dtype != dtype]
    assert not [n for n, _ in merged.named_modules() if "lora" in n or "parametrizations" in n]
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    assert getattr(again.config, "quantization_config", None) is None
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, merged(IDS).logits)


def test_base_states_are_those_of_the_packed_base_model(bnb):
    t = tunable()
    with torch.no_grad():
        base = t.base_states(IDS)
        torch.testing.assert_close(base, t.model.base_model(IDS).last_hidden_state)  # untrained adapters add nothing
    for n, p in t.trainable().items():
        if "lora_B" in n:
            torch.nn.init.normal_(p)
    with torch.no_grad():
        torch.testing.assert_close(t.base_states(IDS), base)
        assert not torch.allclose(t.model.base_model(IDS).last_hidden_state, base)
