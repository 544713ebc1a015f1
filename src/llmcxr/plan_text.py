"""A plan for people."""

from __future__ import annotations

from collections.abc import Sequence

from llmcxr.foundation.durations import time_of
from llmcxr.plan import GIB, PAPER_EPOCHS, PAPER_IMAGES, LanguagePlan, Plan, StagePlan


def _count(number: float) -> str:
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if number >= unit:
            return f"{number / unit:.2f}{name}"
    return f"{number:,.0f}"


def _time(hours: float | None) -> str:
    return "-" if hours is None else time_of(hours)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _head(plan: Plan) -> list[str]:
    devices = plan.options.devices
    until = f", until {plan.options.until}" if plan.options.until else ""
    lines = [f"Plan of {plan.recipe.name}{until}, on {devices} device{'s' * (devices > 1)}"]
    if plan.language is not None:
        size = plan.language.size
        lines += [
            f"\nLanguage model: {plan.language.llm}",
            f"  {_count(size.parameters)} parameters, {size.layers} layers, width {size.width}, {size.rows:,} rows of which "
            f"{size.image_rows:,} are image tokens",
            f"  tuned by {plan.recipe.tuning.method}: {_count(size.trained)} trained",
        ]
    return lines + (["\nAssumptions", *(f"  - {note}" for note in plan.notes)] if plan.notes else [])


def _tuning(stages: Sequence[StagePlan]) -> list[str]:
    rows = [["", "examples", "tokens", "image", "text", "supervised", "with padding", "steps", "PFLOP", "time"]]
    for s in stages:
        c = s.counts
        numbers = (c.examples, c.tokens, c.image, c.tokens - c.image, c.learned, c.padded)
        work = f"{s.flops / 1e15:,.{1 if s.flops >= 1e16 else 3}f}"
        rows.append([s.name, *map(_count, numbers), f"{s.steps:,}", work, _time(s.hours)])
    lines = ["\nTuning", *_columns(rows)]
    for s in stages:
        parts = [
            f"{task} {_count(count)}" + (f" ({s.epochs[task]:.1f} epochs)" if task in s.epochs else "")
            for task, count in s.tasks.items()
        ]
        if s.share < 1:
            parts.append(f"through {s.share:.0%} of the layers")
        too_long = [f"{_count(n)} {what}" for n, what in ((s.cut, "cut"), (s.left_out, "left out")) if n]
        lines.append(f"  {s.name}: {', '.join(parts)}" + (f"; too long: {', '.join(too_long)}" if too_long else ""))
    return lines


def _memory(plan: LanguagePlan) -> list[str]:
    rows = [["", "weights", "optimizer", "gradients", "activations", "peak"]]
    for name, m in plan.memory.items():
        values = (m.weights, m.optimizer, max(m.gradients, m.step_gradients), m.activations, m.peak)
        rows.append([name, *(f"{v / GIB:.1f}" for v in values)])
    own = str(plan.dtype).removeprefix("torch.")
    kept = "moments" if own == "float32" else "masters and moments"
    title = f"\nMemory of a device, GiB ({own}; {kept} in float32; gradients at the optimiser's step)"
    return [title, *_columns(rows)]


def plan_text(plan: Plan) -> str:
    """The plan for people."""
    rates = (
        "--rate TOKENS_PER_SECOND, --measure, or --tflops TFLOPS" if plan.stages else "--measure, or --tflops TFLOPS"
    )
    speed = [f"  speed {plan.speed}" if plan.speed else f"  for the time: {rates}"]
    lines = _head(plan) + (_tuning(plan.stages) + speed if plan.stages else [])
    if plan.others:
        title = "Other time" if plan.stages else "Time"
        lines += [f"\n{title}", *_columns([[name, _time(value)] for name, value in plan.others.items()])]
    lines += [] if plan.stages else speed
    if plan.options.measure:
        total = sum(plan.others.values()) + sum(s.hours or 0.0 for s in plan.stages)
        lines.append(f"  the run, without making or reading the radiographs: {_time(total)}")
    if plan.language is not None:
        lines += _memory(plan.language)
    lines += ["\nDisk, GiB", *_columns([[name, f"{value / GIB:.2f}"] for name, value in plan.disk.items()])]
    if plan.language is not None:
        tokens, hours = plan.language.paper
        lines.append(
            f"\nThe paper's stage 1 at this recipe's stage 1 examples: {PAPER_IMAGES:,} images x {PAPER_EPOCHS} epochs and 20 % language: "
            f"{_count(tokens)} tokens, {_time(hours)}"
        )
    return "\n".join(lines)
