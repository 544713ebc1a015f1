"""Any decoder: each family as it comes (head, tokenizer, padded table) through growing, tuning, saving and loading.

What comes out is loaded with transformers alone.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import FAMILIES, TOKENIZERS, build_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmcxr.foundation.errors import UserError
from llmcxr.inference.backend import Request, Sampling
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.rendering import render, render_prompt
from llmcxr.instructions.templates import build_template
from llmcxr.tuning.batches import collate, plan_batches
from llmcxr.tuning.objective import token_losses
from llmcxr.tuning.settings import TuningSettings
from llmcxr.tuning.tunable import MasterAdamW, TunableModel
from llmcxr.vocabulary.growing import grow_language_model, is_tied, random_rows, table_of
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary, token_name
from llmcxr.vocabulary.language_model import load_language_model, text_half

K = 16
IMAGE = np.array([3, 0, 15, 7], dtype=np.uint16)
TURNS = [
    (Turn("Report it.", IMAGE, "The heart is normal. No pneumothorax."),),
    (Turn("Draw.", "The lungs are clear.", IMAGE),),
    (Turn("Is there a pleural effusion?", IMAGE, "Yes."), Turn("Say no to all of this", "", "No.")),
    (Turn("Say", "", "a"),),
]
families = pytest.mark.parametrize("family", FAMILIES)


def load(family, folder):
    """The base model and its vocabulary, by the loader of a run, from the files it comes in."""
    one = FAMILIES[family]
    (folder / "files").mkdir()
    tokenizer = TOKENIZERS[one.tokenizer](folder / "files")
    build_model(one.kind, len(tokenizer) + one.spare, one.tied).save_pretrained(folder / "base")
    return load_language_model(str(folder / "base")), ImageVocabulary.grow(tokenizer, K)


def rendered(vocabulary, name="paper"):
    template = build_template(name, vocabulary.tokenizer)
    return [
        render(InstructionExample("cxr_vqa", turns, f"i{k}"), template, vocabulary) for k, turns in enumerate(TURNS)
    ]


@families
def test_growing_leaves_text_as_it_was(family, tmp_path):
    model, vocabulary = load(family, tmp_path)
    one = FAMILIES[family]
    assert is_tied(model) == one.tied and vocabulary.first_id == len(vocabulary.tokenizer) - K
    ids = torch.tensor([vocabulary.encode_text("The heart is normal in size. No pneumothorax.")])
    with torch.no_grad():
        before = model(ids).logits
        grow_language_model(model, vocabulary, random_rows(table_of(model), K, seed=0))
        after = model(ids).logits
    first = vocabulary.first_id
    assert torch.equal(after[..., :first], before[..., :first])
    rows = max(first + K, first + one.spare)
    assert after.shape[-1] == table_of(model).shape[0] == model.config.vocab_size == rows
    assert is_tied(model) == one.tied


@families
@pytest.mark.parametrize("method", ["lora", "full"])
def test_tuned_merged_and_loaded_by_transformers_alone(family, method, tmp_path):
    model, vocabulary = load(family, tmp_path)
    rows = random_rows(table_of(model), K, seed=0)
    settings = dataclasses.replace(TuningSettings(), method=method, lora_rank=4)
    tunable = TunableModel(model, vocabulary, rows, settings)
    optimizer, batch, losses = MasterAdamW(tunable), collate(rendered(vocabulary)), []
    for _ in range(3):
        loss = token_losses(tunable.model, batch, vocabulary, "image_rows").losses
        losses.append(loss.mean().item())
        loss.sum().backward()
        optimizer.step({"body": 0.002, "rows": 0.01}, len(loss))
    assert losses[-1] < losses[0]
    with torch.no_grad():
        tuned = tunable.model(batch.ids).logits
        merged = tunable.merge()
    merged.save_pretrained(tmp_path / "model")
    vocabulary.tokenizer.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        logits = again(batch.ids).logits
        assert torch.equal(logits, merged(batch.ids).logits)
    torch.testing.assert_close(logits, tuned, atol=1e-4, rtol=1e-4)  # adapters are added up in another order
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert type(again).__module__.startswith("transformers.") and "auto_map" not in config
    assert is_tied(again) == FAMILIES[family].tied and again.config.get_text_config() is again.config
    # Token -> code -> token, and the text, as the plain tokenizer has them.
    ids = tokenizer.convert_tokens_to_ids([token_name(code) for code in range(K)])
    assert vocabulary.encode_codes(vocabulary.decode_codes(ids)) == ids == list(range(ids[0], ids[0] + K))
    assert tokenizer(token_name(3) + token_name(0), add_special_tokens=False)["input_ids"][-2:] == [ids[3], ids[0]]
    for text in ("The heart is normal.\n\nNo  effusion.", "é"):
        assert ImageVocabulary(tokenizer, K).encode_text(text) == vocabulary.encode_text(text)


@families
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_right_padding_without_a_mask_changes_nothing(family, attention, tmp_path):
    """Hidden states of every real token in a padded batch are those of the example alone."""
    if FAMILIES[family].kind == "gemma2" and attention == "sdpa":
        pytest.skip("its capped attention exists as eager only")
    model, vocabulary = load(family, tmp_path)
    grow_language_model(model, vocabulary, random_rows(table_of(model), K, seed=0))
    model.set_attn_implementation(attention)
    examples = rendered(vocabulary)
    assert max(len(e.ids) for e in examples) > 30  # longer than the windows of the toy Gemmas
    plan = plan_batches(np.array([len(e.ids) for e in examples]), 100_000, seed=0)
    with torch.no_grad():
        for group in plan:
            batch = collate([examples[i] for i in group])
            together = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
            losses = token_losses(model, batch, vocabulary, "image_rows")
            for row, i in enumerate(group):
                alone = collate([examples[i]])
                own = model.base_model(input_ids=alone.ids, use_cache=False).last_hidden_state[0]
                torch.testing.assert_close(together[row, : len(own)], own, atol=2e-5, rtol=1e-4)
                own_losses = token_losses(model, alone, vocabulary, "image_rows").losses
                torch.testing.assert_close(losses.losses[losses.rows == row], own_losses, atol=2e-5, rtol=1e-4)


@families
def test_head_losses_are_those_of_the_models_own_logits(family, tmp_path):
    """The head on supervised tokens only has the model's own bias, caps and scales."""
    model, vocabulary = load(family, tmp_path)
    grow_language_model(model, vocabulary, random_rows(table_of(model), K, seed=0))
    batch = collate(rendered(vocabulary))
    with torch.no_grad():
        ours = token_losses(model, batch, vocabulary, "all_rows").losses
        logits = model(batch.ids).logits[:, :-1].log_softmax(-1)
    theirs = -logits.gather(-1, batch.ids[:, 1:, None])[..., 0][batch.supervised[:, 1:]]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@families
