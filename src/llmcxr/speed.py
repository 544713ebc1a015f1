"""How fast this machine is at each part of a run: the real parts at a recipe's sizes, for a few seconds each, on noise."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from llmcxr.evaluation.judge import Judge
from llmcxr.foundation.processes import Processes
from llmcxr.image_tokens.architecture import CLINICAL_CHANNELS, ImageEncoder, build_decoder, build_discriminator
from llmcxr.image_tokens.classifier import train_classifier
from llmcxr.image_tokens.clinical_features import ClinicalFeatures, FeatureNetwork, is_repository
from llmcxr.image_tokens.codes import encode_images
from llmcxr.image_tokens.dinov2 import Dinov2Features
from llmcxr.image_tokens.training import train_image_tokenizer
from llmcxr.inference.backend import Request, Sampling
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.rendering import RenderedExample
from llmcxr.recipe import Recipe
from llmcxr.tuning.batches import collate, plan_batches
from llmcxr.tuning.settings import TuningSettings
from llmcxr.tuning.trainer import Losses
from llmcxr.tuning.tunable import MasterAdamW, TunableModel

MOST_STEPS = 30  # of a training that is timed


def peak_bytes(device: torch.device) -> int | None:
    """Most memory in use so far: of the device on a GPU, of this process on a CPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
        import sys
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tuning_rate(
    tunable: TunableModel, settings: TuningSettings, rendered: Sequence[RenderedExample], seconds: float = 20.0
) -> float:
    """Tokens a second, no padding counted, of the real step: forward, backward, optimiser. One step warms up."""
    device = tunable.model.device
    losses_of = Losses(tunable, settings).train()
    plan = plan_batches(np.array([len(r.ids) for r in rendered]), settings.tokens_per_batch, 0)
    batches = itertools.cycle([collate([rendered[i] for i in group]).to(device) for group in plan])
    optimizer = MasterAdamW(tunable)

    def step() -> int:
        tokens, weight = 0, 0
        for _ in range(settings.batches_per_step):
            batch = next(batches)
            losses = losses_of(batch)[0]
            losses.sum().backward()
            tokens, weight = tokens + batch.tokens, weight + len(losses)
        optimizer.step({"body": 0.0, "rows": 0.0}, weight)
        _wait(device)
        return tokens

    step()
    begin, tokens = time.monotonic(), 0
    while (spent := time.monotonic() - begin) < seconds or not tokens:
        tokens += step()
    return tokens / spent


def generation_rate(backend: TransformersBackend, prompts: Sequence[Sequence[int]], tokens: int = 16) -> float:
    """Tokens a second over responses of `tokens` tokens to the prompts together; their reading counts."""
    sampling = Sampling(temperature=1.0, max_new_tokens=tokens)  # among all tokens the end hardly ever comes up
    begin = time.monotonic()
    backend.generate([Request(prompt, "text", sampling) for prompt in prompts])
    _wait(backend.device)
    return len(prompts) * tokens / (time.monotonic() - begin)


def _seconds_a_step(train: Callable[[int], object], device: torch.device, seconds: float) -> float:
    """Of `train(steps)`, its preparations shared out: one step to warm up, then as many as fit."""
    spent = 0.0
    for steps in (1, 0):
        steps = steps or min(MOST_STEPS, 1 + int(seconds / spent))
        begin = time.monotonic()
        train(steps)
        _wait(device)
        spent = time.monotonic() - begin
    return spent / steps


def _features(recipe: Recipe, names: tuple[str, ...]) -> FeatureNetwork:
    """The recipe's network of the clinical loss, untrained: published ones see 224 pixels, and a Dinov2 is taken as RAD-DINO."""
    settings = recipe.clinical_features
    if is_repository(settings.weights):
        return Dinov2Features.untrained()
    resolution = settings.resolution if settings.weights == "train" else 224
    return ClinicalFeatures(names, resolution).eval().requires_grad_(False)


def _vgg() -> nn.Sequential:
    """The convolutions of VGG-16, of which LPIPS is made."""
    layers, last = list[nn.Module](), 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(last, width, 3, padding=1), nn.ReLU()]
            last = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers).requires_grad_(False)


