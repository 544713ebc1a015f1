"""Predictions survive a round trip, with what is unknown still unknown."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.evaluation.predictions import Prediction, predictions_frame, read_predictions, write_predictions
from llmcxr.foundation.errors import UserError

EXAMPLES = [
    Prediction("question", "i1", "p1", "presence", "Is there an effusion?", "Yes.", "No.", 0.25, 1, {"side": "left"}),
    Prediction("report", "i2", "p2", "", "", "No acute findings.", "Größe 5 cm\nline two"),
    Prediction("question", "i3", "p3", "presence", "Is there a nodule?", "No.", "No.", 0.0, 0, {"runs": [1, 2]}),
]


def test_round_trip(tmp_path):
    write_predictions(tmp_path / "predictions.parquet", EXAMPLES)
    assert read_predictions(tmp_path / "predictions.parquet") == EXAMPLES
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.parquet"]


def test_round_trip_when_nothing_has_a_probability(tmp_path):
    write_predictions(tmp_path / "p.parquet", EXAMPLES[1:2])
    assert read_predictions(tmp_path / "p.parquet") == EXAMPLES[1:2]


def test_round_trip_of_none_at_all(tmp_path):
    write_predictions(tmp_path / "p.parquet", [])
    assert read_predictions(tmp_path / "p.parquet") == []


@given(
    st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.floats(0, 1), st.none() | st.sampled_from([0, 1])
)
def test_any_text_survives(tmp_path_factory, text, p_yes, truth):
    path = tmp_path_factory.mktemp("predictions") / "p.parquet"
    prediction = Prediction("question", "i", "p", "k", text, text, text, p_yes, truth, {"text": text})
    write_predictions(path, [prediction])
    assert read_predictions(path) == [prediction]


def test_frame_has_missing_values_not_zeros():
    frame = predictions_frame(EXAMPLES)
    assert frame["p_yes"].isna().tolist() == [False, True, False]
    assert frame["truth"].isna().tolist() == [False, True, False]


def test_faults_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"absent\.parquet does not exist"):
        read_predictions(tmp_path / "absent.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"broken\.parquet is not readable"):
        read_predictions(tmp_path / "broken.parquet")
    pd.DataFrame({"task": ["report"]}).to_parquet(tmp_path / "short.parquet")
    with pytest.raises(UserError, match="lacks the columns.*image_id"):
        read_predictions(tmp_path / "short.parquet")
