"""What a radiologist would look at, as a network sees it: TorchXRayVision's DenseNet (training it: classifier.py).

Paper, section 2.1: the 1024-d features of a TorchXRayVision DenseNet must survive tokenisation.

Shapes: B images, F findings, S side of the image in pixels, C channels.
Pixels: [B, 1, S, S] in [-1, 1], bone white; TorchXRayVision itself expects [-1024, 1024], the change is made here only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from llmcxr.foundation.artifacts import atomic_path, read_json, write_json
from llmcxr.foundation.checkpoints import load_state, load_weights
from llmcxr.foundation.devices import autocast
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.hub import from_hub, is_hub_id
from llmcxr.foundation.optional import AskedBy, require
from llmcxr.foundation.settings import Range, Settings, build_settings
from llmcxr.image_tokens.dinov2 import Dinov2Features, is_dinov2
from llmcxr.image_tokens.settings import CLINICAL_WEIGHTS


class _DenseLayer(nn.Sequential):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)


class DenseNet(nn.Module):
    """DenseNet-121 (Huang et al., 2017) on one channel, with the names of TorchXRayVision's and torchvision's weights.

    Our own: torchvision's begins with three channels, and either import costs as much as all that using a model needs.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        width, growth = 64, 32
        self.features = nn.Sequential()
        self.features.conv0 = nn.Conv2d(1, width, 7, stride=2, padding=3, bias=False)
        self.features.norm0, self.features.relu0 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.features.pool0 = nn.MaxPool2d(3, stride=2, padding=1)
        for number, depth in enumerate((6, 12, 24, 16), 1):
            block = nn.Sequential()
            for k in range(depth):
                block.add_module(f"denselayer{k + 1}", _DenseLayer(width + k * growth, growth))
            self.features.add_module(f"denseblock{number}", block)
            width += depth * growth
            if number < 4:
                transition = nn.Sequential()
                transition.norm, transition.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
                transition.conv, transition.pool = nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)
                self.features.add_module(f"transition{number}", transition)
                width //= 2
        self.features.norm5 = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)


@dataclass(frozen=True)
class ClinicalConfig(Settings):
    """config.json of a clinical network."""

    findings: tuple[str, ...]
    resolution: Annotated[int, Range(1, 4096)] | None  # see `ClinicalFeatures`


class ClinicalFeatures(nn.Module):
    """TorchXRayVision's DenseNet-121 (1 channel) with named findings."""

    def __init__(self, findings: tuple[str, ...], resolution: int | None = None) -> None:
        super().__init__()
        self.findings = findings
        self.resolution = resolution  # images are resized to this before the network; None keeps their size
        self.network = DenseNet(len(findings))

    def feature_maps(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Outputs of the four dense blocks ([B, C, s, s] each) and the pooled 1024-d features [B, 1024]."""
        x = images * 1024  # TorchXRayVision's convention
        if self.resolution is not None and x.shape[-1] != self.resolution:
            size = (self.resolution, self.resolution)
            if x.shape[-1] > self.resolution:  # average over areas: fine findings fade, rather than being skipped
                x = F.interpolate(x, size=size, mode="area")
            else:
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        # Inputs of this size would make the first convolution's activations very large in bfloat16; its batch norm
        # takes the scale out again, so nothing changes but the rounding.
        maps = []
        for name, layer in self.network.features.named_children():
            x = layer(x)
            if name.startswith("denseblock"):
                maps.append(x)
        return maps, F.relu(x).mean(dim=(2, 3))

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` needs, beside the weights."""
        return {"findings": self.findings, "resolution": self.resolution}

    @classmethod
    def from_config(cls, config: Any, origin: str) -> ClinicalFeatures:
        """The network that `config` describes, untrained. `UserError` (which names `origin`) where it describes
        none."""
        checked = build_settings(ClinicalConfig, config, origin)
        return cls(checked.findings, checked.resolution)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, F]."""
        return self.network.classifier(self.feature_maps(images)[1])

    @torch.inference_mode()
    def log_likelihoods(self, images: Tensor, labels: Tensor) -> Tensor:
        """Float32 [B]: log p of the known ones of `labels` [B, F] (1, 0, NaN) on images [B, 1, S, S], in nats."""
        with autocast(images.device):
            logits = self(images)
        losses = F.binary_cross_entropy_with_logits(logits.float(), labels.nan_to_num(), reduction="none")
        return -(losses * ~labels.isnan()).sum(1)

    @torch.no_grad()
    def take_weights(self, other: ClinicalFeatures) -> None:
        """The weights of `other`; its findings may be others: "left X" begins as "X", and what it never saw begins anew."""
        own, given = self.network.classifier, other.network.classifier
        self.network.features.load_state_dict(other.network.features.state_dict())
        for row, name in enumerate(self.findings):
            known = [n for n in (name, name.removeprefix("left ").removeprefix("right ")) if n in other.findings]
            if known:
                own.weight[row] = given.weight[other.findings.index(known[0])]
                own.bias[row] = given.bias[other.findings.index(known[0])]

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        with atomic_path(folder / "model.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, temporary)
        write_json(folder / "config.json", self.config)

    @classmethod
    def load(cls, folder: Path) -> ClinicalFeatures:
        """Read what `save` wrote; the network is frozen and in evaluation mode."""
        model = cls.from_config(read_json(folder / "config.json"), str(folder / "config.json"))
        load_state(model, folder / "model.safetensors")
        return model.eval().requires_grad_(False)


def xrv_package(weights: str, asked: AskedBy = CLINICAL_WEIGHTS) -> Any:
    """TorchXRayVision, for its names and to read its files; the network is our own. `UserError` where it cannot be had."""
    return require("torchxrayvision", f"{asked.setting}: {weights}", asked.instead)


FeatureNetwork = ClinicalFeatures | Dinov2Features  # the second has no findings


def load_features(folder: Path) -> FeatureNetwork:
    """The network that a run, or transformers, wrote into `folder`."""
    return Dinov2Features.load(folder) if is_dinov2(folder) else ClinicalFeatures.load(folder)


def is_repository(weights: str) -> bool:
    """Whether `weights` names a folder or a hub repository, and not a file or one of TorchXRayVision's."""
    path = Path(weights)
    return path.is_dir() or (path.suffix not in (".pt", ".safetensors") and is_hub_id(weights, path))


