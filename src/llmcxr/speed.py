"""How fast this machine is at each part of a run: the real parts at a recipe's sizes, for a few seconds each, on noise."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from llmcxr.evaluation.judge import Judge
from llmcxr.foundation.processes import Processes
from llmcxr.image_tokens.classifier import train_classifier
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.image_tokens.codes import encode_images
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
        features = ClinicalFeatures(names, recipe.clinical_features.resolution).eval().requires_grad_(False)

        def image_tokenizer(steps: int) -> None:
            settings = dataclasses.replace(tokenizer, steps=steps, perceptual="clinical")
            made.append(train_image_tokenizer(settings, features, noise, seed, folder / "image_tokenizer", processes))

        step = _seconds_a_step(image_tokenizer, device, seconds)
        if tokenizer.pretrained is None:
            result["image_tokenizer"] = tokenizer.steps * step
        begin = time.monotonic()
        encode_images(made[-1], noise, device)
        result["codes"] = (time.monotonic() - begin) / len(noise) * images
        judge = recipe.evaluation.judge

        def train_judge(steps: int) -> None:
            settings = dataclasses.replace(judge, steps=steps)
            Judge.train_on(noise, labels, names, settings, seed, folder / "judge", processes)

        result["judge"] = judge.steps * _seconds_a_step(train_judge, device, seconds)
    return result
