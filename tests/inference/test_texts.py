"""Texts that people give: empty ones, ones that are no text, and ones that are longer than the model can read."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_model
from test_policies import K, asker, backend, codec

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.texts import check_text
from llmcxr.inference.backend import Request, Sampling
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.inference.transformers_backend import TransformersBackend

IMAGE = "never read.png"


def model(context: int = 2048, **changes: Any) -> LlmCxr:
    """The toy of test_policies.py with so many positions."""
    own = asker(**changes)
    limited = TransformersBackend(own.backend.model, own.vocabulary, own.template, own.backend.image_length)
    limited.context = context
    return LlmCxr(dataclasses.replace(own, backend=limited), codec())  # type: ignore[arg-type]


def said(text: str, which: LlmCxr, **options: Any) -> str:
    return which.chat([{"role": "user", "content": text}], Sampling(**options))


@pytest.mark.parametrize("text", ["", " \n\t\u00a0"])
def test_empty_texts_are_refused(text):
    for use in (lambda: model().ask(IMAGE, text), lambda: model().draw(text), lambda: said(text, model())):
        with pytest.raises(UserError, match="is empty"):
            use()
    assert check_text("x", "it") == "x"


@pytest.mark.parametrize("text", ["effusion \udcff", "\ud800", b"caf\xe9".decode("utf-8", "surrogateescape")])
def test_what_is_no_text_is_refused_by_one_sentence(text):
    for use in (lambda: model().ask(IMAGE, text), lambda: model().draw(text), lambda: said(text, model())):
        with pytest.raises(UserError, match="is not valid text: .* not UTF-8") as caught:
            use()
        str(caught.value).encode()  # the message itself can be printed


def test_an_earlier_answer_of_the_model_may_be_empty():
    turns = [("user", "Hello"), ("assistant", ""), ("user", "Go on")]
    model().chat([{"role": role, "content": text} for role, text in turns], Sampling(max_new_tokens=1))


def test_texts_longer_than_those_of_tuning_are_refused():
    own = model(max_tokens=100)
    assert own.draw("The heart is large. " * 3, candidates=1).shape
    for use in (lambda: own.ask(IMAGE, "Is it? " * 100), lambda: own.draw("The heart is large. " * 100)):
        with pytest.raises(
            UserError, match=r"too long: .* takes [\d,]+ tokens, and this model reads at most \d+\. Shorten"
        ):
            use()
    said("Hello. " * 100, own, max_new_tokens=1)  # plain language is as long as the language model's own


@pytest.mark.parametrize("around", [("", ""), ("<", ">")], ids=["chat", "llm-cxr"])
def test_a_drawing_needs_room_for_its_codes_and_what_opens_them(around):
    def drawn(most: int) -> LlmCxr:
        whole = model(max_tokens=most)
        template = copy.copy(whole.asker.template)
        template.around_image = around  # type: ignore[misc]
        return LlmCxr(dataclasses.replace(whole.asker, template=template), codec())  # type: ignore[arg-type]

    L = model().info.grid ** 2
    length = len(drawn(2048).asker.prompts([model_turns("The heart.")], "image")[0])
    assert length == len(asker().prompts([model_turns("The heart.")])[0]) + bool(around[0])
    drawn(length + L).draw("The heart.", candidates=1)
    with pytest.raises(UserError, match=f"takes {length} tokens, and this model reads at most {length - 1}"):
        drawn(length + L - 1).draw("The heart.", candidates=1)


def model_turns(report: str):
    from llmcxr.tasks import report_to_cxr

    return report_to_cxr.TASK.prompt(report)


def test_a_text_ends_where_the_context_ends():
    """Of learned positions there are no more: a step beyond would be an error of the library, or noise."""
    kind = build_model("gpt2", backend().vocabulary.first_id + K, True, max_position_embeddings=64)
    own = TransformersBackend(kind, backend().vocabulary, backend().template, 4)
    assert own.context == 64
    prompt = list(range(10, 70))
    rows = [token for _, token in own.stream([Request(prompt, "text", Sampling(1.0, max_new_tokens=50, seed=1))])]
    assert 1 <= len(rows) <= 4
    own.stream([Request(prompt, "image")])
    assert own.generate([Request(prompt, "image")])[0].codes is not None
    for grammar, extra in (("image", 1), ("text", 4)):
        with pytest.raises(UserError, match="too long"):
            own.generate([Request(prompt + prompt[:extra], grammar)])


def test_a_model_without_a_limit_reads_on():
    own = model()
    own.asker.backend.context = None  # type: ignore[attr-defined]
    assert np.isscalar(len(said("Hello. " * 400, own, max_new_tokens=1)))


@pytest.mark.parametrize("given", [None, 5, b"x", ["x"], {"a": 1}])
def test_what_is_no_text_is_said(given):
    for use in (lambda: model().ask(IMAGE, given), lambda: model().draw(given), lambda: said(given, model())):
        with pytest.raises(UserError, match="should be text, is "):
            use()


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hello",
        [("user", "x")],
        [{"role": "user"}],
        [{"role": "system", "content": "x"}],
        [{"role": "assistant", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}, {"role": "user", "content": "x"}],
    ],
)
def test_conversations_of_another_form(messages):
    with pytest.raises(UserError, match="message"):
        model().chat(messages)


def test_images_of_another_kind():
    pixels = torch.rand(model().info.image_size, model().info.image_size, requires_grad=True)
    assert np.array_equal(model().images.pixels(pixels.bfloat16()), pixels.detach().bfloat16().float().numpy())
    for image in (b"x", {"a": 1}, np.array(["a"]), "half \ud800", "zero\0byte"):
        with pytest.raises(UserError):
            model().report(image)
