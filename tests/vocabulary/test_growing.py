"""Growing a model leaves its text as it was, for tied and untied heads, padded tables, and heads with a bias."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from llmcxr.vocabulary.growing import (
    fold_image_rows,
    grow_language_model,
    is_tied,
    overlay_image_rows,
    projected_rows,
    random_rows,
    table_of,
)
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

KINDS = [(kind, tied) for kind in ("neox", "llama", "qwen3", "gpt2") for tied in (False, True)] + [("phi", False)]
CASES = [(*k, spare) for k in KINDS for spare in (0, 7, 60)]  # spare: unused rows of a padded table
IDS = torch.tensor([[5, 17, 300, 42, 8], [1, 2, 3, 4, 339]])


def grown(kind, tied, spare, K=16):
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model(kind, vocabulary.first_id + spare, tied)
    with torch.no_grad():
        before = model(IDS).logits
    rows = torch.randn(K, table_of(model).shape[1], generator=torch.Generator().manual_seed(3))
    grow_language_model(model, vocabulary, rows)
    return model, vocabulary, rows, before


@pytest.mark.parametrize(("kind", "tied", "spare"), CASES)
def test_text_logits_are_exactly_as_before(kind, tied, spare):
    model, vocabulary, rows, before = grown(kind, tied, spare)
    first, end = vocabulary.first_id, vocabulary.first_id + 16
    assert first == 340 and is_tied(model) == tied
    assert table_of(model).shape[0] == model.config.vocab_size == max(end, first + spare)
    assert torch.equal(table_of(model)[first:end], rows)
    assert torch.equal(model.get_output_embeddings().weight[first:end], rows)
    with torch.no_grad():
        output = model(IDS, output_hidden_states=True)
    assert torch.equal(output.logits[..., :first], before[..., :first])
    # An image token's logit is hidden state times row, without bias.
    torch.testing.assert_close(output.logits[..., first:end], output.hidden_states[-1] @ rows.T)


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_a_stock_checkpoint_comes_out(kind, tied, tmp_path):
    model, vocabulary, _, _ = grown(kind, tied, 0)
    overlay_image_rows(model, vocabulary)
    fold_image_rows(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(model) and is_tied(again) == tied
    ids = torch.tensor([[5, 340, 355, 8]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_overlay_and_fold_change_nothing_untrained(kind, tied):
    model, vocabulary, _, _ = grown(kind, tied, 7)
    ids = torch.tensor([[5, 340, 355, 8]])
    names = {n: tuple(p.shape) for n, p in model.named_parameters()}
    with torch.no_grad():
        before = model(ids).logits
        overlays = overlay_image_rows(model, vocabulary)
        assert len(overlays) == (1 if tied else 2)
        assert torch.equal(model(ids).logits, before)
        fold_image_rows(model)
        assert torch.equal(model(ids).logits, before)
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == names
    assert is_tied(model) == tied


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_trained_rows_are_folded_where_they_belong(kind, tied):
    model, vocabulary, _, _ = grown(kind, tied, 7)
    first, end = vocabulary.first_id, vocabulary.first_id + 16
    old = [table_of(model).detach().clone(), model.get_output_embeddings().weight.detach().clone()]
    overlays = overlay_image_rows(model, vocabulary)
    with torch.no_grad():
        for k, overlay in enumerate(overlays):
            overlay.rows.fill_(k + 1.5)
        ids = torch.tensor([[5, 340, 355, 8]])
        laid = model(ids).logits
        fold_image_rows(model)
        assert torch.equal(model(ids).logits, laid)
    for k, weight in enumerate((table_of(model), model.get_output_embeddings().weight)):
        assert torch.equal(weight[first:end], torch.full_like(weight[first:end], 1.5 if tied else k + 1.5))
        assert torch.equal(weight[:first], old[k][:first]) and torch.equal(weight[end:], old[k][end:])


def test_rows_are_float32_over_a_bfloat16_model():
    vocabulary = ImageVocabulary.grow(build_tokenizer(), 4)
    model = build_model("llama", 340, True).to(torch.bfloat16)
    grow_language_model(model, vocabulary, torch.randn(4, 32))
    (overlay,) = overlay_image_rows(model, vocabulary)
    assert overlay.rows.dtype == torch.float32
    model(torch.tensor([[1, 341]])).logits.float().sum().backward()
    assert overlay.rows.grad.dtype == torch.float32 and overlay.rows.grad.abs().sum() > 0


def test_wrong_rows_are_refused():
    vocabulary = ImageVocabulary.grow(build_tokenizer(), 4)
    with pytest.raises(ValueError, match=r"rows should be \[4, 32\]"):
        grow_language_model(build_model("llama", 340), vocabulary, torch.zeros(5, 32))


def test_starts_of_rows():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(500, 32, generator=generator) * torch.linspace(0.5, 2, 32) + 3
    rows = random_rows(table, 4000, seed=1)
    torch.testing.assert_close(rows.mean(0), table.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(rows.std(0), table.std(0), atol=0.1, rtol=0.05)
    assert torch.equal(rows, random_rows(table, 4000, seed=1)) and not torch.equal(rows, random_rows(table, 4000, 2))
    vectors = torch.randn(64, 8, generator=generator)
    vectors[1] = vectors[0] + 0.01
    vectors[2] = vectors[0] * -1
    rows = projected_rows(vectors, table, seed=1)
    assert rows.shape == (64, 32)
    distance = (rows - rows[0]).norm(dim=1)
    assert distance[1] < 0.1 * distance[2] and distance[1:].argmin() == 0  # like codes start alike
    torch.testing.assert_close(rows.mean(0), table.mean(0).expand(32), atol=1e-4, rtol=0)
    assert rows.sub(rows.mean(0)).std().item() == pytest.approx(0.18 * table.std().item(), rel=0.02)
    torch.testing.assert_close(projected_rows(rows, table, 1), rows, atol=1e-4, rtol=1e-4)  # wide enough: only scaled
