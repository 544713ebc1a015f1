"""Pairs on disk: the same back, in batches, and one clear error for what is none."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcxr.foundation.errors import UserError
from llmcxr.synthesis.pairs import TYPES, QaPair, read_pairs, write_pairs

PAIR = QaPair("i1", "s1", "Is there an effusion?", "Yes.", "presence", "llm", "Small effusion.", "pleural effusion")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PAIRS = st.builds(
    QaPair,
    TEXT,
    TEXT,
    TEXT,
    TEXT,
    st.sampled_from(TYPES),
    st.sampled_from(["truth", "rules", "llm"]),
    TEXT,
    TEXT,
    st.sampled_from(["", "entailed", "unknown", "rejected"]),
    TEXT,
)


@given(st.lists(PAIRS, max_size=8))
@settings(max_examples=30, deadline=None)
def test_pairs_come_back_as_they_were_written(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("pairs") / "part.parquet"
    assert write_pairs(path, iter(pairs)) == len(pairs)
    assert list(read_pairs(path)) == pairs


def test_a_folder_is_read_in_the_order_of_its_parts_and_as_it_goes(tmp_path):
    write_pairs(tmp_path / "part-00001.parquet", [PAIR])
    write_pairs(
        tmp_path / "part-00000.parquet", itertools.repeat(PAIR.__class__("i0", "s0", "q", "a", "open", "llm"), 20_000)
    )
    (tmp_path / "part-00002.parquet").write_bytes(b"not parquet")
    found = read_pairs(tmp_path)
    assert [p.image_id for p in itertools.islice(found, 20_001)] == ["i0"] * 20_000 + ["i1"]
    with pytest.raises(UserError, match=r"part-00002\.parquet is not a readable parquet file"):
        next(found)


def test_what_holds_no_pairs_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.parquet does not exist"):
        list(read_pairs(tmp_path / "none.parquet"))
    with pytest.raises(UserError, match="holds no pairs"):
        list(read_pairs(tmp_path))
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="lacks the columns of text image_id"):
        list(read_pairs(tmp_path / "other.parquet"))
    write_pairs(tmp_path / "odd.parquet", [QaPair("i", "s", "q", "a", "colour", "llm")])
    with pytest.raises(UserError, match="the type 'colour'"):
        list(read_pairs(tmp_path / "odd.parquet"))


@pytest.mark.parametrize(
    ("pair_type", "answer", "kind"),
    [("location", "Left.", "side"), ("location", "Left lower lobe.", "location"), ("device", "A pacemaker.", "device")],
)
def test_a_pair_becomes_a_question_of_the_task(pair_type, answer, kind):
    question = QaPair("i", "s", "Where?", answer, pair_type, "llm", finding="opacity").as_question()
    assert (question.kind, question.origin, question.finding) == (kind, "llm", "opacity")
