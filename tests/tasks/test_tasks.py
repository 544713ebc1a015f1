"""Tasks are found, not listed: a new one is one new file, and is asked as it was trained."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer

import llmcxr.tasks
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.foundation.settings import build_settings
from llmcxr.instructions.example import Turn
from llmcxr.instructions.questions import QuestionAnswer
from llmcxr.instructions.rendering import render, render_prompt
from llmcxr.instructions.templates import build_template
from llmcxr.studies.study import Study
from llmcxr.tasks.base import TaskData, tasks
from llmcxr.tuning.settings import StageSettings, TuningSettings
from llmcxr.tuning.trainer import Stage
from llmcxr.tuning.tunable import TunableModel
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

FIFTH = '''
"""Task: which view an image is."""

from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.tasks.base import Items, Task


class ViewItems(Items):
    def __init__(self, studies, codes):
        self._studies, self._codes = studies, codes

    def __len__(self):
        return len(self._studies)

    def example(self, item, rng):
        study = self._studies[item]
        return InstructionExample(TASK.name, TASK.prompt(self._codes[study.image_id], study.view), study.image_id)


class View(Task):
    name, about, place = "view", "says which view an image is", 4

    def items(self, data):
        return ViewItems(data.studies, data.codes)

    def prompt(self, codes, view=None):
        return (Turn("Which view is this?", codes, view),)


TASK = View()
'''
REPORT = "The heart is normal."
CODES = {f"i{k}": np.random.default_rng(k).integers(0, 8, 4).astype(np.uint16) for k in range(12)}
STUDIES = [Study(name, name, name, "", "train", "PA", findings_text=REPORT) for name in CODES]


@pytest.fixture
def fifth(tmp_path, monkeypatch):
    (tmp_path / "view.py").write_text(FIFTH)
    monkeypatch.setattr(llmcxr.tasks, "__path__", [*llmcxr.tasks.__path__, str(tmp_path)])
    tasks.cache_clear()
    yield tasks()["view"]
    tasks.cache_clear()
    sys.modules.pop("llmcxr.tasks.view", None)


def test_the_order_decides_what_the_mixture_draws():
    assert list(tasks()) == ["language", "report_to_cxr", "cxr_to_report", "cxr_vqa"]
    assert len({task.place for task in tasks().values()}) == len(tasks())
    assert {name: task.grammar for name, task in tasks().items() if task.grammar != "text"} == {
        "report_to_cxr": "image"
    }


def test_a_fifth_task_is_one_new_file(fifth, tmp_path):
    """Found, allowed in settings, trained for two steps, with a loss of its own."""
    assert list(tasks()) == ["language", "report_to_cxr", "cxr_to_report", "cxr_vqa", "view"]
    values = {"examples": 12, "mixture": {"view": 1.0, "cxr_to_report": 1.0}, "task_loss_weights": {"view": 2.0}}
    stage = build_settings(StageSettings, values | {"learning_rate": 1e-3})
    short = {"method": "full", "logging": "none", "max_tokens": 256, "tokens_per_batch": 256}
    settings = build_settings(TuningSettings, short | {"stages": [stage]})
    data = TaskData("train", STUDIES, CODES, options=vars(settings) | vars(stage))
    items = {name: tasks()[name].items(data) for name in tasks() if name in stage.mixture}
    vocabulary = ImageVocabulary.grow(build_tokenizer(), 8)
    model = build_model("llama", vocabulary.first_id, True).float()
    tunable = TunableModel(model, vocabulary, torch.zeros(8, 32), settings)
    template = build_template("chat", vocabulary.tokenizer)
    trainer = Stage(tunable, template, settings, stage, items, items, tmp_path, Processes("cpu"), 0)
    trainer.run()
    curve = trainer.at.curve
    assert curve[-1]["step"] >= 2 and {"view", "cxr_to_report"} == set(curve[-1]["unseen"])
    assert curve[-1]["unseen"]["view"] < curve[0]["unseen"]["view"]


def test_a_name_that_is_no_task_is_refused():
    for values in ({"mixture": {"view": 1.0}}, {"task_loss_weights": {"view": 1.0}}):
        with pytest.raises(UserError, match=r"view: no such task; tasks are language, report_to_cxr, cxr_to_report"):
            build_settings(StageSettings, values)
    for name in ("view", "cxr_vqa"):
        with pytest.raises(UserError, match=rf"findings_first: '{name}' should be one of report_to_cxr, cxr_to_report"):
            build_settings(TuningSettings, {"findings_first": [name]})


def test_a_model_is_asked_as_it_was_trained():
    """The prompt of each task is what training saw before the response, under the first wording."""
    questions = [QuestionAnswer("i3", "Is there a mass?", "No.", "presence")]
    data = TaskData(
        "train", STUDIES[3:4], CODES, questions=questions, options=vars(TuningSettings()) | vars(StageSettings())
    )
    vocabulary = ImageVocabulary.grow(build_tokenizer(), 8)
    template = build_template("chat", vocabulary.tokenizer)
    given = {
        "cxr_to_report": (CODES["i3"],),
        "report_to_cxr": (REPORT,),
        "cxr_vqa": (CODES["i3"], "Is there a mass?"),
    }
    for name, task in tasks().items():
        items = task.items(data)
        examples = [items.example(0, np.random.default_rng(seed)) for seed in range(100)]
        said = [{"role": "user", "content": examples[0].turns[0].instruction}]
        asked = task.prompt(*given.get(name, (said,)))
        prompt = render_prompt(asked, template, vocabulary)
        example = next(e for e in examples if e.turns[-1].instruction == asked[-1].instruction)
        if name == "language":  # whose input a chat has not
            example = replace(example, turns=(replace(example.turns[0], input=""),))
        rendered, response = render(example, template, vocabulary), example.turns[-1].response
        assert rendered.ids[: len(prompt)].tolist() == prompt and rendered.supervised[len(prompt)]
        assert isinstance(response, str) == (task.grammar == "text")


def test_chat_alternates():
    task = tasks()["language"]
    said = [{"role": r, "content": r} for r in ("user", "assistant", "user")]
    assert task.prompt(said) == (Turn("user", "", "assistant"), Turn("user"))
    with pytest.raises(ValueError, match="alternate"):
        task.prompt(said[:2])
