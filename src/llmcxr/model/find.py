"""Models by name: a shipped one, the folder of a run, of a model, of a packed model, or a repository of the Hugging Face hub.

The one place that knows what a name means: for use and for measuring (`find_model`), and to train on from (`find_start`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llmcxr.foundation.assets import SHIPPED_MODELS
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.hub import from_hub, is_hub_id
from llmcxr.foundation.texts import path_of
from llmcxr.foundation.yaml_text import read_yaml
from llmcxr.model.folder import ModelInfo, load_info
from llmcxr.model.packed import is_packed, unpack
from llmcxr.model.sums import check_sums


def shipped_models() -> list[str]:
    """Names of the packed models that come with the package."""
    return sorted(p.name for p in SHIPPED_MODELS.glob("*") if is_packed(p))


def _locate(name: str | Path) -> Path:
    """The folder that `name` means: of a run, a model, or a packed model. `UserError` where it is none of them.

    The name of a shipped model always means that one; a folder of the same name is given as ./NAME.
    """
    folder = SHIPPED_MODELS / str(name) if name in shipped_models() else path_of(name)
    if is_hub_id(name, folder):
        folder = from_hub(str(name))
    if is_packed(folder) or any(os.path.exists(folder / place) for place in ("llmcxr.json", "model/llmcxr.json")):
        return folder
    what = "holds no model (no llmcxr.json)" if os.path.isdir(folder) else "is no folder"
    raise UserError(
        f"there is no model {str(name)!r}: it {what}. Give the folder of a finished run, of its model/, or of a packed model, "
        f"the id of a hub repository, or the name of a shipped model ({', '.join(shipped_models())})."
    )


def find_model(name: str | Path) -> Path:
    """The model folder that `name` means, unpacked where it is packed. `UserError` where there is no model."""
    folder = _locate(name)
    if is_packed(folder):
        return unpack(folder)
    return folder / "model" if (folder / "model" / "llmcxr.json").exists() else folder


@dataclass(frozen=True)
class Start:
    """Where training begins that goes on from a model: its adapters and image rows, image tokenizer, and what it is."""

    folder: Path  # of the model, packed or not
    weights: Path
    image_tokenizer: Path
    info: ModelInfo


def find_start(name: str | Path) -> Start:
    """What `name` holds to train on from: a packed model or a finished run.

    Raises `UserError` where it is neither, or where a packed model's file is not the one that was packed.
    """
    folder = _locate(name)
    if is_packed(folder):
        check_sums(folder)
        return Start(folder, folder / "adapters.safetensors", folder / "image_tokenizer", load_info(folder))
    model = folder / "model"
    if not (folder / "recipe.yaml").exists() or not (model / "llmcxr.json").exists():
        raise UserError(
            f"start: {str(name)!r} holds a merged model, which has no adapters to train on. Give the folder of a finished run, or "
            "of a packed model."
        )
    recipe = read_yaml(folder / "recipe.yaml")
    try:
        weights = folder / recipe["tuning"]["stages"][-1]["name"] / "weights.safetensors"
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"start: {folder / 'recipe.yaml'} names no stage of tuning. Give a finished run.") from error
    if not weights.is_file():
        raise UserError(f"start: {weights} does not exist. Finish that run first, or give another.")
    return Start(model, weights, folder / "image_tokenizer", load_info(model))
