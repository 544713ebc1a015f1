"""One stage of tuning, on one process or many: what a step is, and when unseen patients are measured.

A step is `batches_per_step` batches over all processes. Every process knows them all, so each knows what the step's loss is
divided by, and takes its own share of the work. Batch n of step s is the same, with the same dropout, in any number of
processes and after any number of kills.

Losses on unseen patients are measured before, after and, as often as `measure_share` allows, during a stage, always on the
same batches, so that they compare. How many batches, the length of the stage says: see `_unseen`.

Shapes: see objective.py.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llmcxr.foundation import loop
from llmcxr.foundation.artifacts import atomic_path, fingerprint, read_json, write_json
from llmcxr.foundation.checkpoints import load_weights
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

_WARMUP = 0.03  # share of a stage over which the learning rates rise
_UNSEEN_EXAMPLES = 16  # most of each task that are measured
_UNSEEN_PART = 0.5  # of what `measure_share` allows; language, measured after the stage, has the rest
_BACKWARD = 3  # what a batch of training takes, in passes forward


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


class Stage(loop.Training):
    """One stage over one tunable model."""

    unit = "example"
    save_minutes = loop.SAVE_MINUTES  # between checkpoints
    points = 20  # most measurements while it trains

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
        before: Path | None = None,
    ) -> None:
        """`seed` is the run's; `train` and `unseen` map tasks to items of training and of validation patients.

        `before` is the folder of the stage that ended with the very weights with which this one begins, where there is one.
        """
        super().__init__(stage.name, stage.examples, processes)
        if settings.batches_per_step % processes.count:
            raise processes.fault(
                f"tuning.batches_per_step is {settings.batches_per_step}: {processes.count} processes need a multiple of "
                f"their number, e.g. tuning.batches_per_step={processes.count}."
            )
        self.tunable, self.template, self.settings, self.stage = tunable, template, settings, stage
        self.folder, self.before, self.device = folder, before, processes.device
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
        self.total = len(self.mixture)
        self.place, self.tokens = (0, 0), 0  # window, and batches of it that are done
        self.sums = np.zeros((2, len(self.kinds)))  # of the train loss since the last measurement
        self.measuring = {"seconds": 0.0, "last": 0.0}  # on unseen patients: in all, and the last time
        self.next_point = 1  # of `points`
        self.evaluation = self._unseen(unseen)
        layers = list(getattr(tunable.model, "_no_split_modules", None) or [])
        self.losses = processes.prepare(Losses(tunable, settings, processes.sharded), layers, tunable.model.dtype)
        self.losses.train()

    def _unseen(self, unseen: Mapping[str, Items]) -> list[Batch]:
        """The batches that are measured: of each task equally many, one at least.

        The first and the last measurement together take at most their part of `measure_share` of the time that training
        is expected to take: by counting batches, not by a clock, so that they are the same in every run.
        """
        tasks: list[list[Batch]] = []
        for task in self.mixture.counts():
            if task in unseen and len(unseen[task]):
                items = Mixture(unseen, {task: 1.0}, _UNSEEN_EXAMPLES, seed=0)
                rendered = [r for i in range(len(items)) if (r := self._render(items[i])) is not None]
                lengths = np.array([len(r.ids) for r in rendered], dtype=np.int64)
                plan = plan_batches(lengths, self.settings.tokens_per_batch, 0)
                tasks.append([collate([rendered[i] for i in group]) for group in plan])
        rounds = [[b for b in round_ if b is not None] for round_ in zip_longest(*tasks)]
        if not rounds:
            return []
        examples = np.mean([len(b.tasks) for batches in tasks for b in batches])
        allowed = _UNSEEN_PART * self.settings.measure_share * _BACKWARD * self.total / examples / 2
        chosen = rounds[0]
        for batches in rounds[1:]:
            if len(chosen) + len(batches) > allowed:
                break
            chosen = [*chosen, *batches]
        return chosen

    def _render(self, example: InstructionExample) -> RenderedExample | None:
        return fit(example, self.template, self.tunable.vocabulary, self.settings.max_tokens)

    def _learned(self, example: InstructionExample) -> RenderedExample | None:
        rendered = self._render(example)
        return supervise_all(rendered) if rendered is not None and self.settings.loss == "sequence" else rendered

    def _rates(self, progress: float) -> dict[str, float]:
        """Learning rates at `progress` (share of the examples seen)."""
        factor = loop.trapezoid(progress, _WARMUP)
        return {"body": self.stage.learning_rate * factor, "rows": self.stage.rows_learning_rate * factor}

    def _task_weights(self, batch: Batch) -> Tensor:
        weights = self.stage.task_loss_weights
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

    def _means(self, sums: np.ndarray) -> dict[str, float]:
        """Mean loss of a token by kind, from sums and counts [2, kinds]; kinds without tokens are left out."""
        return {kind: total / count for kind, total, count in zip(self.kinds, *sums.tolist(), strict=True) if count}

    def _measure(self) -> None:
        """A point of the curve: train losses since the last one, and losses on unseen patients."""
        self.bar.set_description(f"{self.name} (measuring)")
        clock = time.monotonic()
        unseen = self.evaluate()
        self.measuring["last"] = time.monotonic() - clock
        self.measuring["seconds"] += self.measuring["last"]
        self.bar.set_description(self.name)
        self._point(unseen)

    def _point(self, unseen: dict[str, float]) -> None:
        record = {"step": self.at.step, "tokens": self.tokens, "seconds": self.at.seconds}
        self.at.curve.append(record | {"train": self._means(self.sums), "unseen": unseen})
        self.sums[:] = 0
        self.bar.set_postfix({task: f"{loss:.2f}" for task, loss in unseen.items()})

    @cached_property
    def _unseen_on(self) -> str:
        """Fingerprint of what is measured: losses on the same batches compare, whichever stage they are of."""
        batches = [[b.ids.tolist(), b.supervised.tolist(), b.tasks] for b in self.evaluation]
        return fingerprint(batches)

    @cached_property
    def _tracker(self) -> Tracker:
        return Tracker(self.settings.logging if self.processes.main else "none", self.folder, self.at.step)

    @cached_property
    def _places(self) -> Iterator[tuple[int, int, list[Batch]]]:
        return self.feed.steps(*self.place)

    def begin(self) -> None:
        """Losses on unseen patients before training: those with which the stage before ended, where they compare."""
        known = read_json(self.before / "summary.json") if self.before is not None else {}
        if self.before is not None and known.get("unseen_on") == self._unseen_on:
            self.measuring["last"] = known["measuring_last"]
            self._point(read_json(self.before / "curves.json")[-1]["unseen"])
        else:
            self._measure()

    def _gradients(self, step: int, batches: Sequence[Batch]) -> np.ndarray:
        """Add the gradients of this process's share of a step.

        Returns float64 [batches, 1 + 2 kinds] as `_losses_of` gives it, for the whole step.
        """
        table = torch.zeros(len(batches), 1 + 2 * len(self.kinds), device=self.device)
        for number, idle, last, batch in share(batches, self.processes):
            # A model's dropout, if it has any, depends on the place in training alone, not on what ran before.
            torch.manual_seed(int(stream(self.seed, "dropout", step, number).integers(2**62)))
            with self.processes.accumulate(self.losses, last):
                loss, row = self._losses_of(batch)
                (loss * 0.0 if idle else loss).backward()
            if not idle:
                table[number] = row
        return self._gather(table)

    def _check(self, batches: Sequence[Batch], losses: Sequence[float], norm: float = 0.0) -> None:
        """End the run, on all processes, where a loss or the gradient is not finite."""
        bad = [n for n, loss in enumerate(losses) if not math.isfinite(loss)]
        images = [i for n in bad or range(len(batches)) for i in batches[n].image_ids if i]
        self.check(
            {"loss": losses[bad[0]] if bad else 0.0, "norm of the gradient": norm},
            "Nothing was updated; lower the learning rates",
            f" on the images {images}",
        )

    def step(self) -> loop.Step | None:
        tracker = self._tracker
        place = next(self._places, None)
        if place is None:  # the last examples were left out
            return None
        *now, batches = place
        table = self._gradients(self.at.step, batches)
        self._check(batches, table[:, 0].tolist())
        seen = sum(len(b.tasks) for b in batches)
        rates, divisor = self._rates((self.at.done + seen) / self.total), self._divisor(batches)
        norm = self.optimizer.step(rates, divisor / self.processes.count)  # DDP and FSDP2 average over the processes
        self._check(batches, table[:, 0].tolist(), norm)
        self.sums += table[:, 1:].sum(0).reshape(2, -1)
        self.place, self.tokens = (now[0], now[1]), self.tokens + sum(b.tokens for b in batches)
        terms = {"loss": float(table[:, 0].sum()) / divisor, "gradient_norm": norm, "tokens": self.tokens}
        tracker.log(terms | {f"learning_rate/{k}": v for k, v in rates.items()}, self.at.step + 1)
        return loop.Step(terms, seen)

    def after_step(self, terms: dict[str, float]) -> None:
        """Measure again where a further point is due, and its time and that of the last one are within what is allowed."""
        at, spent = self.at, self.measuring
        if at.done < self.next_point * self.total / self.points:
            return
        allowed = _UNSEEN_PART * self.settings.measure_share * at.seconds
        if self.processes.from_main(spent["seconds"] + 2 * spent["last"] <= allowed):
            self._measure()
            self._show()
            self.next_point = at.done * self.points // self.total + 1

    def _show(self) -> None:
        point = self.at.curve[-1]
        self._tracker.log({f"{k}/{t}": v for k in ("train", "unseen") for t, v in point[k].items()}, self.at.step)

    def state(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state(),
            "place": self.place,
            "tokens": self.tokens,
            "sums": self.sums.tolist(),
            "measuring": dict(self.measuring),
            "next_point": self.next_point,
            "too_long": dict(self.feed.too_long_before),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state(state["optimizer"])
        self.place, self.tokens, self.sums = state["place"], state["tokens"], np.array(state["sums"])
        self.measuring, self.next_point = state["measuring"], state["next_point"]
        self.feed.too_long = Counter(state["too_long"])

    def run(self) -> None:
        """Train to the end of the stage, from the last checkpoint where there is one, and save weights and curves."""
        self.optimizer = MasterAdamW(self.tunable)
        loop.run(self, self.folder, self.save_minutes)

    def finish(self) -> None:
        if self.at.curve[-1]["step"] < self.at.step:
            self._measure()
            self._show()
        self._tracker.close()
        weights = self.tunable.state()

        def save() -> None:
            with atomic_path(self.folder / "weights.safetensors") as temporary:
                save_file(weights, temporary)
            write_json(self.folder / "curves.json", self.at.curve)
            summary = {
                "too_long": dict(self.feed.too_long),
                "examples": self.mixture.counts(),
                **self.about_items,
                "seen": self.at.done,
                "tokens": self.tokens,
                "step": self.at.step,
                "seconds": self.at.seconds,
                "measuring_seconds": self.measuring["seconds"],
                "measuring_last": self.measuring["last"],
                "unseen_on": self._unseen_on,
            }
            write_json(self.folder / "summary.json", summary)

        self.processes.on_main(save)


def load_stage(tunable: TunableModel, folder: Path) -> None:
    """Put the weights that a finished stage saved into `tunable`."""
    path = folder / "weights.safetensors"
    if not path.exists():
        raise UserError(f"{path} does not exist. Run the stage {folder.name} first.")
    tunable.load_state(load_weights(path), str(path))
