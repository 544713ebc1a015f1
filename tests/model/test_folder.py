"""What a model folder says of itself."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from llmcxr.foundation.assets import SHIPPED_MODELS
from llmcxr.foundation.errors import UserError
from llmcxr.model.folder import ModelInfo, load_info
from llmcxr.studies.geometry import Geometry


def test_geometry_travels_with_the_model(tmp_path):
    for geometry in (Geometry(), Geometry("pad", cut_borders=True)):
        info = ModelInfo("llm", 16, 2, 192, "", "chat", None, ("nodule",), "impression", "0.1", geometry=geometry)
        values = asdict(info)
        (tmp_path / "llmcxr.json").write_text(json.dumps(values))
        assert load_info(tmp_path) == info
    del values["geometry"]  # models from before it was a choice
    (tmp_path / "llmcxr.json").write_text(json.dumps(values))
    assert load_info(tmp_path).geometry == load_info(SHIPPED_MODELS / "phantom").geometry == Geometry()
    (tmp_path / "llmcxr.json").write_text(json.dumps(values | {"geometry": {"square": "round"}}))
    with pytest.raises(UserError, match=r"llmcxr\.json, geometry.*(?s:.*)square"):
        load_info(tmp_path)
