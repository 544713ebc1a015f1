"""What a run of a recipe takes, before it runs: tokens, steps, memory, disk and hours.

Examples are drawn, rendered and batched by the code that trains, and the model is counted by torch (tuning/cost.py); what is
not on disk is replaced by stated assumptions.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from llmcxr import speed
from llmcxr.foundation.assets import ASSETS
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.mixture import Mixture
from llmcxr.instructions.rendering import RenderedExample, fit, supervise_all
from llmcxr.instructions.templates import Template, build_template
from llmcxr.pipeline import Run
from llmcxr.recipe import Recipe
from llmcxr.sources.base import Source
from llmcxr.sources.registry import read_studies
from llmcxr.stages.context import Context, with_given_sizes
from llmcxr.stages.tuning import task_items
from llmcxr.studies.findings import Finding
from llmcxr.studies.study import Study
from llmcxr.synthesis.gather import gather
from llmcxr.tasks.report_to_cxr import DRAWN_AGAIN
from llmcxr.tuning.alignment import BATCH, LAYERS, alignment_prompt
from llmcxr.tuning.batches import plan_batches
from llmcxr.tuning.cost import Counts, Memory, ModelSize, build_tunable, cost_of, counts_of, device_memory, size_of
from llmcxr.tuning.feed import WINDOW
from llmcxr.tuning.keep_language import REPLAY_TOKENS
from llmcxr.tuning.settings import StageSettings
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_config, load_text_tokenizer

GIB = 2**30
PAPER_IMAGES, PAPER_EPOCHS, PAPER_LANGUAGE = 377_000, 5, 0.2  # section 2.4.2 and the published settings
STAND_IN = "smollm2-135m-instruct"  # its tokenizer counts text where the model's own is not at hand
# Configurations of the recipes' models, so that they can be planned where the hub is out of reach.
SHAPES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "vocabulary" / "shapes.json").read_text())


@dataclass(frozen=True)
class PlanOptions:
    """What the recipe does not say. Rates are those of one device."""

    devices: int = 1  # data-parallel processes, which share the batches of each step
    rate: float | None = None  # tokens a second, no padding counted
    measure: bool = False  # time the real parts here
    tflops: float | None = None  # dense bfloat16 matrix rate, 10^12 operations a second
    utilisation: float = 0.45  # share of `tflops` that training reaches
    images: int = 377_110  # images of a source that is not on disk (all of MIMIC-CXR-JPG)
    words: tuple[int, int] | None = None  # of findings and impression, for reports that are not on disk


@dataclass(frozen=True)
class StagePlan:
    """One stage that trains the language model."""

    name: str
    counts: Counts  # over the whole stage
    steps: int
    flops: float
    hours: float | None
    tasks: dict[str, int] = field(default_factory=dict)  # examples of each
    epochs: dict[str, float] = field(default_factory=dict)  # how often each item is seen, where items are on disk
    cut: int = 0  # examples whose report is cut, as they are longer than `max_tokens`
    left_out: int = 0  # examples that are longer than that and cannot be cut
    share: float = 1.0  # of the layers; below 1 for alignment


@dataclass(frozen=True)
class Plan:
    """Everything that `plan_text` prints."""

    recipe: Recipe
    options: PlanOptions
    llm: str
    size: ModelSize
    stages: list[StagePlan]
    others: dict[str, float]  # hours of what is not tuning, where it is known
    memory: dict[str, Memory]  # by how the devices share it
    disk: dict[str, int]
    paper: tuple[float, float | None]  # tokens and hours of the paper's first stage
    speed: str
    notes: list[str]


# --- the language model


def find_config(name: str) -> tuple[PreTrainedConfig, str]:
    """Configuration of the LLM `name`, and where it is from. `UserError` where it is neither here nor known."""
    if name not in ASSETS and not Path(name).is_dir():
        try:
            config = AutoConfig.from_pretrained(name, local_files_only=True)
            return config.get_text_config(decoder=True), "from the hub's cache"
        except (OSError, ValueError):
            if name in SHAPES:
                return AutoConfig.for_model(**SHAPES[name]), "shape as published"
    return load_config(name), "embedded asset" if name in ASSETS else "from its config.json"


def find_tokenizer(name: str) -> tuple[PreTrainedTokenizerBase, bool]:
    """Text tokenizer of `name`, or the stand-in where it cannot be had without a connection; whether it is its own."""
    if name in ASSETS or Path(name).is_dir():
        return load_text_tokenizer(name), True
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True), True
    except (OSError, ValueError):
        return load_text_tokenizer(STAND_IN), False


# --- the data


def find_data(context: Context, done: bool, options: PlanOptions, notes: list[str]) -> tuple[int, bool]:
    """Put studies, codes, questions and texts into the context: those of the run (`done`) or of what is on disk, else
    assumed ones. The number of images, and whether they are real."""
    source, language = context.source, context.recipe.tuning.language
    images, real = options.images, done or source.on_disk
    if not real:
        words = options.words or source.assumed_words
        if source.assumed_images is None:
            notes.append(f"The data are not there: assumed {images:,} images, each stage's cohort large enough.")
        images = source.assumed_images or images
        if not source.assumed_reports:
            notes.append(f"Reports are not on disk: assumed {words[0]} words of findings and {words[1]} of impression.")
        context.studies = _assumed_studies(source, words)
    elif not done:
        context.studies = read_studies(source, context.recipe.source, context.folder, context.image_size).studies
    studies, grid = context.studies, context.recipe.image_tokenizer.architecture.grid
    context.codes = dict.fromkeys((s.image_id for s in studies), np.zeros(grid**2, dtype=np.uint16))
    training, origins = [s for s in studies if s.split == "train"], context.recipe.vqa.origins
    context.questions = gather(training, origins, context.labeller, context.recipe.seed)
    context.replay = [" the" * REPLAY_TOKENS] * language.replay_texts
    if language.replay_texts:
        notes.append("The texts of the base model are taken as long as they can be.")
    return len(studies) if real else images, real


def _assumed_studies(source: Source, words: tuple[int, int], count: int = 2000) -> list[Study]:
    """Training studies with reports of the assumed length and random findings."""
    sentence = "There is no consolidation, effusion or pneumothorax, and the heart is normal in size."
    texts = [" ".join(itertools.islice(itertools.cycle(sentence.split()), n)) for n in words]
    blank = Study(image_id="", patient_id="", study_id="", image_path="", split="train", view="PA")
    studies, lines = [], source.assumed_reports
    for i in range(count):
        rng, name = stream("plan", i), f"assumed-{i}"
        findings, impression = ("", lines[i % len(lines)]) if lines else texts
        labels = {finding: int(rng.random() < 0.2) for finding in source.findings}
        truth = tuple(Finding(n, "left", "mild") for n, v in labels.items() if v) if source.simulated else ()
        ids, said = {"image_id": name, "patient_id": name}, {"findings_text": findings, "impression_text": impression}
        studies.append(dataclasses.replace(blank, **ids, **said, labels=labels, truth=truth))  # type: ignore[arg-type]
    return studies


def _windows(total: int, sample: int) -> Iterable[range]:
    """Whole windows of the trainer, spread evenly over the stage, of about `sample` examples together."""
    starts = range(0, total, WINDOW)
    wanted = max(1, min(len(starts), sample // WINDOW))
    for k in range(wanted):
        first = starts[k * len(starts) // wanted]
        yield range(first, min(first + WINDOW, total))


@dataclass(frozen=True)
class _Sample:
    """Batches of some windows of a stage."""

    stage: StageSettings
    mixture: Mixture
    items: dict[str, int]  # of each task
    batches: list[list[RenderedExample]]
    left_out: int

    @property
    def kept(self) -> list[RenderedExample]:
        return [example for batch in self.batches for example in batch]

    def answer(self, task: str) -> float:
        """Mean learned tokens of a task's examples."""
        own = [int(e.supervised.sum()) for e in self.kept if e.task == task]
        return sum(own) / max(1, len(own))


