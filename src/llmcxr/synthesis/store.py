"""Answers of a chat LLM as they come: one line each, added to a file and never changed, so that a kill loses none.

A line: {"request": "5f...", "model": "...", "prompt": "vqa-1", "text": "...", "finish": "stop", "usage": [812, 96],
"attempts": 1, "seconds": 2.31, "error": ""}. `request` identifies all that was asked (`ChatRequest.key`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from llmcxr.foundation.artifacts import writing
from llmcxr.foundation.errors import UserError

_SYNC = 2.0  # seconds between two times that what was written is forced onto the disk: against loss of power, not kills


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a request. `error` says why there is no text, "" where there is."""

    request: str
    model: str
    prompt: str  # name and version of the prompt
    text: str = ""
    finish: str = "stop"  # "length": the text was cut
    usage: tuple[int, int] = (0, 0)  # tokens of the prompt and of the answer
    attempts: int = 1  # requests that were sent for it
    seconds: float = 0.0
    error: str = ""


@dataclass
class Spent:
    """What answers took together."""

    answers: int = 0
    failures: int = 0
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0

    def add(self, answer: Answer) -> None:
        """Count one more."""
        self.answers += not answer.error
        self.failures += bool(answer.error)
        self.requests += answer.attempts
        self.tokens_in += answer.usage[0]
        self.tokens_out += answer.usage[1]
        self.seconds += answer.seconds


class AnswerStore:
    """A file of answers, open for more. A line that a kill cut off is taken away when the file is opened."""

    def __init__(self, path: Path) -> None:
        """`UserError` where the file cannot be read or written."""
        self.path, self.spent = path, Spent()
        self.broken = 0  # lines in the middle that nobody can read: asked anew
        self._known: set[bytes] = set()  # requests with an answer; 33 MB of 200,000
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(path, "a+b")  # noqa: SIM115 - open as long as the store
        self._repair()
        for answer in self._lines():
            self.spent.add(answer)
            if not answer.error:
                self._known.add(bytes.fromhex(answer.request))
        self._synced = time.monotonic()

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bytes.fromhex(key) in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, answer: Answer) -> None:
        """Write one answer: it is there once this returns, whatever happens to the process."""
        with writing(self.path):
            self._stream.write(json.dumps(asdict(answer), ensure_ascii=True).encode() + b"\n")
            self._stream.flush()
            if time.monotonic() - self._synced > _SYNC:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        self.spent.add(answer)
        if not answer.error:
            self._known.add(bytes.fromhex(answer.request))

    def answers(self, wanted: Container[str]) -> Iterator[Answer]:
        """The answers to `wanted` requests, each once, in the order in which they came; failures only of those that
        have no answer."""
        given, failed = set[bytes](), dict[str, Answer]()
        for answer in self._lines():
            key = bytes.fromhex(answer.request)
            if answer.request not in wanted or key in given:
                continue
            if answer.error:
                if key not in self._known:
                    failed[answer.request] = answer
                continue
            given.add(key)
            yield answer
        yield from failed.values()

    def close(self) -> None:
        """Force what was written onto the disk."""
        with writing(self.path):
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()

    def _repair(self) -> None:
        """Cut the file after its last whole line."""
        size = self._stream.seek(0, os.SEEK_END)
        end, block = size, 65_536
        while end > 0:
            begin = max(0, end - block)
            self._stream.seek(begin)
            at = self._stream.read(end - begin).rfind(b"\n")
            if at >= 0:
                end = begin + at + 1
                break
            end = begin
        if end < size:
            with writing(self.path):
                self._stream.truncate(end)
        self._stream.seek(0, os.SEEK_END)

    def _lines(self) -> Iterator[Answer]:
        self.broken = 0
        try:
            with open(self.path, "rb") as lines:
                for line in lines:
                    if (answer := _parsed(line)) is None:
                        self.broken += 1
                    else:
                        yield answer
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error}). Check it and its permissions.") from error


def _parsed(line: bytes) -> Answer | None:
    try:
        values = json.loads(line)
        read, written = values["usage"]
        answer = Answer(**values | {"usage": (int(read), int(written))})
        bytes.fromhex(answer.request)
        return answer
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
