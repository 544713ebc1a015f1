"""Packed models: what a run trained, small enough to hand on, without the base LLM that everybody can fetch.

A packed folder holds adapters and image rows, image tokenizer and judge in half precision, llmcxr.json, packed.json (all
that `unpack` needs beside them), a model card and SHA256SUMS (`sha256sum -c` reads it). Unpacking merges the adapters into the base
LLM once, into the user's cache; what is used from then on is an ordinary model folder.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmcxr.foundation.artifacts import atomic_path, fingerprint, sha256, write_json
from llmcxr.foundation.assets import cache_folder
from llmcxr.foundation.checkpoints import load_weights
from llmcxr.foundation.errors import UserError
from llmcxr.model.folder import load_info, save_model
from llmcxr.model.patients import seen_patients, write_patients
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_language_model, load_text_tokenizer

_LOG = logging.getLogger(__name__)
_SUMS = "SHA256SUMS"


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in float16. Vectors stay: running variances of batch norms exceed what float16 can hold."""
    return {k: v.half() if v.dtype == torch.float32 and v.ndim > 1 else v for k, v in state.items()}


def _halve(folder: Path, target: Path) -> None:
    """A folder of config.json and model.safetensors, in half precision."""
    target.mkdir(parents=True)
    shutil.copy(folder / "config.json", target / "config.json")
    save_file(halved(load_weights(folder / "model.safetensors")), target / "model.safetensors")


def _files(folder: Path) -> list[Path]:
    """All but the sums themselves, and what file managers leave behind."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _SUMS and not p.name.startswith("."))


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over every other file of `folder`."""
    lines = [f"{sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in _files(folder)]
    with atomic_path(folder / _SUMS) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def _read_sums(folder: Path) -> str:
    try:
        return (folder / _SUMS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / _SUMS} cannot be read ({error}). Fetch the packed model again.") from error


def check_sums(folder: Path) -> None:
    """`UserError` where a file of a packed folder is missing, unknown, or not the one that was packed."""
    lines = [line.split(maxsplit=1) for line in _read_sums(folder).splitlines()]
    sums = {parts[1]: parts[0] for parts in lines if len(parts) == 2}
    names = {p.relative_to(folder).as_posix() for p in _files(folder)}
    for name in sorted(names | set(sums) | {"adapters.safetensors"}):
        path = folder / name
        if name not in sums or not path.is_file() or sha256(path) != sums[name]:
            what = "missing" if not path.exists() else "not part of it" if name not in sums else "damaged"
            raise UserError(
                f"{path} is {what}: the packed model is not the one that {_SUMS} describes. Fetch it again (in a clone: "
                "git checkout, or git lfs pull where it is stored so)."
            )


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
    """Pack the finished run in the folder `run` into `folder`, which must not exist, with the text of its model card.

    Raises `UserError` where adapters were not what was tuned (`method`), or where `folder` is there already.
    """
    if method != "lora":
        raise UserError(
            f"only runs with tuning.method lora can be packed, this one has {method}; hand on its model/ folder."
        )
    if folder.exists():
        raise UserError(f"{folder} is there already. Name another folder, or remove it first.")
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
        rank = next(v.shape[0] for k, v in weights.items() if "lora_A" in k)
        write_json(temporary / "packed.json", {"lora_rank": rank})
        (temporary / "README.md").write_text(card, encoding="utf-8")
        write_sums(temporary)


def is_packed(folder: Path) -> bool:
    """Whether `folder` holds a packed model."""
    return (folder / "packed.json").exists()


def unpack(folder: Path) -> Path:
    """The ordinary model folder of a packed one: from the cache, or made there now (about half a minute, once).

    Raises `UserError` where a file is not the one that was packed, or does not fit the base LLM.
    """
    target = cache_folder() / "models" / f"{folder.name}-{fingerprint(_read_sums(folder))}"
    if (target / "llmcxr.json").exists():
        return target
    check_sums(folder)
    _LOG.info(f"Unpacking {folder.name} into {target}, once: about half a minute ...")
    info, path = load_info(folder), folder / "adapters.safetensors"
    vocabulary = ImageVocabulary.grow(load_text_tokenizer(info.base), info.codebook_size)
    model, state = load_language_model(info.base, torch.bfloat16), load_weights(path)
    rows = next((v for k, v in state.items() if k.endswith(".rows")), None)
    if rows is None or len(rows) != info.codebook_size:
        raise UserError(f"{path} holds no {info.codebook_size} image rows. Fetch the packed model again.")
    grow_language_model(model, vocabulary, rows)
    merge_adapters(model, state, str(path))
    tokenizer, patients = folder / "image_tokenizer", seen_patients(folder)
    save_model(target, model, vocabulary, tokenizer, info, patients, folder / "judge")
    return target