def _draw(
    stage: StageSettings, mixture: Mixture, items: dict[str, int], recipe: Recipe, template: Template,
    vocabulary: ImageVocabulary, size: int,
) -> _Sample:  # fmt: skip
    tuning, batches, left_out = recipe.tuning, list[list[RenderedExample]](), 0
    for window in _windows(stage.examples, size):
        tried = (fit(mixture[i], template, vocabulary, tuning.max_tokens) for i in window)
        kept = [r if tuning.loss == "response" else supervise_all(r) for r in tried if r is not None]
        left_out += len(window) - len(kept)
        if kept:
            lengths = np.array([len(r.ids) for r in kept])
            groups = plan_batches(lengths, tuning.tokens_per_batch, tuning.seed_of(stage, recipe.seed) + window.start)
            batches += [[kept[i] for i in group] for group in groups]
    if not batches:
        raise UserError(
            f"{stage.name}: every example is longer than tuning.max_tokens ({tuning.max_tokens}). Set it higher."
        )
    return _Sample(stage, mixture, items, batches, left_out)


# --- the plan


def _hours(options: PlanOptions, rate: float | None) -> Callable[[float, float, int], float | None]:
    """(tokens, operations, devices) -> hours."""
    if rate is not None:
        return lambda tokens, flops, devices: tokens / rate / devices / 3600
    if options.tflops is not None:
        operations = options.tflops * 1e12 * options.utilisation
        return lambda tokens, flops, devices: flops / operations / devices / 3600
    return lambda tokens, flops, devices: None


