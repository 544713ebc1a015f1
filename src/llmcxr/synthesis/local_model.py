"""The chat LLM in this process: a Hugging Face model, decoded in batches by our own engine."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llmcxr.foundation.devices import pick_device, precision
from llmcxr.inference.backend import Request, Sampling
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.example import Turn
from llmcxr.instructions.rendering import render_prompt
from llmcxr.instructions.templates import build_template
from llmcxr.synthesis.prompts import ChatRequest
from llmcxr.synthesis.store import Answer
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_language_model, load_text_tokenizer


class LocalModel:
    """A causal LM with a chat template, by name as `llm` has it."""

    def __init__(self, name: str, device: str) -> None:
        """`UserError` where it cannot be loaded, or has no chat template."""
        self.name = name
        place = pick_device(device)
        self._vocabulary = ImageVocabulary(load_text_tokenizer(name), 0)
        self._template = build_template("chat", self._vocabulary.tokenizer)
        model = load_language_model(name, precision(place, "generating")).to(place)  # type: ignore[arg-type]
        self._backend = TransformersBackend(model, self._vocabulary, self._template, 0)

    def ask(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        """An answer to each request, with `error` where it is too long for the model."""
        begin, prompts = time.monotonic(), [self._prompt(request) for request in requests]
        context = self._backend.context
        fits = [context is None or len(ids) < context for ids in prompts]
        asked = [
            Request(ids, "text", Sampling(max_new_tokens=request.max_tokens))
            for ids, request, fit in zip(prompts, requests, fits, strict=True)
            if fit
        ]
        responses = iter(self._backend.generate(asked))
        seconds = round((time.monotonic() - begin) / max(1, len(requests)), 3)
        result = []
        for ids, request, fit in zip(prompts, requests, fits, strict=True):
            key = request.key(self.name)
            if not fit:
                error = f"longer than the model's context ({len(ids):,} tokens)"
                result.append(Answer(key, self.name, request.prompt, error=error))
                continue
            response = next(responses)
            written = len(self._vocabulary.encode_text(response.text))
            finish = "stop" if response.complete else "length"
            usage = (len(ids), written)
            result.append(Answer(key, self.name, request.prompt, response.text, finish, usage, 1, seconds))
        return result

    def _prompt(self, request: ChatRequest) -> list[int]:
        said = [message["content"] for message in request.messages]
        answers: list[str | None] = [*said[1::2], None]
        turns = tuple(Turn(user, "", answer) for user, answer in zip(said[::2], answers, strict=True))
        return render_prompt(turns, self._template, self._vocabulary)
