"""What asking a chat LLM about many reports costs beside the LLM: a simulated server on loopback answers at once, and each
part runs in a fresh process, whose time and peak memory are printed.

    python benchmarks/vqa_synthesis.py                       # 200,000 reports of invented text: 20 minutes
    python benchmarks/vqa_synthesis.py --folder F --json F.json    # the same, and what is done stays done when it is stopped
    python benchmarks/vqa_synthesis.py --reports 2000        # a minute
    python benchmarks/vqa_synthesis.py --without-server      # only what comes after: answers are made here, none is asked for

Parts: `bare` is the official client alone, eight requests at once; `ask` is ours, which also keeps, paces and counts (`fill`
instead, without a server); `restart` opens what is answered and finds nothing to ask; `write` parses, checks and writes all
pairs, and runs the control on them before and after balance; `questions` is the `vqa` stage, whose questions of rules and LLM
are balanced and written, and then read as training reads them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ("bare", "ask", "restart", "write", "questions")
BARE = 5_000  # requests of `bare`, at most
SAID = [  # finding, its label, sentence, question, answer, type
    ("pleural effusion", 1, "There is a small {side} pleural effusion.", "Is there a pleural effusion?", "Yes.", "presence"),
    ("pneumothorax", 0, "There is no pneumothorax.", "Is there a pneumothorax?", "No.", "presence"),
    ("cardiomegaly", 1, "The heart is {size} enlarged.", "Is the heart enlarged?", "Yes.", "presence"),
    ("support device", 1, "Right jugular catheter ends in the superior vena cava.", "Where does the catheter end?", "In the superior vena cava.", "device"),
    ("opacity", 1, "Opacity in the {side} lower lobe, likely atelectasis.", "On which side is the opacity?", "{Side}.", "location"),
    ("consolidation", 0, "No focal consolidation.", "Is there consolidation?", "No.", "presence"),
]  # fmt: skip


def report(number: int) -> tuple[str, list[dict[str, str]], dict[str, int]]:
    """An invented report, unlike all others, five pairs (what the simulated LLM says of it), and its labels."""
    rng = random.Random(number)
    side, size = rng.choice(["left", "right"]), rng.choice(["mildly", "moderately"])
    words = {"side": side, "size": size, "Side": side.capitalize()}
    chosen = rng.sample(SAID, 5)
    said = [tuple(part.format(**words) for part in one) for _, _, *one in chosen]
    text = " ".join(sentence for sentence, *_ in said) + f" Old granuloma of {number / 10:.1f} mm."
    names = ("evidence", "question", "answer", "type")
    return text, [dict(zip(names, one, strict=True)) for one in said], {name: state for name, state, *_ in chosen}


# --- the simulated server


async def _serve() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                number = round(float(body["messages"][-1]["content"].split()[-2]) * 10)
                text = json.dumps({"pairs": report(number)[1]})
                message = {"role": "assistant", "content": text}
                usage = {"prompt_tokens": 900, "completion_tokens": 200, "total_tokens": 1100}
                value = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": usage,
                         "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}  # fmt: skip
                content = json.dumps(value).encode()
                told = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
                writer.write(told.encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- the parts, each in a process of its own


def _studies(count: int) -> list[Any]:
    from llmcxr.studies.study import Study

    made = ((k, report(k)) for k in range(count))
    return [Study(f"i{k}", f"p{k}", f"s{k}", "", "train", findings_text=r[0], labels=r[2]) for k, r in made]


def _measured(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    begin, before = time.monotonic(), time.process_time()
    result = work()
    seconds, cpu = time.monotonic() - begin, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mb": round(peak)} | result


def _bare(url: str, count: int) -> dict[str, Any]:
    """The official client alone, of as many workers."""
    import openai

    from llmcxr.synthesis.prompts import vqa_prompt

    prompt, count = vqa_prompt(), min(count, BARE)

    async def run() -> None:
        client = openai.AsyncOpenAI(
            base_url=url, api_key="none", http_client=openai.DefaultAsyncHttpxClient(trust_env=False)
        )
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                messages = list(prompt.request(report(number)[0]).messages)
                schema = {"name": "vqa-1", "schema": prompt.schema, "strict": True}
                await client.chat.completions.create(
                    model="m", messages=messages, response_format={"type": "json_schema", "json_schema": schema},
                    seed=0, temperature=0.0, max_tokens=prompt.max_tokens,
                )  # fmt: skip

        await asyncio.gather(*(work() for _ in range(8)))

    asyncio.run(run())
    return {"requests": count}


def _questions(count: int, folder: Path) -> dict[str, Any]:
    """The vqa stage, and the task that reads what it has written."""
    import numpy as np

    from llmcxr.instructions.questions import read_questions, write_questions
    from llmcxr.labelling.registry import build_labeller
    from llmcxr.synthesis.gather import gather
    from llmcxr.synthesis.generate import KEPT
    from llmcxr.synthesis.pairs import read_pairs
    from llmcxr.tasks.cxr_vqa import CxrVqaItems

    studies, kept = _studies(count), folder / "synthesis" / KEPT
    asked = gather(studies, ("rules", "llm"), build_labeller("rules"), 0, lambda: read_pairs(kept))
    written = write_questions(folder / "vqa.parquet", asked)
    codes = dict.fromkeys((s.image_id for s in studies), np.zeros(256, dtype=np.uint16))
    items = CxrVqaItems(read_questions(folder / "vqa.parquet"), codes, 4, {"presence": 1.0, "normal": 1.0})
    return {"questions": written, "images": len(items)}


def part(name: str, url: str, count: int, folder: Path) -> dict[str, Any]:
    """Run one part here."""
    if name == "bare":
        return _measured(lambda: _bare(url, count))
    from llmcxr.synthesis.client import ChatClient
    from llmcxr.synthesis.generate import reports_to_ask, requests_of, write_all
    from llmcxr.synthesis.prompts import vqa_prompt
    from llmcxr.synthesis.settings import ChatSettings
    from llmcxr.synthesis.store import Answer, AnswerStore

    if name == "questions":
        return _measured(lambda: _questions(count, folder))
    prompt, reports = vqa_prompt(), reports_to_ask(_studies(count), only_positive=False)

    def ask() -> dict[str, Any]:
        with AnswerStore(folder / "vqa.jsonl") as store:
            client = ChatClient(ChatSettings(base_url=url, model="m"))
            progress = client.answer_all(requests_of(prompt, reports), store, len(reports), name)
        size = (folder / "vqa.jsonl").stat().st_size / 1e6
        return {"requests": progress.answered, "before": progress.before, "file_mb": round(size)}

    def fill() -> dict[str, Any]:
        with AnswerStore(folder / "vqa.jsonl") as store:
            for number, request in enumerate(requests_of(prompt, reports)):
                text = json.dumps({"pairs": report(number)[1]})
                store.add(Answer(request.key("m"), "m", prompt.name, text, "stop", (900, 200)))
        return {"requests": len(reports)}

    def write() -> dict[str, Any]:
        with AnswerStore(folder / "vqa.jsonl") as store:
            counts = write_all(folder / "synthesis", reports, prompt, "m", store)
        return counts.as_json()

    return _measured({"fill": fill, "write": write}.get(name, ask))


def _row(name: str, done: dict[str, Any]) -> list[str]:
    """A part as a row of the table."""
    count, cpu = done.get("requests") or done.get("before"), done["cpu_seconds"]
    if name == "write":
        what = f"{done['pairs']:,} pairs, {done['pairs'] / cpu:,.0f} a CPU second"
    elif name == "questions":
        what = f"{done['questions']:,} questions, {done['questions'] / cpu:,.0f} a CPU second"
    else:
        what = f"{count:,} requests, {1000 * cpu / count:.2f} CPU ms and {1000 * done['seconds'] / count:.2f} ms each"
    return [name, what, f"{cpu:,.0f} s", f"{done['peak_mb']:,} MB"]


def _control(found: dict[str, Any]) -> list[list[str]]:
    """What the control says of the simulated pairs, before and after balance."""
    rows = [["type", "pairs", "right", "pairs", "right when balanced"]]
    for name, b in found["before"].items():
        a = found["after"].get(name)
        after = [f"{a['pairs']:,}", f"{a['by_question']:.3f}"] if a else ["0", ""]
        rows.append([name, f"{b['pairs']:,}", f"{b['by_question']:.3f}", *after])
    return rows


def _print(rows: list[list[str]]) -> None:
    print(f"\n| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in rows[1:]:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Start the server and each part, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="for answers and pairs (default: a temporary one)")
    parser.add_argument(
        "--json", type=Path, default=Path("vqa_synthesis.json"), help="results, of each part when it is done"
    )
    parser.add_argument("--without-server", action="store_true", help="make the answers here, and ask for none")
    parser.add_argument("--part", choices=(*PARTS, "fill", "serve"), help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "serve":
        asyncio.run(_serve())
        return
    if arguments.part:
        print(json.dumps(part(arguments.part, arguments.url, arguments.reports, arguments.folder)))
        return
    results: dict[str, Any] = {"reports": arguments.reports}
    if arguments.folder and arguments.json.exists():
        before = json.loads(arguments.json.read_text())
        results = before if before.get("reports") == arguments.reports else results
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--reports", str(arguments.reports), "--folder", str(folder)]
        server = subprocess.Popen([*command, "--part", "serve"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
            for name in ("fill", *PARTS[2:]) if arguments.without_server else PARTS:
                if name not in results:
                    done = subprocess.run([*command, "--part", name, "--url", url], stdout=subprocess.PIPE, check=True)
                    results[name] = json.loads(done.stdout)
                    arguments.json.write_text(json.dumps(results, indent=2) + "\n")
        finally:
            server.kill()
            server.wait()
    parts = [name for name in ("fill", *PARTS) if name in results]
    _print([["part", f"of {arguments.reports:,} reports", "CPU", "peak memory"]] + [_row(n, results[n]) for n in parts])
    _print(_control(results["write"]["control"]))
    if results.get("ask", {}).get("requests"):
        own = [1000 * results[n]["cpu_seconds"] / results[n]["requests"] for n in ("bare", "ask")]
        print(f"\nours adds {own[1] - own[0]:+.2f} CPU ms a request to the client's own {own[0]:.2f}")


if __name__ == "__main__":
    main()