def _responses(recipe: Recipe, last: _Sample) -> float:
    """Tokens that are generated in a run: by the evaluation as its settings say, and texts of the base model."""
    cases, decoding = recipe.evaluation.counts, recipe.tuning.decoding
    reports = cases["reports"] * last.answer("cxr_to_report") * decoding.report_candidates
    again = min(cases["drawings"], DRAWN_AGAIN)
    drawings = (cases["drawings"] + again) * decoding.drawing_candidates * last.answer("report_to_cxr")
    questions = cases["questions"] * last.answer("cxr_vqa") / recipe.tuning.questions_per_image
    guided = reports * (decoding.report_guidance != 1) + drawings * (decoding.drawing_guidance != 1)
    return reports + drawings + questions + guided + recipe.tuning.language.replay_texts * REPLAY_TOKENS


def _measure(
    context: Context, config: PreTrainedConfig, vocabulary: ImageVocabulary, template: Template, prompt: list[int],
    samples: Sequence[_Sample], images: int,
) -> tuple[float, str, dict[str, float]]:  # fmt: skip
    """Tokens a second of tuning on this device, the same in words, and hours of the other stages by name."""
    recipe, device = context.recipe, context.device
    tunable = build_tunable(config, vocabulary, recipe.tuning, device)
    rate = speed.tuning_rate(tunable, recipe.tuning, samples[0].kept)
    peak = speed.peak_bytes(device)
    said = f"measured here ({device.type}): {rate:,.0f} tokens/s, no padding counted"
    if peak is not None:
        said += f"; peak of {'the process' if device.type == 'cpu' else 'the device'} {peak / GIB:.1f} GiB"
    backend = TransformersBackend(
        tunable.model.eval(), vocabulary, template, recipe.image_tokenizer.architecture.grid**2
    )
    names = list(context.findings)
    seconds = _responses(recipe, samples[-1]) / speed.generation_rate(backend, [prompt] * 32)
    seconds += (
        recipe.evaluation.counts["probabilities"] * len(names) * len(prompt) / (3 * rate)
    )  # read, not learned: a third
    del tunable, backend
    stages = {**speed.image_stages(recipe, names, images, context.processes), "evaluation": seconds}
    return rate, said, {name: value / 3600 for name, value in stages.items()}


