"""What decodes: the interface behind which one engine can take another's place."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Range, Settings, setting
from llmcxr.inference.grammar import before_stop, segments
from llmcxr.instructions.example import Grammar
from llmcxr.model.decoding import Guidance
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

Prompt = Sequence[int]  # token ids that end where the response begins


@dataclass(frozen=True)
class Sampling(Settings):
    """How tokens are drawn. `SettingsError` for values that cannot be."""

    temperature: Annotated[float, Range(0, 100)] = setting(
        0.0, "how freely tokens are drawn: 0 takes the likeliest, 1 draws each as often as the model finds it likely"
    )
    top_p: Annotated[float, Range(0, 1, above=True)] = setting(
        1.0, "draw only among the likeliest tokens that together have this probability; 1: among all"
    )
    top_k: Annotated[int, Range(0, 10_000_000)] = setting(
        0, "draw only among so many of the likeliest tokens; 0: among all"
    )
    max_new_tokens: Annotated[int, Range(1, 1_000_000)] = setting(
        128, "where a text is cut off, in tokens; an image in it counts as one, and always has its exact length"
    )
    seed: Annotated[int, Range(0, 2**63 - 1)] = setting(0, "the same draws the same again")
    guidance: Guidance | None = setting(None, "classifier-free guidance; 1: as the model says; None: the model's own")
    min_p: Annotated[float, Range(0, 1)] = setting(
        0.0, "draw only tokens that are at least so many times as probable as the likeliest, e.g. 0.05; 0: all"
    )
    repetition_penalty: Annotated[float, Range(1, 1e9)] = setting(
        1.0, "makes what the text already holds less likely, e.g. 1.2; 1: does not (Keskar et al., 2019)"
    )
    stop: tuple[str, ...] = setting((), "a text ends before the first of these")

    def faults(self) -> list[str]:
        """Impossible combinations."""
        return ["stop: an empty text stands everywhere"] if "" in self.stop else []


GREEDY = Sampling()
DRAWING = Sampling(temperature=1.0)  # the whole distribution: drawings of one report should differ
CANDIDATE = Sampling(temperature=0.7, top_p=0.95)  # further candidates of a report


@dataclass(frozen=True)
class Request:
    """A prompt and how to respond to it.

    What is drawn depends on the request alone: not on what else is asked, nor in which order. With `negative`, a prompt that
    says less, there is classifier-free guidance (Ho and Salimans, 2022): logits go from those of the prompt that says less
    `sampling.guidance` times as far as to those of the other. In text only tokens that are at least a tenth as likely as the
    likeliest without guidance can be drawn. ValueError where `negative` comes without a strength.
    """

    prompt: Prompt
    grammar: Grammar
    sampling: Sampling = GREEDY
    negative: Prompt | None = None

    def __post_init__(self) -> None:
        if self.negative is not None and self.sampling.guidance is None:
            raise ValueError("guidance by a negative prompt needs a strength (sampling.guidance)")


Segment = str | np.ndarray  # text, or an image as codes uint16 [L]


@dataclass(frozen=True)
class Response:
    """Texts and images in the order in which they came; `complete` is False where it stopped at max_new_tokens."""

    segments: tuple[Segment, ...] = ()
    complete: bool = True

    @property
    def text(self) -> str:
        """Its texts, a line each; "" where there is none."""
        return "\n".join(s for s in self.segments if isinstance(s, str))

    @property
    def codes(self) -> np.ndarray | None:
        """Its first image; None where there is none."""
        return next((s for s in self.segments if not isinstance(s, str)), None)


def check_length(tokens: int, response: int, context: int | None, most: int | None = None) -> None:
    """`UserError` where a prompt and its response have more tokens than the `context` (None: no limit), or than `most`."""
    limit = min((n for n in (context, most) if n is not None), default=None)
    if limit is not None and tokens + response > limit:
        raise UserError(
            f"the text is too long: with all that goes with it, it takes {tokens:,} tokens, and this model reads at most "
            f"{limit - response:,}. Shorten it."
        )


def first_tokens(answers: Sequence[str], vocabulary: ImageVocabulary) -> list[int]:
    """The token that each answer begins with, by which they are told apart. ValueError where two begin with the same."""
    ids = [vocabulary.encode_text(answer)[0] for answer in answers]
    if len(set(ids)) < len(ids):
        raise ValueError(f"the answers {list(answers)} begin with the same token")
    return ids


def whole_response(
    tokens: Sequence[int], request: Request, end_id: int, length: int, vocabulary: ImageVocabulary
) -> Response:
    """What the tokens that were drawn for a request make: its texts up to the first of its stop texts, and its images."""
    ended = list(tokens[-1:]) == [end_id]
    found, stopped = list[Segment](), False
    for image, ids in segments(tokens[:-1] if ended else tokens, vocabulary.is_image, length):
        if image:
            found.append(vocabulary.decode_codes(ids))
            continue
        text = vocabulary.decode_text(ids)
        cut = before_stop(text, request.sampling.stop)
        stopped = cut is not None
        found += [own] if (own := text if cut is None else cut) else []
    if request.grammar == "text" and not found:
        found.append("")
    return Response(tuple(found), ended or stopped or request.grammar == "image")


class Backend(Protocol):
    """Decoding under a grammar (grammar.py): text, images of exactly L codes, or both in turn."""

    def stream(self, requests: Sequence[Request]) -> Generator[tuple[int, int], None, None]:
        """(number of the request, token id), as they are decided; a text's end token is the last of its request.

        Whoever closes it stops the work.
        """

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """A response to each request."""
        tokens: list[list[int]] = [[] for _ in requests]
        for number, token in self.stream(requests):
            tokens[number].append(token)
        return [self.response(row, request) for row, request in zip(tokens, requests, strict=True)]

    def response(self, tokens: Sequence[int], request: Request) -> Response:
        """What the tokens that were streamed for a request make."""

    def check_room(self, tokens: int, response: int, most: int | None = None) -> None:
        """`UserError` where a prompt of so many tokens and its response are longer than the model's context, or than
        `most`."""

    def log_likelihoods(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """log p(text response, its end included | prompt) in nats: float64 [B]."""

    def answer_probabilities(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> np.ndarray:
        """p(answer), by first token, over the given answers only: float32 [B, len(answers)], rows sum to 1."""

    def code_log_probabilities(self, prompts: Sequence[Prompt], codes: np.ndarray) -> np.ndarray:
        """log p(code | prompt, the codes before it) in nats, of images with codes [B, L]: float32 [B, L, K]."""
