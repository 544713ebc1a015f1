"""From reports to checked pairs on disk, and the command that does it with real servers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from chat_servers import Front, completion, failure, forwarded, front, llama_server
from conftest import build_model, build_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llmcxr.cli import main
from llmcxr.foundation.artifacts import read_json
from llmcxr.foundation.assets import fetch
from llmcxr.instructions.questions import read_questions
from llmcxr.studies.study import Study, read_manifest
from llmcxr.synthesis.client import ChatClient
from llmcxr.synthesis.estimate import Estimate
from llmcxr.synthesis.generate import KEPT, REJECTED, reports_to_ask, requests_of, write_all
from llmcxr.synthesis.pairs import read_pairs
from llmcxr.synthesis.prompts import vqa_prompt
from llmcxr.synthesis.settings import BudgetSettings, ChatSettings
from llmcxr.synthesis.store import Answer, AnswerStore

PROMPT = vqa_prompt()
EFFUSION = "Small left pleural effusion. No pneumothorax."


def study(image: str, text: str, labels: dict[str, int] | None = None, **more) -> Study:
    return Study(image, "p", f"s-{text[:5]}", "", "train", findings_text=text, labels=labels or {}, **more)


STUDIES = [
    study("a", EFFUSION, {"pleural effusion": 1}),
    study("b", EFFUSION, {"pleural effusion": 1}, view="LATERAL"),
    study("c", "Clear lungs.", {"pleural effusion": 0}),
    study("d", "", {"pleural effusion": 1}),
    study("e", "Possible edema.", {"edema": -1}),
]


def test_which_reports_are_asked_about():
    (report,) = reports_to_ask(STUDIES, only_positive=True)
    assert report.text == EFFUSION and report.images == [("a", "s-Small"), ("b", "s-Small")]
    asked = [EFFUSION, "Clear lungs.", "Possible edema."]
    assert [r.text for r in reports_to_ask(STUDIES, only_positive=False)] == asked
    held_out = [dataclasses.replace(s, split=split) for s, split in zip(STUDIES[:2], ("validate", "test"), strict=True)]
    assert reports_to_ask(held_out, only_positive=False) == []  # nothing uses pairs of theirs
    assert [r.images[0][0] for r in reports_to_ask(held_out, False, "test")] == ["b"]


def answer(pairs: list[tuple[str, str]]) -> str:
    return json.dumps({"pairs": [{"question": q, "answer": a, "type": "presence", "evidence": ""} for q, a in pairs]})


COLUMNS = {name: name for name in ("image", "patient", "findings")}
GOOD = [("Is there a pleural effusion?", "Yes."), ("Is there a pneumothorax?", "No.")]
BAD = [("Is there a pneumothorax?", "Yes."), ("Is the effusion new?", "No.")]


def test_answers_become_pairs_of_every_image(tmp_path):
    reports = reports_to_ask(STUDIES, only_positive=False)
    keys = [request.key("m") for request in requests_of(PROMPT, reports)]
    with AnswerStore(tmp_path / "vqa.jsonl") as store:
        store.add(Answer(keys[0], "m", PROMPT.name, answer(GOOD + BAD) + answer(GOOD)[:-3], "length"))
        store.add(Answer(keys[1], "m", PROMPT.name, "I cannot help with that."))
        store.add(Answer(keys[2], "m", PROMPT.name, error="HTTP 500"))
        store.add(Answer("00" * 16, "m", PROMPT.name, answer(GOOD)))  # of another prompt
        counts = write_all(tmp_path / "out", reports, PROMPT, "m", store)
    kept, rejected = (list(read_pairs(tmp_path / "out" / name)) for name in (KEPT, REJECTED))
    assert {p.image_id for p in kept} == {p.image_id for p in rejected} == {"a", "b"}
    assert [(p.question, p.answer) for p in kept if p.image_id == "b"] == GOOD
    assert {p.origin for p in kept} == {"llm"} and all(p.kept for p in kept) and not any(p.kept for p in rejected)
    assert (counts.reports, counts.answers, counts.kept, counts.cut, counts.without_pairs) == (3, 2, 2, 1, 1)
    assert counts.failures == {"HTTP 500": 1}
    assert sum(counts.rejected.values()) + counts.kept == counts.pairs == len(kept + rejected) / 2
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["model"] == "m" and summary["prompt"] == "vqa-1" and summary["rejected"] == dict(counts.rejected)
    told = "\n".join(counts.told())
    assert "1 reports without an answer: 1 HTTP 500" in told and "rejected" in told and "%" in told


@given(st.lists(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=3), max_size=4))
def test_nothing_is_lost_whatever_is_written(tmp_path_factory, answers):
    folder = tmp_path_factory.mktemp("any")
    reports = reports_to_ask([study(f"i{k}", f"Report {k}.") for k in range(len(answers))], only_positive=False)
    with AnswerStore(folder / "vqa.jsonl") as store:
        for request, pairs in zip(requests_of(PROMPT, reports), answers, strict=True):
            store.add(Answer(request.key("m"), "m", PROMPT.name, answer(pairs)))
        counts = write_all(folder / "out", reports, PROMPT, "m", store)
    written = sum(len(list(read_pairs(folder / "out" / name))) for name in (KEPT, REJECTED))
    assert written == counts.pairs == sum(map(len, answers)) - counts.incomplete
    assert counts.answers == len(answers)


def test_what_asking_takes_is_estimated(tmp_path):
    prices = BudgetSettings(input_price=1, output_price=10)
    settings = ChatSettings(model="m", base_url="http://localhost:1/v1", concurrency=10, budget=prices)
    reports = reports_to_ask([study(f"i{k}", f"Report {k}.") for k in range(100)], only_positive=False)
    rough = Estimate.of(requests_of(PROMPT, reports), settings, None)
    assert rough.requests == 100 and rough.tokens_out == 20_000 and rough.hours == pytest.approx(100 / 3600)
    assert rough.money == pytest.approx((rough.tokens_in + 10 * rough.tokens_out) / 1e6)
    assert "assumed" in rough.basis
    slow = dataclasses.replace(settings, requests_per_minute=1.0)
    assert Estimate.of(requests_of(PROMPT, reports), slow, None).hours == pytest.approx(100 / 60)
    with AnswerStore(tmp_path / "a.jsonl") as store:
        store.add(Answer(PROMPT.request(reports[0].text).key("m"), "m", "vqa-1", "x", usage=(900, 50), seconds=36.0))
        known = Estimate.of(requests_of(PROMPT, reports), settings, store)
        here = Estimate.of(requests_of(PROMPT, reports), dataclasses.replace(settings, base_url=None), store)
        assert Estimate.of([PROMPT.request(reports[0].text)], settings, store).ahead() == []  # nothing is left to ask
    assert (known.requests, known.tokens_out) == (99, 99 * 50) and known.hours == pytest.approx(99 * 3.6 / 3600)
    # Of a model in this process each answer is told its share of the time of its batch: nothing divides it again.
    assert here.hours == pytest.approx(10 * known.hours)
    assert "59 minutes" in " ".join(here.ahead())


# --- a model in this process


def test_a_model_in_this_process(tmp_path, capsys):
    """A toy: its answers are noise, but each is kept, and none is asked for twice; what is too long is a failure."""
    build_model("llama", 340, True, max_position_embeddings=4096).save_pretrained(tmp_path / "llm")
    build_tokenizer().save_pretrained(tmp_path / "llm")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own-1", "instructions": "Ask."}))
    prompt = dataclasses.replace(vqa_prompt(tmp_path / "own.yaml"), max_tokens=6)
    requests = [prompt.request(text) for text in ("Clear lungs.", "Edema.", "No effusion. " * 2000)]
    client = ChatClient(ChatSettings(model=str(tmp_path / "llm")), "cpu")
    for before in (0, 2):
        with AnswerStore(tmp_path / "a.jsonl") as store:
            progress = client.answer_all(iter(requests), store, 3, "test")
            assert (progress.before, progress.answered) == (before, 2 - before)
            failed = [a.error for a in store.answers({r.key(client.settings.model) for r in requests}) if a.error]
            assert len(failed) == 1 and "context" in failed[0]
            assert store.spent.tokens_in > 0
    client = ChatClient(dataclasses.replace(client.settings, budget=BudgetSettings(requests=1)), "cpu")
    with AnswerStore(tmp_path / "b.jsonl") as store:
        assert "chat.budget.requests 1" in client.answer_all(iter(requests), store, 3, "test").stopped
        assert len(store) == 1
    capsys.readouterr()
    with AnswerStore(tmp_path / "c.jsonl") as store:  # after the first few, what the rest would take
        client = ChatClient(dataclasses.replace(client.settings, budget=BudgetSettings(requests=5)), "cpu")
        client.answer_all((prompt.request(f"Report {k}.") for k in range(500)), store, 500, "test")
    said = capsys.readouterr()
    assert "the other 496 would take" in said.out + said.err


# --- the command


@pytest.fixture
def recipe(tmp_path):
    """A phantom's recipe of 14 images, and the arguments that send it to a server."""
    value = {"name": "vqa", "runs": str(tmp_path), "device": "cpu",
             "source": {"phantom": {"train": 10, "validate": 2, "test": 2}},
             "image_tokenizer": {"architecture": {"image_size": 32, "patch": 8, "kind": "mixer"}}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(value))
    return [str(tmp_path / "recipe.yaml"), "chat.model=m"]


