"""Training the image tokenizer: reconstruction, perception, clinical features, commitment, and a late adversary.

Shapes: B images, S side in pixels. Images are uint8 [N, S, S] in memory and [-1, 1] in the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.checkpoints import load_checkpoint, remove_checkpoint, save_checkpoint
from llmcxr.foundation.devices import autocast, place_network
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import setting
from llmcxr.image_tokens.clinical_features import ClinicalFeatures, batch_of
from llmcxr.image_tokens.losses import (
    ClinicalFeatureLoss,
    FindingsInCodes,
    adaptive_weight,
    build_lpips,
    hinge_discriminator_loss,
)
from llmcxr.image_tokens.networks import ArchitectureSettings, build_discriminator
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.studies.pixel_store import Images


@dataclass(frozen=True)
class ImageTokenizerSettings:
    """The VQ-GAN and its training."""

    architecture: ArchitectureSettings = setting(ArchitectureSettings(), "sizes")
    pretrained: str | None = setting(None, "folder of a trained image tokenizer to use as it is, instead of training")
    steps: int = setting(50_000, "optimiser steps")
    batch_size: int = setting(16, "images a step")
    learning_rate: float = setting(4e-4, "AdamW, cosine to a tenth after 2 % of warm-up")
    l1_weight: float = setting(1.0, "absolute difference of pixels")
    perceptual: str = setting(
        "clinical",
        "'clinical' (maps of the clinical network), 'download' (LPIPS) or the path of VGG-16 weights (LPIPS)",
    )
    perceptual_weight: float = setting(
        1.0, "1 for LPIPS as in VQ-GAN; about 0.1 for clinical, whose channels have equal weights"
    )
    clinical_weight: float = setting(0.1, "clinical feature loss; 0 for the paper's ablation")
    reading_weight: float = setting(
        0.0, "findings, as the clinical network sees them, read from the codes themselves (ours; 0 as in the paper)"
    )
    feature_start: float = setting(
        0.0,
        "share of the steps before the perceptual and clinical terms begin (they then rise over a tenth of the steps)",
    )
    adversarial_weight: float = setting(0.5, "times the adaptive weight; 0 switches the adversary off")
    adversarial_start: float = setting(0.5, "share of the steps after which the adversary starts")
    codebook_decay: float = setting(
        0.99, "moving average of the code vectors; lower follows faster, for short trainings"
    )
    seed: int = setting(0, "order of the images and start of the weights")

    def faults(self) -> list[str]:
        """Impossible combinations."""
        faults = []
        if not 0 <= self.feature_start < 1:
            faults.append(f"feature_start: {self.feature_start} should be 0 to below 1")
        if not 0 <= self.adversarial_start <= 1:
            faults.append(f"adversarial_start: {self.adversarial_start} should be 0 to 1")
        return faults


_PARTS = ("tokenizer", "discriminator", "findings_in_codes", "optimizer", "critic_optimizer")


class _Trainer:
    def __init__(
        self,
        settings: ImageTokenizerSettings,
        features: ClinicalFeatures,
        images: Images,
        device: torch.device,
        start: ImageTokenizer | None = None,
    ) -> None:
        self.settings, self.images, self.features, self.device = settings, images, features, device
        torch.manual_seed(settings.seed)
        self.tokenizer = ImageTokenizer(
            settings.architecture, features if settings.architecture.clinical_input else None
        ).train()
        if start is not None:
            self.tokenizer.take_weights(start)
        self.discriminator = build_discriminator()
        for network in (self.tokenizer, self.discriminator, features):
            place_network(network, device)
        sample = batch_of(
            images, stream(settings.seed, "variance").choice(len(images), min(64, len(images)), replace=False), device
        )
        with autocast(device), torch.no_grad():
            self.clinical = ClinicalFeatureLoss(features, sample).to(device)
            self.findings_in_codes = FindingsInCodes(settings.architecture.code_dim, features(sample)).to(device)
        self.trained = [p for p in self.tokenizer.parameters() if p.requires_grad]
        self.lpips = None if settings.perceptual == "clinical" else build_lpips(settings.perceptual).to(device)
        # taming-transformers uses beta1 = 0.5 for both; with 0.9 the autoencoder learned twice as fast in short runs.
        self.optimizer = torch.optim.AdamW(
            [*self.trained, *self.findings_in_codes.parameters()],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=1e-4,
        )
        self.critic_optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=settings.learning_rate, betas=(0.5, 0.9), weight_decay=0
        )
        # A code is dead, and restarted from the batch, when it has less than a fifth of its fair share.
        a = settings.architecture
        share = min(settings.batch_size, len(images)) * a.grid**2 / a.codebook_size
        self.tokenizer.quantizer._codebook.threshold_ema_dead_code = 0.2 * share
        self.tokenizer.quantizer._codebook.decay = settings.codebook_decay

    def learning_rate(self, step: int) -> float:
        warmup = max(1, self.settings.steps // 50)
        progress = step / max(1, self.settings.steps)
        return self.settings.learning_rate * min((step + 1) / warmup, 0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def step(self, step: int) -> dict[str, float]:
        s = self.settings
        for optimizer in (self.optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(step)
        rows = stream(s.seed, "image tokenizer", step).choice(
            len(self.images), min(s.batch_size, len(self.images)), replace=False
        )
        x = batch_of(self.images, rows, self.device)
        adversarial = s.adversarial_weight > 0 and step >= s.adversarial_start * s.steps
        # Coarse shape first: gradients through the feature networks mislead a decoder that paints nothing yet.
        rise = 1.0 if s.feature_start == 0 else min(1.0, max(0.0, (step / s.steps - s.feature_start) / 0.1))
        terms: dict[str, float] = {}
        with autocast(self.device):
            with torch.no_grad():
                seen = self.features.feature_maps(x)
            y, commitment, vectors = self.tokenizer(x, seen[0][-1])
            y = y.float()
            l1 = F.l1_loss(y, x)
            reconstruction = s.l1_weight * l1
            if rise > 0:
                clinical, perceptual = self.clinical(seen, y)
                if self.lpips is not None:
                    perceptual = self.lpips(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)).mean()
                reconstruction = reconstruction + rise * (
                    s.perceptual_weight * perceptual + s.clinical_weight * clinical
                )
                terms |= {"perceptual": perceptual.item(), "clinical": clinical.item()}
            loss = reconstruction + commitment
            if s.reading_weight > 0:
                reading = self.findings_in_codes(vectors, self.features.network.classifier(seen[1]))
                loss = loss + s.reading_weight * reading
                terms["reading"] = reading.item()
            if adversarial:
                generator = -self.discriminator(y).float().mean()
                balance = adaptive_weight(reconstruction, generator, self.tokenizer.decoder.last_weight)
                loss = loss + s.adversarial_weight * balance * generator
        if not torch.isfinite(loss):
            raise UserError(
                f"image tokenizer: the loss is {loss.item()} at step {step}. Lower image_tokenizer.learning_rate and run again."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        terms |= {"l1": l1.item(), "commitment": commitment.item()}
        if adversarial:
            with autocast(self.device):
                critic = hinge_discriminator_loss(self.discriminator(x).float(), self.discriminator(y.detach()).float())
            self.critic_optimizer.zero_grad(set_to_none=True)
            critic.backward()
            self.critic_optimizer.step()
            terms |= {"generator": generator.item(), "critic": critic.item()}
        return terms

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in _PARTS} | {"torch_rng": torch.get_rng_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["torch_rng"])  # the quantizer restarts dead codes from torch's stream


def train_image_tokenizer(
    settings: ImageTokenizerSettings,
    features: ClinicalFeatures,
    images: Images,
    folder: Path,
    device: torch.device,
    start: ImageTokenizer | None = None,
    save_every: int = 200,
) -> ImageTokenizer:
    """Train on uint8 images [N, S, S] and save into `folder` (with curves.json); resumes from its last checkpoint.

    Training goes on from the weights of `start`, where there is one; the clinical network is `features` in any case.
    """
    S = settings.architecture.image_size
    if images.shape[1:] != (S, S):
        raise UserError(f"image_tokenizer.architecture.image_size is {S}, but the images are {images.shape[1:]}.")
    trainer = _Trainer(settings, features, images, device, start)
    checkpoint, first, curve = folder / "checkpoint.pt", 0, []
    if saved := load_checkpoint(checkpoint):
        trainer.load_state(saved["trainer"])
        first, curve = saved["step"], saved["curve"]
    bar = tqdm(range(first, settings.steps), initial=first, total=settings.steps, desc="image tokenizer", unit="step")
    sums: dict[str, float] = {}
    for step in bar:
        terms = trainer.step(step)
        for name, value in terms.items():
            sums[name] = 0.9 * sums.get(name, value) + 0.1 * value
        if step % 10 == 0:
            curve.append({"step": step, **sums})
            bar.set_postfix({k: f"{v:.3f}" for k, v in sums.items() if k in ("l1", "perceptual", "clinical", "critic")})
        if (step + 1) % save_every == 0 and step + 1 < settings.steps:
            save_checkpoint(checkpoint, {"trainer": trainer.state(), "step": step + 1, "curve": curve})
    tokenizer = trainer.tokenizer.eval().requires_grad_(False)
    tokenizer.save_pretrained(folder)
    write_json(folder / "curves.json", curve)
    remove_checkpoint(checkpoint)
    return tokenizer


def codebook_use(codes: np.ndarray, codebook_size: int) -> float:
    """Share of the codebook that occurs in `codes`."""
    return len(np.unique(codes)) / codebook_size


def reconstruct(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """Images through the code grid and back, [B, 1, S, S] in [-1, 1]."""
    return tokenizer.decode(tokenizer.encode(images))
