"""Training the image tokenizer: reconstruction, perception, clinical features, commitment, and a late adversary.

A step is the same whatever number of processes shares its images, and whatever number of them is computed at once
(`images_at_once`): the order of sums differs, nothing else.

Shapes: B images, S side in pixels, D dimension of a code vector, g side of the code grid. Images are uint8 [N, S, S] in memory
and [-1, 1] in the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from llmcxr.foundation import loop
from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.devices import autocast, freed_memory_kept, place_network
from llmcxr.foundation.randomness import stream
from llmcxr.image_tokens.architecture import build_discriminator
from llmcxr.image_tokens.augmentation import varied
from llmcxr.image_tokens.classifier import batch_of
from llmcxr.image_tokens.clinical_features import ClinicalFeatures, FeatureNetwork
from llmcxr.image_tokens.codebook_health import CodebookHealth, restart_dead_codes
from llmcxr.image_tokens.losses import (
    ClinicalFeatureLoss,
    FindingsInCodes,
    adaptive_weight,
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

    Its own work over several processes is switched off: a step gives it the vectors of all, so that k-means, averages and restarts
    are those of one process.
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
    tokenizer: ImageTokenizer, images: Tensor, last_map: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction [B, 1, S, S], commitment loss, quantized code vectors [B, D, g, g], with a trainable quantizer.

    As in a step of one process that computes all images at once. `last_map` is the clinical network's last feature map of the
    images, where it is known already.
    """
    vectors, _, commitment = tokenizer.quantizer(tokenizer.encoded(images, last_map).float())
    return tokenizer.decoder(vectors), commitment.sum(), vectors


class _InPieces:
    """What a network gives for a step's images, and its gradients, with the activations of one piece of them in memory.

    One piece keeps its graph. Of several none is kept, and each is computed again where its gradients are asked for
    (GradCache, Gao et al., 2021).
    """

    def __init__(self, network: Callable[[slice], Tensor], pieces: Sequence[slice]) -> None:
        """`network` gives the output of a piece; its losses are computed on `output`, a leaf."""
        self._network, self._pieces, self._kept = network, pieces, None
        if len(pieces) == 1:
            self._kept = network(pieces[0])
            output = self._kept.detach()
        else:
            with torch.no_grad():
                output = torch.cat([network(piece) for piece in pieces])
        self.output = output.requires_grad_()

    def _graphs(self) -> Iterator[tuple[slice, Tensor]]:
        for piece in self._pieces:
            yield piece, self._network(piece) if self._kept is None else self._kept

    def gradients(self, weight: Tensor, *of_output: Tensor) -> list[Tensor]:
        """Of `weight`, for each of the given gradients of the output."""
        totals = [torch.zeros_like(weight) for _ in of_output]
        for piece, output in self._graphs():
            for total, given in zip(totals, of_output, strict=True):
                total += torch.autograd.grad(output, weight, given[piece], retain_graph=True)[0]
        return totals

    def backward(self, of_output: Tensor) -> None:
        """Add the gradients of all weights, and of what went into the network."""
        for piece, output in self._graphs():
            output.backward(of_output[piece])


