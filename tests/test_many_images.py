"""One command over many images: a line each, in order; a bad file does not stop the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_folder import write_image, write_toy_run

from llmcxr import commands
from llmcxr.cli import main
from llmcxr.inference.backend import Sampling
from llmcxr.inference.llm_cxr import LlmCxr

QUESTION = "Is there a mass?"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_toy_run(home / "run")
    for i in range(4):
        write_image(home / f"{i}.png", i)
    (home / "1.png").write_text("no picture")
    write_image(home / "3.png", side=7)  # can be read, and is too small for the model
    return home


@pytest.fixture(scope="module")
def model(home) -> LlmCxr:
    return LlmCxr.from_pretrained(home / "run", "cpu")


@pytest.fixture
def run(home, model, monkeypatch, capsys):
    """Runs a command in `home`: (exit status, lines, lines of errors); the model is loaded once for all."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(commands.many, "load", lambda arguments: model)

    def call(*words: str):
        status = main(list(words))
        said = capsys.readouterr()
        return status, said.out.splitlines(), [line for line in said.err.splitlines() if line.startswith("llmcxr: ")]

    return call


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_a_line_of_json_an_image(run, model, monkeypatch, at_once):
    monkeypatch.setattr(commands.many, "AT_ONCE", at_once)
    files = ["0.png", "1.png", "2.png", "missing.png", "3.png"]
    short, sampling = ["--max-new-tokens", "8", "--temperature", "1"], Sampling(1.0, max_new_tokens=8)
    status, lines, errors = run("report", *files, "--json", *short)
    rows = [json.loads(line) for line in lines]
    assert status == 1 and errors == [] and [row["file"] for row in rows] == files
    assert [set(row) - {"file"} for row in rows] == [{k} for k in ("report", "error", "report", "error", "error")]
    assert [rows[i]["report"] for i in (0, 2)] == [model.report(files[i], sampling) for i in (0, 2)]
    assert rows[0]["report"] != rows[2]["report"]
    assert [name in rows[i]["error"] for i, name in ((1, "1.png"), (3, "missing.png"), (4, "3.png"))] == [True] * 3
    status, (line, again), _ = run("ask", "2.png", "0.png", QUESTION, "--json", *short)
    assert status == 0 and json.loads(again) == {"file": "0.png", "answer": json.loads(again)["answer"]}
    assert json.loads(line)["answer"] == model.ask("2.png", QUESTION, sampling)
    status, lines, _ = run("findings", "0.png", "2.png", "--json")
    for line, name in zip(lines, ("0.png", "2.png"), strict=True):
        assert json.loads(line)["findings"] == pytest.approx(model.finding_probabilities(name), abs=1e-5)


def test_plain_lines_of_one_and_of_many(run, home):
    status, one, _ = run("findings", "0.png")
    assert status == 0 and len(one) == 2
    status, lines, errors = run("findings", "1.png", "0.png", "2.png")
    assert status == 1 and len(errors) == 1 and "1.png" in errors[0]
    assert lines[:4] == ["0.png", *one, ""] and lines[4] == "2.png"
    status, lines, errors = run("findings", "1.png")
    assert status == 2 and lines == [] and "1.png" in errors[0]


def test_no_model_is_loaded_for_images_that_none_can_read(run, monkeypatch):
    monkeypatch.setattr(commands.many, "load", lambda arguments: pytest.fail("the model was loaded"))
    status, lines, _ = run("report", "1.png", "missing.png", "--json")
    assert status == 1 and all("error" in json.loads(line) for line in lines)
    assert run("report", "1.png")[0] == 2


def test_what_is_wrong_with_all_stops_all(run):
    status, lines, errors = run("report", "0.png", "2.png", "--json", "--guidance", "2", "--candidates", "2000")
    assert status == 2 and lines == [] and len(errors) == 1


def test_ctrl_c_leaves_what_was_printed(run, model, monkeypatch):
    monkeypatch.setattr(commands.many, "AT_ONCE", 1)
    asked = []

    def interrupted(codes, *rest):
        asked.append(codes)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ["first"]

    monkeypatch.setattr(model, "reports", interrupted)
    status, lines, _ = run("report", "0.png", "2.png", "0.png", "--json")
    assert status == 130 and [json.loads(line) for line in lines if line] == [{"file": "0.png", "report": "first"}]


def test_a_question_comes_last(run):
    status, lines, errors = run("ask", "--json", "0.png", "2.png")
    assert status == 2 and lines == [] and "which is a file. A question comes last" in errors[0]
