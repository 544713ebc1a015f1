"""The training loop: every training of llmcxr runs through `run`, on one process or on many, and resumes exactly.

The loop owns the order of things: steps, progress, curves, checkpoints, the end. A `Training` says what a step is and what
is trained. Where a launcher started several processes, each computes its share of the rows of a step, gradients are summed
over all, and the main process decides, writes and shows. Results are those of one process up to the order of sums.

Shapes: B rows of a step over all processes, C channels, H height, W width.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from llmcxr.foundation.artifacts import remove_leftovers
from llmcxr.foundation.checkpoints import (
    generator_states,
    load_checkpoint,
    remove_checkpoint,
    restore_generators,
    save_checkpoint,
)
from llmcxr.foundation.stopping import Stop, stop_between_steps

if TYPE_CHECKING:  # what joins processes loads the libraries of distributed training; using a model does without
    from llmcxr.foundation.processes import Processes

SAVE_MINUTES = 5.0  # between checkpoints, where nobody says otherwise
_CURVE_EVERY = 10  # steps
_KEPT, _NEW = 0.9, 0.1  # of the curves' running means: shares of what was and of what a step gives


@dataclass
class Progress:
    """Where a training is."""

    step: int = 0
    done: int = 0  # units of work: steps, or examples
    seconds: float = 0.0  # of training alone: neither measuring nor saving
    sums: dict[str, float] = field(default_factory=dict)  # running means of the terms
    curve: list[dict[str, Any]] = field(default_factory=list)


class Step(NamedTuple):
    """What a step gives: terms to show, and the units of work that it did."""

    terms: dict[str, float]
    units: int = 1


class Training(ABC):
    """What differs from training to training. `at` is kept by the loop."""

    unit = "step"
    shown: tuple[str, ...] = ("loss",)  # of the terms, in the progress bar

    def __init__(self, name: str, total: int, processes: Processes) -> None:
        """`total` units of work; `name` is shown to people."""
        self.name, self.total, self.processes = name, total, processes
        self.at = Progress()
        self.bar: tqdm = tqdm(disable=True)

    @abstractmethod
    def step(self) -> Step | None:
        """One update, number `at.step`. None: nothing is left to do, although fewer than `total` units were done."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that a step changes (tensors and plain values), besides `at` and the generators. All processes call."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; nothing of the argument may be kept (it can be mapped from its file)."""

    @abstractmethod
    def finish(self) -> None:
        """Write what was trained. All processes call; the checkpoint is removed afterwards."""

    def begin(self) -> None:  # noqa: B027 (most have nothing to do)
        """Before the first step; not called where a training is resumed."""

    def after_step(self, terms: dict[str, float]) -> None:
        """Running means of the terms, every few steps as a point of the curve. `at` has the step counted already."""
        step, sums = self.at.step - 1, self.at.sums
        for name, value in terms.items():
            sums[name] = _KEPT * sums.get(name, value) + _NEW * value
        if step % _CURVE_EVERY == 0:
            self.at.curve.append({"step": step, **sums})
            self.bar.set_postfix({k: f"{v:.3f}" for k, v in sums.items() if k in self.shown})

    def check(self, values: Mapping[str, float], advice: str, where: str = "") -> None:
        """End the training, on all processes, where one of the named values is not finite. They must agree on the values."""
        for what, value in values.items():
            if not math.isfinite(value):
                raise self.processes.fault(
                    f"{self.name}: the {what} is {value} at step {self.at.step}{where}. {advice} and run again."
                )


def run(training: Training, folder: Path, save_minutes: float = SAVE_MINUTES) -> None:
    """Train to the end, from the checkpoint in `folder` where there is one, and remove it when all is written.

    Ctrl-C and SIGTERM end it after the step, with a checkpoint (`KeyboardInterrupt`); a second Ctrl-C at once, without.
    """
    processes, checkpoint = training.processes, folder / "checkpoint.pt"
    if processes.main:
        remove_leftovers(folder)
    saved = load_checkpoint(checkpoint)
    if resumed := saved is not None:
        training.load_state(saved["training"])
        training.at = Progress(**saved["progress"])
        restore_generators(saved["generators"])
        del saved  # its file is replaced below
    at = training.at
    training.bar = tqdm(
        total=training.total,
        initial=at.done,
        desc=training.name,
        unit=training.unit,
        smoothing=0.05,
        disable=not processes.main,
    )
    try:
        if not resumed:
            training.begin()
        with stop_between_steps(say=processes.main) as stop:
            _steps(training, checkpoint, save_minutes, stop)
        training.finish()
    finally:
        training.bar.close()  # else it comes after the last word on what went wrong
    processes.on_main(lambda: remove_checkpoint(checkpoint))


def _steps(training: Training, checkpoint: Path, save_minutes: float, stop: Stop) -> None:
    """All steps that are left, with checkpoints. `KeyboardInterrupt` once the state is saved where a `stop` was asked
    for."""
    processes, at, last_save = training.processes, training.at, time.monotonic()

    def save() -> None:
        state = {"training": training.state(), "progress": asdict(at), "generators": generator_states()}
        processes.on_main(lambda: save_checkpoint(checkpoint, state))

    while at.done < training.total:
        clock = time.monotonic()
        result = training.step()
        if result is None:
            break
        at.step, at.done, at.seconds = at.step + 1, at.done + result.units, at.seconds + time.monotonic() - clock
        training.bar.update(result.units)
        training.after_step(result.terms)
        due = time.monotonic() - last_save >= save_minutes * 60 and at.done < training.total
        if processes.from_main(due or bool(stop)):
            if processes.from_main(bool(stop)):
                break
            save()
            last_save = time.monotonic()
    if processes.from_main(bool(stop)):
        save()
        raise KeyboardInterrupt(stop.signal) if processes.main else SystemExit(2)


# --- learning rates


def one_cycle(step: int, steps: int, peak: float) -> tuple[float, float]:
    """Learning rate and AdamW's first beta (Smith & Topin, 2018): up for a fifth of the steps, then down to nothing.

    As torch's OneCycleLR with `pct_start=0.2`, without a state of its own.
    """
    top = 0.2 * steps - 1  # the step of the peak

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2 * (math.cos(math.pi * share) + 1)

    if step <= top:
        share = step / top if top else 1.0
        return between(peak / 25, peak, share), between(0.95, 0.85, share)
    share = (step - top) / (steps - 1 - top)
    return between(peak, peak / 25 / 1e4, share), between(0.85, 0.95, share)


def cosine(step: int, steps: int) -> float:
    """Share of the peak rate: linear over 2 % of the steps, then a cosine to a tenth."""
    progress = step / max(1, steps)
    return min((step + 1) / max(1, steps // 50), 0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def trapezoid(progress: float, warmup: float, decay: float = 1 / 3) -> float:
    """Share of the peak rate: linear over `warmup`, flat, linear to a tenth over the last `decay` (shares of all work)."""
    return min(1.0, (progress + 1e-3) / warmup, 0.1 + 0.9 * (1 - progress) / decay)


# --- several processes


def share_of(rows: int, processes: Processes) -> slice:
    """Those of a step's `rows` that this process computes: none has more than one row above another."""
    if rows < processes.count:
        raise processes.fault(f"a step has {rows} images for {processes.count} processes. Start fewer of them.")
    return slice(rows * processes.rank // processes.count, rows * (processes.rank + 1) // processes.count)


def backward(loss: Tensor, parameters: Iterable[nn.Parameter], processes: Processes) -> float:
    """Gradients of the sum of `loss` over all processes, on each; returns that sum."""
    loss.backward()
    return add_gradients(loss, parameters, processes)


def add_gradients(loss: Tensor, parameters: Iterable[nn.Parameter], processes: Processes) -> float:
    """The sum over all processes of their gradients of `loss`, which are there already, in their place; returns that of `loss`."""
    if processes.count == 1:
        return loss.item()
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = processes.sum(torch.cat([g.reshape(-1).float() for g in [loss.detach(), *gradients]]))
    for gradient, part in zip(gradients, flat[1:].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
    return flat[0].item()


def total_terms(terms: Mapping[str, Tensor], share: float, processes: Processes) -> dict[str, float]:
    """Means over all rows of terms that are means over this process's `share` of them."""
    values = processes.sum(torch.stack([term.detach().float() for term in terms.values()]) * share)
    return dict(zip(terms, values.tolist(), strict=True))


def joined(own: Tensor, rows: int, part: slice, processes: Processes) -> Tensor:
    """[B, ...] over all processes from this one's `part`, through which alone gradients flow."""
    if processes.count == 1:
        return own
    others = own.new_zeros(rows, *own.shape[1:])
    others[part] = own.detach()
    processes.sum(others)  # of one value and zeros: exact
    return torch.cat([others[: part.start], own, others[part.stop :]])


def agree(tensors: Iterable[Tensor], processes: Processes) -> None:
    """Give `tensors`, on the device, the main process's values, in place."""
    if processes.count > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def share_layers(network: nn.Module, rows: int, part: slice, processes: Processes) -> None:
    """Let batch norms and dropout of `network` do over the `part`s of all processes what one does over B `rows`."""
    if processes.count == 1:
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SharedBatchNorm
        elif type(module) is nn.Dropout:
            module.__class__ = _SharedDropout
            shared = cast(_SharedDropout, module)
            shared.rows, shared.part = rows, part


class _Sum(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch statistics over all processes. (torch's SyncBatchNorm runs on GPUs only, where it could not be tested.)"""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        own, shape = x.float(), (1, -1, 1, 1)
        count = own.new_tensor([own.numel() / own.shape[1]])
        sums = _Sum.apply(torch.cat([own.sum((0, 2, 3)), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = own - mean.view(shape)
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / total
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


class _SharedDropout(nn.Dropout):
    """The mask of the whole step, drawn alike by all processes; each uses its own rows of it."""

    rows: int
    part: slice

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * F.dropout(x.new_ones(self.rows, *x.shape[1:]), self.p)[self.part]
