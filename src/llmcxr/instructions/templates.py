"""From an example to pieces: the paper's template, and the model's own chat template.

A template says where control text, free text and images stand and what is learned; it never sees token ids.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

from llmcxr.foundation.errors import UserError
from llmcxr.instructions.example import Content, Turn
from llmcxr.vocabulary.image_vocabulary import control_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateName = Literal["paper", "chat", "llm-cxr"]


@dataclass(frozen=True)
class Piece:
    """`control` pieces come from the template and may hold control tokens; the others never do."""

    content: Content
    control: bool = False
    supervised: bool = False
    ends_response: bool = False  # control text whose first token ends the response, and is learned with it


class Template(Protocol):
    """What every template offers."""

    name: TemplateName

    @property
    def marks(self) -> tuple[str, ...]:
        """What tells its turns apart and is plain text to the tokenizer; see `without_marks`."""

    @property
    def around_image(self) -> tuple[str, str]:
        """Its own text before and after every image."""

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """Pieces of a conversation; the last turn's response may be None, then they end where it begins."""


# Letters that a tokenizer reads as they stand.
_USUAL = re.compile(r"[\t\n\r\x20-\x7e]*")


def _folded(text: str) -> tuple[str, list[int]]:
    """`text` as the most forgiving tokenizer reads it, and the place in `text` of each of its letters.

    Compatible forms are one (a full-width # is a #), so are large and small letters, and all white space in a row.
    Accents and characters without width are left out.
    """
    letters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        for letter in unicodedata.normalize("NFKD", character).casefold():
            if letter.isspace() or letter == "▁":  # SentencePiece's own
                letter = " "
                if letters and letters[-1] == " ":
                    continue
            elif unicodedata.category(letter) in ("Cc", "Cf", "Mn"):
                continue
            letters.append(letter)
            places.append(place)
    return "".join(letters), places


def without_marks(text: str, marks: Sequence[str]) -> str:
    """`text` in which nobody can read one of a template's `marks`: after the first character of each there comes a
    space.

    So "### Response:" in a report or a question becomes "# ## Response:", and cannot be taken for the end of a turn.
    Text without marks stays as it is.
    """
    if _USUAL.fullmatch(text) and not any(mark.split()[0].casefold() in text.casefold() for mark in marks):
        return text
    folded, places = _folded(text)
    breaks = set[int]()
    for mark in (_folded(mark)[0].strip() for mark in marks):
        at = folded.find(mark)
        while at >= 0:
            breaks.add(places[at] + 1)
            at = folded.find(mark, at + 1)
    cuts = [0, *sorted(breaks), len(text)]
    return " ".join(text[a:b] for a, b in zip(cuts, cuts[1:], strict=False))


class PaperTemplate:
    """Alpaca/Dolly (paper, appendix C): sections Instruction, Input and Response."""

    name: TemplateName = "paper"
    marks = ("###",)  # what its headings begin with, whether or not the tokenizer has tokens for them
    around_image = ("", "")
    _intro = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    )

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # Dolly's tokenizer has one token for its end mark; any other model ends with the token that ends its text.
        self._end = "### End" if "### End" in tokenizer.get_vocab() else tokenizer.eos_token
        if self._end is None:
            raise UserError(
                "the text tokenizer has no end-of-text token, which the paper's template needs. Set template: chat."
            )

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """See `Template`."""
        result = [Piece(self._intro, control=True)]
        for turn in turns:
            result += [Piece("### Instruction:\n", control=True), Piece(turn.instruction)]
            if len(turn.input):
                result += [Piece("\n\nInput:\n", control=True), Piece(turn.input)]
            result.append(Piece("\n\n### Response:\n", control=True))
            if turn.response is None:
                return result
            result.append(Piece(turn.response, supervised=True))
            result.append(Piece(self._end + "\n\n", control=True, ends_response=True))
        return result


class PublishedTemplate(PaperTemplate):
    """As the model was trained that the paper's authors publish: images stand in angle brackets, and an empty line comes before the
    end mark (their consts.py, and the placeholder `<image>` of which they replace the middle)."""

    name: TemplateName = "llm-cxr"
    around_image = ("<", ">")

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """`UserError` for a tokenizer that has not a token for each of Dolly's marks."""
        super().__init__(tokenizer)
        for mark in ("### Instruction:", "### Response:\n", "### End"):
            if len(tokenizer(mark, add_special_tokens=False)["input_ids"]) != 1:
                raise UserError(
                    f"the text tokenizer has no token of its own for {mark!r}, which the template llm-cxr needs. Set template: paper."
                )

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """See `Template`."""
        result = []
        for piece in super().pieces(turns):
            if piece.ends_response:
                result.append(Piece("\n\n", control=True, supervised=True))
            result.append(piece)
        return result


