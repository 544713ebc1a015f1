"""The one way to a chat LLM: many requests, answered side by side, each kept as it comes, within limits and a budget.

`ChatClient` serves whatever is to be written from text: questions from reports, sentences without comparison, and what else
is to be judged or rewritten. The LLM is a server's or a model in this process; what is asked does not depend on that.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tqdm import tqdm

from llmcxr.foundation.durations import time_of
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.stopping import Stop, stop_between_steps
from llmcxr.synthesis.pace import ATTEMPTS, Budget, Pace, pause
from llmcxr.synthesis.prompts import ChatRequest
from llmcxr.synthesis.server import BusyError, RefusedError, Server, what_it_takes
from llmcxr.synthesis.settings import ChatSettings
from llmcxr.synthesis.store import Answer, AnswerStore

_FAILURES = 10  # requests in a row without an answer, after which something is wrong with the server or the prompt
_AT_ONCE = 64  # requests that a model in this process takes together
_MEASURED = 4  # that it takes first, by which the time of the rest is told


@dataclass
class Progress:
    """How far `answer_all` came. `stopped`: why it ended early, "" where all was asked."""

    before: int = 0  # requests that had an answer
    answered: int = 0  # that have one now
    stopped: str = ""


class ChatClient:
    """Asks a chat LLM, and keeps what it says."""

    def __init__(self, settings: ChatSettings, device: str = "auto") -> None:
        self.settings, self.device = settings, device

    def check(self) -> None:
        """`UserError` for what can be known without asking: where reports would go, the key, the package."""
        if self.settings.base_url is not None:
            what_it_takes(self.settings)

    def answer_all(self, requests: Iterable[ChatRequest], store: AnswerStore, total: int, about: str) -> Progress:
        """Ask what `store` has no answer to, until all is answered, the budget is used up, or the user ends it.

        `total` requests, read as they are needed; `about` names them in the progress bar. A request that is answered by
        a failure that will not pass is kept as such. Ctrl-C waits for what is under way, and keeps it.
        `UserError` where the server answers nobody.
        """
        progress, model = Progress(), self.settings.model
        budget = Budget(self.settings.budget, store.spent)

        def new() -> Iterator[ChatRequest]:
            asked = set[str]()  # of this call: texts can be the same
            for request in requests:
                key = request.key(model)
                if key in store:
                    progress.before += 1
                    bar.update()
                elif key not in asked:
                    asked.add(key)
                    yield request

        with tqdm(total=total, desc=about, unit="request", smoothing=0.05) as bar, stop_between_steps(say=True) as stop:
            asking = _Asking(new(), store, budget, progress, bar, stop)
            if self.settings.base_url is None:
                asking.in_process(model, self.device)
            else:
                asyncio.run(asking.of_server(self.settings))
        if stop.signal is not None:
            raise KeyboardInterrupt(stop.signal)
        return progress


class _Asking:
    """The requests of one call on their way."""

    def __init__(
        self,
        requests: Iterator[ChatRequest],
        store: AnswerStore,
        budget: Budget,
        progress: Progress,
        bar: tqdm,
        stop: Stop,
    ) -> None:
        self.requests, self.store, self.budget = requests, store, budget
        self.progress, self.bar, self.stop = progress, bar, stop
        self.failures = 0  # in a row
        self.open = 0  # requests under way

    # --- what both ways share

    def _size(self, request: ChatRequest) -> tuple[int, int]:
        """(tokens of the prompt, most of the answer), estimated."""
        return self.budget.tokens(_letters(request)), request.max_tokens

    def _keep(self, request: ChatRequest, answer: Answer) -> None:
        if answer.usage == (0, 0) and not answer.error:  # a server that does not count
            counted = (self.budget.tokens(_letters(request)), self.budget.tokens(len(answer.text)))
            answer = dataclasses.replace(answer, usage=counted)
        else:
            self.budget.counted(_letters(request), answer)
        self.store.add(answer)
        self.bar.update()
        self.progress.answered += not answer.error
        self.failures = self.failures + 1 if answer.error else 0
        if self.failures >= _FAILURES:
            raise UserError(
                f"{self.failures} requests in a row had no answer, the last one: {answer.error}. Check the server, "
                "chat.model and the prompt, then run again: nothing that is answered is asked twice."
            )

    # --- a model in this process

    def in_process(self, name: str, device: str) -> None:
        """Ask a model that is loaded here, batch by batch."""
        first = next(self.requests, None)
        if first is None:
            return
        from llmcxr.synthesis.local_model import LocalModel  # torch and its libraries take seconds to load

        model = LocalModel(name, device)
        waiting = itertools.chain([first], self.requests)
        for most in itertools.chain([_MEASURED], itertools.repeat(_AT_ONCE)):
            if self.stop:
                return
            begin, taken, sizes = time.monotonic(), list[ChatRequest](), list[tuple[int, int]]()
            for request in itertools.islice(waiting, most):
                size = self._size(request)
                if not self.budget.reserve(*size):
                    self.progress.stopped = self.budget.used_up()
                    break
                taken.append(request)
                sizes.append(size)
            if not taken:
                return
            answers = model.ask(taken)
            for request, size, answer in zip(taken, sizes, answers, strict=True):
                self._keep(request, answer)
                self.budget.release(1, *size)
            if self.progress.stopped:
                return
            if most == _MEASURED and (left := (self.bar.total or 0) - self.bar.n) > 0:
                hours = left * (time.monotonic() - begin) / len(taken) / 3600
                self.bar.write(
                    f"    {len(taken)} requests took {time.monotonic() - begin:.0f} seconds: the other {left:,} would take "
                    f"{time_of(hours)} like that, less where {_AT_ONCE} at once are faster. Ctrl-C keeps what is answered"
                )

    # --- a server

    async def of_server(self, settings: ChatSettings) -> None:
        """Ask a server, `concurrency` requests at once."""
        self.pace, self.freed = Pace(settings), asyncio.Condition()
        async with _connected(settings) as server:
            tasks = [asyncio.create_task(self._work(server)) for _ in range(settings.concurrency)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, server: Server) -> None:
        """Take the next request, and the next, until there is none."""
        while not self.stop and not self.progress.stopped:
            request = next(self.requests, None)
            if request is None:
                return
            await self._until_answered(server, request)

    async def _until_answered(self, server: Server, request: ChatRequest) -> None:
        """Ask until there is an answer, or no room in the budget. What was sent in vain counts all the same."""
        begin, reserved, sent = time.monotonic(), 0, 0
        try:
            while await self._reserved(size := self._size(request)):
                reserved += 1
                try:
                    await self.pace.turn(sum(size))
                    if self.stop:  # it was not sent
                        return
                    sent += 1
                    answer = await self._answer(server, request, sent, begin)
                    sent = 0  # it is counted with the answer
                    self._keep(request, answer)
                    return
                except BusyError as error:
                    await self._later(error, sent)
                finally:
                    await self._release(0, *size)
        finally:
            if sent:
                self.store.add(self._failure(server, request, sent, begin, "work stopped before it was answered"))
            self.budget.release(reserved, 0, 0)

    async def _answer(self, server: Server, request: ChatRequest, attempt: int, begin: float) -> Answer:
        """The answer to an attempt, or the failure that the last one ends with. `BusyError` where to try again."""
        try:
            return dataclasses.replace(await server.ask(request), attempts=attempt)
        except (RefusedError, BusyError) as error:
            if isinstance(error, BusyError) and attempt < ATTEMPTS:
                raise
            return self._failure(server, request, attempt, begin, str(error))

    def _failure(self, server: Server, request: ChatRequest, attempts: int, begin: float, error: str) -> Answer:
        model, seconds = server.settings.model, round(time.monotonic() - begin, 3)
        return Answer(request.key(model), model, request.prompt, "", "", (0, 0), attempts, seconds, error)

    async def _later(self, error: BusyError, attempt: int) -> None:
        seconds = pause(attempt, error.headers)
        if error.all_wait:
            self.pace.hold(seconds)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.stop:
            await asyncio.sleep(min(left, 0.5))

    async def _reserved(self, size: tuple[int, int]) -> bool:
        """Reserve a request; where the budget has no room, wait for what others may not need of theirs."""
        async with self.freed:
            while not self.budget.reserve(*size):
                if self.open == 0 or self.stop or self.progress.stopped:
                    self.progress.stopped = self.progress.stopped or self.budget.used_up()
                    self.freed.notify_all()
                    return False
                await self.freed.wait()
            self.open += 1
            return True

    async def _release(self, requests: int, tokens_in: int, tokens_out: int) -> None:
        async with self.freed:
            self.budget.release(requests, tokens_in, tokens_out)
            self.open -= 1
            self.freed.notify_all()


@asynccontextmanager
async def _connected(settings: ChatSettings) -> AsyncIterator[Server]:
    server = Server(settings)
    try:
        yield server
    finally:
        await server.close()


def _letters(request: ChatRequest) -> int:
    return sum(len(message["content"]) for message in request.messages)
