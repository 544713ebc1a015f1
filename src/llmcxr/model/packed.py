"""Packed models: what a run trained, small enough to hand on, without the base LLM that everybody can fetch.

A packed folder holds adapters and image rows, image tokenizer and judge in half precision, llmcxr.json, packed.json (all
that `unpack` needs beside them), calibration.json and outside.json where there are some, a model card and SHA256SUMS
(`sha256sum -c` reads it). Unpacking merges the adapters into the base LLM once, into the user's cache; what is used from then on
is an ordinary model folder.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmcxr.foundation.artifacts import atomic_path, check_new_folder, fingerprint, read_json, write_json
from llmcxr.foundation.checkpoints import load_weights
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Range, Settings, build_settings
from llmcxr.model.calibration import load_calibration, save_calibration
from llmcxr.model.folder import load_info, save_model
from llmcxr.model.outside import read_limits, write_limits
from llmcxr.model.patients import seen_patients, write_patients
from llmcxr.model.sums import SUMS, check_sums, read_sums, remedy, unpacked_models, write_sums
from llmcxr.vocabulary.growing import grow_language_model, table_of
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_language_model, load_text_tokenizer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedInfo(Settings):
    """packed.json."""

    lora_rank: Annotated[int, Range(1, 4096)]


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in float16. Vectors stay: running variances of batch norms exceed what float16 can hold."""
    return {k: v.half() if v.dtype == torch.float32 and v.ndim > 1 else v for k, v in state.items()}


def _halve(folder: Path, target: Path) -> None:
    """A folder of config.json and model.safetensors, in half precision."""
    target.mkdir(parents=True)
    shutil.copy(folder / "config.json", target / "config.json")
    save_file(halved(load_weights(folder / "model.safetensors")), target / "model.safetensors")


def merge_adapters(model: PreTrainedModel, state: dict[str, Tensor], origin: str) -> None:
    """Add low-rank adapters (scale 1) to the weights of `model`, in place, as PEFT's `merge_and_unload` does, bit for bit.

    `state` maps PEFT's names to `lora_A` [r, in] and `lora_B` [out, r]. `UserError` (naming `origin`) where one has no place.
    """
    for name, down in state.items():
        if not name.endswith(".lora_A.default.weight"):
            continue
        stem = name.removesuffix(".lora_A.default.weight")
        up = state.get(f"{stem}.lora_B.default.weight")
        try:
            module = model.get_submodule(stem)
            if up is None:
                raise AttributeError(f"no lora_B of {stem}")
            delta = (up.float() @ down.float()).to(up.dtype)
            weight = cast(Tensor, module.weight)
            weight.data += delta.T if isinstance(module, Conv1D) else delta
        except (AttributeError, RuntimeError) as error:
            raise UserError(f"{origin} does not fit its base LLM: {error}") from error


def pack(run: Path, last_stage: str, method: str, folder: Path, card: str) -> None:
    """Pack the finished run in the folder `run` into `folder`, which must be empty or not exist, with the text of its model card.

    Raises `UserError` where adapters were not what was tuned (`method`), or where `folder` holds anything.
    """
    if method != "lora":
        raise UserError(
            f"only runs with tuning.method lora can be packed, this one has {method}; hand on its model/ folder."
        )
    check_new_folder(folder)
    info = load_info(run / "model")
    with atomic_path(folder) as temporary:
        _halve(run / "image_tokenizer", temporary / "image_tokenizer")
        _halve(run / "judge", temporary / "judge")
        weights = load_weights(run / last_stage / "weights.safetensors")
        save_file({k: v.to(torch.bfloat16) for k, v in weights.items()}, temporary / "adapters.safetensors")
        own = fingerprint(temporary / "image_tokenizer" / "model.safetensors")
        write_json(temporary / "llmcxr.json", dataclasses.asdict(dataclasses.replace(info, image_tokenizer=own)))
        if (patients := seen_patients(run / "model")) is not None:
            write_patients(temporary, patients)
        if (calibration := load_calibration(run / "model")) is not None:
            save_calibration(temporary, calibration)
        if (limits := read_limits(run / "model")) is not None:
            write_limits(temporary, limits)
        rank = next(v.shape[0] for k, v in weights.items() if "lora_A" in k)
        write_json(temporary / "packed.json", {"lora_rank": rank})
        (temporary / "README.md").write_text(card, encoding="utf-8")
        write_sums(temporary)


def is_packed(folder: Path) -> bool:
    """Whether `folder` holds a packed model."""
    return os.path.isfile(folder / "packed.json")


def unpack(folder: Path) -> Path:
    """The ordinary model folder of a packed one: from the cache, or made there now (about half a minute, once).

    Raises `UserError` where a file is not the one that was packed, or does not fit the base LLM. A base LLM of the hub
    is looked for in the hub's cache only.
    """
    target = unpacked_models() / f"{folder.name}-{fingerprint(read_sums(folder))}"
    if (target / SUMS).exists():
        return target
    check_sums(folder)
    _LOG.info(f"Unpacking {folder.name} into {target}, once: about half a minute ...")
    info, path = load_info(folder), folder / "adapters.safetensors"
    packed = build_settings(PackedInfo, read_json(folder / "packed.json"), str(folder / "packed.json"))
    try:
        tokenizer, model = load_text_tokenizer(info.base, False), load_language_model(info.base, torch.bfloat16, False)
    except UserError as error:
        raise UserError(f"{folder} is packed without its base LLM, which it needs. {error}") from error
    vocabulary, state = ImageVocabulary.grow(tokenizer, info.codebook_size), load_weights(path)
    rows = next((v for k, v in state.items() if k.endswith(".rows")), None)
    if rows is None or rows.shape != (info.codebook_size, table_of(model).shape[1]):
        raise UserError(f"{path} holds no {info.codebook_size} image rows as wide as {info.base}. {remedy(folder)}")
    if ranks := {v.shape[0] for k, v in state.items() if ".lora_A." in k} - {packed.lora_rank}:
        raise UserError(
            f"{path} holds adapters of rank {min(ranks)}, not {packed.lora_rank} as packed.json says. {remedy(folder)}"
        )
    grow_language_model(model, vocabulary, rows)
    merge_adapters(model, state, str(path))
    tokenizer_folder, judge = folder / "image_tokenizer", folder / "judge"
    notes = load_calibration(folder), read_limits(folder)
    save_model(target, model, vocabulary, tokenizer_folder, info, seen_patients(folder), judge, *notes)
    return target