class ChatTemplate:
    """The model's own chat template. An image stands before its question, so many questions share one reading of it."""

    name: TemplateName = "chat"
    around_image = ("", "")

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None) -> None:
        """`system_prompt` None keeps the model's default, "" is none. `UserError` where the tokenizer has no chat
        template."""
        if not tokenizer.chat_template:
            raise UserError("the text tokenizer has no chat template. Set template: paper.")
        self._tokenizer = tokenizer
        self._system = system_prompt
        self._cache: dict[tuple[int, bool], list[str]] = {}

    def _control(self, count: int, open_end: bool) -> list[str]:
        """Control text around the contents of `count` turns, found by rendering placeholders that occur nowhere else.

        With a system prompt there is one text more, which stands before it.
        """
        if (count, open_end) not in self._cache:
            holders = [f"\u2402{i}\u2403" for i in range(2 * count - open_end)]
            messages = [{"role": ("user", "assistant")[i % 2], "content": holder} for i, holder in enumerate(holders)]
            if self._system is not None:
                holders = ["\u2402system\u2403", *holders] if self._system else holders
                messages.insert(0, {"role": "system", "content": holders[0] if self._system else ""})
            parts, text = [], self._rendered(messages, open_end)
            for holder in holders:
                before, found, text = text.partition(holder)
                if not found or holder in text:
                    what = "has no place for a system prompt" if "system" in holder else "drops or reorders messages"
                    remedy = "system_prompt: null" if "system" in holder else "template: paper"
                    raise UserError(f"the model's chat template {what}. Set {remedy}.")
                parts.append(before)
            parts.append(text)
            first = 1 if self._system else 0
            # Some templates (Llama 2) put a space before the token that ends a response; the response ends with the token.
            ends = range(first + 2, len(parts), 2)
            parts = [part.lstrip() if i in ends else part for i, part in enumerate(parts)]
            if not all(parts[i] for i in ends):
                raise UserError("the model's chat template does not mark the end of a response. Set template: paper.")
            self._cache[count, open_end] = parts
        return self._cache[count, open_end]

    def _rendered(self, messages: list[dict[str, str]], open_end: bool) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_end))
        except Exception as error:  # jinja's own, and whatever a template makes Python raise
            system = ", or system_prompt: null where it has no place for one" if self._system is not None else ""
            raise UserError(
                f"the model's chat template cannot be used: {error}. Mend its chat_template.jinja or "
                f"tokenizer_config.json, or set template: paper{system}."
            ) from error

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """See `Template`. `UserError` where they are so common that no text could be without them."""
        closed, opened = self._control(2, False), self._control(1, True)
        first = 1 if self._system else 0
        control = control_ids(self._tokenizer)
        between = dict.fromkeys([*closed[first + 1 :], opened[first + 1]])
        plain = [p for p in between if control.isdisjoint(self._tokenizer(p, add_special_tokens=False)["input_ids"])]
        if any(len(_folded(part)[0].strip()) < 2 for part in plain):
            raise UserError(
                "the model's chat template tells turns apart by text that any message can hold, and by no token. Set "
                "template: paper."
            )
        return tuple(part.strip() for part in plain)

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """See `Template`."""
        open_end = turns[-1].response is None
        control = self._control(len(turns), open_end)
        result = []
        if self._system:
            result = [Piece(control[0], control=True), Piece(self._system)]
            control = control[1:]
        for i, turn in enumerate(turns):
            result.append(Piece(control[2 * i], control=True, ends_response=i > 0))
            if isinstance(turn.input, str):
                result.append(Piece(f"{turn.instruction}\n\n{turn.input}" if turn.input else turn.instruction))
            else:
                result += [Piece(turn.input), Piece("\n" + turn.instruction)]
            result.append(Piece(control[2 * i + 1], control=True))
            if turn.response is not None:
                result.append(Piece(turn.response, supervised=True))
        if not open_end:
            result.append(Piece(control[-1], control=True, ends_response=True))
        return result


def build_template(
    name: TemplateName, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None
) -> Template:
    """Template by name."""
    if name == "llm-cxr":
        return PublishedTemplate(tokenizer)
    return PaperTemplate(tokenizer) if name == "paper" else ChatTemplate(tokenizer, system_prompt)