def test_decoding_draws_images_and_ends_texts(family, tmp_path):
    model, vocabulary = load(family, tmp_path)
    grow_language_model(model, vocabulary, random_rows(table_of(model), K, seed=0))
    for name in ("paper", "chat"):
        template = build_template(name, vocabulary.tokenizer)
        backend = TransformersBackend(model, vocabulary, template, image_length=4)
        assert backend.end_id in vocabulary.control_ids, "a response ends with a control token"
        prompts = [
            render_prompt((Turn(*t[:2]),), template, vocabulary) for t in (("Draw.", "Clear."), ("Draw it now", ""))
        ]
        drawn = backend.generate([Request(p, "image") for p in prompts])
        assert all(r.codes is not None and r.codes.shape == (4,) and r.codes.max() < K for r in drawn)
        short = Sampling(max_new_tokens=5)
        written = backend.generate([Request(p, "text", short) for p in prompts])
        alone = [backend.generate([Request(p, "text", short)])[0] for p in prompts]
        assert written == alone and all(r.codes is None for r in written)


def test_only_the_text_half_of_a_multimodal_model_is_kept():
    whole = build_model("gemma3 multimodal", 340, True)
    half = text_half(whole)
    ids = torch.tensor([[5, 17, 300, 42, 8]])
    with torch.no_grad():
        assert torch.equal(half(ids).logits, whole(ids).logits)
    assert not [n for n, _ in half.named_parameters() if "vision" in n] and half.config.model_type == "gemma3_text"
    assert not [n for n, p in half.named_parameters() if p.is_meta]


