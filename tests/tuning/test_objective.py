"""The loss against sums written out here over full logits, and against the loss that transformers computes itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import build_model, build_tokenizer

from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.rendering import RenderedExample, render
from llmcxr.instructions.templates import build_template
from llmcxr.tuning.batches import collate
from llmcxr.tuning.objective import anchor_losses, project, token_losses
from llmcxr.vocabulary.growing import grow_language_model, table_of
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K = 16
VOCABULARY = ImageVocabulary.grow(build_tokenizer(), K)
FIRST, END = VOCABULARY.first_id, VOCABULARY.first_id + K
IMAGE = np.array([3, 0, 15, 7], dtype=np.uint16)


def grown(kind="llama", tied=True, **extra):
    model = build_model(kind, VOCABULARY.first_id, tied, **extra)
    rows = 0.2 * torch.randn(K, table_of(model).shape[1], generator=torch.Generator().manual_seed(1))
    grow_language_model(model, VOCABULARY, rows)
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return model


def examples() -> list[RenderedExample]:
    template = build_template("chat", VOCABULARY.tokenizer)
    turns = [
        (Turn("Report it.", IMAGE, "The heart is normal."),),
        (Turn("Draw.", "Clear.", IMAGE),),
        (Turn("Is there?", IMAGE, "Yes."), Turn("Say no to all of this", "", "No.")),
        (Turn("Say", "", "a"),),
    ]
    return [render(InstructionExample("cxr_vqa", t, f"i{k}"), template, VOCABULARY) for k, t in enumerate(turns)]


KINDS = ["llama", "neox", "qwen3", "gpt2", "phi"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["all_rows", "image_rows"])
def test_every_token_by_hand(kind, mode):
    model = grown(kind, tied=kind != "phi")
    rendered = examples()
    with torch.no_grad():
        found = token_losses(model, collate(rendered), VOCABULARY, mode)
        expected, rows = [], []
        for row, e in enumerate(rendered):  # one example at a time, full logits, no padding
            logits = model(torch.from_numpy(e.ids)[None]).logits[0]
            for t in range(1, len(e.ids)):
                if not e.supervised[t]:
                    continue
                inside = FIRST <= e.ids[t] < END and FIRST <= e.ids[t - 1] < END
                allowed = slice(FIRST, END) if mode == "image_rows" and inside else slice(0, None)
                start = FIRST if allowed.start else 0
                expected.append(-torch.log_softmax(logits[t - 1, allowed], -1)[int(e.ids[t]) - start])
                rows.append(row)
    torch.testing.assert_close(found.losses, torch.stack(expected), atol=2e-5, rtol=1e-5)
    assert found.rows.tolist() == rows and found.losses.dtype == torch.float32
    assert len(rows) == sum(int(e.supervised.sum()) for e in rendered)


@pytest.mark.parametrize("mode", ["all_rows", "image_rows"])
def test_codes_of_images_that_are_read_by_hand(mode):
    model = grown()
    rendered = examples()
    with torch.no_grad():
        plain = token_losses(model, collate(rendered), VOCABULARY, mode)
        found = token_losses(model, collate(rendered), VOCABULARY, mode, read_images=True)
        expected, rows = [], []
        for row, e in enumerate(rendered):
            logits = model(torch.from_numpy(e.ids)[None]).logits[0]
            for t in range(1, len(e.ids)):  # after the first code of an image, and no response
                if not e.supervised[t] and FIRST <= e.ids[t] < END and FIRST <= e.ids[t - 1] < END:
                    allowed = slice(FIRST, END) if mode == "image_rows" else slice(0, None)
                    start = FIRST if allowed.start else 0
                    expected.append(-torch.log_softmax(logits[t - 1, allowed], -1)[int(e.ids[t]) - start])
                    rows.append(row)
    assert len(rows) == 6 and found.rows[found.read].tolist() == rows  # two images of four codes are read
    torch.testing.assert_close(found.losses[found.read], torch.stack(expected), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found.losses[~found.read], plain.losses)
    assert found.rows[~found.read].tolist() == plain.rows.tolist() and not plain.read.any()


@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_is_the_loss_of_transformers(kind):
    model = grown(kind, tied=kind != "phi")
    batch = collate(examples())
    labels = batch.ids.masked_fill(~batch.supervised, -100)
    theirs = model(input_ids=batch.ids, labels=labels)
    ours = token_losses(model, batch, VOCABULARY, "all_rows").losses.mean()
    torch.testing.assert_close(ours, theirs.loss, atol=1e-5, rtol=1e-5)
    theirs.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    ours.backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[n], atol=1e-5, rtol=1e-3)


def test_the_modes_differ_only_inside_images():
    model, batch = grown(), collate(examples())
    with torch.no_grad():
        a = token_losses(model, batch, VOCABULARY, "all_rows").losses
        b = token_losses(model, batch, VOCABULARY, "image_rows").losses
    differ = (a - b).abs() > 1e-6
    assert differ.sum() == 3  # of the drawn image's four codes the first competes with all tokens
    assert (a > b - 1e-6).all()


def test_padding_changes_nothing():
    model, rendered = grown("gpt2"), examples()
    with torch.no_grad():
        together = token_losses(model, collate(rendered), VOCABULARY, "image_rows")
        for row, e in enumerate(rendered):
            alone = token_losses(model, collate([e]), VOCABULARY, "image_rows").losses
            torch.testing.assert_close(together.losses[together.rows == row], alone, atol=1e-5, rtol=1e-5)


def test_losses_are_float32_from_bfloat16():
    model = grown().to(torch.bfloat16)
    found = token_losses(model, collate(examples()), VOCABULARY, "image_rows")
    assert found.losses.dtype == torch.float32
    found.losses.sum().backward()


def test_project_is_the_models_head_with_bias_and_cap():
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    phi = grown("phi", tied=False)
    torch.testing.assert_close(project(phi, hidden), phi.lm_head(hidden))
    torch.testing.assert_close(project(phi, hidden, 5, 9), phi.lm_head(hidden)[:, 5:9])
    capped = grown()
    capped.config.final_logit_softcapping = 2.0
    torch.testing.assert_close(project(capped, hidden), 2 * torch.tanh(F.linear(hidden, table_of(capped)) / 2))


def test_anchor_is_the_divergence_from_the_base_model():
    model = grown()
    hidden = torch.randn(5, model.config.hidden_size)
    other = torch.randn(5, model.config.hidden_size)
    table = model.get_output_embeddings().weight.detach()
    n = FIRST
    p, q = (other @ table[:n].T).softmax(-1), (hidden @ table.T).softmax(-1)
    expected = (p * (p.log() - q[:, :n].log())).sum(-1)
    torch.testing.assert_close(anchor_losses(model, other, hidden, n), expected)
    # The same states differ only by what the tuned model gives to image tokens.
    same = anchor_losses(model, hidden, hidden, n)
    torch.testing.assert_close(same, -q[:, :n].sum(-1).log())


def test_with_base_states_only_the_language_rows_change():
    model, rendered = grown(), examples()
    rendered = [
        dataclasses.replace(e, task=task)
        for e, task in zip(rendered, ["cxr_vqa", "language", "cxr_vqa", "language"], strict=True)
    ]
    batch = collate(rendered)
    plain = token_losses(model, batch, VOCABULARY, "image_rows")
    base = torch.randn(2, batch.ids.shape[1], model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    anchored = token_losses(model, batch, VOCABULARY, "image_rows", base)
    language = (plain.rows == 1) | (plain.rows == 3)
    torch.testing.assert_close(anchored.losses[~language], plain.losses[~language])
    hidden = model.base_model(input_ids=batch.ids).last_hidden_state
    where = batch.supervised[3, 1:].nonzero().flatten()
    expected = anchor_losses(model, base[1, where], hidden[3, where], FIRST)
    torch.testing.assert_close(anchored.losses[plain.rows == 3], expected)