def test_the_command_and_the_stages_after_it(recipe, tmp_path, capsys):
    written = [*GOOD, ("What is the shape of the trachea?", "Straight."), *BAD]  # yes and no are balanced, this is not
    with front(lambda number, body: completion(answer(written))) as server:
        arguments = [*recipe, f"chat.base_url={server.url}"]
        assert main(["synthesize-vqa", "--dry-run", *arguments]) == 0
        said = capsys.readouterr().out
        assert said.count("You write questions") == 3 and "M tokens of prompts" in said and not server.bodies
        assert "reports of validation and test patients are not asked about" in said

        assert main(["synthesize-vqa", *arguments, "chat.budget.requests=4"]) == 2
        assert "budget is used up after 4 of" in capsys.readouterr().err and len(server.bodies) == 4
        assert read_json(tmp_path / "vqa" / "synthesis" / "summary.json")["answers"] == 4

        assert main(["synthesize-vqa", *arguments]) == 0
        said, total = capsys.readouterr().out, len(server.bodies)
        assert "M tokens of prompts" in said  # before it starts
        assert "rejected" in said and "vqa.synthesize=true" in said
        assert len(set(server.texts)) == total

        # Another prompt is another question; the answers to the first stay.
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own-1", "instructions": "Ask."}))
        assert main(["synthesize-vqa", *arguments, f"vqa.prompt={tmp_path / 'own.yaml'}"]) == 0
        assert len(server.bodies) == 2 * total
        assert main(["synthesize-vqa", *arguments]) == 0
        assert len(server.bodies) == 2 * total

        asked = [*arguments, "vqa.synthesize=true"]
        assert main(["run", *asked, "--stage", "vqa"]) == 0
    questions = read_questions(tmp_path / "vqa" / "vqa.parquet")
    kept = {pair.as_question() for pair in read_pairs(tmp_path / "vqa" / "synthesis" / KEPT)}
    used = [q for q in questions if q.origin == "llm"]
    assert used and kept.issuperset(used)
    assert any(q.origin == "truth" for q in questions)
    capsys.readouterr()
    assert main(["run", *asked, "--until", "vqa", "seed=5"]) == 0
    done = {line.split()[1]: "(done)" in line for line in capsys.readouterr().out.splitlines() if line[0] == "["}
    assert done == {"studies:": True, "synthesis:": True, "vqa:": False}, "by chance pairs are taken, not checked"