class ImageTokenizerTraining(loop.Training):
    """A step of the objective, on the share of its images that is this process's. For the arguments see `train_image_tokenizer`."""

    shown = ("l1", "perceptual", "clinical", "critic", "codebook_use")

    def __init__(
        self,
        settings: ImageTokenizerSettings,
        features: FeatureNetwork | None,
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
        self.pieces = _pieces(self.part.stop - self.part.start, settings.images_at_once)
        torch.manual_seed(seed)
        inside = features if settings.architecture.clinical_input and isinstance(features, ClinicalFeatures) else None
        self.tokenizer = ImageTokenizer(settings.architecture, inside).train()
        if start is not None:
            self.tokenizer.take_weights(start)
        self.codebook = trainable_quantizer(
            self.tokenizer, settings.codebook_decay, settings.commitment_weight
        )._codebook
        self.discriminator = build_discriminator(settings.architecture)
        loop.share_layers(self.discriminator, self.rows, self.part, processes)
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
                if isinstance(features, ClinicalFeatures):
                    code_dim, logits = settings.architecture.code_dim, features(sample)
                    self.findings_in_codes = FindingsInCodes(code_dim, logits).to(self.device)
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
            optimizer.zero_grad(set_to_none=True)
        rows = stream(self.seed, "image tokenizer", step).choice(len(self.images), self.rows, replace=False)
        x = batch_of(self.images, rows[self.part], self.device)
        x = varied(x, self.rows, self.part, s.varied_share, stream(self.seed, "varied", step))
        share = len(x) / self.rows  # of this process's rows in the means over all
        adversarial = s.adversarial_weight > 0 and progress >= s.adversarial_start
        seen = self._seen(x) if len(self.pieces) == 1 else None
        encoder = self._encoder(x, seen)
        # The codebook sees the vectors of the whole step once: k-means, averages and restarts are of all of them.
        everything = loop.joined(encoder.output, self.rows, self.part, processes)
        quantized, _, commitment = self.tokenizer.quantizer(everything)
        commitment = commitment.sum()  # of all rows already; gradients flow to this process's own
        vectors = quantized[self.part].detach().requires_grad_()
        decoder = _InPieces(lambda piece: self._decoded(vectors[piece]), self.pieces)
        y = decoder.output
        terms = self._reconstruction(x, y, vectors, seen, progress)
        loss, of_y = terms.pop("loss"), y.grad
        assert of_y is not None
        if adversarial:
            generator, of_generator = self._generator(y, share)
            both = decoder.gradients(self.tokenizer.decoder.last_weight, of_y, of_generator)
            weight = s.adversarial_weight * adaptive_weight(*map(processes.sum, both))
            of_y, loss = of_y + weight * of_generator, loss + weight * generator
            terms["generator"] = generator / share
        decoder.backward(of_y)
        torch.autograd.backward([quantized[self.part], commitment], [vectors.grad, None])
        assert encoder.output.grad is not None
        encoder.backward(encoder.output.grad)
        parameters = [*self.trained, *self.findings_in_codes.parameters()]
        value = loop.add_gradients(loss + share * commitment, parameters, processes)
        norm = nn.utils.clip_grad_norm_(self.trained, 1.0)
        advice = "Lower image_tokenizer.learning_rate"
        self.check({"loss": value, "norm of the gradient": norm.item()}, advice)
        self.optimizer.step()
        if self.averaged:  # the start counts little: a tenth in the first step, then less
            share_of_new = max(1 - s.weights_average, 9 / (10 + step))
            torch._foreach_lerp_(self.averaged, [p.detach() for p in self.trained], share_of_new)
        terms["commitment"] = commitment
        if adversarial:
            with autocast(self.device):
                critic = hinge_discriminator_loss(self.discriminator(x).float(), self.discriminator(y.detach()).float())
            self.check({"critic": loop.backward(critic * share, self.discriminator.parameters(), processes)}, advice)
            self.critic_optimizer.step()
            terms["critic"] = critic
        # Sums on GPUs end in another order each time: the codebook must not drift apart.
        loop.agree([self.codebook.cluster_size, self.codebook.embed_avg, self.codebook.embed], processes)
        terms |= self.codebook_health.terms()
        return loop.Step(loop.total_terms(terms, share, processes))

    # Precision is chosen anew around each pass: weights that were rounded without gradients would be taken from its cache.

    def _seen(self, x: Tensor) -> tuple[list[Tensor], Tensor] | None:
        """What the clinical network sees in the originals; None where nothing asks it."""
        if self.features is None or not self.settings.asks_clinical:
            return None
        with autocast(self.device), torch.no_grad():
            return self.features.feature_maps(x)

    def _encoder(self, x: Tensor, seen: tuple[list[Tensor], Tensor] | None) -> _InPieces:
        """What is quantized, of images x. The originals are `seen` already where they are one piece."""
        last: Tensor | None = None
        if self.tokenizer.clinical is not None:  # small, unlike the maps before it
            each = [seen or self._seen(x[piece]) for piece in self.pieces]
            last = torch.cat([one[0][-1] for one in each if one is not None])

        def encoded(piece: slice) -> Tensor:
            with autocast(self.device):
                return self.tokenizer.encoded(x[piece], None if last is None else last[piece]).float()

        return _InPieces(encoded, self.pieces)

    def _decoded(self, vectors: Tensor) -> Tensor:
        with autocast(self.device):
            return self.tokenizer.decoder(vectors).float()

    def _reconstruction(
        self, x: Tensor, y: Tensor, vectors: Tensor, seen: tuple[list[Tensor], Tensor] | None, progress: float
    ) -> dict[str, Tensor]:
        """Terms on images x, reconstructions y and code vectors, means over this process's rows; and `loss`, its part of the
        sum over all. Leaves the gradients of `loss` in y, the vectors and the reading's map."""
        s = self.settings
        # Coarse shape first: gradients through the feature networks mislead a decoder that paints nothing yet.
        rise = 1.0 if s.feature_start == 0 else min(1.0, max(0.0, (progress - s.feature_start) / 0.1))
        weights = {"perceptual": rise * _PERCEPTUAL[s.perceptual == "clinical"], "clinical": rise * s.clinical_weight}
        weights |= {"l1": 1.0, "reading": s.reading_weight}
        means: dict[str, Tensor] = {}
        total = y.new_zeros(())
        for piece in self.pieces:
            maps = seen or self._seen(x[piece])
            with autocast(self.device):
                terms = self._of_features(x[piece], y[piece], maps) if rise > 0 else {}
                terms["l1"] = F.l1_loss(y[piece], x[piece])
                if s.reading_weight > 0 and isinstance(self.features, ClinicalFeatures) and maps is not None:
                    said = self.features.network.classifier(maps[1])
                    terms["reading"] = self.findings_in_codes(vectors[piece], said)
            count = piece.stop - piece.start
            loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum() * count / self.rows
            loss.backward()
            total += loss.detach()
            for name, term in terms.items():
                means[name] = means.get(name, 0) + term.detach() * count / len(x)
        return means | {"loss": total}

    def _generator(self, y: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """What the discriminator makes of reconstructions y, this process's part of the loss; and the gradient of y.

        The discriminator is small, and sees the images of the step together: its norms are over batches.
        """
        with autocast(self.device):
            loss = -self.discriminator(y).float().mean() * share
        return loss.detach(), torch.autograd.grad(loss, y)[0]

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
        self.at.sums.pop("restarts", None)  # counted from the beginning: a running mean would lag behind
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


def _pieces(rows: int, at_once: int | None) -> list[slice]:
    """A step's `rows` in equal pieces of at most `at_once`."""
    count = 1 if at_once is None else -(-rows // at_once)
    return [slice(rows * k // count, rows * (k + 1) // count) for k in range(count)]


def train_image_tokenizer(
    settings: ImageTokenizerSettings,
    features: FeatureNetwork | None,
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
    learned from pixels, and LPIPS where it is asked for). All processes call. Of `shown`, uint8 [N, S, S], some are drawn into
    TensorBoard where the settings ask for it. `UserError` where the images have another size, or the loss is not finite.
    """
    S = settings.architecture.image_size
    if images.shape[1:] != (S, S):
        raise processes.fault(f"image_tokenizer.architecture.image_size is {S}, but the images are {images.shape[1:]}.")
    with freed_memory_kept():
        training = ImageTokenizerTraining(settings, features, images, seed, folder, processes, start, shown)
        loop.run(training, folder, save_minutes)
    return ImageTokenizer.from_pretrained(folder).to(processes.device)


def codebook_use(codes: np.ndarray, codebook_size: int) -> float:
    """Share of the codebook that occurs in `codes`."""
    return len(np.unique(codes)) / codebook_size


def reconstruct(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """Images through the code grid and back, [B, 1, S, S] in [-1, 1]."""
    return tokenizer.decode(tokenizer.encode(images))
