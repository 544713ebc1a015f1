"""A Dinov2 in the place of the clinical network: RAD-DINO (Perez-Garcia et al., 2024; microsoft/rad-dino) and its like.

A folder or hub repository as transformers writes it: config.json (model_type dinov2), model.safetensors and
preprocessor_config.json. It was trained without labels: it has features, and no findings.

Shapes: B images, S side of the image in pixels, C width, s side of the grid of patches.
Pixels: [B, 1, S, S] in [-1, 1], bone white; the network's own range and mean are those of its preprocessor_config.json.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from llmcxr.foundation.artifacts import read_json, write_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Range, Settings, build_settings

if TYPE_CHECKING:
    from transformers import Dinov2Model

_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Preprocessing(Settings):
    """Of preprocessor_config.json, what grey square images need."""

    side: Annotated[int, Range(14, 4096)] = 518  # pixels; RAD-DINO's, as are the next two
    mean: list[float] = (0.5307, 0.5307, 0.5307)  # type: ignore[assignment]  # of pixels in [0, 1], for each channel
    deviation: list[Annotated[float, Range(1e-6, 1e6)]] = (0.2583, 0.2583, 0.2583)  # type: ignore[assignment]

    def faults(self) -> list[str]:
        """Other numbers of channels."""
        return [] if len(self.mean) == len(self.deviation) == 3 else ["mean, deviation: should be of three channels"]


def is_dinov2(folder: Path) -> bool:
    """Whether `folder` describes a Dinov2."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    return isinstance(config, dict) and config.get("model_type") == "dinov2"


class Dinov2Features(nn.Module):
    """A frozen Dinov2 that gives maps and pooled features as `ClinicalFeatures` does."""

    findings: tuple[str, ...] = ()

    def __init__(self, network: Dinov2Model, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing

    def feature_maps(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The patches' tokens after each quarter of the layers ([B, C, s, s] each) and the pooled CLS token [B, C]."""
        p = self.preprocessing
        x, size = (images.float() + 1) / 2, (p.side, p.side)
        x = F.interpolate(x, size=size, mode="bicubic", antialias=x.shape[-1] > p.side).clamp(0, 1)
        mean, deviation = (x.new_tensor(list(v)).view(1, 3, 1, 1) for v in (p.mean, p.deviation))
        seen = self.network((x - mean) / deviation, output_hidden_states=True)
        states = seen.hidden_states  # before the first layer, and after each
        last = len(states) - 1
        quarters = [states[max(1, round(last * k / 4))][:, 1:] for k in (1, 2, 3, 4)]
        s = math.isqrt(quarters[0].shape[1])
        return [t.transpose(1, 2).unflatten(2, (s, s)) for t in quarters], seen.pooler_output

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors and preprocessor_config.json, as `load` and transformers read them."""
        p = self.preprocessing
        self.network.save_pretrained(folder)
        side = {"height": p.side, "width": p.side}
        said = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": p.side}, "crop_size": side}
        write_json(folder / _PREPROCESSOR, said | {"image_mean": list(p.mean), "image_std": list(p.deviation)})

    @classmethod
    def load(cls, folder: Path) -> Dinov2Features:
        """Frozen, in evaluation mode. `UserError` where a file is missing, cannot be read, or does not fit the others."""
        from transformers import Dinov2Model

        missing = [name for name in ("model.safetensors", _PREPROCESSOR) if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder} lacks {' and '.join(missing)}. Fetch the whole repository once (`hf download NAME --local-dir FOLDER`); weights in "
                "other formats are not read."
            )
        preprocessing = _preprocessing(folder / _PREPROCESSOR)
        try:
            read: Any = Dinov2Model.from_pretrained
            network, about = read(folder, use_safetensors=True, local_files_only=True, output_loading_info=True)
        except Exception as error:  # transformers, safetensors and torch raise many kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder} does not hold a Dinov2 that can be read: {reason} Fetch it again.") from error
        wrong = sorted(map(str, [*about["missing_keys"], *about["mismatched_keys"]]))
        if wrong:
            raise UserError(
                f"{folder / 'model.safetensors'} does not fit its config.json: {len(wrong)} weights are missing or of another shape, e.g. "
                f"{wrong[0]}. Fetch it again."
            )
        return cls(network, preprocessing).eval().requires_grad_(False)

    @classmethod
    def untrained(cls) -> Dinov2Features:
        """Of RAD-DINO's sizes (ViT-B/14 at 518 px), with random weights, to measure what it takes."""
        from transformers import Dinov2Config, Dinov2Model

        return (
            cls(Dinov2Model(Dinov2Config(image_size=518, patch_size=14)), Preprocessing()).eval().requires_grad_(False)
        )


def _preprocessing(path: Path) -> Preprocessing:
    """The side to which it crops (images here are square, and are resized to it whole), and mean and deviation of pixels."""
    said: Any = read_json(path)
    said = said if isinstance(said, dict) else {}
    sizes = [said.get(key) for key in ("crop_size", "size")]
    sides = [s.get(k) for s in sizes if isinstance(s, dict) for k in ("height", "shortest_edge") if k in s]
    values = {"side": sides[0] if sides else None, "mean": said.get("image_mean"), "deviation": said.get("image_std")}
    return build_settings(
        Preprocessing, values, f"{path} (crop_size or size as side, image_mean, image_std as deviation)"
    )
