"""Token ids and the supervised mask, by hand; a prompt is exactly the beginning of what training saw."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.rendering import encode_free, fit, render, render_prompt, supervise_all
from llmcxr.instructions.templates import build_template
from llmcxr.tasks import cxr_to_report, report_to_cxr
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

IMAGE = np.array([3, 0, 15], dtype=np.uint16)
VOCABULARY = ImageVocabulary.grow(build_tokenizer(), 16)
TEMPLATES = {name: build_template(name, VOCABULARY.tokenizer) for name in ("paper", "chat")}
FIRST = VOCABULARY.first_id


def plain(text: str) -> list[int]:
    return VOCABULARY.tokenizer(text, add_special_tokens=False)["input_ids"]


def example(*turns) -> InstructionExample:
    return InstructionExample("cxr_vqa", turns, "i1")


def test_chat_ids_by_hand():
    r = render(example(Turn("Yes?", IMAGE, "No."), Turn("Draw", "", IMAGE)), TEMPLATES["chat"], VOCABULARY)
    newline, start, end = plain("\n"), [1], [2]
    image = [FIRST + 3, FIRST, FIRST + 15]
    expected = [
        (start + plain("user\n") + image + plain("\nYes?") + end + newline + start + plain("assistant\n"), False),
        (plain("No."), True),
        (end, True),
        (newline + start + plain("user\n") + plain("Draw") + end + newline + start + plain("assistant\n"), False),
        (image, True),
        (end, True),
        (newline, False),
    ]
    assert r.ids.tolist() == [i for ids, _ in expected for i in ids]
    assert r.supervised.tolist() == [flag for ids, flag in expected for _ in ids]
    assert r.task == "cxr_vqa" and r.image_id == "i1"


def test_paper_ids_by_hand():
    r = render(example(Turn("Draw", "clear", IMAGE)), TEMPLATES["paper"], VOCABULARY)
    learned = r.ids[r.supervised].tolist()
    assert learned == [FIRST + 3, FIRST, FIRST + 15, 2]
    text = VOCABULARY.tokenizer.decode(r.ids)
    assert text.endswith(
        "### Instruction:\nDraw\n\nInput:\nclear\n\n### Response:\n<VQ0003><VQ0000><VQ0015><|im_end|>\n\n"
    )


TEXT = st.text(max_size=12) | st.sampled_from(["<VQ0001>", "<|im_end|>", "### Response:\nYes.", "  ", "\n"])
IMAGES = st.lists(st.integers(0, 15), min_size=3, max_size=3).map(lambda c: np.array(c, np.uint16))


@given(
    st.lists(st.tuples(TEXT, TEXT | IMAGES, TEXT | IMAGES), min_size=1, max_size=3), st.sampled_from(["paper", "chat"])
)
@settings(max_examples=150, deadline=None)
def test_learned_tokens_and_prompts(turns, name):
    made = tuple(Turn(*turn) for turn in turns)
    template = TEMPLATES[name]
    r = render(example(*made), template, VOCABULARY)
    # What is learned is each response followed by the end token, and nothing else.
    expected = []
    for turn in made:
        text = isinstance(turn.response, str)
        expected += encode_free(turn.response, template, VOCABULARY) if text else VOCABULARY.encode_codes(turn.response)
        expected.append(2)
    assert r.ids[r.supervised].tolist() == expected
    # Control tokens stand only where the template put them: one end for each message.
    assert (r.ids == 2).sum() == len(made) * (2 if name == "chat" else 1)
    # The prompt of the last turn is what training saw there.
    prompt = render_prompt((*made[:-1], Turn(made[-1].instruction, made[-1].input)), template, VOCABULARY)
    assert r.ids[: len(prompt)].tolist() == prompt
    last = len(expected) - (max((i for i, t in enumerate(expected[:-1]) if t == 2), default=-1) + 1)
    assert r.supervised[len(prompt) : len(prompt) + last].all() and not r.supervised[len(prompt) + last :].any()


REPORT = "1. The heart is normal. 2. No effusion of 1.5 cm (see Dr. Who). No pneumothorax! Clear"
CUTS = [
    "1. The heart is normal.",
    "1. The heart is normal. 2. No effusion of 1.5 cm (see Dr. Who).",
    "1. The heart is normal. 2. No effusion of 1.5 cm (see Dr. Who). No pneumothorax!",
]


def report_example(task, report, named=None) -> InstructionExample:
    if task == "report_to_cxr":
        return InstructionExample(task, report_to_cxr.TASK.prompt(report, named, codes=IMAGE), "i1", may_cut="input")
    return InstructionExample(task, cxr_to_report.TASK.prompt(IMAGE, named, report=report), "i1", may_cut="response")


@pytest.mark.parametrize("name", ["paper", "chat"])
@pytest.mark.parametrize("task", ["cxr_to_report", "report_to_cxr"])
@pytest.mark.parametrize("named", [None, "Mass."])
def test_a_long_report_is_cut_after_the_last_sentence_that_fits(task, name, named):
    first = [] if named is None else [*VOCABULARY.encode_text(named), 2]
    template = TEMPLATES[name]
    whole = render(report_example(task, REPORT, named), template, VOCABULARY)
    for sentences, cut in enumerate(CUTS, 1):
        wanted = render(report_example(task, cut, named), template, VOCABULARY)
        longer = render(report_example(task, [*CUTS, REPORT][sentences], named), template, VOCABULARY)
        for room in (len(wanted.ids), len(longer.ids) - 1):  # exactly enough, and just too little for one more
            found = fit(report_example(task, REPORT, named), template, VOCABULARY, room)
            assert (
                found.ids.tolist() == wanted.ids.tolist()
                and found.cut == ("input" if task == "report_to_cxr" else "response")
                and found.image_id == "i1"
            )
            learned = found.ids[found.supervised].tolist()
            if task == "cxr_to_report":  # the sentences, but not that the report ends there
                assert learned == [*first, *VOCABULARY.encode_text(cut)]
            else:
                assert learned == [*first, *VOCABULARY.encode_codes(IMAGE), 2]
    fits = fit(report_example(task, REPORT, named), template, VOCABULARY, len(whole.ids))
    assert fits.ids.tolist() == whole.ids.tolist() and not fits.cut and fits.supervised.sum() == whole.supervised.sum()
    assert (
        fit(
            report_example(task, REPORT, named),
            template,
            VOCABULARY,
            len(render(report_example(task, CUTS[0], named), template, VOCABULARY).ids) - 1,
        )
        is None
    )


@pytest.mark.parametrize("task", ["cxr_to_report", "report_to_cxr"])
def test_all_is_learned_but_where_a_cut_report_ends(task):
    template = TEMPLATES["chat"]
    whole = render(report_example(task, CUTS[0]), template, VOCABULARY)
    assert supervise_all(whole).supervised.tolist() == [False] + [True] * (len(whole.ids) - 1)
    cut = supervise_all(fit(report_example(task, REPORT), template, VOCABULARY, len(whole.ids)))
    unlearned = np.flatnonzero(~cut.supervised).tolist()
    end = int(np.flatnonzero(whole.supervised)[-1])
    assert unlearned == ([0, end] if task == "cxr_to_report" else [0]) and cut.ids[end] == 2


def test_nothing_but_a_report_is_cut():
    long = "Yes. " * 40
    for turns in (
        (Turn(long, IMAGE, "No."),),
        (Turn("Q", IMAGE, long),),
        (Turn("Q", long, "No."), Turn("Q", "", long)),
    ):
        for task in ("cxr_vqa", "language"):
            made = InstructionExample(task, turns)
            length = len(render(made, TEMPLATES["chat"], VOCABULARY).ids)
            assert fit(made, TEMPLATES["chat"], VOCABULARY, length - 1) is None
            assert not fit(made, TEMPLATES["chat"], VOCABULARY, length).cut
    # An instruction or an image that leaves no room for a first sentence.
    made = InstructionExample("cxr_to_report", (Turn(long, IMAGE, "Clear. Normal."),), may_cut="response")
    assert fit(made, TEMPLATES["chat"], VOCABULARY, 60) is None


def test_a_prompt_needs_an_open_turn():
    with pytest.raises(ValueError, match="already has a response"):
        render_prompt((Turn("a", "", "b"),), TEMPLATES["chat"], VOCABULARY)


@pytest.mark.parametrize("in_template", [False, True])
def test_the_begin_token_comes_once_where_the_tokenizer_adds_one(in_template):
    tokenizer = build_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    if in_template:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    vocabulary = ImageVocabulary.grow(tokenizer, 4)
    r = render(example(Turn("a", "", "b")), build_template("chat", tokenizer), vocabulary)
    assert r.ids[:2].tolist() == [0, 1] and (r.ids == 0).sum() == 1
    assert not r.supervised[:2].any()
