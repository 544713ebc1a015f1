"""The training loop of one stage.

Shapes: see objective.py.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from llmcxr.foundation.artifacts import atomic_path, write_json
from llmcxr.foundation.checkpoints import load_checkpoint, load_weights, save_checkpoint
from llmcxr.foundation.errors import UserError
from llmcxr.instructions.example import Task
from llmcxr.instructions.mixture import Mixture, TaskItems
from llmcxr.instructions.rendering import RenderedExample, fit
from llmcxr.instructions.templates import Template
from llmcxr.tuning.batches import Batch, collate, plan_batches
from llmcxr.tuning.objective import token_losses
from llmcxr.tuning.settings import StageSettings, TuningSettings
from llmcxr.tuning.tunable import MasterAdamW, TunableModel

_DECAY = 1 / 3  # share of a stage at its end over which the learning rates fall
_WINDOW = 512  # examples that are rendered and sorted by length together


class Stage:
    """One stage over one tunable model."""

    def __init__(
        self,
        tunable: TunableModel,
        template: Template,
        settings: TuningSettings,
        stage: StageSettings,
        train: Mapping[Task, TaskItems],
        unseen: Mapping[Task, TaskItems],
        folder: Path,
        device: torch.device,
    ) -> None:
        """`train` and `unseen` map tasks to items of training and of validation patients."""
        self.tunable, self.template, self.settings, self.stage = tunable, template, settings, stage
        self.folder, self.device = folder, device
        self.seed = settings.seed * 1000 + [s.name for s in settings.stages].index(stage.name)
        weights = cast(dict[Task, float], stage.mixture)
        self.mixture = Mixture(train, weights, stage.examples, self.seed)
        self.too_long: Counter[str] = Counter()
        self.curve: list[dict[str, Any]] = []
        self.evaluation: dict[Task, list[Batch]] = {}
        for task in self.mixture.counts():
            if task in unseen and len(unseen[task]):
                items = Mixture(unseen, {task: 1.0}, settings.evaluation_examples, seed=0)
                rendered = [r for i in range(len(items)) if (r := self._render(items, i)) is not None]
                plan = plan_batches(np.array([len(r.ids) for r in rendered]), settings.tokens_per_batch, 0)
                self.evaluation[task] = [collate([rendered[i] for i in group]) for group in plan]
        self.too_long.clear()
        self.too_long_before = Counter(self.too_long)

    def _render(self, mixture: Mixture, index: int) -> RenderedExample | None:
        example = mixture[index]
        rendered = fit(example, self.template, self.tunable.vocabulary, self.settings.max_tokens)
        if rendered is None or rendered.cut:
            self.too_long[f"{example.task}, {'left out' if rendered is None else 'cut'}"] += 1
        return rendered

    def _batches(self, window: int, done: int) -> Iterator[tuple[int, int, Batch]]:
        """(window, batches of it done after this one, batch) from batch `done` of window `window` on."""
        for first in range(window * _WINDOW, len(self.mixture), _WINDOW):
            self.too_long_before = Counter(self.too_long)  # a resumed window is rendered, and counted, again
            indices = range(first, min(first + _WINDOW, len(self.mixture)))
            rendered = [r for i in indices if (r := self._render(self.mixture, i)) is not None]
            if not rendered:
                continue
            plan = plan_batches(
                np.array([len(r.ids) for r in rendered]), self.settings.tokens_per_batch, self.seed + first
            )
            for number, group in enumerate(plan):
                if first > window * _WINDOW or number >= done:
                    yield first // _WINDOW, number + 1, collate([rendered[i] for i in group])

    def _rates(self, progress: float) -> dict[str, float]:
        """Learning rates at `progress` (share of the examples seen)."""
        rise = (progress + 1e-3) / max(self.stage.warmup, 1e-3)
        fall = 0.1 + 0.9 * (1 - progress) / _DECAY
        factor = min(1.0, rise, fall)
        return {"body": self.stage.learning_rate * factor, "rows": self.stage.rows_learning_rate * factor}

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, float, dict[Task, tuple[float, int]]]:
        """Weighted sum of token losses, sum of weights, and (sum, count) of unweighted token losses by task."""
        base_states = None
        language = [row for row, task in enumerate(batch.tasks) if task == "language"]
        if self.settings.language_loss == "base_model" and language and torch.is_grad_enabled():
            base_states = self.tunable.base_states(batch.ids[language])
        result = token_losses(
            self.tunable.model, batch, self.tunable.vocabulary, self.settings.image_softmax, base_states
        )
        weight = torch.tensor([self.settings.task_loss_weights.get(t, 1.0) for t in batch.tasks], device=self.device)[
            result.rows
        ]
        sums: defaultdict[Task, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        values, rows = result.losses.detach().cpu().numpy(), result.rows.cpu().numpy()
        for row, task in enumerate(batch.tasks):
            own = values[rows == row]
            sums[task] = (sums[task][0] + float(own.sum()), sums[task][1] + len(own))
        return (result.losses * weight).sum(), float(weight.sum()), dict(sums)

    @torch.no_grad()
    def evaluate(self) -> dict[Task, float]:
        """Mean loss of a response token on unseen patients, by task."""
        self.tunable.model.eval()
        result = {}
        for task, batches in self.evaluation.items():
            parts = [self._losses(batch.to(self.device))[2][task] for batch in batches]
            result[task] = sum(p[0] for p in parts) / max(1, sum(p[1] for p in parts))
        self.tunable.model.train()
        return result

    def run(self) -> None:
        """Train to the end of the stage, from the last checkpoint where there is one, and save weights and curves."""
        model, settings = cast(nn.Module, self.tunable.model).to(self.device), self.settings
        model.train()
        optimizer = MasterAdamW(self.tunable, settings.weight_decay)
        checkpoint = self.folder / "checkpoint.pt"
        position: dict[str, Any] = {"window": 0, "done": 0, "seen": 0, "tokens": 0, "step": 0, "seconds": 0.0}
        if saved := load_checkpoint(checkpoint):
            optimizer.load_state(saved["optimizer"])
            position, self.curve, self.too_long = saved["position"], saved["curve"], Counter(saved["too_long"])
        else:
            self.curve.append({"step": 0, "tokens": 0, "seconds": 0.0, "train": {}, "unseen": self.evaluate()})
        total = len(self.mixture)
        next_evaluation = (len(self.curve)) * total / settings.evaluations
        last_save, clock = time.monotonic(), time.monotonic()
        sums: defaultdict[Task, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        pending, weight_sum = 0, 0.0
        bar = tqdm(total=total, initial=position["seen"], desc=self.stage.name, unit="example", smoothing=0.05)
        for window, done, batch in self._batches(position["window"], position["done"]):
            loss, weight, by_task = self._losses(batch.to(self.device))
            if not torch.isfinite(loss):
                raise UserError(
                    f"{self.stage.name}: the loss is {loss.item()} at step {position['step']} on the images "
                    f"{[i for i in batch.image_ids if i]}. Nothing was updated; lower the learning rates and run again."
                )
            loss.backward()
            pending, weight_sum = pending + 1, weight_sum + weight
            for task, (value, count) in by_task.items():
                sums[task] = (sums[task][0] + value, sums[task][1] + count)
            position["seen"] += len(batch.tasks)
            position["tokens"] += batch.tokens
            bar.update(len(batch.tasks))
            left_out = sum(count for what, count in self.too_long.items() if what.endswith("left out"))
            if pending < settings.batches_per_step and position["seen"] + left_out < total:
                continue
            optimizer.step(self._rates(position["seen"] / total), weight_sum)
            pending, weight_sum = 0, 0.0
            position |= {"window": window, "done": done, "step": position["step"] + 1}
            now = time.monotonic()
            position["seconds"] += now - clock
            clock = now
            if position["seen"] >= next_evaluation:
                train = {task: value / max(1, count) for task, (value, count) in sums.items()}
                record = {k: position[k] for k in ("step", "tokens", "seconds")}
                self.curve.append(record | {"train": train, "unseen": self.evaluate()})
                sums.clear()
                next_evaluation += total / settings.evaluations
                clock = time.monotonic()  # evaluation is not training time
                bar.set_postfix({t: f"{v:.2f}" for t, v in self.curve[-1]["unseen"].items()})
            if time.monotonic() - last_save > settings.checkpoint_minutes * 60:
                state = {
                    "optimizer": optimizer.state(),
                    "position": position,
                    "curve": self.curve,
                    "too_long": dict(self.too_long_before),
                }
                save_checkpoint(checkpoint, state)
                last_save = time.monotonic()
        bar.close()
        if pending:  # all examples after these were too long
            optimizer.step(self._rates(1.0), weight_sum)
            position["step"] += 1
        if self.curve[-1]["step"] < position["step"]:
            train = {task: value / max(1, count) for task, (value, count) in sums.items()}
            self.curve.append(
                {k: position[k] for k in ("step", "tokens", "seconds")} | {"train": train, "unseen": self.evaluate()}
            )
        with atomic_path(self.folder / "weights.safetensors") as temporary:
            save_file(self.tunable.state(), temporary)
        write_json(self.folder / "curves.json", self.curve)
        write_json(
            self.folder / "summary.json",
            {"too_long": dict(self.too_long), "examples": self.mixture.counts(), **position},
        )
        checkpoint.unlink(missing_ok=True)


def load_stage(tunable: TunableModel, folder: Path) -> None:
    """Put the weights that a finished stage saved into `tunable`."""
    path = folder / "weights.safetensors"
    if not path.exists():
        raise UserError(f"{path} does not exist. Run the stage {folder.name} first.")
    tunable.load_state(load_weights(path), str(path))
