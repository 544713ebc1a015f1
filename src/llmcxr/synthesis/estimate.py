"""What asking takes, before it is asked: tokens, hours, money. Every assumption is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmcxr.foundation.durations import time_of
from llmcxr.synthesis.pace import LETTERS_A_TOKEN, cost
from llmcxr.synthesis.prompts import ChatRequest
from llmcxr.synthesis.settings import ChatSettings
from llmcxr.synthesis.store import AnswerStore

_ANSWER = 200  # tokens of an answer, where none is known yet: five pairs with their evidence
_SPEED = 20.0  # tokens a second that a server answers each of several requests at once with, where none is known yet
_SPEED_HERE = 100.0  # of a model in this process, all requests together


@dataclass(frozen=True)
class Estimate:
    """What is left to ask."""

    requests: int
    tokens_in: int
    tokens_out: int
    hours: float
    money: float
    basis: str  # what the numbers rest on

    @classmethod
    def of(cls, requests: Iterable[ChatRequest], settings: ChatSettings, store: AnswerStore | None) -> Estimate:
        """Of the requests that `store` has no answer to; what it holds says how long answers are, and how long they take."""
        count = letters = 0
        for request in requests:
            if store is None or request.key(settings.model) not in store:
                count += 1
                letters += sum(len(message["content"]) for message in request.messages)
        here = settings.base_url is None  # whose answers are written side by side: each is told its share of the time
        at_once, speed = (1, _SPEED_HERE) if here else (settings.concurrency, _SPEED)
        spent = store.spent if store is not None else None
        if spent is not None and spent.answers:
            answers = spent.answers
            out, seconds = spent.tokens_out / answers, spent.seconds / answers
            basis = f"as the {answers:,} answers that are there took"
        else:
            out, seconds = float(_ANSWER), _ANSWER / speed
            each = "a model in this process" if here else f"each of {at_once} requests at once"
            basis = (
                f"assumed: {LETTERS_A_TOKEN:g} letters a token, {_ANSWER} tokens an answer, {speed:g} tokens a second of "
                f"{each}. A small budget (chat.budget.requests=20) gives real numbers"
            )
        tokens_in, tokens_out = round(letters / LETTERS_A_TOKEN), round(count * out)
        limits = [count * seconds / at_once / 3600]
        if settings.requests_per_minute:
            limits.append(count / settings.requests_per_minute / 60)
        if settings.tokens_per_minute:
            limits.append((tokens_in + tokens_out) / settings.tokens_per_minute / 60)
        return cls(count, tokens_in, tokens_out, max(limits), cost(settings.budget, tokens_in, tokens_out), basis)

    def told(self) -> list[str]:
        """Lines for people."""
        priced = f", {self.money:,.2f} by your prices" if self.money else ""
        return [
            f"{self.requests:,} requests: about {self.tokens_in / 1e6:,.2f} M tokens of prompts and "
            f"{self.tokens_out / 1e6:,.2f} M of answers, {time_of(self.hours)}{priced}",
            f"({self.basis})",
        ]

    def ahead(self) -> list[str]:
        """What is said before anything is asked: nothing where nothing is left to ask."""
        return self.told() if self.requests else []
