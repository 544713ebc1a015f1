"""Alignment: before tuning, the first layers of the language model learn which findings the codes show. Ours, not the paper's.

An answer of a few tokens tells little about an image, and takes all layers to be learned from. Here the first layers alone
are asked for all findings at once, by a linear map at the token after which a response begins: ten times the images a
second, and many times what each one teaches. What is tuned afterwards finds the findings in the stream of its first layers.

Shapes: N images, B images of a step, T tokens of a prompt, F findings, d width of the LLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmcxr.foundation import loop
from llmcxr.foundation.artifacts import atomic_path, write_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.foundation.randomness import stream
from llmcxr.instructions.example import Turn
from llmcxr.instructions.questions import LIST_QUESTION
from llmcxr.instructions.rendering import render_prompt
from llmcxr.instructions.templates import Template
from llmcxr.tuning.settings import AlignmentSettings
from llmcxr.tuning.tunable import MasterAdamW, TunableModel
from llmcxr.vocabulary.growing import table_of
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

LAYERS, BATCH = 6, 16  # first layers of the LLM that take part; images a step
_HEAD_RATE = 3e-3  # of the linear map, which is thrown away
_WARMUP = 0.05  # share of the steps over which the rates rise
_ADVICE = "Lower tuning.alignment.learning_rate"


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


class _Training(loop.Training):
    def __init__(
        self,
        tunable: TunableModel,
        prompts: np.ndarray,
        labels: np.ndarray,
        settings: AlignmentSettings,
        seed: int,
        folder: Path,
        processes: Processes,
    ) -> None:
        super().__init__("alignment", settings.steps, processes)
        self.tunable, self.model, self.settings = tunable, tunable.model, settings
        self.ids, self.target = torch.from_numpy(prompts), torch.from_numpy(labels)
        self.seed, self.folder, self.device = seed, folder, processes.device
        self.rows = min(BATCH, len(prompts))
        self.part = loop.share_of(self.rows, processes)
        cast(nn.Module, self.model).to(self.device)
        # The start of the rows is computed: the last digits may differ by machine.
        loop.agree([p.data for p in tunable.trainable().values()], processes)
        torch.manual_seed(seed)
        self.head = nn.Linear(table_of(self.model).shape[1], labels.shape[1]).to(self.device)
        nn.init.zeros_(self.head.weight)
        with first_layers(self.model, LAYERS):
            self.optimizer = MasterAdamW(tunable)  # sees the first layers only
            self.trained = list(tunable.trainable().values())
        self.head_optimizer = torch.optim.AdamW(self.head.parameters(), lr=_HEAD_RATE, weight_decay=0.0)
        self.model.train()

    def step(self) -> loop.Step:
        step, settings = self.at.step, self.settings
        rows = stream(self.seed, "alignment", step).choice(len(self.ids), self.rows, replace=False)
        # A model's dropout, if it has any, depends on the step (and the process) alone, not on what ran before.
        torch.manual_seed(int(stream(self.seed, "alignment dropout", step).integers(2**62)) + self.processes.rank)
        target = self.target[rows].to(self.device)
        known, own = ~target.isnan(), rows[self.part]
        with first_layers(self.model, LAYERS):
            logits = findings_logits(self.model, self.head, self.ids[own].to(self.device))
        losses = F.binary_cross_entropy_with_logits(logits, target[self.part].nan_to_num(), reduction="none")
        loss = (losses * known[self.part]).sum() / known.sum().clamp(min=1)
        value = loop.backward(loss, [*self.trained, *self.head.parameters()], self.processes)
        self.check({"loss": value}, _ADVICE)
        for p in self.trained:  # the rows of an untied output head take no part yet
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        rate = settings.learning_rate * loop.trapezoid(step / settings.steps, _WARMUP)
        norm = self.optimizer.step({"body": rate, "rows": 2 * rate}, divisor=1.0)
        self.check({"norm of the gradient": norm}, _ADVICE)
        self.head_optimizer.step()
        self.head_optimizer.zero_grad(set_to_none=True)
        return loop.Step({"loss": value})

    def state(self) -> dict[str, Any]:
        heads = {"head": self.head.state_dict(), "head_optimizer": self.head_optimizer.state_dict()}
        return {"optimizer": self.optimizer.state(), **heads}

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state(state["optimizer"])
        self.head.load_state_dict(state["head"])
        self.head_optimizer.load_state_dict(state["head_optimizer"])

    def finish(self) -> None:
        weights = self.tunable.state()

        def save() -> None:
            with atomic_path(self.folder / "weights.safetensors") as temporary:
                save_file(weights, temporary)
            write_json(self.folder / "curves.json", self.at.curve)

        self.processes.on_main(save)


def align(
    tunable: TunableModel,
    prompts: np.ndarray,
    labels: np.ndarray,
    settings: AlignmentSettings,
    seed: int,
    folder: Path,
    processes: Processes,
    save_minutes: float = loop.SAVE_MINUTES,
) -> None:
    """Train on prompts int64 [N, T] that end where a response begins, and labels [N, F] of 1, 0 and NaN (unknown).

    Saves `weights.safetensors` (all that is tuned later, as a stage does) and `curves.json`; resumes from its checkpoint.
    All processes call. `UserError` where the loss is not finite.
    """
    loop.run(_Training(tunable, prompts, labels, settings, seed, folder, processes), folder, save_minutes)
