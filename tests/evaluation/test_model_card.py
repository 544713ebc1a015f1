"""The model card states of the data what is so, and carries the metadata that the hub reads."""

from __future__ import annotations

import dataclasses

import pytest
from huggingface_hub import ModelCard
from toy_model import ToyModel, make_cases

from llmcxr.evaluation.model_card import model_card
from llmcxr.evaluation.scoring import MEASUREMENTS, summarise
from llmcxr.model.folder import ModelInfo

INFO = ModelInfo("llm", 16, 2, 192, "", "chat", None, ("nodule",), "impression", "0.1")


@pytest.fixture(scope="module")
def summary():
    cases = make_cases([1] * 6 + [0] * 6)
    model = ToyModel(cases)
    return summarise([p for m in MEASUREMENTS for g in m.asks(cases) for p in m.answer(model, g, 0)], cases)


def test_what_splits_share_is_counted(summary):
    cases = make_cases([1, 0, 1], ["One.", "Two.", ""], train=0)
    test = list(cases.test)
    train = [
        dataclasses.replace(s, split="train", patient_id=f"t{k}", image_id=f"t{k}", impression_text=f"Other {k}.")
        for k, s in enumerate(test[:2])
    ]

    def said(*studies):
        return model_card("toy", INFO, "Toy radiographs.", False, studies, [("stage1", "how")], summary)

    assert "No patient and no report text is in two of them." in said(*test, *train)
    shared = dataclasses.replace(train[0], impression_text="one. ")
    assert "1 report texts are in more than one of them." in said(*test, shared, train[1])
    shared = dataclasses.replace(shared, patient_id=test[0].patient_id)
    text = said(*test, shared)
    assert "1 patients and 1 report texts are in more than one of them." in text and "no patient" not in text.lower()
    assert "1 training, 0 validation and 3 test images." in text


def test_the_card_has_numbers_and_metadata(summary):
    cases = make_cases([1, 0])
    card = ModelCard(
        model_card("toy", INFO, "Toy radiographs.", True, cases.test, [("stage1", "LoRA")], summary, continued=True)
    )
    assert card.data.to_dict()["pipeline_tag"] == "image-text-to-text" and "simulated-data" in card.data.tags
    assert "| Report findings, micro-F1 | 1.000 (1.000 to 1.000) |" in card.text
    assert "whether that saw these patients was not checked here" in card.text
    assert "Its reports hold the impression." in card.text and "- stage1: LoRA" in card.text
    assert "took no part in training" not in card.text and "1.100 times the base LLM's" in card.text
