"""What is trained, how it is updated, and what comes out when rows and adapters are folded in."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from conftest import build_model, build_tokenizer

from llmcxr.foundation.errors import UserError
from llmcxr.tuning.settings import TuningSettings
from llmcxr.tuning.tunable import MasterAdamW, TunableModel
from llmcxr.vocabulary.growing import is_tied
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K = 8
IDS = torch.tensor([[5, 340, 345, 17, 2, 60], [9, 8, 7, 341, 342, 343]])
CASES = [
    (kind, tied, method)
    for kind in ("llama", "neox", "gpt2", "qwen3")
    for tied in (False, True)
    for method in ("lora", "full")
]


def tunable(kind="llama", tied=True, method="lora", dtype=torch.float32, seed=0) -> TunableModel:
    settings = dataclasses.replace(TuningSettings(), method=method, lora_rank=4)
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model(kind, vocabulary.first_id + 3, tied).to(dtype)
    rows = 0.2 * torch.randn(K, 32, generator=torch.Generator().manual_seed(1))
    return TunableModel(model, vocabulary, rows, settings, seed)


def loss_of(model) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(IDS).logits[:, :-1].float().flatten(0, 1), IDS[:, 1:].flatten())


def train(t: TunableModel, steps: int = 5, rate: float = 0.01) -> list[float]:
    optimizer = MasterAdamW(t)
    losses = []
    for _ in range(steps):
        loss = loss_of(t.model)
        loss.backward()
        optimizer.step({"body": rate, "rows": rate}, 1.0)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("kind", "tied", "method"), CASES)
def test_training_learns_and_merging_keeps_the_logits(kind, tied, method, tmp_path):
    t = tunable(kind, tied, method)
    losses = train(t)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        before = t.model(IDS).logits
        merged = t.merge()
        torch.testing.assert_close(merged(IDS).logits, before, atol=2e-5, rtol=1e-4)
    assert is_tied(merged) == tied
    assert not [n for n, _ in merged.named_parameters() if "lora" in n or "parametrizations" in n]
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, merged(IDS).logits)


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("neox", False), ("gpt2", True)])
def test_adapters_leave_the_base_weights_alone_until_merged(kind, tied):
    t = tunable(kind, tied, "lora")
    frozen = {n: p.detach().clone() for n, p in t.model.named_parameters() if not p.requires_grad}
    assert any("embed" in n or "wte" in n for n in frozen) and len(frozen) > 5
    first = {n: p.detach().clone() for n, p in t.trainable().items()}
    assert all("lora" in n or n.endswith("rows") for n in first)
    assert sum(n.endswith("rows") for n in first) == (1 if tied else 2)
    train(t)
    for n, p in t.model.named_parameters():
        if n in frozen:
            assert torch.equal(p, frozen[n]), n
        else:
            assert not torch.equal(p, first[n]), n


def test_text_rows_stay_exactly_as_they_were_after_merging_adapters():
    base = build_model("llama", 343, True)
    old = base.get_input_embeddings().weight[:340].detach().clone()
    t = tunable("llama", True, "lora")
    train(t)
    assert torch.equal(t.merge().get_input_embeddings().weight[:340], old)


def test_untrained_adapters_change_nothing():
    t = tunable("llama", True, "lora")
    with torch.no_grad():
        assert torch.equal(t.model(IDS).logits, t.merge()(IDS).logits)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_shrunk_adapters_add_less_to_the_base_weights(kind):
    whole, part = tunable(kind), tunable(kind)
    base = {
        n.replace(".base_layer", "").removeprefix("base_model.model."): p.clone()
        for n, p in whole.model.named_parameters()
    }
    for t in (whole, part):
        train(t)
    part.shrink_adapters(0.25)
    rows = part.state()
    assert all(torch.equal(rows[n], p) for n, p in whole.state().items() if n.endswith("rows"))
    some, all_of = (dict(t.merge().named_parameters()) for t in (part, whole))
    tuned = [n for n, p in all_of.items() if n in base and p.shape == base[n].shape and not torch.equal(p, base[n])]
    assert len(tuned) > 5
    for n in tuned:
        torch.testing.assert_close(some[n] - base[n], 0.25 * (all_of[n] - base[n]), rtol=1e-3, atol=1e-6)


def test_full_tuning_trains_everything_once():
    t = tunable("llama", True, "full")
    assert {id(p) for p in t.trainable().values()} == {id(p) for p in t.model.parameters()}
    groups = [g for _, g, _ in t.groups()]
    assert groups.count("rows") == 1 and groups.count("body") > 10


def test_bfloat16_matrices_with_float32_rows():
    t = tunable(dtype=torch.bfloat16)
    for name, group, p in t.groups():
        assert p.dtype == (torch.float32 if group == "rows" else torch.bfloat16), name
    losses = train(t)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_steps_equal_those_of_torch(method):
    ours, theirs = tunable(method=method), tunable(method=method)
    torch.testing.assert_close(ours.state(), theirs.state(), rtol=0, atol=0)
    optimizer = MasterAdamW(ours)
    body = [p for _, g, p in theirs.groups() if g == "body"]
    rows = [p for _, g, p in theirs.groups() if g == "rows"]
    reference = torch.optim.AdamW([{"params": body}, {"params": rows}], betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(4):
        rates = {"body": 0.01 / (step + 1), "rows": 0.05}
        loss_of(ours.model).mul(7).backward()  # a sum over 7 tokens
        norm = optimizer.step(rates, divisor=7)
        loss_of(theirs.model).backward()
        expected = torch.nn.utils.clip_grad_norm_([*body, *rows], 1.0)
        assert norm == pytest.approx(expected.item(), rel=1e-4)
        for group, name in zip(reference.param_groups, ("body", "rows"), strict=True):
            group["lr"] = rates[name]
        reference.step()
        reference.zero_grad()
        torch.testing.assert_close(ours.state(), theirs.state(), atol=2e-5, rtol=1e-4)


def test_masters_collect_updates_that_bfloat16_would_lose():
    t = tunable(dtype=torch.bfloat16, method="full")
    optimizer = MasterAdamW(t)
    name, p = next((n, p) for n, g, p in t.groups() if g == "body" and p.ndim == 2 and "original" not in n)
    start = p.detach().float().clone()
    for _ in range(40):
        loss_of(t.model).backward()
        optimizer.step({"body": 1e-5, "rows": 1e-5}, 1.0)
    index = [n for n, _, _ in t.groups()].index(name)
    master = optimizer.state()["masters"][index]
    assert (master - start).abs().mean() > 1e-4  # 40 steps of 1e-5, though each is below bfloat16's spacing at 0.2
    assert torch.equal(p, master.to(torch.bfloat16))


def test_optimizer_state_goes_on_exactly():
    whole, first, second = tunable(), tunable(), tunable(seed=9)
    a, b = MasterAdamW(whole), MasterAdamW(first)

    def step(t, optimizer):
        loss_of(t.model).backward()
        optimizer.step({"body": 0.01, "rows": 0.02}, 1.0)

    for _ in range(2):
        step(whole, a), step(first, b)
    c = MasterAdamW(second)
    c.load_state(b.state())
    for _ in range(2):
        step(whole, a), step(second, c)
    torch.testing.assert_close(second.state(), whole.state(), rtol=0, atol=0)


def test_state_of_another_model_is_refused():
    t = tunable()
    state = t.state()
    other = tunable(seed=1)
    other.load_state(state, "w")
    torch.testing.assert_close(other.state(), state, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"stage1/w\.safetensors does not fit this model"):
        tunable(method="full").load_state(state, "stage1/w.safetensors")
    name = next(iter(state))
    with pytest.raises(UserError, match="does not fit"):
        t.load_state(state | {name: torch.zeros(1)}, "w")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_examples_longer_than_the_models_context_are_refused(kind):
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    settings = dataclasses.replace(TuningSettings(), max_tokens=301)
    for positions, fits in ((300, False), (301, True)):
        model = build_model(kind, vocabulary.first_id, True, max_position_embeddings=positions)
        if fits:
            TunableModel(model, vocabulary, torch.zeros(K, 32), settings)
        else:
            with pytest.raises(UserError, match=r"tuning\.max_tokens: 301 exceeds the 300 positions"):
                TunableModel(model, vocabulary, torch.zeros(K, 32), settings)


def test_a_weight_without_gradient_is_said():
    t = tunable()
    with pytest.raises(UserError, match="no gradient"):
        MasterAdamW(t).step({"body": 1.0, "rows": 1.0}, 1.0)


def test_weights_updated_in_parts_are_those_updated_at_once(monkeypatch):
    def updated(at_once):
        monkeypatch.setattr("llmcxr.tuning.tunable.UPDATED_AT_ONCE", at_once)
        t = tunable(method="full")
        train(t)
        return t.state()

    whole, parts = updated(2**30), updated(1)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_weights_are_their_own_masters(dtype):
    t = tunable(method="full", dtype=dtype)
    masters = {m.data_ptr() for m in MasterAdamW(t).state()["masters"]}
    own = {n: p.data_ptr() in masters for n, p in t.trainable().items()}
    assert all(own[n] == (p.dtype == torch.float32) for n, p in t.trainable().items())
    assert all(own.values()) == (dtype == torch.float32)


def test_what_was_loaded_leaves_the_checkpoint_alone():
    """It may be mapped from a file that the next checkpoint replaces."""
    first, second = tunable(), tunable(seed=1)
    optimizer = MasterAdamW(first)
    loss_of(first.model).backward()
    optimizer.step({"body": 0.01, "rows": 0.02}, 1.0)
    saved = copy.deepcopy(optimizer.state())
    again = MasterAdamW(second)
    again.load_state(saved)
    loss_of(second.model).backward()
    again.step({"body": 0.01, "rows": 0.02}, 1.0)
    torch.testing.assert_close(saved["optimizer"]["state"], optimizer.state()["optimizer"]["state"], rtol=0, atol=0)
