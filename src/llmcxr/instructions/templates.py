"""From an example to pieces: the paper's template, and the model's own chat template.

A template says where control text, free text and images stand and what is learned; it never sees token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from transformers import PreTrainedTokenizerBase

from llmcxr.foundation.errors import UserError
from llmcxr.instructions.example import Content, Turn

TemplateName = Literal["paper", "chat"]


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

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """Pieces of a conversation; the last turn's response may be None, then they end where it begins."""


class PaperTemplate:
    """Alpaca/Dolly (paper, appendix C): sections Instruction, Input and Response."""

    name: TemplateName = "paper"
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


class ChatTemplate:
    """The model's own chat template. An image stands before its question, so many questions share one reading of it."""

    name: TemplateName = "chat"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None) -> None:
        """`system_prompt` None keeps the model's default. `UserError` where the tokenizer has no chat template."""
        if not tokenizer.chat_template:
            raise UserError("the text tokenizer has no chat template. Set template: paper.")
        self._tokenizer = tokenizer
        self._system = system_prompt
        self._cache: dict[tuple[int, bool], list[str]] = {}

    def _control(self, count: int, open_end: bool) -> list[str]:
        """Control text between the contents of `count` turns, found by rendering marks that occur nowhere else."""
        if (count, open_end) not in self._cache:
            marks = [f"\u2402{i}\u2403" for i in range(2 * count - open_end)]
            messages = [] if self._system is None else [{"role": "system", "content": self._system}]
            messages += [{"role": ("user", "assistant")[i % 2], "content": mark} for i, mark in enumerate(marks)]
            text = str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_end))
            parts = []
            for mark in marks:
                before, found, text = text.partition(mark)
                if not found:
                    raise UserError("the model's chat template drops or reorders messages. Set template: paper.")
                parts.append(before)
            parts.append(text)
            # Some templates (Llama 2) put a space before the token that ends a response; the response ends with the token.
            parts = [part.lstrip() if i and i % 2 == 0 else part for i, part in enumerate(parts)]
            if not all(parts[2::2]):
                raise UserError("the model's chat template does not mark the end of a response. Set template: paper.")
            self._cache[count, open_end] = parts
        return self._cache[count, open_end]

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """See `Template`."""
        open_end = turns[-1].response is None
        control = self._control(len(turns), open_end)
        result = []
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
    return PaperTemplate(tokenizer) if name == "paper" else ChatTemplate(tokenizer, system_prompt)
