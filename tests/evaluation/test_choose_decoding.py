"""Decoding is chosen by the score it is chosen by, row by row, and only where there is something to choose."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from toy_model import ToyModel, make_cases

from llmcxr.evaluation.choose_decoding import choose_decoding
from llmcxr.foundation.errors import UserError
from llmcxr.model.decoding import DecodingSettings
from llmcxr.model.folder import ModelInfo


@dataclasses.dataclass
class Asked:
    info: ModelInfo


@dataclasses.dataclass
class Held:
    """The parts of an `LlmCxr` that decoding is chosen with."""

    asker: Asked
    image_tokenizer: SimpleNamespace

    @property
    def info(self) -> ModelInfo:
        return self.asker.info


class Guided(ToyModel):
    """States a nodule everywhere unless it is guided, best of all at 2; counts its ways of writing."""

    def __init__(self, cases, **changes):
        super().__init__(cases)
        info = ModelInfo(
            "llm", 16, 2, 192, "", "chat", None, ("nodule",), "impression", "0", ("cxr_to_report", "report_to_cxr")
        )
        clinical = SimpleNamespace(clinical=object())
        self.model = Held(Asked(dataclasses.replace(info, **changes)), clinical)
        self.ways = 0

    def reports(self, image_ids, most_tokens):
        self.ways += 1
        if self.model.info.decoding.report_guidance == 2:
            return super().reports(image_ids, most_tokens)
        return ["There is a nodule."] * len(image_ids)

    def draw(self, texts, seed):
        if self.model.info.decoding.drawing_candidates > 1:
            return super().draw(texts, seed)
        return super().draw(["clear"] * len(texts), seed)


def test_the_best_is_said_and_nothing_is_tried_twice(tmp_path):
    cases = make_cases([1] * 6 + [0] * 6)
    model, path = Guided(cases), tmp_path / "decoding.json"
    said = choose_decoding(path, cases, model, 12)
    assert (
        "decoding: {report_guidance: 2.0, report_candidates: 1, ask_sides: false, drawing_guidance: 1.0, drawing_candidates: 4}"
        in said
    )
    assert model.model.info.decoding == DecodingSettings() and said.count("<- best") == 2
    kept = json.loads(path.read_text())
    assert len(kept["rows"]) == model.ways + 2 == 16 + 2 and kept["split"] == "validate"
    path.write_text(json.dumps(kept | {"rows": kept["rows"][:10]}))
    again = Guided(cases)
    assert choose_decoding(path, cases, again, 12) == said and again.ways == 6
    assert choose_decoding(path, cases, Guided(cases, unguided_share=0.1), 12) != said  # another model: all anew


def test_where_there_is_nothing_to_choose(tmp_path):
    cases = make_cases([1] * 6 + [0] * 6)
    with pytest.raises(UserError, match="in one way only"):
        choose_decoding(tmp_path / "d.json", cases, Guided(cases, findings_first=()), 4)
    unread = make_cases([1] * 6 + [0] * 6, name="ARDS")
    with pytest.raises(UserError, match="knows none of the findings"):
        choose_decoding(tmp_path / "d.json", unread, Guided(unread), 4)
    assert not (tmp_path / "d.json").exists()
