"""Prompts of the chat LLM: files with a name and version, read safely, and what is asked with them.

A prompt is the instructions, examples of a question and its answer, and the text in question. What all requests share comes
first, so that engines that keep what they have read (vLLM, llama.cpp, ours) read it once. Instructions stand in the first
message of the user, not in a system message: not every chat template has a place for one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Count, checked
from llmcxr.foundation.yaml_text import parse_yaml, read_yaml
from llmcxr.synthesis.pairs import TYPES

Message = dict[str, str]  # {"role": "user" or "assistant", "content": "..."}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of an object that has these and nothing else, as strict servers want it."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_PAIR = _object(
    {n: {"type": "string"} for n in ("question", "answer")}
    | {"type": {"type": "string", "enum": list(TYPES)}}
    | {"evidence": {"type": "string"}}
)
PAIRS_SCHEMA = _object({"pairs": {"type": "array", "items": _PAIR, "maxItems": 8}})
TEXT_SCHEMA = _object({"text": {"type": "string"}})


@dataclass(frozen=True)
class ChatRequest:
    """All that decides an answer, but for the model and the server's own ways."""

    prompt: str  # name and version
    messages: tuple[Message, ...]
    schema: dict[str, Any] = field(repr=False)
    max_tokens: int  # of the answer

    def key(self, model: str) -> str:
        """32 hex digits that identify the request to a model: whoever has its answer need not ask."""
        asked = json.dumps([model, self.messages, self.schema, self.max_tokens], sort_keys=True)
        return hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt by name and version: the messages before the one that is new each time."""

    name: str
    before: tuple[tuple[str, str], ...]  # (user, assistant): the instructions stand in the first
    instructions: str
    heading: str  # before the text in question
    schema: dict[str, Any] = field(repr=False)
    max_tokens: int

    def request(self, text: str) -> ChatRequest:
        """What is asked about one text."""
        return ChatRequest(self.name, (*self._shared, self._asked(text, not self.before)), self.schema, self.max_tokens)

    @cached_property
    def _shared(self) -> tuple[Message, ...]:
        result = list[Message]()
        for index, (text, answer) in enumerate(self.before):
            result += [self._asked(text, index == 0), {"role": "assistant", "content": answer}]
        return tuple(result)

    def _asked(self, text: str, first: bool) -> Message:
        own = f"{self.heading}: {text}"
        return {"role": "user", "content": f"{self.instructions}\n\n{own}" if first else own}

    @property
    def version(self) -> str:
        """Twelve hex digits that identify the whole prompt."""
        return self.request("").key("")[:12]


def vqa_prompt(path: Path | None = None) -> ChatPrompt:
    """The shipped prompt for questions, or one of the user's. `UserError` where that is no prompt."""

    def answer(example: dict[str, Any]) -> str:
        pairs = [{name: str(pair[name]) for name in _PAIR["properties"]} for pair in example["pairs"]]
        return json.dumps({"pairs": pairs}, ensure_ascii=False)

    return _prompt("vqa.yaml", path, "report", answer, PAIRS_SCHEMA, 1024)


def rewriting_prompt() -> ChatPrompt:
    """The shipped prompt for sentences that refer to earlier studies."""

    def answer(example: dict[str, Any]) -> str:
        return json.dumps({"text": str(example["text"])}, ensure_ascii=False)

    return _prompt("rewriting.yaml", None, "sentence", answer, TEXT_SCHEMA, 256)


def _prompt(
    shipped: str,
    path: Path | None,
    subject: str,
    answer: Callable[[dict[str, Any]], str],
    schema: dict[str, Any],
    max_tokens: int,
) -> ChatPrompt:
    if path is None:
        text = (files("llmcxr.synthesis") / "prompts" / shipped).read_text(encoding="utf-8")
        value, origin = parse_yaml(text, shipped), shipped
    else:
        value, origin = read_yaml(path), str(path)
    try:
        name, instructions, examples = value["name"], value["instructions"], value.get("examples") or []
        longest = value.get("max_tokens", max_tokens)
        before = tuple((str(example[subject]).strip(), answer(example)) for example in examples)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{origin} is no prompt ({error!r}): it should have a name, instructions, and examples, each with a {subject} "
            f"and what is to be answered, as the shipped {shipped} has them (docs/vqa.md)."
        ) from error
    if not all(isinstance(text, str) and text.strip() for text in (name, instructions)):
        raise UserError(f"{origin} is no prompt: its name and instructions should be text. See docs/vqa.md.")
    longest = checked(Count, longest, f"{origin}: max_tokens")
    return ChatPrompt(name, before, instructions.strip(), subject.capitalize(), schema, longest)