def plan(recipe: Recipe, options: PlanOptions = PlanOptions(), sample: int = 1024) -> Plan:  # noqa: B008 (frozen)
    """Plan of a run of `recipe`; about `sample` examples of each tuning stage are drawn and rendered.

    `UserError` where the recipe trains nothing, where the LLM's configuration cannot be had, where a task of a mixture
    has no data, or where the batches of a step cannot be shared by the devices.
    """
    recipe = with_given_sizes(recipe)
    tuning, architecture, devices = recipe.tuning, recipe.image_tokenizer.architecture, options.devices
    grid = architecture.grid**2
    notes: list[str] = []
    if recipe.model is not None:
        raise UserError(
            f"the recipe measures the finished model {recipe.model} and trains nothing, so there is nothing to plan."
        )
    if tuning.batches_per_step % devices:
        raise UserError(
            f"tuning.batches_per_step is {tuning.batches_per_step}: {devices} devices need a multiple of their number, "
            f"e.g. tuning.batches_per_step={devices * math.ceil(tuning.batches_per_step / devices)}."
        )
    config, origin = find_config(recipe.llm)
    tokenizer, own = find_tokenizer(recipe.llm)
    vocabulary = ImageVocabulary.grow(copy.deepcopy(tokenizer), architecture.codebook_size)
    if not own:
        notes.append(f"The tokenizer of {recipe.llm} is not on disk: text is counted by that of {STAND_IN}.")
        vocabulary.first_id = config.get_text_config().vocab_size
    meta = build_tunable(config, vocabulary, tuning, torch.device("meta"))
    size, cost = size_of(meta, quantised=tuning.method == "qlora"), cost_of(meta, config, tuning)
    template = build_template(tuning.template, vocabulary.tokenizer, tuning.system_prompt)

    recipe = dataclasses.replace(recipe, start=None)  # what it starts from need not be there: the work is the same
    language, run = tuning.language.instructions, Run(recipe)
    if missing := language is not None and not language.is_file():
        notes.append(f"{language} is not there: language is taken as long as in the shipped instructions.")
        shipped = dataclasses.replace(tuning.language, instructions=None)
        run = Run(dataclasses.replace(recipe, tuning=dataclasses.replace(tuning, language=shipped)))
    context = run.context
    images, real = find_data(context, run.workflow.has("studies"), options, notes)
    samples = []
    for stage in tuning.stages:
        items, _ = task_items(context, stage, "train")
        if not items:
            raise UserError(f"{stage.name}: the data has nothing for any task of its mixture. Set other weights.")
        weights = {task: stage.mixture[task] for task in items}
        mixture = Mixture(items, weights, stage.examples, tuning.seed_of(stage, recipe.seed))
        known = {t: len(own) for t, own in items.items() if (not missing if t == "language" else real)}
        samples.append(_draw(stage, mixture, known, recipe, template, vocabulary, sample))

    prompt = alignment_prompt(np.zeros(grid, dtype=np.uint16), template, vocabulary)
    rate, said, others = options.rate, "", dict[str, float]()
    if options.measure:
        rate, said, others = _measure(context, config, vocabulary, template, prompt, samples, images)
    elif rate is not None:
        said = f"as given: {rate:,.0f} tokens/s on each device, no padding counted"
    elif options.tflops is not None:
        said = f"as given: {options.utilisation:.0%} of {options.tflops:,.1f} TFLOP/s on each device"
    hours = _hours(options, rate)
    if not options.measure and rate is None and options.tflops is not None:
        operations = speed.image_operations(recipe, images)
        others = {name: hours(0, n, devices) or 0.0 for name, n in operations.items()}

    train = sum(s.split == "train" for s in context.studies) if real else images
    stages, align, aligned = list[StagePlan](), tuning.alignment, 0.0
    if align.steps:
        per_step, share = min(BATCH, train), min(LAYERS, size.layers) / size.layers
        n, T, aligned = align.steps * per_step, len(prompt), per_step * len(prompt) * share
        counts = Counts(n, n * T, n * T**2, n * T, n * grid, 0, 0, 0, 0, 0)
        flops = share * cost.operations(counts)
        stages.append(
            StagePlan("alignment", counts, align.steps, flops, hours(n * T * share, flops, devices), share=share)
        )
    largest = np.zeros(len(Counts._fields))
    for s in samples:
        each = np.array([counts_of(batch, vocabulary, tuning) for batch in s.batches])
        largest = np.maximum(largest, each.max(0))
        scale = s.stage.examples / (each[:, 0].sum() + s.left_out)
        counts = Counts(*(each.sum(0) * scale))._replace(examples=s.stage.examples)
        drawn = {str(t): n for t, n in s.mixture.counts().items()}
        flops, steps = cost.operations(counts), math.ceil(len(each) * scale / tuning.batches_per_step)
        time = hours(counts.tokens, flops, devices)
        epochs = {task: count / s.items[task] for task, count in drawn.items() if task in s.items}
        cut, left_out = round(sum(r.cut is not None for r in s.kept) * scale), round(s.left_out * scale)
        stages.append(StagePlan(s.stage.name, counts, steps, flops, time, drawn, epochs, cut, left_out))
    first = next(s for s in stages if s.share == 1)
    if first.hours is not None:
        others["measuring while tuning, at most"] = tuning.measure_share * sum(
            s.hours or 0 for s in stages if s.share == 1
        )
    paper = PAPER_IMAGES * PAPER_EPOCHS / (1 - PAPER_LANGUAGE) / first.counts.examples  # times the first stage
    memory = device_memory(size, tuning.tokens_per_batch, cost.kept, Counts(*largest))
    memory = dataclasses.replace(memory, activations=max(memory.activations, round(aligned * cost.kept)))
    kinds = {"each holds all" if devices > 1 else "": memory}
    if devices > 1 and tuning.method != "qlora":
        kinds["sharded (FSDP2)"] = device_memory(size, tuning.tokens_per_batch, cost.kept, Counts(*largest), devices)
    pixels = architecture.image_size**2
    disk = {
        "pixels": images * pixels,
        "codes": images * grid * 2,
        "weights of the stages": size.gradient_bytes * len(stages),
        "checkpoint, and the one before it": 2 * (size.optimizer_bytes + 4 * size.image_rows * size.width),
        "model": 2 * size.parameters,
    }
    llm = f"{recipe.llm} ({config.model_type}, {origin})"
    theirs = (paper * first.counts.tokens, hours(paper * first.counts.tokens, paper * first.flops, devices))
    return Plan(recipe, options, llm, size, stages, others, kinds, disk, theirs, said, notes)


