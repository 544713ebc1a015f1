"""What a run says of its codebook."""

from __future__ import annotations

from llmcxr.foundation.artifacts import write_json
from llmcxr.stages.image_tokens import codebook_in_training


def test_the_end_of_training_is_said(tmp_path):
    assert codebook_in_training(tmp_path) == ""  # a tokenizer that was given has no curve
    write_json(tmp_path / "curves.json", [{"step": 0, "l1": 0.5}])  # of an earlier version
    assert codebook_in_training(tmp_path) == ""
    ends = [{"codebook_use": use, "perplexity": 812.4, "restarts": 1234.0} for use in (0.1, 0.9876)]
    write_json(tmp_path / "curves.json", ends)
    assert codebook_in_training(tmp_path) == "98.8% in use, perplexity 812, 1,234 restarts"
