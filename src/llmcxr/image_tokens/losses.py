"""The terms of the image tokenizer's objective (paper, section 2.1; VQ-GAN, section 3.1).

Shapes: B images, C channels. Pixels in [-1, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.optional import AskedBy, require
from llmcxr.image_tokens.clinical_features import FeatureNetwork
from llmcxr.image_tokens.settings import LPIPS_WEIGHTS


class ClinicalFeatureLoss(nn.Module):
    """Squared distance between the clinical network's features of input and reconstruction.

    The paper gives neither weight nor scale. We divide by the features' variance over images, so that the term is
    about 2 for two unrelated radiographs whatever network is used, and one weight fits all.
    """

    variance: Tensor

    def __init__(self, features: FeatureNetwork, sample: Tensor) -> None:
        super().__init__()
        self.features = features
        with torch.no_grad():
            _, pooled = features.feature_maps(sample)
        self.register_buffer("variance", pooled.float().var(dim=0).mean())

    def forward(self, seen: tuple[list[Tensor], Tensor], reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """(clinical term on the pooled features, perceptual term on the feature maps of the same network).

        `seen` is what the network's `feature_maps` gives for the original.

        The second is LPIPS's formula (unit-normalised channels, squared difference, averaged over places) with equal
        weights; it is there because both come from one pass.
        """
        maps, pooled = seen
        maps_r, pooled_r = self.features.feature_maps(reconstruction)
        clinical = F.mse_loss(pooled_r.float(), pooled.float()) / self.variance
        perceptual = sum(
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(dim=1).mean()
            for a, b in zip(maps[:3], maps_r[:3], strict=True)
        )
        return clinical, cast(Tensor, perceptual)


class FindingsInCodes(nn.Module):
    """What the clinical network thinks of the image, read from its code vectors; ours, not the paper's (weight 0).

    The clinical feature loss reaches the codes only through the decoder, and leaves it to every place of the grid what a
    code means there. This term asks the codes themselves, wherever they are: one linear map of their sum must give the
    network's logits for all findings. A language model reads such codes as it reads words.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, code_dim: int, logits: Tensor) -> None:
        """`logits` [B, F] of a sample of images, for their scale."""
        super().__init__()
        logits = logits.float()
        self.register_buffer("mean", logits.mean(0))
        self.register_buffer("deviation", logits.std(0).clamp(min=1e-3))
        self.reading = nn.Linear(code_dim, logits.shape[1])

    def forward(self, vectors: Tensor, logits: Tensor) -> Tensor:
        """Mean squared error of what code vectors [B, D, g, g] say against the standardised logits [B, F]."""
        target = (logits.float() - self.mean) / self.deviation
        _, D, g, _ = vectors.shape
        # Code vectors have unit length; scaled so that a sum of unrelated ones has unit spread.
        return F.mse_loss(self.reading(vectors.float().sum(dim=(2, 3)) * D**0.5 / g), target)


def lpips_package(backbone: str, asked: AskedBy = LPIPS_WEIGHTS) -> Any:
    """The package. `UserError` where it cannot be had."""
    return require("lpips", f"{asked.setting}: {backbone}", asked.instead)


def build_lpips(backbone: str, asked: AskedBy = LPIPS_WEIGHTS) -> nn.Module:
    """LPIPS (Zhang et al., 2018) on VGG-16. `backbone` is 'download' or the path of torchvision's VGG-16 state dict.

    Raises `UserError` with the way out (`asked`) where the package or the weights cannot be had.
    """
    lpips = lpips_package(backbone, asked)
    try:
        state = {} if backbone == "download" else torch.load(Path(backbone), map_location="cpu", weights_only=True)
        if backbone == "download":
            model = lpips.LPIPS(net="vgg", verbose=False)
        else:
            model = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
            slices = {
                int(name): layer
                for part in model.net.children()
                if isinstance(part, nn.Sequential)
                for name, layer in part.named_children()
            }
            for index, layer in slices.items():
                if isinstance(layer, nn.Conv2d):
                    layer.load_state_dict({k: state[f"features.{index}.{k}"] for k in ("weight", "bias")})
    except Exception as error:  # network, disk, the safe unpickler and wrong contents raise many kinds
        raise UserError(
            f"the VGG-16 weights of LPIPS could not be read ({error}). Set {asked.setting} to the path of torchvision's vgg16 file, "
            f"or set {asked.instead}."
        ) from error
    return model.eval().requires_grad_(False)


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss on the discriminator's logits."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(of_reconstruction: Tensor, of_generator: Tensor) -> Tensor:
    """VQ-GAN, eq. 7: ratio of the norms of both losses' gradients at the decoder's last layer, at most 1e4."""
    return (of_reconstruction.norm() / (of_generator.norm() + 1e-6)).clamp(0, 1e4)
