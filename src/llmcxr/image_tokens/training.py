"""Training the image tokenizer: reconstruction, perception, clinical features, commitment, and a late adversary.

Shapes: B images, S side in pixels. Images are uint8 [N, S, S] in memory and [-1, 1] in the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from llmcxr.foundation import loop
from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.devices import autocast, place_network
from llmcxr.foundation.randomness import stream
from llmcxr.image_tokens.augmentation import varied
from llmcxr.image_tokens.classifier import batch_of
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.image_tokens.codebook_health import CodebookHealth, restart_dead_codes
from llmcxr.image_tokens.losses import (
    ClinicalFeatureLoss,
    FindingsInCodes,
    adaptive_weight,
    build_discriminator,
    build_lpips,
    hinge_discriminator_loss,
)
from llmcxr.image_tokens.settings import ImageTokenizerSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.image_tokens.watching import Watching
from llmcxr.studies.pixel_store import Images

if TYPE_CHECKING:
    from llmcxr.foundation.processes import Processes

# Weight of the perceptual term: of LPIPS as in VQ-GAN, and of the clinical maps, whose channels have equal weights.
_PERCEPTUAL = {False: 1.0, True: 0.1}


_PARTS = ("tokenizer", "codebook_health", "discriminator", "findings_in_codes", "optimizer", "critic_optimizer")


def trainable_quantizer(tokenizer: ImageTokenizer, decay: float = 0.99, commitment: float = 0.25) -> VectorQuantize:
    """VectorQuantize in the place of the tokenizer's codebook, begun from it; by k-means from the first batch where it is new.

    Its own work over several processes is switched off: it is given the vectors of all (`training_pass`), so that k-means,
    averages and restarts are those of one process.
    """
    a = tokenizer.architecture
    quantizer = VectorQuantize(
        dim=a.code_dim,
        codebook_size=a.codebook_size,
        use_cosine_sim=a.codebook == "cosine",
        kmeans_init=True,
        kmeans_iters=10,
        decay=decay,
        rotation_trick=False,  # plain straight-through gradients, as in VQ-GAN
        threshold_ema_dead_code=1,  # switches restarts on; training sets the threshold to fit its batches
        commitment_weight=commitment,
        accept_image_fmap=True,
        sync_codebook=False,
    )
    quantizer.load_state_dict(tokenizer.quantizer.state_dict())
    tokenizer.quantizer = quantizer.train(tokenizer.training)
    return quantizer


def training_pass(
    tokenizer: ImageTokenizer,
    images: Tensor,
    last_map: Tensor | None = None,
    rows: int = 0,
    part: slice = slice(None),
    processes: Processes | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction [B, 1, S, S], commitment loss, quantized code vectors [B, D, g, g], with a trainable quantizer.

    `last_map` is the clinical network's last feature map of the images, where it is known already. The images may be the
    `part` of one of several processes: the commitment loss is then that of all `rows`.
    """
    z = tokenizer.encoded(images, last_map).float()
    if processes is not None:
        z = loop.joined(z, rows, part, processes)
    quantized, _, commitment = tokenizer.quantizer(z)
    own = quantized[part]
    return tokenizer.decoder(own), commitment.sum(), own


