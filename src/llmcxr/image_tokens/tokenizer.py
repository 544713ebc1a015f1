"""ImageTokenizer: radiographs to a grid of codes and back (paper, section 2.1: frozen once trained).

Shapes: B images, S side in pixels, g side of the code grid, K codes in the codebook, D dimension of a code vector.
Pixels: float [B, 1, S, S] in [-1, 1], bone white. Codes: int64 [B, g, g] in [0, K).
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from llmcxr.foundation.artifacts import atomic_path, fingerprint, read_json, write_json
from llmcxr.foundation.checkpoints import load_state
from llmcxr.foundation.devices import autocast, place_network
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.hub import from_hub, is_hub_id, to_hub
from llmcxr.foundation.settings import build_settings
from llmcxr.foundation.texts import path_of
from llmcxr.image_tokens.architecture import ImageEncoder, build_decoder
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.image_tokens.settings import ArchitectureSettings

_ROUNDED = 1 + 1e-3  # the range of pixels, and what resampling in half precision makes of its ends


def located(name: str | Path) -> Path:
    """The folder of an image tokenizer: `name` itself, or the hub's repository of that name. `UserError` where there is none."""
    folder = path_of(name)
    if is_hub_id(name, folder):
        return from_hub(str(name))
    if not folder.is_dir():
        raise UserError(
            f"the image tokenizer {name} does not exist. `llmcxr import tokenizer` makes one of published weights."
        )
    return folder


def architecture_of(name: str | Path) -> ArchitectureSettings:
    """Sizes of the image tokenizer `name` (a folder, or the id of a hub repository). `UserError` where there is none."""
    return _described(located(name))[0]


def _described(folder: Path) -> tuple[ArchitectureSettings, dict[str, Any]]:
    """The sizes in a tokenizer's config.json, and all of it. `UserError` where it is of none that can be read."""
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), dict):
        raise UserError(f"{folder} is not an image tokenizer: its config.json has no architecture.")
    given = dict(config["architecture"])
    if given.get("kind", "convolutional") == "convolutional":
        raise UserError(
            f"{path}: the kind convolutional is not read any more: vqgan, the paper's own layout, has taken its place. Train it anew."
        )
    given.pop("stem_stride", None)  # of that kind
    if given.pop("mixers", 3) != 3 and given["kind"] == "mixer":
        raise UserError(f"{path}: mixers other than 3 is not read any more. Train it anew.")
    return build_settings(ArchitectureSettings, given, str(path)), config


class Codebook(nn.Module):
    """Code vectors [1, K, D] (of unit length with cosine), with the counts and sums of which training made them.

    The names are those of VectorQuantize, which takes this place in training.
    """

    embed: Tensor

    def __init__(self, a: ArchitectureSettings) -> None:
        super().__init__()
        shape = (1, a.codebook_size, a.code_dim)
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("cluster_size", torch.ones(shape[:2]))
        self.register_buffer("embed_avg", torch.zeros(shape))
        self.register_buffer("embed", torch.zeros(shape))


class Quantizer(nn.Module):
    """Where the codebook is."""

    def __init__(self, a: ArchitectureSettings) -> None:
        super().__init__()
        self._codebook = Codebook(a)

    @property
    def codebook(self) -> Tensor:
        """Code vectors [K, D]."""
        return self._codebook.embed[0]


