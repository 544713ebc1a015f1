"""What decodes: the interface behind which one engine can take another's place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Grammar = Literal["text", "image"]  # what a response is: text, or an image of exactly L codes


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 takes the most likely one."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    max_new_tokens: int = 128  # of text; an image always has its exact length
    seed: int = 0
    guidance: float | None = None  # classifier-free guidance; 1: as the model says; None: the model's own


@dataclass(frozen=True)
class Response:
    """Either text or codes uint16 [L]; `complete` is False where text stopped at max_new_tokens."""

    text: str = ""
    codes: np.ndarray | None = None
    complete: bool = True


class Backend(Protocol):
    """Decoding of prompts (token ids that end where the response begins) under a grammar."""

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        grammar: Grammar,
        sampling: Sampling,
        negative: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[tuple[int, int]]:
        """(row of the prompt, token id), as they are decided; see `generate`."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        grammar: Grammar,
        sampling: Sampling,
        negative: Sequence[Sequence[int]] | None = None,
    ) -> list[Response]:
        """A response to each prompt; with `negative`, a prompt that says less for each, there is classifier-free guidance."""

    def log_likelihoods(self, prompts: Sequence[Sequence[int]], responses: Sequence[str]) -> np.ndarray:
        """log p(text response, its end included | prompt) in nats: float64 [B]."""

    def answer_probabilities(self, prompts: Sequence[Sequence[int]], answers: Sequence[str]) -> np.ndarray:
        """p(answer), by first token, over the given answers only: float32 [B, len(answers)]."""
