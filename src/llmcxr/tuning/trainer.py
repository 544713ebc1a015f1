"""The training loop of one stage, on one process or many.

A step is `batches_per_step` batches over all processes. Every process knows them all, so each knows what the step's loss is
divided by, and takes its own share of the work. Batch n of step s is the same, with the same dropout, in any number of
processes and after any number of kills.

Shapes: see objective.py.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from llmcxr.foundation.artifacts import atomic_path, write_json
from llmcxr.foundation.checkpoints import load_checkpoint, load_weights, remove_checkpoint, save_checkpoint
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.foundation.randomness import stream
from llmcxr.instructions.example import InstructionExample
from llmcxr.instructions.mixture import Mixture
from llmcxr.instructions.rendering import RenderedExample, fit, supervise_all
from llmcxr.instructions.templates import Template
from llmcxr.tasks.base import Items
from llmcxr.tuning.batches import Batch, collate, plan_batches
from llmcxr.tuning.feed import Feed, share
from llmcxr.tuning.objective import read_tokens, token_losses
from llmcxr.tuning.settings import StageSettings, TuningSettings
from llmcxr.tuning.trackers import Tracker
from llmcxr.tuning.tunable import MasterAdamW, TunableModel

_WARMUP, _DECAY = 0.03, 1 / 3  # shares of a stage over which the learning rates rise and fall
_EVALUATIONS, _EVALUATION_EXAMPLES = 6, 16  # on unseen patients in a stage, and examples of each task in them


class Losses(nn.Module):
    """Losses of a batch as one module, whose forward uses every weight: what DDP and FSDP2 join across processes."""

    def __init__(self, tunable: TunableModel, settings: TuningSettings, sharded: bool = False) -> None:
        super().__init__()
        self.model, self._tunable, self._settings = cast(nn.Module, tunable.model), tunable, settings
        self._sharded = sharded

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """`losses` float32 [N], `rows` int64 [N] and `read` bool [N] of `token_losses`."""
        base_states = None
        language = [row for row, task in enumerate(batch.tasks) if task == "language"]
        if self._settings.language.loss == "base_model" and torch.is_grad_enabled():
            if language:
                base_states = self._tunable.base_states(batch.ids[language])
            elif self._sharded:  # processes gather each layer's shards together: all must pass the layers equally often
                self._tunable.base_states(batch.ids[:1])
        settings, vocabulary = self._settings, self._tunable.vocabulary
        read = settings.read_image_weight > 0
        result = token_losses(self._tunable.model, batch, vocabulary, settings.image_softmax, base_states, read)
        return result.losses, result.rows, result.read


class Stage:
    """One stage over one tunable model."""

    def __init__(
        self,
        tunable: TunableModel,
        template: Template,
        settings: TuningSettings,
        stage: StageSettings,
        train: Mapping[str, Items],
        unseen: Mapping[str, Items],
        folder: Path,
        processes: Processes,
        seed: int,
    ) -> None:
        """`seed` is the run's; `train` and `unseen` map tasks to items of training and of validation patients."""
        if settings.batches_per_step % processes.count:
            raise processes.fault(
                f"tuning.batches_per_step is {settings.batches_per_step}: {processes.count} processes need a multiple of "
                f"their number, e.g. tuning.batches_per_step={processes.count}."
            )
        self.tunable, self.template, self.settings, self.stage = tunable, template, settings, stage
        self.folder, self.processes, self.device = folder, processes, processes.device
        self.seed = settings.seed_of(stage, seed)
        self.kinds = (*train, "read_image")  # of learned tokens: responses by task, and codes of images that are read
        self.about_items = {
            "findings_first": [name for name, items in train.items() if items.findings_first],
            "notes": [items.note for items in train.values() if items.note],
        }
        self.mixture = Mixture(train, stage.mixture, stage.examples, self.seed)
        self.feed = Feed(
            self.mixture, self._learned, settings.tokens_per_batch, settings.batches_per_step, self.seed, processes
        )
        self.curve: list[dict[str, Any]] = []
        self.evaluation: list[Batch] = []
        for task in self.mixture.counts():
            if task in unseen and len(unseen[task]):
                items = Mixture(unseen, {task: 1.0}, _EVALUATION_EXAMPLES, seed=0)
                rendered = [r for i in range(len(items)) if (r := self._render(items[i])) is not None]
                plan = plan_batches(np.array([len(r.ids) for r in rendered]), settings.tokens_per_batch, 0)
                self.evaluation += [collate([rendered[i] for i in group]) for group in plan]
        layers = list(getattr(tunable.model, "_no_split_modules", None) or [])
        self.losses = processes.prepare(Losses(tunable, settings, processes.sharded), layers, tunable.model.dtype)

    def _render(self, example: InstructionExample) -> RenderedExample | None:
        return fit(example, self.template, self.tunable.vocabulary, self.settings.max_tokens)

    def _learned(self, example: InstructionExample) -> RenderedExample | None:
        rendered = self._render(example)
        return supervise_all(rendered) if rendered is not None and self.settings.loss == "sequence" else rendered

    def _rates(self, progress: float) -> dict[str, float]:
        """Learning rates at `progress` (share of the examples seen)."""
        rise = (progress + 1e-3) / _WARMUP
        fall = 0.1 + 0.9 * (1 - progress) / _DECAY
        factor = min(1.0, rise, fall)
        return {"body": self.stage.learning_rate * factor, "rows": self.stage.rows_learning_rate * factor}

    def _task_weights(self, batch: Batch) -> Tensor:
        weights = {**self.settings.task_loss_weights, **self.stage.task_loss_weights}
        return torch.tensor([weights.get(task, 1.0) for task in batch.tasks])

    def _divisor(self, batches: Sequence[Batch]) -> float:
        """Learned tokens of a step over all processes; codes of images that are read count with their weight.

        Weights of tasks do not count: examples of like length go together, so those of one task often fill a step, and a
        weight that divided as much as it multiplies would do nothing there.
        """
        total = float(sum(int(b.supervised[:, 1:].sum()) for b in batches))
        if weight := self.settings.read_image_weight:
            total += weight * sum(int(read_tokens(b, self.tunable.vocabulary).sum()) for b in batches)
        return total or 1.0

    def _losses_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weighted sum of token losses, and float32 [1 + 2 kinds]: the same, then unweighted sums and counts by kind."""
        losses, rows, read = self.losses(batch.to(self.device))
        weights = self._task_weights(batch).to(self.device)[rows].masked_fill(read, self.settings.read_image_weight)
        weighted = (losses * weights).sum()
        kinds = torch.tensor([self.kinds.index(task) for task in batch.tasks], device=self.device)[rows]
        own = torch.nn.functional.one_hot(kinds.masked_fill(read, len(self.kinds) - 1), len(self.kinds)).float()
        sums = (losses.detach()[:, None] * own).sum(0)
        return weighted, torch.cat([weighted.detach()[None], sums, own.sum(0)])

    def _means(self, sums: np.ndarray) -> dict[str, float]:
        """Mean loss of a token by kind, from sums and counts [2, kinds]; kinds without tokens are left out."""
        return {kind: total / count for kind, total, count in zip(self.kinds, *sums.tolist(), strict=True) if count}

    def _gather(self, table: Tensor) -> np.ndarray:
        """Rows that the processes filled, together, as float64."""
        return self.processes.sum(table).cpu().double().numpy()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean loss of a learned token on unseen patients, by kind."""
        self.losses.eval()
        table = torch.zeros(len(self.evaluation), 1 + 2 * len(self.kinds), device=self.device)
        for number, idle, _, batch in share(self.evaluation, self.processes):
            _, row = self._losses_of(batch)
            if not idle:
                table[number] = row
        self.losses.train()
        return self._means(self._gather(table)[:, 1:].sum(0).reshape(2, -1))

    def _gradients(self, step: int, batches: Sequence[Batch], flag: bool) -> tuple[np.ndarray, bool]:
        """Add the gradients of this process's share of a step.

        Returns float64 [batches, 1 + 2 kinds] as `_losses_of` gives it for the whole step, and the main process's `flag`.
        """
        table = torch.zeros(len(batches) + 1, 1 + 2 * len(self.kinds), device=self.device)
        for number, idle, last, batch in share(batches, self.processes):
            # A model's dropout, if it has any, depends on the place in training alone, not on what ran before.
            torch.manual_seed(int(stream(self.seed, "dropout", step, number).integers(2**62)))
            with self.processes.accumulate(self.losses, last):
                loss, row = self._losses_of(batch)
                (loss * 0.0 if idle else loss).backward()
            if not idle:
                table[number] = row
        table[-1, 0] = float(flag and self.processes.main)
        result = self._gather(table)
        return result[:-1], bool(result[-1, 0])

    def _check(self, step: int, batches: Sequence[Batch], losses: Sequence[float], norm: float = 0.0) -> None:
        """End the run, on all processes, where a loss or the gradient is not finite."""
        bad = [n for n, loss in enumerate(losses) if not math.isfinite(loss)]
        if bad or not math.isfinite(norm):
            what = f"loss is {losses[bad[0]]}" if bad else f"norm of the gradient is {norm}"
            images = [i for n in bad or range(len(batches)) for i in batches[n].image_ids if i]
            raise self.processes.fault(
                f"{self.stage.name}: the {what} at step {step} on the images {images}. "
                "Nothing was updated; lower the learning rates and run again."
            )

    def run(self) -> None:
        """Train to the end of the stage, from the last checkpoint where there is one, and save weights and curves."""
        settings, processes = self.settings, self.processes
        self.losses.train()
        optimizer = MasterAdamW(self.tunable)
        checkpoint = self.folder / "checkpoint.pt"
        position: dict[str, Any] = {"window": 0, "done": 0, "seen": 0, "tokens": 0, "step": 0, "seconds": 0.0}
        sums = np.zeros((2, len(self.kinds)))  # of the train loss since the last evaluation
        if saved := load_checkpoint(checkpoint):
            optimizer.load_state(saved["optimizer"])
            position, self.curve, self.feed.too_long = saved["position"], saved["curve"], Counter(saved["too_long"])
            sums = np.array(saved["sums"])
        else:
            self.curve.append({"step": 0, "tokens": 0, "seconds": 0.0, "train": {}, "unseen": self.evaluate()})
        total = len(self.mixture)
        tracker = Tracker(settings.logging if processes.main else "none", self.folder, position["step"])
        last_save, clock = time.monotonic(), time.monotonic()
        bar = tqdm(
            total=total,
            initial=position["seen"],
            desc=self.stage.name,
            unit="example",
            smoothing=0.05,
            disable=not processes.main,
        )

        def evaluate() -> None:
            record = {k: position[k] for k in ("step", "tokens", "seconds")}
            self.curve.append(record | {"train": self._means(sums), "unseen": self.evaluate()})
            sums[:] = 0
            shown = {f"{k}/{t}": v for k in ("train", "unseen") for t, v in self.curve[-1][k].items()}
            tracker.log(shown, position["step"])
            bar.set_postfix({t: f"{v:.2f}" for t, v in self.curve[-1]["unseen"].items()})

        for window, done, batches in self.feed.steps(position["window"], position["done"]):
            save = time.monotonic() - last_save > settings.checkpoint_minutes * 60
            table, save = self._gradients(position["step"], batches, save)
            self._check(position["step"], batches, table[:, 0].tolist())
            seen, tokens = sum(len(b.tasks) for b in batches), sum(b.tokens for b in batches)
            rates, divisor = self._rates((position["seen"] + seen) / total), self._divisor(batches)
            norm = optimizer.step(rates, divisor / processes.count)  # DDP and FSDP2 average over the processes
            self._check(position["step"], batches, table[:, 0].tolist(), norm)
            sums += table[:, 1:].sum(0).reshape(2, -1)
            now = time.monotonic()
            position |= {
                "window": window,
                "done": done,
                "seen": position["seen"] + seen,
                "tokens": position["tokens"] + tokens,
                "step": position["step"] + 1,
                "seconds": position["seconds"] + now - clock,
            }
            bar.update(seen)
            shown = {"loss": float(table[:, 0].sum()) / divisor, "gradient_norm": norm, "tokens": position["tokens"]}
            tracker.log(shown | {f"learning_rate/{k}": v for k, v in rates.items()}, position["step"])
            if position["seen"] >= len(self.curve) * total / _EVALUATIONS:
                evaluate()
            if save:
                state = {
                    "optimizer": optimizer.state(),
                    "position": position,
                    "sums": sums.tolist(),
                    "curve": self.curve,
                    "too_long": dict(self.feed.too_long_before),
                }
                processes.on_main(lambda state=state: save_checkpoint(checkpoint, state))  # type: ignore[misc]
                last_save = time.monotonic()
            clock = time.monotonic()  # neither evaluation nor saving is training time
        bar.close()
        if self.curve[-1]["step"] < position["step"]:
            evaluate()
        tracker.close()
        weights = self.tunable.state()
        processes.on_main(lambda: self._finish(weights, position))

    def _finish(self, weights: dict[str, Tensor], position: dict[str, Any]) -> None:
        with atomic_path(self.folder / "weights.safetensors") as temporary:
            save_file(weights, temporary)
        write_json(self.folder / "curves.json", self.curve)
        write_json(
            self.folder / "summary.json",
            {"too_long": dict(self.feed.too_long), "examples": self.mixture.counts(), **self.about_items, **position},
        )
        remove_checkpoint(self.folder / "checkpoint.pt")


def load_stage(tunable: TunableModel, folder: Path) -> None:
    """Put the weights that a finished stage saved into `tunable`."""
    path = folder / "weights.safetensors"
    if not path.exists():
        raise UserError(f"{path} does not exist. Run the stage {folder.name} first.")
    tunable.load_state(load_weights(path), str(path))