class ImageTokenizerTraining(loop.Training):
    """A step of the objective, on the share of its images that is this process's. For the arguments see `train_image_tokenizer`."""

    shown = ("l1", "perceptual", "clinical", "critic", "codebook_use")

    def __init__(
        self,
        settings: ImageTokenizerSettings,
        features: ClinicalFeatures | None,
        images: Images,
        seed: int,
        folder: Path,
        processes: Processes,
        start: ImageTokenizer | None = None,
        shown: Images | None = None,
    ) -> None:
        super().__init__("image tokenizer", settings.steps, processes)
        self.settings, self.images, self.features = settings, images, features
        self.seed, self.folder, self.device = seed, folder, processes.device
        watched = processes.main and settings.pictures_every > 0 and shown is not None
        self.watching = Watching(folder, shown) if watched and shown is not None else None
        self.rows = min(settings.batch_size, len(images))
        self.part = loop.share_of(self.rows, processes)
        torch.manual_seed(seed)
        self.tokenizer = ImageTokenizer(
            settings.architecture, features if settings.architecture.clinical_input else None
        ).train()
        if start is not None:
            self.tokenizer.take_weights(start)
        self.codebook = trainable_quantizer(
            self.tokenizer, settings.codebook_decay, settings.commitment_weight
        )._codebook
        self.discriminator = build_discriminator()
        for network in filter(None, (self.tokenizer, self.discriminator, features)):
            place_network(network, self.device)
        self.codebook_health = CodebookHealth(self.tokenizer.quantizer, settings.architecture.codebook_size)
        self.codebook_health.to(self.device)
        sample = batch_of(
            images, stream(seed, "variance").choice(len(images), min(64, len(images)), replace=False), self.device
        )
        self.clinical: ClinicalFeatureLoss | None = None
        self.findings_in_codes: nn.Module = nn.Identity()  # reads nothing where no network says what is to be read
        if features is not None:
            with autocast(self.device), torch.no_grad():
                self.clinical = ClinicalFeatureLoss(features, sample).to(self.device)
                logits = features(sample)
                self.findings_in_codes = FindingsInCodes(settings.architecture.code_dim, logits).to(self.device)
        self.trained = [p for p in self.tokenizer.parameters() if p.requires_grad]
        self.averaged = [p.detach().clone() for p in self.trained] if settings.weights_average else []
        self.lpips = None if settings.perceptual == "clinical" else build_lpips(settings.perceptual).to(self.device)
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
        restart_dead_codes(self.tokenizer.quantizer, self.rows * settings.architecture.grid**2)

    def _progress(self) -> float:
        """Share of the training that is behind; 1 or more: it is over."""
        s = self.settings
        clock = self.processes.from_main(self.at.seconds / (60 * s.minutes)) if s.minutes else 0.0
        return max(self.at.step / s.steps, clock)

    def step(self) -> loop.Step | None:
        s, step, processes = self.settings, self.at.step, self.processes
        if (progress := self._progress()) >= 1:
            return None
        for optimizer in (self.optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = s.learning_rate * loop.cosine(round(progress * s.steps), s.steps)
        rows = stream(self.seed, "image tokenizer", step).choice(len(self.images), self.rows, replace=False)
        x = batch_of(self.images, rows[self.part], self.device)
        x = varied(x, self.rows, self.part, s.varied_share, stream(self.seed, "varied", step))
        share = len(x) / self.rows  # of this process's rows in the means over all
        adversarial = s.adversarial_weight > 0 and progress >= s.adversarial_start
        # Coarse shape first: gradients through the feature networks mislead a decoder that paints nothing yet.
        rise = 1.0 if s.feature_start == 0 else min(1.0, max(0.0, (progress - s.feature_start) / 0.1))
        terms: dict[str, Tensor] = {}
        with autocast(self.device):
            with torch.no_grad():
                seen = None if self.features is None else self.features.feature_maps(x)
            last_map = None if seen is None else seen[0][-1]
            y, commitment, vectors = training_pass(self.tokenizer, x, last_map, self.rows, self.part, processes)
            y = y.float()
            reconstruction = l1 = F.l1_loss(y, x)
            if rise > 0 and (features := self._of_features(x, y, seen)):
                weights = {"perceptual": _PERCEPTUAL[s.perceptual == "clinical"], "clinical": s.clinical_weight}
                reconstruction = reconstruction + rise * sum(weights[k] * term for k, term in features.items())
                terms |= features
            reconstruction = reconstruction * share
            loss = reconstruction + commitment  # of all rows already; gradients flow to this process's own
            if s.reading_weight > 0 and self.features is not None and seen is not None:
                reading = self.findings_in_codes(vectors, self.features.network.classifier(seen[1]))
                loss = loss + s.reading_weight * share * reading
                terms["reading"] = reading
            if adversarial:
                generator = -self.discriminator(y).float().mean() * share
                balance = adaptive_weight(reconstruction, generator, self.tokenizer.decoder.last_weight, processes)
                loss = loss + s.adversarial_weight * balance * generator
        self.optimizer.zero_grad(set_to_none=True)
        value = loop.backward(loss, [*self.trained, *self.findings_in_codes.parameters()], processes)
        norm = nn.utils.clip_grad_norm_(self.trained, 1.0)
        advice = "Lower image_tokenizer.learning_rate"
        self.check({"loss": value, "norm of the gradient": norm.item()}, advice)
        self.optimizer.step()
        if self.averaged:  # the start counts little: a tenth in the first step, then less
            share_of_new = max(1 - s.weights_average, 9 / (10 + step))
            torch._foreach_lerp_(self.averaged, [p.detach() for p in self.trained], share_of_new)
        terms |= {"l1": l1, "commitment": commitment}
        if adversarial:
            with autocast(self.device):
                critic = hinge_discriminator_loss(self.discriminator(x).float(), self.discriminator(y.detach()).float())
            self.critic_optimizer.zero_grad(set_to_none=True)
            self.check({"critic": loop.backward(critic * share, self.discriminator.parameters(), processes)}, advice)
            self.critic_optimizer.step()
            terms |= {"generator": generator / share, "critic": critic}
        # Sums on GPUs end in another order each time: the codebook must not drift apart.
        loop.agree([self.codebook.cluster_size, self.codebook.embed_avg, self.codebook.embed], processes)
        terms |= self.codebook_health.terms()
        return loop.Step(loop.total_terms(terms, share, processes))

    def _of_features(self, x: Tensor, y: Tensor, seen: tuple[list[Tensor], Tensor] | None) -> dict[str, Tensor]:
        """Terms on the features of images x and reconstructions y: those of the networks that there are."""
        terms: dict[str, Tensor] = {}
        if self.clinical is not None and seen is not None:
            terms["clinical"], terms["perceptual"] = self.clinical(seen, y)
        if self.lpips is not None:
            terms["perceptual"] = self.lpips(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)).mean()
        return {name: terms[name] for name in ("perceptual", "clinical") if name in terms}

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in _PARTS} | {"averaged": self.averaged}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        for own, saved in zip(self.averaged, state["averaged"], strict=True):
            own.copy_(saved)

    def after_step(self, terms: dict[str, float]) -> None:
        super().after_step(terms)
        if self.watching and self.at.step % self.settings.pictures_every == 0:
            self.watching.write(self.at.step, self.tokenizer, self.at.sums, self.device)

    def finish(self) -> None:
        with torch.no_grad():
            for own, average in zip(self.trained, self.averaged or self.trained, strict=True):
                own.copy_(average)

        def save() -> None:
            self.tokenizer.save_pretrained(self.folder)
            write_json(self.folder / "curves.json", self.at.curve)

        self.processes.on_main(save)


