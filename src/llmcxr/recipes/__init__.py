"""Recipes that come with the package, by name; `accelerate/` starts one of them on several processes."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import yaml

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.texts import path_of

FOLDER = Path(__file__).parent
SHIPPED = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe: the user's own by its path, else a shipped one by its name. `UserError` lists those."""
    path = path_of(name)
    if os.path.exists(path) and not (path.is_dir() and name in SHIPPED):
        return path
    if name in SHIPPED:
        return SHIPPED[name]
    close = difflib.get_close_matches(path.stem, SHIPPED, 1)
    raise UserError(
        f"{name} is neither a file nor a shipped recipe{f'; did you mean {close[0]}?' if close else '.'} "
        f"Shipped are {', '.join(SHIPPED)}; `llmcxr recipes` describes them."
    )


def about(name: str) -> str:
    """What a shipped recipe is for, in a line."""
    return yaml.safe_load(SHIPPED[name].read_text(encoding="utf-8"))["about"]
