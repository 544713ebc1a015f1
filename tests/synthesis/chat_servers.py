"""Servers on loopback for the tests of the chat client: llama.cpp's own, and one in front of it that gets in the way."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

LLAMA = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_parallel, p.n_ctx, p.port, p.hostnames = sys.argv[1], 8, 8 * 1024, 0, ["127.0.0.1"]
p.cpuparams.n_threads, p.warmup, p.verbosity = 2, False, 0
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()  # until whoever started this ends it, or ends
"""


@contextmanager
def llama_server(model: str) -> Iterator[str]:
    """llama.cpp's server with a GGUF model, in a process of its own; its base URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", LLAMA, model],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), "llama.cpp's server did not start"
        yield f"{address}/v1"
    finally:
        process.kill()
        process.communicate()


Reply = tuple[int, dict[str, str], bytes] | None  # None: the connection is closed


def completion(text: str, finish: str = "stop", usage: tuple[int, int] | None = (100, 10)) -> Reply:
    """A chat completion as servers send it."""
    value: dict[str, Any] = {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
    }  # fmt: skip
    if usage is not None:
        value["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return 200, {}, json.dumps(value).encode()


def failure(status: int, message: str = "no", **headers: str) -> Reply:
    """An error as OpenAI-compatible servers send it; `retry_after` becomes Retry-After."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, names, json.dumps({"error": {"message": message, "type": "error"}}).encode()


def forwarded(upstream: str, body: bytes) -> Reply:
    """What a real server says to a request."""
    request = urllib.request.Request(f"{upstream}/chat/completions", body, {"content-type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as answer:
        return 200, {}, answer.read()


@dataclass
class Front:
    """A server that replies as `reply` says: the number of the request (from 0) and its body -> a `Reply`."""

    reply: Callable[[int, dict[str, Any]], Reply]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most: int = 0  # requests at once
    _open: int = 0

    @property
    def texts(self) -> list[str]:
        """The last message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, one after the other."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = (line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                headers = {name.lower(): value for name, value in lines}
                body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))))
                number = len(self.bodies)
                self.bodies.append(body)
                self.headers.append(headers)
                self._open += 1
                self.most = max(self.most, self._open)
                try:
                    reply = await asyncio.to_thread(self.reply, number, body)
                finally:
                    self._open -= 1
                if reply is None:
                    break
                status, more, content = reply
                own = {"content-type": "application/json", "content-length": str(len(content))} | more
                told = "".join(f"{name}: {value}\r\n" for name, value in own.items())
                writer.write(f"HTTP/1.1 {status} -\r\n{told}\r\n".encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@contextmanager
def front(reply: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Front]:
    """A `Front` on loopback, in a thread."""
    own, loop, ready = Front(reply), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        server = await asyncio.start_server(own.handle, "127.0.0.1", 0)
        own.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        async with server:
            await server.serve_forever()

    def run() -> None:
        asyncio.set_event_loop(loop)
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield own
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(10)
