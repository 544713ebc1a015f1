"""Prediction goes on where it was interrupted, and is the same however it is shared out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from toy_model import ToyModel, make_cases

from llmcxr.evaluation.predict import predict
from llmcxr.evaluation.predictions import read_predictions


class KilledError(Exception):
    pass


def process(rank: int = 0, count: int = 1, main: bool = True):
    main = main and rank == 0
    return SimpleNamespace(rank=rank, count=count, main=main, wait=lambda: None, from_main=lambda flag: flag)


def killed_after(model: ToyModel, groups: int):
    """`model`, which is killed when it has answered so many groups of questions."""
    answers = model.answers

    def some(*arguments):
        nonlocal groups
        groups -= 1
        if groups < 0:
            raise KilledError
        return answers(*arguments)

    model.answers = some  # type: ignore[method-assign]
    return model


@pytest.fixture
def cases():
    return make_cases([1] * 40 + [0] * 40)


def test_what_is_answered_is_not_asked_again(cases, tmp_path):
    whole = predict(cases, lambda: ToyModel(cases), tmp_path / "whole", process())
    assert whole == read_predictions(tmp_path / "whole" / "predictions.parquet")
    assert [p.name for p in (tmp_path / "whole").iterdir()] == ["predictions.parquet"]
    first, second = killed_after(ToyModel(cases), 2), ToyModel(cases)
    with pytest.raises(KilledError):
        predict(cases, lambda: first, tmp_path / "part", process())
    shard = tmp_path / "part" / "predictions" / "0.jsonl"
    shard.write_bytes(shard.read_bytes()[:-7])  # killed while it wrote
    assert predict(cases, lambda: second, tmp_path / "part", process()) == whole
    everything = ToyModel(cases)
    predict(cases, lambda: everything, tmp_path / "again", process())
    assert first.asked > 0 and second.asked < everything.asked


def test_processes_share_the_questions(cases, tmp_path):
    alone = predict(cases, lambda: ToyModel(cases), tmp_path / "one", process())
    models = [ToyModel(cases) for _ in range(3)]
    for rank in (2, 1):
        assert predict(cases, lambda m=models[rank]: m, tmp_path / "three", process(rank, 3)) is None
    left = tmp_path / "three" / "predictions"
    assert sorted(p.name for p in left.iterdir()) == ["1.jsonl", "2.jsonl"]
    # They ran one after the other here, so the second shared out what the first had left; one process ends it alone.
    assert predict(cases, lambda: models[0], tmp_path / "three", process()) == alone
    assert all(model.asked for model in models)


def test_nothing_is_loaded_where_all_is_answered(cases, tmp_path):
    assert (
        predict(cases, lambda: ToyModel(cases), tmp_path, process(main=False)) is None
    )  # it answers, and joins nothing

    def load():
        raise AssertionError("loaded")

    predictions = predict(cases, load, tmp_path, process())
    assert len(predictions) > 80 and not (tmp_path / "predictions").exists()
    (tmp_path / "predictions").mkdir()
    assert predict(cases, load, tmp_path, process()) == predictions  # killed before they were scored
    assert not (tmp_path / "predictions").exists()
