"""Alignment: before tuning, the first layers of the language model learn which findings the codes show. Ours, not the paper's.

An answer of a few tokens tells little about an image, and takes all layers to be learned from. Here the first layers alone
are asked for all findings at once, by a linear map at the token after which a response begins: ten times the images a
second, and many times what each one teaches. What is tuned afterwards finds the findings in the stream of its first layers.

Shapes: N images, B images of a step, T tokens of a prompt, F findings, d width of the LLM.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from llmcxr.foundation.artifacts import atomic_path, write_json
from llmcxr.foundation.checkpoints import load_checkpoint, remove_checkpoint, save_checkpoint
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.instructions.example import Turn
from llmcxr.instructions.questions import LIST_QUESTION
from llmcxr.instructions.rendering import render_prompt
from llmcxr.instructions.templates import Template
from llmcxr.tuning.settings import AlignmentSettings
from llmcxr.tuning.tunable import MasterAdamW, TunableModel
from llmcxr.vocabulary.growing import table_of
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

_HEAD_RATE = 3e-3  # of the linear map, which is thrown away
_SAVE_EVERY = 200  # steps
_WARMUP, _DECAY = 0.05, 1 / 3  # shares of the steps over which the rates rise and fall


@contextmanager
def first_layers(model: PreTrainedModel, count: int) -> Iterator[None]:
    """`model` with its first `count` decoder layers only."""
    body, depth = model.base_model, model.config.get_text_config().num_hidden_layers
    stacks = [(n, m) for n, m in body.named_children() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(stacks) != 1:
        raise UserError(
            f"the decoder layers of {type(model).__name__} were not found; set tuning.alignment.steps to 0."
        )
    name, layers = stacks[0]
    setattr(body, name, layers[:count])
    try:
        yield
    finally:
        setattr(body, name, layers)


def alignment_prompt(codes: np.ndarray, template: Template, vocabulary: ImageVocabulary) -> list[int]:
    """Ids that end where a response about the findings of the image `codes` begins."""
    return render_prompt((Turn(LIST_QUESTION, codes, None),), template, vocabulary)


def findings_logits(model: PreTrainedModel, head: nn.Linear, ids: Tensor) -> Tensor:
    """Float32 [B, F] from the last token of prompts [B, T], all of one length."""
    return head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, -1].float())


def align(
    tunable: TunableModel,
    prompts: np.ndarray,
    labels: np.ndarray,
    settings: AlignmentSettings,
    folder: Path,
    device: torch.device,
    seed: int,
) -> None:
    """Train on prompts int64 [N, T] that end where a response begins, and labels [N, F] of 1, 0 and NaN (unknown).

    Saves `weights.safetensors` (all that is tuned later, as a stage does) and `curves.json`; resumes from its checkpoint.
    """
    model = tunable.model
    cast(nn.Module, model).to(device)
    torch.manual_seed(seed)
    head = nn.Linear(table_of(model).shape[1], labels.shape[1]).to(device)
    nn.init.zeros_(head.weight)
    with first_layers(model, settings.layers):
        optimizer = MasterAdamW(tunable)  # sees the first layers only
        trained = list(tunable.trainable().values())
    head_optimizer = torch.optim.AdamW(head.parameters(), lr=_HEAD_RATE, weight_decay=0.0)
    checkpoint, start, curve = folder / "checkpoint.pt", 0, []
    if saved := load_checkpoint(checkpoint):
        optimizer.load_state(saved["optimizer"])
        head.load_state_dict(saved["head"])
        head_optimizer.load_state_dict(saved["head_optimizer"])
        start, curve = saved["step"], saved["curve"]
    ids, target = torch.from_numpy(prompts), torch.from_numpy(labels)
    bar = tqdm(range(start, settings.steps), initial=start, total=settings.steps, desc="alignment", unit="step")
    model.train()
    with first_layers(model, settings.layers):
        for step in bar:
            rows = stream(seed, "alignment", step).choice(len(ids), min(settings.batch_size, len(ids)), replace=False)
            # A model's dropout, if it has any, depends on the step alone, not on what ran before.
            torch.manual_seed(int(stream(seed, "alignment dropout", step).integers(2**62)))
            own = target[rows].to(device)
            known = ~own.isnan()
            losses = F.binary_cross_entropy_with_logits(
                findings_logits(model, head, ids[rows].to(device)), own.nan_to_num(), reduction="none"
            )
            loss = (losses * known).sum() / known.sum().clamp(min=1)
            loss.backward()
            for p in trained:  # the rows of an untied output head take no part yet
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            progress = step / settings.steps
            factor = min(1.0, (progress + 1e-3) / _WARMUP, 0.1 + 0.9 * (1 - progress) / _DECAY)
            rate = settings.learning_rate * factor
            norm = optimizer.step({"body": rate, "rows": 2 * rate}, divisor=1.0)
            if not math.isfinite(norm):  # as it is where the loss is not finite
                raise UserError(
                    f"alignment: loss {loss.item()} and gradient norm {norm} at step {step}; lower its learning_rate."
                )
            head_optimizer.step()
            head_optimizer.zero_grad(set_to_none=True)
            if step % 10 == 0:
                curve.append({"step": step, "loss": loss.item()})
                bar.set_postfix(loss=f"{np.mean([c['loss'] for c in curve[-10:]]):.3f}")
            if (step + 1) % _SAVE_EVERY == 0 and step + 1 < settings.steps:
                state = {"optimizer": optimizer.state(), "head": head.state_dict(), "step": step + 1, "curve": curve}
                save_checkpoint(checkpoint, state | {"head_optimizer": head_optimizer.state_dict()})
    with atomic_path(folder / "weights.safetensors") as temporary:
        save_file(tunable.state(), temporary)
    write_json(folder / "curves.json", curve)
    remove_checkpoint(checkpoint)