def train_image_tokenizer(
    settings: ImageTokenizerSettings,
    features: ClinicalFeatures | None,
    images: Images,
    seed: int,
    folder: Path,
    processes: Processes,
    start: ImageTokenizer | None = None,
    save_minutes: float = loop.SAVE_MINUTES,
    shown: Images | None = None,
) -> ImageTokenizer:
    """Train on uint8 images [N, S, S] and save into `folder` (with curves.json); resumes from its last checkpoint.

    Training goes on from the weights of `start`, where there is one; the clinical network is `features` in any case (None: codes are
    learned from pixels, and LPIPS where it is asked for). All
    processes call. Of `shown`, uint8 [N, S, S], some are drawn into TensorBoard where the settings ask for it. `UserError` where the images have another size, or the loss is not finite.
    """
    S = settings.architecture.image_size
    if images.shape[1:] != (S, S):
        raise processes.fault(f"image_tokenizer.architecture.image_size is {S}, but the images are {images.shape[1:]}.")
    loop.run(
        ImageTokenizerTraining(settings, features, images, seed, folder, processes, start, shown), folder, save_minutes
    )
    return ImageTokenizer.from_pretrained(folder).to(processes.device)


def codebook_use(codes: np.ndarray, codebook_size: int) -> float:
    """Share of the codebook that occurs in `codes`."""
    return len(np.unique(codes)) / codebook_size


def reconstruct(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """Images through the code grid and back, [B, 1, S, S] in [-1, 1]."""
    return tokenizer.decode(tokenizer.encode(images))
