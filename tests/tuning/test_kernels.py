"""Kernels against the stock model: equal in float32, no further from float32 than the stock ones in bfloat16."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import build_model
from peft import LoraConfig, get_peft_model

from llmcxr.tuning import kernels
from llmcxr.tuning.kernels import causal_attention, rms_norm, use_training_kernels


def loss_and_gradients(model, ids):
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["llama", "neox", "qwen3", "gpt2", "phi"])
@pytest.mark.parametrize("T", [7, 150])  # one block of queries, and two
def test_float32_training_is_the_stock_models(kind, T, monkeypatch):
    model = build_model(kind, 40)
    ids = torch.randint(0, 40, (3, T), generator=torch.Generator().manual_seed(0))
    loss, gradients = loss_and_gradients(model, ids)
    calls = []
    original = kernels.causal_attention
    monkeypatch.setattr(kernels, "causal_attention", lambda *a: calls.append(1) or original(*a))
    undo = use_training_kernels(model)
    ours, own = loss_and_gradients(model, ids)
    assert len(calls) == 2  # one a layer: the comparison is not of the stock model with itself
    torch.testing.assert_close(ours, loss, rtol=1e-6, atol=1e-6)
    for name in gradients:
        torch.testing.assert_close(own[name], gradients[name], rtol=1e-4, atol=1e-6)
    undo()
    assert torch.equal(loss_and_gradients(model, ids)[0], loss) and len(calls) == 2


def test_attention_in_bfloat16_is_as_near_to_float32_as_torchs():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, 200, 16, generator=generator) for h in (6, 2, 2))
    q = 3 * q  # scores as sharp as in trained models
    g = torch.randn(2, 6, 200, 16, generator=generator)

    def run(function, dtype):
        inputs = [x.to(torch.bfloat16).to(dtype).requires_grad_() for x in (q, k, v)]
        out = function(*inputs)
        return [out, *torch.autograd.grad(out, inputs, g.to(dtype))]

    def stock(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def ours(q, k, v):
        return causal_attention(q, k, v, 0.25)

    exact = run(stock, torch.float32)
    for a, b in zip(run(ours, torch.float32), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for a, b, e in zip(run(ours, torch.bfloat16), run(stock, torch.bfloat16), exact, strict=True):
        own, theirs = ((x.float() - e).norm() / e.norm() for x in (a, b))
        assert own < max(4 * theirs, torch.tensor(0.01))


def test_padding_after_the_end_changes_nothing_before_it():
    q, k, v = (torch.randn(1, 2, 140, 8, generator=torch.Generator().manual_seed(s)) for s in range(3))
    short = causal_attention(q[:, :, :90], k[:, :, :90], v[:, :, :90], 0.3)
    torch.testing.assert_close(causal_attention(q, k, v, 0.3)[:, :, :90], short)


def test_rms_norm_by_hand_and_its_gradients():
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    expected = torch.tensor([[3.0 * 2, 4.0]]) / 12.5**0.5
    torch.testing.assert_close(rms_norm(x.float(), torch.tensor([2.0, 1.0]), 0.0), expected)
    generator = torch.Generator().manual_seed(0)
    x, w, g = (torch.randn(s, generator=generator) for s in ((2, 3, 8), (8,), (2, 3, 8)))
    pairs = []
    for function in (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, (8,), w, 1e-5)):
        inputs = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        pairs.append(torch.autograd.grad(function(*inputs), inputs, g))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def lora_model(seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    model = build_model("llama", 40, attention_bias=True)
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", **options))
    for name, p in model.named_parameters():
        if "lora_B" in name:  # as it starts, B is zero, and A would get no gradient
            torch.nn.init.normal_(p, std=0.2)
    return model.to(dtype)


def test_adapters_compute_what_pefts_do(monkeypatch):
    model = lora_model()
    ids = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))

    def run():
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    loss, gradients = run()
    with model.disable_adapter():
        base = model(input_ids=ids).logits
    calls = []
    original = kernels.lora_linear
    monkeypatch.setattr(kernels, "lora_linear", lambda *a: calls.append(1) or original(*a))
    undo = use_training_kernels(model.get_base_model())
    ours, own = run()
    assert len(calls) == 14  # seven matrices in each of two layers
    torch.testing.assert_close(ours, loss, rtol=1e-6, atol=1e-6)
    assert len(own) == 28
    for name in gradients:
        torch.testing.assert_close(own[name], gradients[name], rtol=1e-4, atol=1e-6)
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=ids).logits, base)
    assert len(calls) == 14
    undo()
    assert torch.equal(run()[0], loss) and len(calls) == 14


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_other_adapters_stay_pefts(options):
    model = lora_model(**options).get_base_model()
    use_training_kernels(model)
    assert not any("forward" in vars(m) for m in model.modules() if isinstance(m, kernels.LoraLinear))


def test_inference_and_saved_configuration_are_the_stock_models(tmp_path):
    model = build_model("llama", 40)
    ids = torch.arange(12)[None] % 40
    stock = copy.deepcopy(model)
    use_training_kernels(model)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, stock(input_ids=ids).logits)
        mask = torch.ones_like(ids)
        mask[:, :3] = 0  # left padding, as in batched generation
        a, b = (m(input_ids=ids, attention_mask=mask).logits[:, 3:] for m in (model, stock))
        torch.testing.assert_close(a, b)
    model.save_pretrained(tmp_path)
    assert kernels.NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