# --- for people


def _count(number: float) -> str:
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if number >= unit:
            return f"{number / unit:.2f}{name}"
    return f"{number:,.0f}"


def _time(hours: float | None) -> str:
    if hours is None:
        return "-"
    if hours < 1:
        return f"{hours * 60:.1f} min"
    return f"{hours:,.1f} h" if hours < 72 else f"{hours / 24:,.1f} days"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def plan_text(plan: Plan) -> str:
    """The plan for people."""
    size, devices = plan.size, plan.options.devices
    lines = [
        f"Plan of {plan.recipe.name}, on {devices} device{'s' * (devices > 1)}",
        f"\nLanguage model: {plan.llm}",
        f"  {_count(size.parameters)} parameters, {size.layers} layers, width {size.width}, {size.rows:,} rows of which "
        f"{size.image_rows:,} are image tokens",
        f"  tuned by {plan.recipe.tuning.method}: {_count(size.trained)} trained",
    ]
    if plan.notes:
        lines += ["\nAssumptions", *(f"  - {note}" for note in plan.notes)]
    rows = [["", "examples", "tokens", "image", "text", "supervised", "with padding", "steps", "PFLOP", "time"]]
    for s in plan.stages:
        c = s.counts
        numbers = (c.examples, c.tokens, c.image, c.tokens - c.image, c.learned, c.padded)
        work = f"{s.flops / 1e15:,.{1 if s.flops >= 1e16 else 3}f}"
        rows.append([s.name, *map(_count, numbers), f"{s.steps:,}", work, _time(s.hours)])
    lines += ["\nTuning", *_columns(rows)]
    for s in plan.stages:
        parts = [
            f"{task} {_count(count)}" + (f" ({s.epochs[task]:.1f} epochs)" if task in s.epochs else "")
            for task, count in s.tasks.items()
        ]
        if s.share < 1:
            parts.append(f"through {s.share:.0%} of the layers")
        too_long = [f"{_count(n)} {what}" for n, what in ((s.cut, "cut"), (s.left_out, "left out")) if n]
        lines.append(f"  {s.name}: {', '.join(parts)}" + (f"; too long: {', '.join(too_long)}" if too_long else ""))
    how = "for the time: --rate TOKENS_PER_SECOND, --measure, or --tflops TFLOPS"
    lines.append(f"  speed {plan.speed}" if plan.speed else f"  {how}")
    if plan.others:
        lines += ["\nOther time", *_columns([[name, _time(value)] for name, value in plan.others.items()])]
    if plan.options.measure:
        total = sum(plan.others.values()) + sum(s.hours or 0.0 for s in plan.stages)
        lines.append(f"  the run, without making or reading the radiographs: {_time(total)}")

    rows = [["", "weights", "optimizer", "gradients", "activations", "peak"]]
    for name, m in plan.memory.items():
        values = (m.weights, m.optimizer, max(m.gradients, m.step_gradients), m.activations, m.peak)
        rows.append([name, *(f"{v / GIB:.1f}" for v in values)])
    lines.append("\nMemory of a device, GiB (bfloat16, float32 masters and moments; gradients at the optimiser's step)")
    lines += [*_columns(rows)]
    lines += ["\nDisk, GiB", *_columns([[name, f"{value / GIB:.2f}"] for name, value in plan.disk.items()])]
    return "\n".join(lines) + (
        f"\n\nThe paper's stage 1 at this recipe's stage 1 examples: {PAPER_IMAGES:,} images x {PAPER_EPOCHS} epochs and 20 % language: "
        f"{_count(plan.paper[0])} tokens, {_time(plan.paper[1])}"
    )
