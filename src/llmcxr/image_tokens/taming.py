"""Files of taming-transformers' VQ-GAN: a `.ckpt` with its `.yaml`, to an `ImageTokenizer` and back.

So are the paper's own VQ-GAN, UniXGen's, and those that TorchXRayVision publishes (baseline_models.ieee8023):

    model:
      target: taming.models.vqgan.VQModel
      params:
        embed_dim: 256
        n_embed: 1024
        ddconfig: {double_z: false, z_channels: 256, resolution: 256, in_channels: 3, out_ch: 3, ch: 128,
                   ch_mult: [1, 1, 2, 2, 4], num_res_blocks: 2, attn_resolutions: [16], dropout: 0.0}

taming's known slip (`legacy`: the weight 0.25 stands at the codebook's half of the loss, not at the encoder's) touches training
only; image_tokenizer.commitment_weight: 1 trains on as they did.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import yaml
from torch import Tensor

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.checkpoints import load_foreign, load_weights
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import SettingsError, build_settings
from llmcxr.foundation.yaml_text import read_yaml
from llmcxr.image_tokens.settings import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer

# taming's names of modules, and ours.
_NAMES = {
    "encoder.": "encoder.stem.",
    "quant_conv.": "encoder.layers.",
    "post_quant_conv.": "decoder.expand.",
    "decoder.": "decoder.trunk.",
}
_CODEBOOK = "quantize.embedding.weight"
# What a layout must say where it says it: other values are other networks.
_FIXED = {
    "double_z": False,
    "resamp_with_conv": True,
    "give_pre_end": False,
    "tanh_out": False,
    "attn_type": "vanilla",
    "use_linear_attn": False,
}
_NEEDED = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "in_channels", "out_ch", "resolution", "z_channels")
# Our settings, and where the file says them.
_KEYS = {
    "image_size": "ddconfig.resolution",
    "channels": "ddconfig.ch_mult",
    "codebook_size": "n_embed",
    "code_dim": "embed_dim",
    "blocks": "ddconfig.num_res_blocks",
    "attention": "ddconfig.attn_resolutions",
    "z_channels": "ddconfig.z_channels",
    "image_channels": "ddconfig.in_channels",
}


def import_taming(weights: Path, config: Path | None = None) -> ImageTokenizer:
    """The tokenizer of a checkpoint (`.ckpt`, `.pt` or `.safetensors`) and its configuration (`.yaml`).

    Without `config`, the one YAML file beside the checkpoint. `UserError` says what else the files hold, or which weights are
    missing or of another shape.
    """
    if not weights.is_file():
        raise UserError(f"{weights} is no file. Give the checkpoint (.ckpt, .pt or .safetensors).")
    config = _beside(weights) if config is None else config
    state = _state(weights)
    architecture = _architecture(config)
    tokenizer = ImageTokenizer(architecture)
    wanted = tokenizer.state_dict()
    found = {_own_name(name): tensor.float() for name, tensor in state.items()}
    e = found.pop("quantizer._codebook.embed")
    # As if each code had been met as often as the others in a step of 16 images.
    count = torch.full((1, len(e)), 16 * architecture.grid**2 / len(e))
    found |= {
        "quantizer._codebook.initted": torch.tensor(True),
        "quantizer._codebook.cluster_size": count,
        "quantizer._codebook.embed_avg": e[None] * count[..., None],
        "quantizer._codebook.embed": e[None],
    }
    faults = [f"{_taming_name(name)} is missing" for name in wanted if name not in found]
    faults += [f"{_taming_name(name)} is of no part of that network" for name in found if name not in wanted]
    faults += [
        f"{_taming_name(name)} is of {list(found[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if faults:
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise UserError(
            f"{weights} is not of the layout that {config} describes: {'; '.join(faults[:5])}{more}. Give the file that belongs to it."
        )
    tokenizer.load_state_dict(found)
    return tokenizer.eval().requires_grad_(False)


def export_taming(tokenizer: ImageTokenizer, path: Path) -> None:
    """Write the checkpoint `path` (`{"state_dict": ...}`) and, beside it, its configuration (`.yaml`), as taming reads them.

    `UserError` where taming has no such network: another kind, cosine codes, or a clinical network inside.
    """
    a = tokenizer.architecture
    for fault, what in (
        (a.kind != "vqgan", f"is of the kind {a.kind}"),
        (a.clinical_input, "has a clinical network inside"),
        (a.codebook != "euclidean", "compares codes by angle"),
        (any(c % a.channels[0] for c in a.channels), f"has widths {a.channels} that are no multiples of the first"),
    ):
        if fault:
            raise UserError(f"this image tokenizer {what}, which taming-transformers' layout has not.")
    names = {name: _taming_name(name) for name in tokenizer.state_dict() if "_codebook" not in name}
    state = {taming: tokenizer.state_dict()[name].cpu().contiguous() for name, taming in names.items()}
    state[_CODEBOOK] = tokenizer.codebook.cpu().contiguous()
    layout = {
        "double_z": False,
        "z_channels": a.z_channels,
        "resolution": a.image_size,
        "in_channels": a.image_channels,
        "out_ch": a.image_channels,
        "ch": a.channels[0],
        "ch_mult": [c // a.channels[0] for c in a.channels],
        "num_res_blocks": a.blocks,
        "attn_resolutions": list(a.attention),
        "dropout": 0.0,
    }
    params = {"embed_dim": a.code_dim, "n_embed": a.codebook_size, "ddconfig": layout}
    with atomic_path(path) as temporary:
        torch.save({"state_dict": state}, temporary)
    with atomic_path(path.with_suffix(".yaml")) as temporary:
        described = {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}
        temporary.write_text(yaml.safe_dump(described, sort_keys=False))


def _own_name(name: str) -> str:
    if name == _CODEBOOK:
        return "quantizer._codebook.embed"
    return next((own + name.removeprefix(taming) for taming, own in _NAMES.items() if name.startswith(taming)), name)


def _taming_name(name: str) -> str:
    if name.startswith("quantizer._codebook."):
        return _CODEBOOK
    return next((taming + name.removeprefix(own) for taming, own in _NAMES.items() if name.startswith(own)), name)


def _beside(weights: Path) -> Path:
    """The configuration in the same folder."""
    found = [p for p in (weights.with_suffix(".yaml"), weights.with_suffix(".yml")) if p.is_file()] or sorted(
        p for p in weights.parent.glob("*") if p.suffix in (".yaml", ".yml")
    )
    if len(found) != 1:
        what = (
            "no configuration (.yaml)"
            if not found
            else f"{len(found)} configurations ({', '.join(p.name for p in found)})"
        )
        raise UserError(
            f"{what} beside {weights}. Give the one of this checkpoint: it says how the network is laid out."
        )
    return found[0]


def _architecture(path: Path) -> ArchitectureSettings:
    """The layout that a taming configuration describes. `UserError` where it describes another network."""
    whole = read_yaml(path)
    model = whole.get("model") if isinstance(whole, dict) else None
    params = model.get("params") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(params, dict):
        raise UserError(f"{path} is no configuration of taming-transformers: it has no model.params.")
    target = str(model.get("target", "without a target"))
    stages = [
        key for key in ("first_stage_config", "unet_config", "transformer_config", "cond_stage_config") if key in params
    ]
    if stages:
        raise UserError(
            f"{path} describes {target} ({', '.join(stages)}): a diffusion model or transformer over an autoencoder, not a VQ-GAN. "
            "Give the configuration and checkpoint of its first stage."
        )
    layout = params.get("ddconfig")
    if "Gumbel" in target or not isinstance(layout, dict) or not {"n_embed", "embed_dim"} <= params.keys():
        raise UserError(f"{path} describes {target}, not a VQ-GAN: a VQModel has n_embed, embed_dim and ddconfig.")
    faults = [f"{key} is missing" for key in _NEEDED if key not in layout]
    faults += [f"{key}: {layout[key]}, not {value}" for key, value in _FIXED.items() if layout.get(key, value) != value]
    if not faults:
        if layout["in_channels"] != layout["out_ch"]:
            faults.append(f"in_channels: {layout['in_channels']}, but out_ch: {layout['out_ch']}")
        if not isinstance(layout["ch_mult"], list) or layout["ch_mult"][:1] != [1]:
            faults.append(f"ch_mult: {layout['ch_mult']} does not begin with 1")
    if faults:
        raise UserError(f"{path}: model.params.ddconfig is of another network than VQ-GAN's: {'; '.join(faults)}.")
    ch, multiples = layout["ch"], layout["ch_mult"]
    numbers = [isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (ch, *multiples)]
    if not all(numbers):
        raise UserError(
            f"{path}: ddconfig.ch and ddconfig.ch_mult should be whole numbers above 0, are {ch} and {multiples}."
        )
    values = {own: (params | layout)[key.removeprefix("ddconfig.")] for own, key in _KEYS.items()}
    values["channels"] = [ch * m for m in multiples]
    try:
        return build_settings(ArchitectureSettings, values | {"kind": "vqgan", "codebook": "euclidean"}, str(path))
    except SettingsError as error:
        raise SettingsError(str(path), [_in_its_words(fault) for fault in error.faults]) from error


def _in_its_words(fault: str) -> str:
    """A fault of our settings as one of the file's keys: each begins with the name of a setting, and may mention others."""
    name, said = re.fullmatch(r"(\w+)(.*)", fault, re.DOTALL).groups()  # type: ignore[union-attr]
    said = re.sub(r"\b(image_size|channels)\b", lambda own: _KEYS[own[0]], said)
    what = " (the widths ddconfig.ch x ddconfig.ch_mult)" if name == "channels" else ""
    return f"{_KEYS.get(name, name)}{said}{what}"


def _state(path: Path) -> dict[str, Tensor]:
    """The autoencoder's tensors under taming's names; those of its loss are left out. `UserError` for another model's."""
    loaded = load_weights(path) if path.suffix == ".safetensors" else load_foreign(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    state = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    if not state:
        raise UserError(f"{path} holds no weights: no state_dict, and no tensors by name.")
    other = {
        "model.diffusion_model.": "a diffusion model",
        "transformer.": "a transformer over codes",
        "quantize.embed.": "a VQ-GAN with Gumbel quantisation",
    }
    for start, what in other.items():
        if any(name.startswith(start) for name in state):
            raise UserError(
                f"{path} is {what} ({start}...), not a VQ-GAN. Give the checkpoint of the autoencoder alone."
            )
    ends = [name for name in state if name == _CODEBOOK or name.endswith("." + _CODEBOOK)]
    if len(ends) != 1:
        some = ", ".join(list(state)[:3])
        raise UserError(f"{path} is no VQ-GAN of taming-transformers: it has no {_CODEBOOK} (but {some}, ...).")
    prefix = ends[0].removesuffix(_CODEBOOK)  # of a module around it
    parts = (*_NAMES, _CODEBOOK)
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {k: v for k, v in own.items() if k.startswith(parts)}