# --- tokenizers

NAMES = [
    token_name(0),
    token_name(15),
    "<think>",
    "### End",
    "<|im_end|>",
    "</s>",
    "<s>",
    "<end_of_turn>",
    "<eos>",
    "<bos>",
]
PIECES = st.sampled_from(
    [*NAMES, "  ", "    ", "▁", "<VQ", "0001>", "<", "|", "im_end", "\n", "\n\n", "Is there", "é", "😀"]
)
TEXT = st.lists(PIECES | st.text(max_size=5), max_size=8).map("".join)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in TOKENIZERS}
    return {name: ImageVocabulary.grow(build(folders[name]), K) for name, build in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXT)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_becomes_an_image_or_a_control_token(vocabularies, name, text):
    vocabulary = vocabularies[name]
    ids = vocabulary.encode_text(text)
    assert not any(vocabulary.is_image(i) for i in ids)
    assert vocabulary.control_ids.isdisjoint(ids), vocabulary.tokenizer.convert_ids_to_tokens(ids)
    if name not in ("llama", "unigram"):  # those put a space before every text, or lack characters
        assert vocabulary.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text.replace(
            "▁", " " if name == "gemma" else "▁"
        )


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["Is there a pleural effusion?\n\nNo.", "a    b", "The heart  is normal.\n"])
def test_plain_text_is_tokenised_as_the_tokenizer_does(vocabularies, name, text):
    vocabulary = vocabularies[name]
    assert vocabulary.encode_text(text) == vocabulary.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_what_counts_as_control(vocabularies):
    def tokens(name):
        vocabulary = vocabularies[name]
        return {t for t in vocabulary.tokenizer.convert_ids_to_tokens(sorted(vocabulary.control_ids)) if "<VQ" not in t}

    assert tokens("dolly") == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "### End", "### Response:"}
    assert tokens("llama") == tokens("unigram") == {"<s>", "</s>"}
    assert tokens("gemma") >= {"<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"}
    assert not tokens("gemma") & {"\n\n", "▁▁", "<unk>"}


@pytest.mark.parametrize("template", ["paper", "chat"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompts_are_what_training_saw_and_responses_end_with_a_control_token(vocabularies, name, template):
    vocabulary = vocabularies[name]
    made = build_template(template, vocabulary.tokenizer)
    for turns in TURNS:
        whole = render(InstructionExample("cxr_vqa", turns), made, vocabulary)
        prompt = render_prompt((*turns[:-1], dataclasses.replace(turns[-1], response=None)), made, vocabulary)
        assert whole.ids[: len(prompt)].tolist() == prompt
        expected = []
        for turn in turns:
            text = isinstance(turn.response, str)
            expected += vocabulary.encode_text(turn.response) if text else vocabulary.encode_codes(turn.response)
            expected.append(
                next(i for i in whole.ids[::-1].tolist() if i in vocabulary.control_ids and not vocabulary.is_image(i))
            )
        assert whole.ids[whole.supervised].tolist() == expected


def test_a_template_that_does_not_end_responses_is_refused(vocabularies):
    tokenizer = vocabularies["bytes"].tokenizer
    kept = tokenizer.chat_template
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}"
    )
    try:
        with pytest.raises(UserError, match="does not mark the end of a response"):
            build_template("chat", tokenizer).pieces(TURNS[0])
    finally:
        tokenizer.chat_template = kept