def published_features(weights: str, asked: AskedBy = CLINICAL_WEIGHTS) -> FeatureNetwork:
    """TorchXRayVision's own weights, by name (downloaded once by torchxrayvision) or by the path of the same file; or a Dinov2 such
    as RAD-DINO, or a run's clinical network, by its folder or hub id.

    TorchXRayVision's published files are whole pickled modules; they are read with the safe unpickler, which is allowed the classes
    of that one network and nothing else. Raises `UserError` with the way out (`asked`) where the file cannot be had or read.
    """
    setting, instead = asked
    if is_repository(weights):
        folder = Path(weights) if Path(weights).is_dir() else from_hub(weights)
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{setting}: {folder} has no config.json: it is of no network that can be read. Name another, or set {instead}."
            )
        config = read_json(folder / "config.json")
        if isinstance(config, dict) and config.get("model_type", "dinov2") != "dinov2":
            raise UserError(
                f"{setting}: {folder} is a {config['model_type']}, which is not read. Give a dinov2, or the folder of "
                "a run's clinical network."
            )
        return load_features(folder)
    xrv = xrv_package(weights, asked)
    path = Path(weights)
    if weights in xrv.models.model_urls:
        findings = xrv.models.model_urls[weights]["labels"]
        try:
            path = Path(xrv.models.get_weights(weights))
        except Exception as error:  # requests, urllib and OS errors alike
            raise UserError(
                f"the TorchXRayVision weights {weights!r} could not be downloaded ({error}). Set {setting} to the "
                f"path of the file, or set {instead}."
            ) from error
    elif path.suffix in (".pt", ".safetensors"):
        findings = xrv.models.DenseNet.targets
    else:
        raise UserError(
            f"{setting}: {weights!r} is neither a TorchXRayVision name, a .pt/.safetensors path, nor the folder or hub id of a "
            f"Dinov2. Name one, or set {instead}."
        )
    try:
        if path.suffix == ".safetensors":
            state = load_weights(path)
        else:
            modules = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Linear, nn.Sequential]
            dense = [getattr(xrv.models, n) for n in ("DenseNet", "_DenseBlock", "_DenseLayer", "_Transition")]
            with torch.serialization.safe_globals([*modules, *dense, set]):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = loaded.state_dict() if isinstance(loaded, nn.Module) else loaded
        state = {k: v for k, v in state.items() if k != "op_threshs"}
        model = ClinicalFeatures(tuple(findings[: state["classifier.weight"].shape[0]]), resolution=224)
        model.network.load_state_dict(state)
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path} does not hold a TorchXRayVision DenseNet-121: {error}") from error
    except Exception as error:  # pickle.UnpicklingError, without importing pickle
        raise UserError(f"{path} was refused by the safe loader: {error}") from error
    return model.eval().requires_grad_(False)