def test_a_dry_run_leaves_nothing_in_the_way(recipe, tmp_path, capsys):
    """A folder with the pictures of a phantom and no record is somebody's: the run after it was refused."""
    arguments = [*recipe, "chat.base_url=http://localhost:9/v1", "prior_references=rewrite"]
    assert main(["synthesize-vqa", "--dry-run", *arguments]) == 0
    assert "prior_references: rewrite" in capsys.readouterr().out and not (tmp_path / "vqa").exists()


def test_references_to_earlier_studies_are_rewritten_before_reports_are_used(recipe, tmp_path, capsys):
    """Of a table, whose reports are known; and again from what is kept, without a word to the server."""
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "a.png")
    report = "Moderate right pleural effusion is unchanged. The lungs are clear."
    (tmp_path / "table.csv").write_text(f"image,patient,findings\na.png,p1,{report}\n")
    value = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    value["source"] = {"kind": "table", "table": {"path": str(tmp_path / "table.csv"), "columns": COLUMNS}}
    value["prior_references"] = "rewrite"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(value))
    with front(lambda number, body: completion('{"text": "Moderate right pleural effusion."}')) as server:
        assert main(["synthesize-vqa", "--dry-run", *recipe, f"chat.base_url={server.url}", "name=dry"]) == 0
        said = capsys.readouterr().out
        assert "prior_references: rewrite" in said and said.count("1 requests: about") == 2 and not server.bodies
        assert "is unchanged" in said and not (tmp_path / "dry" / "manifest.parquet").exists()
        for name in ("one", "two"):
            assert main(["prepare", *recipe, f"chat.base_url={server.url}", f"name={name}"]) == 0
            assert "1 rewritten" in capsys.readouterr().out
            (study_,) = read_manifest(tmp_path / name / "manifest.parquet")
            assert study_.findings_text == "Moderate right pleural effusion. The lungs are clear."
            assert read_json(tmp_path / name / "studies.json")["prior_references"]["rewriting"] == {"rewritten": 1}
        assert len(server.bodies) == 2
        assert main(["prepare", *recipe, f"chat.base_url={server.url}", "name=two", "labeller=chexpert"]) == 0
        assert len(server.bodies) == 2  # another labeller makes the stage anew; the answer is there


