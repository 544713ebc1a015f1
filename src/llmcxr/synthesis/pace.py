"""How fast, how often again, and how much: rate limits, pauses before another try, and the budget."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping

from llmcxr.synthesis.settings import BudgetSettings, ChatSettings
from llmcxr.synthesis.store import Answer, Spent

ATTEMPTS = 8  # of a request, after which it is given up
_FIRST, _LONGEST = 0.5, 60.0  # seconds of pauses between attempts
_LONGEST_ASKED = 600.0  # seconds that a server can ask for
LETTERS_A_TOKEN = 3.0  # of English, until a server has said how many tokens it counted; real ones have about 4.5


def pause(attempt: int, headers: Mapping[str, str] | None = None) -> float:
    """Seconds before the next attempt, after so many (from 1): what the server asks for (Retry-After, in seconds or as a
    date), else a random share of a time that doubles ("full jitter"), so that those who failed together come apart."""
    grown = random.uniform(0.1, 1) * min(_LONGEST, _FIRST * 2 ** (attempt - 1))
    asked = retry_after(headers or {})
    return grown if asked is None else min(_LONGEST_ASKED, asked + random.uniform(0, 0.1) * grown)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait; None where it does not say, or says nonsense."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            seconds = float(text) / unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time() if text else -1.0
            except (ValueError, TypeError, OverflowError):
                continue
            seconds = max(0.0, seconds) if text else -1.0
        if 0 <= seconds < float("inf"):
            return seconds
    return None


class Pace:
    """Requests and their tokens spread evenly over time, and a time before which nobody asks."""

    def __init__(self, settings: ChatSettings) -> None:
        self._rates = (settings.requests_per_minute, settings.tokens_per_minute)
        self._next = [0.0, 0.0]
        self._held = 0.0

    def hold(self, seconds: float) -> None:
        """Nobody asks for so long: the server has too much to do."""
        self._held = max(self._held, time.monotonic() + seconds)

    async def turn(self, tokens: int) -> None:
        """Wait until a request of so many tokens may be sent."""
        now = time.monotonic()
        begin = max([now, *(at for at, rate in zip(self._next, self._rates, strict=True) if rate)])
        for i, (amount, rate) in enumerate(zip((1, tokens), self._rates, strict=True)):
            if rate:
                self._next[i] = begin + 60 * amount / rate
        while (wait := max(begin, self._held) - time.monotonic()) > 0:
            await asyncio.sleep(wait)


class Budget:
    """What may be spent. Each request reserves the most that it can take, so that the budget is never passed."""

    def __init__(self, settings: BudgetSettings, spent: Spent) -> None:
        """`spent`: what the store counts, of earlier runs too."""
        self.settings, self.spent = settings, spent
        self._open = [0, 0, 0]  # requests, tokens in and out that are reserved
        self._letters, self._tokens = 0, 0  # of prompts whose tokens a server has counted

    def tokens(self, letters: int) -> int:
        """Tokens of a prompt of so many letters, with a tenth more than counted so far."""
        ratio = LETTERS_A_TOKEN if self._tokens == 0 else self._letters / self._tokens / 1.1
        return int(letters / ratio) + 1

    def counted(self, letters: int, answer: Answer) -> None:
        """A server has counted the tokens of a prompt."""
        if answer.usage[0] > 0:
            self._letters += letters
            self._tokens += answer.usage[0]

    def reserve(self, tokens_in: int, tokens_out: int) -> bool:
        """Whether one more request fits; it is reserved then."""
        requests = self.spent.requests + self._open[0] + 1
        read = self.spent.tokens_in + self._open[1] + tokens_in
        written = self.spent.tokens_out + self._open[2] + tokens_out
        own = self.settings
        fits = (
            (own.requests is None or requests <= own.requests)
            and (own.tokens is None or read + written <= own.tokens)
            and (own.money is None or cost(own, read, written) <= own.money)
        )
        if fits:
            self._open = [a + b for a, b in zip(self._open, (1, tokens_in, tokens_out), strict=True)]
        return fits

    def release(self, requests: int, tokens_in: int, tokens_out: int) -> None:
        """What was reserved is not needed, or stands in `spent` now; `requests` of it."""
        self._open = [a - b for a, b in zip(self._open, (requests, tokens_in, tokens_out), strict=True)]

    def used_up(self) -> str:
        """Which limits leave no room, as keys of the recipe with what is spent."""
        own, spent = self.settings, self.spent
        said = []
        if own.requests is not None:
            said.append(f"chat.budget.requests {own.requests:,} ({spent.requests:,} sent)")
        if own.tokens is not None:
            said.append(f"chat.budget.tokens {own.tokens:,} ({spent.tokens_in + spent.tokens_out:,} used)")
        if own.money is not None:
            said.append(f"chat.budget.money {own.money:g} ({cost(own, spent.tokens_in, spent.tokens_out):.2f} spent)")
        return ", ".join(said)


def cost(settings: BudgetSettings, tokens_in: int, tokens_out: int) -> float:
    """Money, in the currency of the prices."""
    return (tokens_in * settings.input_price + tokens_out * settings.output_price) / 1e6
