"""What a finished run is handed on as: a packed model with a card that says how it came about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmcxr.evaluation.model_card import model_card
from llmcxr.foundation.artifacts import read_json
from llmcxr.foundation.devices import core_count
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.yaml_text import read_yaml
from llmcxr.model.calibration import load_calibration
from llmcxr.model.folder import load_info
from llmcxr.model.packed import pack
from llmcxr.pipeline import Run
from llmcxr.tuning.alignment import BATCH, LAYERS


def _tuned_rows(folder: Path, stages: Sequence[str], rank: int) -> list[tuple[str, str]]:
    """(stage, how it was tuned) of finished stages in the folder of a run."""
    rows = []
    for name in stages:
        done = read_json(folder / name / "summary.json")
        tasks = ", ".join(f"{count:,} {task}" for task, count in done["examples"].items())
        rows.append((name, f"LoRA of rank {rank}, {done['tokens']:,} tokens in {done['step']:,} steps ({tasks})"))
    return rows


def rows_before(start: str | None) -> list[tuple[str, str]]:
    """(what, how) of the training before this run: that of the run, or a word on the packed model, that it starts from."""
    if start is None:
        return []
    path = Path(start) / "recipe.yaml"
    name = Path(start).name
    if not path.exists():
        return [("start", f"trains on from the packed model {name}")]
    recipe = read_yaml(path)
    tokenizer, tuning = recipe["image_tokenizer"], recipe["tuning"]
    tuned = _tuned_rows(path.parent, [stage["name"] for stage in tuning["stages"]], tuning["lora_rank"])
    rows = [("image tokenizer", f"{tokenizer['steps']:,} steps of {tokenizer['batch_size']} images"), *tuned]
    return [*rows_before(recipe.get("start")), *((f"{what}, in the run {name} before", how) for what, how in rows)]


def pack_run(run: Run, folder: Path) -> None:
    """Pack the finished run into `folder`. `UserError` where it trained nothing, is not finished, or cannot be packed."""
    recipe, workflow, own = run.recipe, run.workflow, run.context.folder
    if recipe.model is not None:
        raise UserError(
            f"{recipe.name} trains nothing (it measures the model {recipe.model}), so there is nothing to pack."
        )
    if missing := [name for name in ("model", "judge", "evaluation") if not workflow.has(name)]:
        raise UserError(f"{own} has no finished {missing[0]}; `llmcxr run` it first.")
    tuning, tokenizer = recipe.tuning, recipe.image_tokenizer
    hours = {stage.name: workflow.record(stage.name).get("seconds", 0) / 3600 for stage in workflow.stages}
    training = rows_before(recipe.start)
    training.append(("image tokenizer", f"{tokenizer.steps:,} steps of {tokenizer.batch_size} images"))
    if steps := tuning.alignment.steps:
        training.append(("alignment", f"{steps:,} steps of {BATCH} images, {LAYERS} layers"))
    if texts := tuning.language.replay_texts:
        training.append(("replay", f"{texts:,} texts of the base model itself, among the language examples"))
    training += _tuned_rows(own, [stage.name for stage in tuning.stages], tuning.lora_rank)
    took = ", ".join(f"{name} {value:.1f}" for name, value in hours.items() if value >= 0.05)
    training += [("hours", f"{took} ({run.context.device.type}, {core_count()} cores)")] if took else []
    card = model_card(
        folder.name,
        load_info(own / "model"),
        run.context.source.about,
        run.context.source.simulated,
        run.context.studies,
        training,
        read_json(own / "evaluation" / "summary.json"),
        recipe.start is not None,
        load_calibration(own / "model"),
    )
    pack(own, tuning.stages[-1].name, tuning.method, folder, card)