def test_reports_do_not_leave_by_accident(recipe, capsys):
    assert main(["synthesize-vqa", *recipe, "chat.base_url=https://api.example.com/v1"]) == 2
    assert "PhysioNet" in capsys.readouterr().err


def in_the_way(upstream: str):
    """Passes requests on to a real server, but for some: busy, broken, malformed and cut ones."""

    def reply(number, body):
        if number % 7 == 2:
            return failure(429, retry_after="0.1")
        if number % 7 == 4:
            return failure(500)
        status, headers, content = forwarded(upstream, json.dumps(body).encode())
        if number % 7 == 5:
            return status, headers, content[: len(content) // 2]
        value = json.loads(content)
        if number % 7 == 6:  # as of a server without schemas, out of tokens
            choice = value["choices"][0]
            choice["message"]["content"] = "Sure!\n```json\n" + choice["message"]["content"][:-40]
            choice["finish_reason"] = "length"
        return status, headers, json.dumps(value).encode()

    return reply


@pytest.mark.slow
def test_with_llama_cpp(recipe, tmp_path, capsys):
    """SmolLM2 of 135 million weights behind llama.cpp's server: transport and checks, not the quality of what it says."""
    model = next(Path(fetch("smollm2-135m-instruct")).glob("*.gguf"))
    ask = "Write two short questions about the chest radiograph, and their answers."
    example = {"question": "Is there an effusion?", "answer": "Yes.", "type": "presence", "evidence": "Small effusion."}
    examples = [{"report": "Small effusion.", "pairs": [example]}]
    short = {"name": "short-1", "instructions": ask, "examples": examples, "max_tokens": 80}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(short))
    arguments = [*recipe, f"vqa.prompt={tmp_path / 'short.yaml'}", "vqa.only_positive=false"]
    arguments += ["source.phantom.train=6"]
    with llama_server(str(model)) as upstream, front(in_the_way(upstream)) as server:
        assert main(["synthesize-vqa", *arguments, f"chat.base_url={server.url}", "chat.budget.requests=8"]) == 2
        assert "budget" in capsys.readouterr().err
        first = len(server.bodies)
        assert first <= 8
        assert main(["synthesize-vqa", *arguments, f"chat.base_url={server.url}"]) == 0
        _check_transport(server, tmp_path / "vqa")
    assert "pairs" in capsys.readouterr().out


def _check_transport(server: Front, folder: Path) -> None:
    summary = read_json(folder / "synthesis" / "summary.json")
    assert summary["answers"] == summary["reports"] and not summary["failures"]
    assert summary["spent"]["requests"] == len(server.bodies) > summary["answers"]
    assert server.most > 1 and summary["spent"]["tokens_out"] > 0
    assert summary["pairs"] > 0 and summary["kept"] + sum(summary["rejected"].values()) == summary["pairs"]
    answers = [json.loads(line) for line in (folder / "chat" / "vqa.jsonl").read_text().splitlines()]
    # llama.cpp follows the schema, and gives no text at all where tokens ran out within it.
    kept = [a["text"] for a in answers if a["text"] and not a["text"].startswith("Sure!")]
    assert kept and all('"pairs"' in text.split("[")[0] for text in kept)
