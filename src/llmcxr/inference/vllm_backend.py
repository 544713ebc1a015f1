"""Decoding with vLLM, behind the same interface: for GPUs, and many requests. Not tried on a GPU yet.

Prompts go in as token ids, so no text can become an image or the end of a turn. Only tokens that can come are drawn
(`vllm_grammar`). What vLLM cannot do is an error: guidance by a negative prompt, and our kind of repetition penalty.

Shapes: B requests, L codes of an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from importlib.metadata import entry_points
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.optional import require
from llmcxr.foundation.randomness import stream
from llmcxr.inference.backend import Backend, Prompt, Request, Response, check_length, first_tokens, whole_response
from llmcxr.inference.drawing import is_greedy
from llmcxr.instructions.rendering import encode_responses, response_end
from llmcxr.instructions.templates import Template
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_config

ALLOWED = "llmcxr_allowed"  # which tokens can come, in a request's `extra_args`
_GROUP = "vllm.logits_processors"


def ranges_without(never: Sequence[int], rows: int) -> list[list[int]]:
    """[first, end] of each run of ids in [0, rows) that are not among `never`."""
    left = sorted(set(range(rows)) - set(never))
    runs = [list(run) for _, run in groupby(enumerate(left), lambda pair: pair[1] - pair[0])]
    return [[run[0][1], run[-1][1] + 1] for run in runs]


class VllmBackend(Backend):
    """Decoding with one model in vLLM. Responses come when all of them are finished."""

    def __init__(
        self, folder: Path, vocabulary: ImageVocabulary, template: Template, image_length: int, precision: str = "auto"
    ) -> None:
        """`folder` is a model's (`llmcxr export --to hf` makes one of a packed model). `UserError` where vLLM is not installed."""
        self.vllm = require("vllm", 'backend="vllm"', 'backend="transformers"')
        if not any(point.value.startswith("llmcxr.") for point in entry_points(group=_GROUP)):
            raise UserError(
                "vLLM cannot find llmcxr's logits processor: this installation of llmcxr is older. Install it again."
            )
        config = load_config(str(folder))
        self.vocabulary, self.template, self.image_length = vocabulary, template, image_length
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.end_id = response_end(template, vocabulary)[-1]
        first = vocabulary.first_id
        never = vocabulary.never_in_text(config.vocab_size, self.end_id)
        self._allowed = {
            "image": [[first, first + vocabulary.size]],
            "text": ranges_without(never, config.vocab_size),
        }
        self.engine: Any = self.vllm.LLM(model=str(folder), dtype=precision, trust_remote_code=False)

    def check_room(self, tokens: int, response: int, most: int | None = None) -> None:
        """`UserError` where a prompt and its response have more tokens than the context, or than `most`."""
        check_length(tokens, response, self.context, most)

    def _parameters(self, request: Request) -> Any:
        """vLLM's words for how to respond. `UserError` for what it cannot do."""
        own, image = request.sampling, request.grammar == "image"
        if request.grammar == "in turn":
            raise UserError(
                'vLLM responds with text or an image, not with both in turn. Load with backend="transformers".'
            )
        if request.negative is not None:
            raise UserError(
                'vLLM cannot guide a response by a second prompt. Set guidance to 1 (Sampling(guidance=1)), or load with backend="transformers".'
            )
        if own.repetition_penalty != 1:
            raise UserError(
                "vLLM's repetition penalty counts the prompt, too, and with it the image's findings. Leave repetition_penalty at 1, or load with "
                'backend="transformers".'
            )
        least = self.image_length if image else 1
        self.check_room(len(request.prompt), least)
        most = self.image_length if image else own.max_new_tokens
        if self.context is not None:
            most = min(most, self.context - len(request.prompt))
        # Of the request alone, as everywhere: not of what else is asked.
        digest = hashlib.sha256(np.array(request.prompt, dtype=np.int64).tobytes()).hexdigest()
        return self.vllm.SamplingParams(
            temperature=0.0 if is_greedy(own) else own.temperature,
            top_p=own.top_p,
            top_k=own.top_k,
            min_p=own.min_p,
            seed=int(stream(own.seed, "response", digest).integers(2**62)),
            max_tokens=most,
            stop=list(own.stop) or None,
            stop_token_ids=None if image else [self.end_id],
            ignore_eos=True,  # the end is the template's, which the model's configuration may not name
            detokenize=bool(own.stop),
            extra_args={ALLOWED: self._allowed[request.grammar]},
        )

    def _run(self, prompts: Sequence[Prompt], parameters: Sequence[Any]) -> list[Any]:
        given = [self.vllm.TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        return self.engine.generate(given, list(parameters), use_tqdm=False) if given else []

    def stream(self, requests: Sequence[Request]) -> Generator[tuple[int, int], None, None]:
        """See `Backend`; one request after another, when all are finished."""
        parameters = [self._parameters(request) for request in requests]  # what is wrong is said before anything is run
        for number, result in enumerate(self._run([request.prompt for request in requests], parameters)):
            yield from ((number, int(token)) for token in result.outputs[0].token_ids)

    def response(self, tokens: Sequence[int], request: Request) -> Response:
        """See `Backend`."""
        return whole_response(tokens, request, self.end_id, self.image_length, self.vocabulary)

    def code_log_probabilities(self, prompts: Sequence[Prompt], codes: np.ndarray) -> np.ndarray:
        """`UserError`: vLLM gives likelihoods of few tokens at each place."""
        raise UserError('vLLM does not give the likelihood of every code. Load with backend="transformers" for this.')

    def log_likelihoods(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """See `Backend`."""
        endings = encode_responses(responses, self.template, self.vocabulary)
        rows = [[*prompt, *ending] for prompt, ending in zip(prompts, endings, strict=True)]
        # Of every token of the prompt its own log-probability; one token has to be drawn.
        parameters = self.vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        result = np.zeros(len(rows))
        for i, found in enumerate(self._run(rows, [parameters] * len(rows))):
            read = found.prompt_logprobs[len(prompts[i]) :]
            result[i] = sum(at[token].logprob for at, token in zip(read, endings[i], strict=True))
        return result

    def answer_probabilities(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> np.ndarray:
        """See `Backend`."""
        ids = first_tokens(answers, self.vocabulary)
        parameters = self.vllm.SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=ids, detokenize=False)
        values = np.zeros((len(prompts), len(ids)))
        for i, found in enumerate(self._run(prompts, [parameters] * len(prompts))):
            [at] = found.outputs[0].logprobs
            values[i] = [at[token].logprob for token in ids]
        odds = np.exp(values - values.max(axis=1, keepdims=True, initial=-np.inf)) if len(prompts) else values
        return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
