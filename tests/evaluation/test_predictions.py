"""Predictions survive a round trip and an interruption."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.evaluation.predictions import Journal, read_predictions, write_predictions
from llmcxr.foundation.errors import UserError
from llmcxr.tasks.measurement import Prediction

EXAMPLES = [
    Prediction("cxr_vqa", "i1", "p1", "presence", "Is there an effusion?", "Yes.", "No.", {"side": "left"}),
    Prediction("cxr_to_report", "i2", "p2", "", "", "No acute findings.", "Größe 5 cm\nline two"),
    Prediction("cxr_vqa", "i3", "p3", "presence", "Is there a nodule?", "No.", "No.", {"codes": [1, 2], "p": 0.25}),
]


def test_round_trip(tmp_path):
    write_predictions(tmp_path / "predictions.parquet", EXAMPLES)
    assert read_predictions(tmp_path / "predictions.parquet") == EXAMPLES
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.parquet"]
    write_predictions(tmp_path / "none.parquet", [])
    assert read_predictions(tmp_path / "none.parquet") == []


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("predictions")
    prediction = Prediction("cxr_vqa", "i", "p", "k", text, text, text, {"text": text})
    write_predictions(folder / "p.parquet", [prediction])
    assert read_predictions(folder / "p.parquet") == [prediction]
    Journal(folder, 0).append("a", [prediction])
    assert Journal(folder, 1).read() == {"a": [prediction]}


def test_a_line_that_was_cut_short_is_written_again(tmp_path):
    journal, other = Journal(tmp_path, 0), Journal(tmp_path, 1)
    journal.append("a", EXAMPLES[:1])
    journal.append("b", EXAMPLES[1:])
    other.append("c", EXAMPLES[:2])
    whole = journal.path.read_bytes()
    for cut in (1, 5, 40):
        journal.path.write_bytes(whole[:-cut])
        assert journal.read() == {"a": EXAMPLES[:1], "c": EXAMPLES[:2]}
        journal.mend()
        journal.append("b", EXAMPLES[1:])
        assert journal.path.read_bytes() == whole


def test_faults_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"absent\.parquet does not exist"):
        read_predictions(tmp_path / "absent.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"broken\.parquet is not readable"):
        read_predictions(tmp_path / "broken.parquet")
    pd.DataFrame({"task": ["report"]}).to_parquet(tmp_path / "short.parquet")
    with pytest.raises(UserError, match="lacks the columns.*image_id"):
        read_predictions(tmp_path / "short.parquet")


def test_a_full_disk_keeps_the_groups_before(small_disk):
    journal = Journal(small_disk / "predictions", 0)
    short, long = (Prediction("report", "a", "p", "", "", "", "x" * n) for n in (10, 200_000))
    journal.append("report/0", [short])
    with pytest.raises(UserError, match=r"cannot write .*0\.jsonl: (No space left|File too large).*run again"):
        journal.append("report/1", [long])
    journal.mend()
    assert list(journal.read()) == ["report/0"]