class ImageTokenizer(nn.Module):
    """VQ-GAN encoder, codebook and decoder: an `ImageCodec`.

    With `architecture.clinical_input`, the frozen clinical network is a part of it: the encoder sees its features.
    """

    def __init__(self, architecture: ArchitectureSettings, clinical: ClinicalFeatures | None = None) -> None:
        super().__init__()
        if architecture.clinical_input != (clinical is not None):
            raise ValueError("a clinical network goes with architecture.clinical_input, and with nothing else")
        self.architecture = architecture
        self.clinical = None if clinical is None else clinical.eval().requires_grad_(False)
        self.encoder = ImageEncoder(architecture)
        self.decoder = build_decoder(architecture)
        self.quantizer: nn.Module = Quantizer(architecture)
        self.fingerprint = ""  # of the weights on disk; set by save_pretrained and from_pretrained

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.architecture.image_size

    @property
    def grid(self) -> int:
        """Codes along one side."""
        return self.architecture.grid

    @property
    def codebook(self) -> Tensor:
        """Code vectors [K, D]."""
        return cast(Tensor, self.quantizer.codebook)

    def train(self, mode: bool = True) -> ImageTokenizer:
        """The clinical network stays in evaluation mode."""
        super().train(mode)
        if self.clinical is not None:
            self.clinical.eval()
        return self

    def encoded(self, images: Tensor, last_map: Tensor | None = None) -> Tensor:
        """[B, 1, S, S] -> what is quantized, [B, D, g, g].

        `last_map` is the clinical network's last feature map of the images, where it is known already.
        """
        if self.clinical is None:
            return self.encoder(images)
        if last_map is None:
            with torch.no_grad():
                last_map = self.clinical.feature_maps(images)[0][-1]
        return self.encoder(images, F.relu(last_map))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 1, S, S] in [-1, 1] -> codes [B, g, g]. ValueError for another shape, or pixels outside that range or NaN."""
        S = self.architecture.image_size
        if images.shape[1:] != (1, S, S):
            raise ValueError(f"images should be [B, 1, {S}, {S}], are {list(images.shape)}")
        low, high = (x.item() for x in images.aminmax()) if len(images) else (0.0, 0.0)
        if not -_ROUNDED <= low <= high <= _ROUNDED:  # NaN is in no order
            raise ValueError(
                f"pixels should be in [-1, 1], -1 black and 1 white; these are from {low:g} to {high:g}. "
                "Of bytes x that is x / 127.5 - 1."
            )
        with autocast(images.device):
            z = self.encoded(images.contiguous(memory_format=torch.channels_last))
        z = z.float().permute(0, 2, 3, 1)
        return self._nearest(z.reshape(-1, z.shape[-1])).reshape(z.shape[:3])

    def _nearest(self, z: Tensor) -> Tensor:
        """For vectors [N, D] the codes [N], in the terms of those who trained them, so that ties of rounding go the same way."""
        if self.architecture.codebook == "cosine":  # as VectorQuantize
            z = F.normalize(z, dim=-1, eps=1e-6)
            return torch.einsum("hnd,hcd->hnc", z[None], self.codebook[None]).argmax(-1)[0]
        e = self.codebook  # as taming
        return (z.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * (z @ e.T)).argmin(1)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, g, g] -> images float32 [B, 1, S, S] in [-1, 1]. ValueError for a code outside the codebook."""
        g, K = self.grid, self.architecture.codebook_size
        if codes.shape[1:] != (g, g) or codes.min() < 0 or codes.max() >= K:
            raise ValueError(
                f"codes should be [B, {g}, {g}] in [0, {K}), are {list(codes.shape)} up to {int(codes.max())}"
            )
        z = self.codebook[codes.long()].permute(0, 3, 1, 2)
        with autocast(codes.device):
            images = self.decoder(z.contiguous(memory_format=torch.channels_last))
        return images.float().clamp(-1, 1)

    def take_weights(self, other: ImageTokenizer) -> None:
        """Encoder, code vectors and decoder of `other`. `UserError` where its architecture is another."""
        if self.architecture != other.architecture:
            own, given = asdict(self.architecture), asdict(other.architecture)
            wrong = [f"{k} ({given[k]}, not {own[k]})" for k in own if own[k] != given[k]]
            raise UserError(
                f"the image tokenizer to start from has another architecture: {', '.join(wrong)}. Make them the same, or start anew."
            )
        for name in ("encoder", "quantizer", "decoder"):
            getattr(self, name).load_state_dict(getattr(other, name).state_dict())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into `folder`."""
        folder = Path(folder)
        with atomic_path(folder / "model.safetensors") as temporary:
            save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, temporary)
        clinical = None if self.clinical is None else self.clinical.config
        write_json(folder / "config.json", {"architecture": asdict(self.architecture), "clinical": clinical})
        self.fingerprint = fingerprint(folder / "model.safetensors")

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Write config.json and model.safetensors into the Hugging Face repository `name` (OWNER/NAME); its address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return to_hub(Path(folder), name, private)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ImageTokenizer:
        """Read what `save_pretrained` wrote, or a repository of the hub by its id: frozen, evaluation mode. `UserError` where
        the folder does not fit."""
        folder = located(folder)
        architecture, config = _described(folder)
        clinical = None
        if architecture.clinical_input:
            origin = f"{folder / 'config.json'}: `clinical`, the clinical network that its encoder needs,"
            clinical = ClinicalFeatures.from_config(config.get("clinical"), origin)
        tokenizer = cls(architecture, clinical)
        path = folder / "model.safetensors"
        load_state(tokenizer, path)
        tokenizer.fingerprint = fingerprint(path)
        place_network(tokenizer, torch.device("cpu"))
        return tokenizer.eval().requires_grad_(False)