def image_operations(recipe: Recipe, images: int, devices: int = 1) -> dict[str, float]:
    """Operations of training the image tokenizer on all `devices` together, by what takes them, and of encoding all `images`: of
    convolutions and products, counted by torch on networks without weights."""
    s, total = recipe.image_tokenizer, dict[str, float]()
    a, share = s.architecture, 1 - s.adversarial_start if s.adversarial_weight else 0.0
    in_pieces = s.images_at_once is not None and s.batch_size > devices * s.images_at_once  # a device's share of a step

    def count(function: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            function()
        return float(counter.get_total_flops())

    with torch.device("meta"):
        x, y = torch.empty(1, 1, a.image_size, a.image_size), torch.empty(1, 1, a.image_size, a.image_size)
        y.requires_grad_()
        seen = torch.empty(1, CLINICAL_CHANNELS, 8, 8) if a.clinical_input else None
        encoder, decoder, critic = ImageEncoder(a), build_decoder(a), build_discriminator(a).eval()
        features, vgg = _features(recipe, ("a finding",)), _vgg()

        def of_pooled(z: Tensor) -> Tensor:
            return features.feature_maps(z)[1]

        def compared(network: Callable[[Tensor], Tensor], channels: int) -> float:
            """Of the original forward, and of the reconstruction forward and back to its pixels."""
            wide = (x.expand(-1, channels, -1, -1), y.expand(-1, channels, -1, -1))
            return count(lambda: (network(wide[0]), network(wide[1]).sum().backward()))

        def judged() -> None:
            critic.requires_grad_(False)(y).sum().backward()
            critic.requires_grad_(True)
            (critic(x) + critic(y.detach())).sum().backward()

        step = {
            "encoder and decoder": count(lambda: decoder(encoder(x, seen)).sum().backward()),
            "clinical network": compared(of_pooled, 1) if s.asks_clinical else 0.0,
            "LPIPS": compared(vgg, 3) if s.perceptual != "clinical" else 0.0,
            "discriminator": count(judged) * share,
        }
        if in_pieces:  # none keeps its graph: each goes forward again, through the decoder also to weigh the adversary
            with torch.no_grad():
                z = encoder(x, seen)
                step["encoder and decoder"] += count(lambda: encoder(x, seen)) + (1 + share) * count(lambda: decoder(z))
                step["clinical network"] += count(lambda: of_pooled(x)) if a.clinical_input else 0.0
        if s.pretrained is None:
            total = {f"image_tokenizer, {name}": n * s.batch_size * s.steps for name, n in step.items() if n}
        with torch.no_grad():
            total["codes"] = count(lambda: encoder(x, seen)) * images
    return total


def image_stages(
    recipe: Recipe, findings: Sequence[str], images: int, processes: Processes, seconds: float = 5.0
) -> dict[str, float]:
    """Seconds of each stage that learns from images or encodes all `images`, by its name."""
    device, seed = processes.device, recipe.seed
    tokenizer, names = recipe.image_tokenizer, tuple(findings) or ("a finding",)
    S, rng = tokenizer.architecture.image_size, np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, S, S), dtype=np.uint8)
    labels = rng.integers(0, 2, (64, len(names))).astype(np.float32)
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):  # no progress bars
        folder = Path(scratch)
        own, made = recipe.clinical_features.training, []

        def classifier(steps: int) -> None:
            settings = dataclasses.replace(own, steps=steps)
            features = ClinicalFeatures(names, recipe.clinical_features.resolution)
            train_classifier(
                features, noise, labels, settings, seed, folder / "clinical", "clinical network", processes
            )

        if recipe.clinical_features.weights == "train":
            result["clinical_features"] = own.steps * _seconds_a_step(classifier, device, seconds)
        features, perceptual = _features(recipe, names), "clinical"
        if tokenizer.pretrained is None and tokenizer.perceptual != "clinical":
            perceptual = str(folder / "vgg16.pth")
            torch.save({f"features.{k}": v for k, v in _vgg().state_dict().items()}, perceptual)

        def image_tokenizer(steps: int) -> None:
            settings = dataclasses.replace(tokenizer, steps=steps, minutes=None, perceptual=perceptual)
            made.append(train_image_tokenizer(settings, features, noise, seed, folder / "image_tokenizer", processes))

        step = _seconds_a_step(image_tokenizer, device, seconds)
        if tokenizer.pretrained is None:
            result["image_tokenizer"] = min(tokenizer.steps * step, 60 * (tokenizer.minutes or math.inf))
        begin = time.monotonic()
        encode_images(made[-1], noise, device)
        result["codes"] = (time.monotonic() - begin) / len(noise) * images
        judge = recipe.evaluation.judge

        def train_judge(steps: int) -> None:
            settings = dataclasses.replace(judge, steps=steps)
            Judge.train_on(noise, labels, names, settings, seed, folder / "judge", processes)

        result["judge"] = judge.steps * _seconds_a_step(train_judge, device, seconds)
    return result
