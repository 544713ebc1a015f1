"""The chat client against servers on loopback that answer well, late, wrongly, or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_servers import completion, failure, front

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import SettingsError
from llmcxr.synthesis import pace
from llmcxr.synthesis.client import ChatClient, Progress
from llmcxr.synthesis.prompts import vqa_prompt
from llmcxr.synthesis.settings import BudgetSettings, ChatSettings
from llmcxr.synthesis.store import Answer, AnswerStore

PROMPT = vqa_prompt()
GOOD = completion(json.dumps({"pairs": [{"question": "Is there an effusion?", "answer": "No."}]}))


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Pauses of a tenth, so that tests are quick; what a server asks for is waited for in full."""
    monkeypatch.setattr(pace, "_FIRST", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def requests(count: int, first: int = 0):
    return [PROMPT.request(f"Report {i}.") for i in range(first, first + count)]


def ask(url: str, path: Path, count: int = 20, **settings) -> tuple[Progress, AnswerStore]:
    store = AnswerStore(path)
    try:
        client = ChatClient(ChatSettings(base_url=url, model="m", **settings))
        return client.answer_all(requests(count), store, count, "test"), store
    finally:
        store.close()


def test_all_are_asked_once_eight_at_a_time(tmp_path):
    def slow(number, body):
        time.sleep(0.02)
        return GOOD

    with front(slow) as server:
        progress, store = ask(server.url, tmp_path / "a.jsonl", 40)
        assert progress == Progress(before=0, answered=40)
        assert sorted(server.texts) == sorted(f"Report: Report {i}." for i in range(40))
        assert server.most == 8
        assert ask(server.url, tmp_path / "a.jsonl", 42)[0] == Progress(before=40, answered=2)
        assert len(server.bodies) == 42
        schema = server.bodies[0]["response_format"]["json_schema"]
        assert schema["strict"] and schema["schema"]["required"] == ["pairs"]
        assert server.bodies[0]["temperature"] == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert {(line["model"], line["prompt"], line["finish"], tuple(line["usage"])) for line in lines} == {
        ("m", "vqa-1", "stop", (100, 10))
    }
    assert store.spent.requests == 40


@pytest.mark.parametrize(
    "bad",
    [
        failure(429), failure(500), failure(503), failure(408), None, (200, {}, b'{"choices": ['), (200, {}, b"[]"),
        (200, {"content-type": "text/html"}, b"<html>busy</html>"), (200, {}, b'{"error": {"message": "queue full"}}'),
    ],
    ids=["429", "500", "503", "408", "closed", "half", "list", "html", "error in 200"],
)  # fmt: skip
def test_what_passes_is_asked_again(bad, tmp_path):
    with front(lambda number, body: bad if number in (0, 1, 5) else GOOD) as server:
        progress, store = ask(server.url, tmp_path / "a.jsonl", 6)
        assert progress.answered == 6 and store.spent.requests == 9 == len(server.bodies)


def test_retry_after_is_honoured_by_all(tmp_path):
    times: list[float] = []

    def busy(number, body):
        times.append(time.monotonic())
        return failure(429, retry_after="1") if number == 0 else GOOD

    with front(busy) as server:
        ask(server.url, tmp_path / "a.jsonl", 8, concurrency=1)
    assert times[1] - times[0] >= 1
    assert times[-1] - times[1] < 1


def test_pauses_grow_and_differ():
    firsts = {pace.pause(1) for _ in range(50)}
    assert len(firsts) == 50 and max(firsts) <= 0.02
    assert max(pace.pause(20) for _ in range(50)) <= 60
    assert 7 <= pace.pause(1, {"retry-after": "7"}) < 7.1
    assert 0.25 <= pace.pause(1, {"retry-after-ms": "250"}) < 0.3
    late = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 27 < pace.pause(1, {"retry-after": late}) < 31
    for nonsense in ("soon", "-3", "nan", "inf", ""):
        assert pace.pause(1, {"retry-after": nonsense}) <= 0.02
    assert pace.pause(1, {"retry-after": "99999999"}) <= 601


def test_what_never_passes_is_kept_as_such_and_the_rest_goes_on(tmp_path):
    def reply(number, body):
        return failure(400, "too long") if body["messages"][-1]["content"] == "Report: Report 3." else GOOD

    with front(reply) as server:
        progress, store = ask(server.url, tmp_path / "a.jsonl", 6)
        assert progress.answered == 5 and store.spent.failures == 1
        keys = {r.key("m"): r for r in requests(6)}
        failed = [a for a in store.answers(keys) if a.error]
        assert [keys[a.request] for a in failed] == [requests(1, 3)[0]] and "too long" in failed[0].error


def test_a_server_that_answers_nobody_is_an_error(tmp_path):
    with (
        front(lambda number, body: failure(400, "no such thing")) as server,
        pytest.raises(UserError, match="in a row"),
    ):
        ask(server.url, tmp_path / "a.jsonl", 100)
    assert len(server.bodies) < 30
    with front(lambda number, body: failure(500)) as server, pytest.raises(UserError, match="HTTP 500"):
        ask(server.url, tmp_path / "b.jsonl", 100, concurrency=16)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (failure(401, "Incorrect API key provided: secret-1"), "refuses the key in OPENAI_API_KEY"),
        (failure(404, "The model `m` does not exist"), "has no model 'm'"),
        ((307, {"location": "http://192.0.2.1/v1/chat/completions"}, b""), "sends on to another address"),
    ],
)
def test_what_would_hold_for_all_stops_at_once(reply, said, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    with front(lambda number, body: reply) as server, pytest.raises(UserError, match=said) as error:
        ask(server.url, tmp_path / "a.jsonl", 50)
    assert len(server.bodies) <= 8
    assert "secret" not in str(error.value) and b"secret" not in (tmp_path / "a.jsonl").read_bytes()
    assert server.headers[0]["authorization"] == "Bearer secret-1"


@pytest.mark.parametrize(
    ("said", "gone", "there"),
    [
        ("response_format json_schema is not supported", "response_format", "max_tokens"),
        ("Unsupported parameter: 'max_tokens', use 'max_completion_tokens'", "max_tokens", "max_completion_tokens"),
        ("temperature does not support 0", "temperature", "response_format"),
    ],
)
def test_options_that_a_server_does_not_take_are_left_out(said, gone, there, tmp_path):
    with front(lambda number, body: failure(400, said) if gone in body else GOOD) as server:
        assert ask(server.url, tmp_path / "a.jsonl", 12, concurrency=2)[0].answered == 12
        assert gone not in server.bodies[-1] and there in server.bodies[-1]
        assert sum(gone in body for body in server.bodies) <= 2


def test_no_proxy_for_what_is_near(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with front(lambda number, body: GOOD) as server:
        assert ask(server.url, tmp_path / "a.jsonl", 2)[0].answered == 2


# --- limits and budget


def test_rates_are_kept(tmp_path):
    with front(lambda number, body: GOOD) as server:
        begin = time.monotonic()
        ask(server.url, tmp_path / "a.jsonl", 7, requests_per_minute=600)
        assert time.monotonic() - begin >= 0.6
        tokens = pace.Budget(BudgetSettings(), AnswerStore(tmp_path / "b.jsonl").spent).tokens(3200) + 1024
        begin = time.monotonic()
        ask(server.url, tmp_path / "c.jsonl", 4, tokens_per_minute=tokens * 60 * 10)
        assert time.monotonic() - begin >= 0.2


@pytest.mark.parametrize(
    "budget",
    [
        {"requests": 10},
        {"tokens": 6500},
        {"money": 0.0065, "input_price": 1, "output_price": 1},
    ],
    ids=["requests", "tokens", "money"],
)
def test_the_budget_is_never_passed_and_a_greater_one_goes_on(budget, tmp_path):
    def reply(number, body):
        return failure(500) if number == 4 else completion("{}", usage=(300, 200))

    with front(reply) as server:
        progress, store = ask(server.url, tmp_path / "a.jsonl", 30, budget=BudgetSettings(**budget))
        (name,) = set(budget) & {"requests", "tokens", "money"}
        assert f"chat.budget.{name}" in progress.stopped and 3 <= progress.answered < 30
        assert name != "requests" or store.spent.requests <= 10
        assert store.spent.tokens_in + store.spent.tokens_out <= 6500
        done = progress.answered
        greater = BudgetSettings(**(budget | {name: budget[name] * 100}))
        progress, _ = ask(server.url, tmp_path / "a.jsonl", 30, budget=greater)
        assert progress == Progress(before=done, answered=30 - done)
        assert len(server.bodies) == 31  # each once, and the one that failed twice


def test_what_was_sent_in_vain_counts_in_later_sessions_too(tmp_path):
    with front(lambda number, body: failure(500) if number < 4 else GOOD) as server:
        for requests_ in (3, 6, 6, 40):
            _, store = ask(server.url, tmp_path / "a.jsonl", 20, budget=BudgetSettings(requests=requests_))
            assert len(server.bodies) == store.spent.requests <= requests_
        assert len(store) == 20 and len(server.bodies) == 24


def test_money_needs_prices():
    with pytest.raises(SettingsError, match="needs prices"):
        ChatSettings(budget=BudgetSettings(money=3))


# --- kept whatever happens

RUN = """
import sys
from pathlib import Path
from llmcxr.synthesis.client import ChatClient
from llmcxr.synthesis.prompts import vqa_prompt
from llmcxr.synthesis.settings import ChatSettings
from llmcxr.synthesis.store import AnswerStore
with AnswerStore(Path(sys.argv[2])) as store:
    client = ChatClient(ChatSettings(base_url=sys.argv[1], model="m"))
    client.answer_all((vqa_prompt().request(f"Report {i}.") for i in range(400)), store, 400, "test")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_started_again_nothing_is_asked_twice(number, tmp_path):
    def slow(count, body):
        time.sleep(0.01)
        return GOOD

    path = tmp_path / "a.jsonl"
    with front(slow) as server:
        process = subprocess.Popen([sys.executable, "-c", RUN, server.url, str(path)], stderr=subprocess.DEVNULL)
        while len(server.bodies) < 40:
            time.sleep(0.01)
            assert process.poll() is None
        os.kill(process.pid, number)
        process.wait(30)
        kept = {json.loads(line)["request"] for line in path.read_bytes().split(b"\n")[:-1]}
        first = len(server.bodies)
        assert 30 <= len(kept) < 400
        # Only what was under way when the process was killed has no answer; Ctrl-C waits for that, too.
        assert len(kept) == first if number == signal.SIGINT else first - len(kept) <= 8
        progress, store = ask(server.url, path, 400)
        assert progress.answered == 400 - len(kept) and len(server.bodies) == first + progress.answered
        again = {r.key("m") for r in requests(400) if f"{r.messages[-1]['content']}" in server.texts[first:]}
        assert not again & kept


def test_a_torn_line_is_taken_away_and_a_broken_one_is_asked_anew(tmp_path):
    path, keys = tmp_path / "a.jsonl", [r.key("m") for r in requests(4)]
    with AnswerStore(path) as store:
        for key in keys[:3]:
            store.add(Answer(key, "m", "vqa-1", "caf\u00e9 \u2028 \udc80", "stop", (1, 2)))
    whole = path.read_bytes()
    for cut in (1, 30, len(whole.splitlines(True)[-1]) - 1):
        path.write_bytes(whole[:-cut])
        with AnswerStore(path) as store:
            assert len(store) == 2 and keys[2] not in store and store.broken == 0
            store.add(Answer(keys[2], "m", "vqa-1", "again"))
            assert len(store) == 3
    lines = whole.splitlines(True)
    path.write_bytes(lines[0] + b"\0" * 500 + b"\n" + lines[2])
    with AnswerStore(path) as store:
        assert store.broken == 1 and [k in store for k in keys] == [True, False, True, False]
        assert [a.text for a in store.answers(set(keys))] == ["caf\u00e9 \u2028 \udc80"] * 2
    path.write_bytes(b"no line at all")
    with AnswerStore(path) as store:
        assert len(store) == 0 and store.broken == 0
    assert path.read_bytes() == b""


def test_a_later_answer_takes_the_place_of_a_failure(tmp_path):
    key = requests(1)[0].key("m")
    with AnswerStore(tmp_path / "a.jsonl") as store:
        store.add(Answer(key, "m", "vqa-1", error="HTTP 500", attempts=8))
        assert key not in store and [a.error for a in store.answers({key})] == ["HTTP 500"]
        store.add(Answer(key, "m", "vqa-1", "text"))
        store.add(Answer(key, "m", "vqa-1", "other"))
        assert key in store and [a.text for a in store.answers({key})] == ["text"]
        assert store.spent.requests == 10


def test_what_is_asked_decides_the_key():
    one = PROMPT.request("Clear lungs.")
    assert one.key("m") == vqa_prompt().request("Clear lungs.").key("m")
    assert len({one.key("m"), one.key("n"), PROMPT.request("Clear lungs").key("m")}) == 3
