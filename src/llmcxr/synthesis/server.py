"""One request to an OpenAI-compatible server, through the official client.

Connections to a near server pass by no proxy, and no redirect is followed: what an address was allowed for goes there
and nowhere else. The client's own retries are off; `client.py` repeats, so that all tries are counted and paced.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.optional import require
from llmcxr.synthesis.address import check_address
from llmcxr.synthesis.prompts import ChatRequest
from llmcxr.synthesis.settings import ChatSettings
from llmcxr.synthesis.store import Answer

_TIMEOUT = 600.0  # seconds for an answer: a busy server lets requests queue
_AGAIN = (408, 409, 425, 429)  # and all from 500 on
# Options that servers know by another name, or not at all: each is left out once a server has refused it by name.
_OPTIONS = {
    "response_format": {"response_format", "json_schema", "guided", "grammar", "structured"},
    "seed": {"seed"},
    "temperature": {"temperature"},
    "max_tokens": {"max_tokens"},
}  # option -> words of a refusal that mean it


class RefusedError(Exception):
    """A request that will not be answered, however often it is asked."""


class BusyError(Exception):
    """A request that may be answered later. `headers` can say when; `all_wait`: nobody should ask until then."""

    def __init__(self, reason: str, headers: Any = None, all_wait: bool = False) -> None:
        super().__init__(reason)
        self.headers, self.all_wait = headers or {}, all_wait


def what_it_takes(settings: ChatSettings) -> tuple[Any, bool, str]:
    """(the client's package, whether the server is near, the key, "" where a near one has none).

    `UserError` where the server is far and may not be asked, or its key or the client is missing.
    """
    assert settings.base_url is not None
    near = check_address(settings.base_url, settings.allow_remote)
    key = os.environ.get(settings.key_variable, "").strip()
    if not key and not near:
        raise UserError(
            f"the server {settings.base_url} needs a key. Put it into the environment variable "
            f"{settings.key_variable} (chat.key_variable), never into a recipe."
        )
    return require("openai", "chat.base_url", "chat.base_url: null for a model in this process"), near, key


class Server:
    """A connection to the server of the settings; used inside one event loop."""

    def __init__(self, settings: ChatSettings) -> None:
        """`UserError` as `what_it_takes`."""
        openai, near, key = what_it_takes(settings)
        self._openai, self._key, self.settings = openai, key, settings
        limits = openai.DEFAULT_CONNECTION_LIMITS
        limits = type(limits)(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
        http = openai.DefaultAsyncHttpxClient(trust_env=not near, follow_redirects=False, limits=limits)
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url, api_key=key or "none", max_retries=0, timeout=_TIMEOUT, http_client=http
        )
        self._refused = set[str]()  # options that the server does not take

    async def close(self) -> None:
        """End its connections."""
        await self._client.close()

    async def ask(self, request: ChatRequest) -> Answer:
        """The answer to a request. `BusyError` or `RefusedError` where there is none, `UserError` where there will be
        none to any."""
        openai, begin = self._openai, time.monotonic()
        while True:
            options = self._options(request)
            try:
                completion = await self._client.chat.completions.create(
                    model=self.settings.model, messages=list(request.messages), **options
                )
                return self._answer(request, completion, time.monotonic() - begin)
            except openai.APIStatusError as error:
                if (option := self._refused_option(error, options)) is not None:
                    self._refused.add(option)
                    continue
                raise self._fault(error) from error
            except openai.APITimeoutError as error:
                raise BusyError(f"no answer in {_TIMEOUT:.0f} seconds") from error
            except openai.APIConnectionError as error:
                raise BusyError(f"no connection ({self._safe(str(error.__cause__ or error))})") from error
            except (openai.OpenAIError, ValueError) as error:  # no JSON, or not what was agreed on
                raise BusyError(f"an answer that is no chat completion ({self._safe(str(error))})") from error

    def _options(self, request: ChatRequest) -> dict[str, Any]:
        schema = {"name": request.prompt.replace(".", "-")[:64], "schema": request.schema, "strict": True}
        options: dict[str, Any] = {
            "response_format": {"type": "json_schema", "json_schema": schema},
            "seed": 0,
            "temperature": 0.0,
            "max_tokens": request.max_tokens,
        }
        if "max_tokens" in self._refused:
            options["max_completion_tokens"] = options.pop("max_tokens")
        return {name: value for name, value in options.items() if name not in self._refused}

    def _refused_option(self, error: Any, options: dict[str, Any]) -> str | None:
        """The option that a server does not take, where it names one."""
        if error.status_code not in (400, 422):
            return None
        said = set(re.findall(r"\w+", str(error).lower()))
        return next((o for o, names in _OPTIONS.items() if o in options and not said.isdisjoint(names)), None)

    def _fault(self, error: Any) -> Exception:
        """What a status means for this request, or for all."""
        status, said = error.status_code, self._safe(str(error))
        if status in (401, 403):
            return UserError(
                f"the server {self.settings.base_url} refuses the key in {self.settings.key_variable} (HTTP {status}: "
                f"{said}). Put a valid one into this environment variable."
            )
        if status == 404 or "does not exist" in said:
            return UserError(
                f"the server {self.settings.base_url} has no model {self.settings.model!r}, or no chat completions there "
                f"(HTTP {status}: {said}). Check chat.model, and that chat.base_url ends as the server says (often /v1)."
            )
        if status in _AGAIN or status >= 500:
            return BusyError(f"HTTP {status}", error.response.headers, all_wait=status in (429, 503))
        if 300 <= status < 400:
            return UserError(
                f"the server {self.settings.base_url} sends on to another address, to which no report is sent. Set "
                "chat.base_url to the final address."
            )
        return RefusedError(f"HTTP {status}: {said}")

    def _answer(self, request: ChatRequest, completion: Any, seconds: float) -> Answer:
        try:
            choice = completion.choices[0]
            text, finish = choice.message.content or "", choice.finish_reason or "stop"
            refusal = getattr(choice.message, "refusal", None)
        except (AttributeError, IndexError, TypeError) as error:  # some servers put errors into a 200
            raise BusyError(f"an answer that is no chat completion ({self._safe(str(completion))})") from error
        usage = getattr(completion, "usage", None)
        counted = (getattr(usage, "prompt_tokens", None) or 0, getattr(usage, "completion_tokens", None) or 0)
        error_text = f"the model refuses: {str(refusal)[:200]}" if refusal and not text else ""
        return Answer(
            request.key(self.settings.model), self.settings.model, request.prompt, str(text), str(finish), counted, 1,
            round(seconds, 3), error_text,
        )  # fmt: skip

    def _safe(self, text: str) -> str:
        """What a server said, short, and without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text.split())[:200]
