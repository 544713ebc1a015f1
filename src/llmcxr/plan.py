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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from llmcxr import speed
from llmcxr.foundation.assets import ASSETS
from llmcxr.foundation.devices import asked_precision, pick_device
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.mixture import Mixture
from llmcxr.instructions.rendering import RenderedExample, fit, render_plain, supervise_all
from llmcxr.instructions.templates import Template, build_template
from llmcxr.pipeline import Run
from llmcxr.recipe import Recipe
from llmcxr.sources.base import Source
from llmcxr.sources.registry import read_studies
from llmcxr.stages.context import Context, with_given_sizes
from llmcxr.stages.tuning import task_items, trainings
from llmcxr.studies.cohort import CohortSettings, select_cohort
from llmcxr.studies.findings import Finding
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study
from llmcxr.synthesis.gather import MEASURED, gather
from llmcxr.tasks.report_to_cxr import DRAWN_AGAIN, MORE, SHOWN
from llmcxr.tuning.alignment import BATCH, LAYERS, alignment_prompt
from llmcxr.tuning.batches import plan_batches
from llmcxr.tuning.cost import (
    Cost,
    Counts,
    Memory,
    ModelSize,
    build_tunable,
    cost_of,
    counts_of,
    device_memory,
    size_of,
)
from llmcxr.tuning.feed import WINDOW
from llmcxr.tuning.keep_language import REPLAY_TOKENS, general_texts
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
    tflops: float | None = None  # dense matrix rate in the precision of training, 10^12 operations a second
    utilisation: float = 0.45  # share of `tflops` that training reaches
    images: int = 377_110  # images of a source that is not on disk (all of MIMIC-CXR-JPG)
    words: tuple[int, int] | None = None  # of findings and impression, for reports that are not on disk
    until: str | None = None  # the stage that ends the run; None: the last


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
class LanguagePlan:
    """The language model, and what tuning it takes."""

    llm: str
    dtype: torch.dtype  # of training
    size: ModelSize
    memory: dict[str, Memory]  # by how the devices share it
    paper: tuple[float, float | None]  # tokens and hours of the paper's first stage


@dataclass(frozen=True)
class Plan:
    """Everything that `plan_text.plan_text` prints."""

    recipe: Recipe
    options: PlanOptions
    language: LanguagePlan | None  # None: the run ends before it
    stages: list[StagePlan]
    others: dict[str, float]  # hours of what is not tuning, where it is known
    disk: dict[str, int]
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
    context.questions = list(gather(training, origins, context.labeller, context.recipe.seed))
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


@dataclass(frozen=True)
class _Model:
    """The language model that is tuned."""

    name: str  # and where its shape is from
    config: PreTrainedConfig
    vocabulary: ImageVocabulary
    template: Template
    dtype: torch.dtype  # of training
    size: ModelSize
    cost: Cost


Time = Callable[[float, float], float | None]  # (tokens, operations) -> hours on all devices; None: no speed is known


def _hours(options: PlanOptions, rate: float | None) -> Time:
    if rate is not None:
        return lambda tokens, flops: tokens / rate / options.devices / 3600
    if options.tflops is not None:
        operations = options.tflops * 1e12 * options.utilisation
        return lambda tokens, flops: flops / operations / options.devices / 3600
    return lambda tokens, flops: None


def measured_cases(context: Context, real: bool) -> dict[str, int]:
    """How many of each the evaluation asks: as its settings say, and where the data are on disk no more than its test patients have."""
    recipe, counts = context.recipe, context.recipe.evaluation.counts
    if not real:
        return counts
    last, views = recipe.tuning.stages[-1].cohort, recipe.evaluation.views
    cohort = CohortSettings(views=list(last.views if views is None else views), earliest_only=last.earliest_only)
    held = select_cohort([s for s in context.studies if s.split == "test"], cohort).studies
    told = sum(bool(report_text(study, last.sections)) for study in held)
    asked = sum(1 for _ in gather(held, MEASURED, context.labeller, recipe.seed))
    there = {"reconstructions": len(held), "reports": told, "questions": asked, "drawings": told}
    return {name: min(count, there.get(name, len(held))) for name, count in counts.items()}


def _responses(recipe: Recipe, last: _Sample, cases: Mapping[str, int]) -> float:
    """Tokens that are generated in a run: by the evaluation of so many cases, and texts of the base model."""
    decoding = recipe.tuning.decoding
    reports = cases["reports"] * last.answer("cxr_to_report") * decoding.report_candidates
    again = min(cases["drawings"], DRAWN_AGAIN) + MORE * min(cases["drawings"], SHOWN)
    drawings = (cases["drawings"] + again) * decoding.drawing_candidates * last.answer("report_to_cxr")
    questions = cases["questions"] * last.answer("cxr_vqa") / recipe.tuning.questions_per_image
    guided = reports * (decoding.report_guidance != 1) + drawings * (decoding.drawing_guidance != 1)
    return reports + drawings + questions + guided + recipe.tuning.language.replay_texts * REPLAY_TOKENS


def _measure_tuning(
    context: Context, model: _Model, prompt: list[int], samples: Sequence[_Sample], cases: Mapping[str, int] | None
) -> tuple[float, str, float | None]:
    """Tokens a second of tuning on this device, the same in words, and hours of the evaluation of so many cases (None: of none)."""
    recipe, device = context.recipe, context.device
    tunable = build_tunable(model.config, model.vocabulary, recipe.tuning, device, model.dtype)
    rate = speed.tuning_rate(tunable, recipe.tuning, samples[0].kept)
    peak = speed.peak_bytes(device)
    said = f"measured here ({device.type}): {rate:,.0f} tokens/s, no padding counted"
    if peak is not None:
        said += f"; peak of {'the process' if device.type == 'cpu' else 'the device'} {peak / GIB:.1f} GiB"
    if cases is None:
        return rate, said, None
    length = recipe.image_tokenizer.architecture.grid**2
    backend = TransformersBackend(tunable.model.eval(), model.vocabulary, model.template, length)
    seconds = _responses(recipe, samples[-1], cases) / speed.generation_rate(backend, [prompt] * 32)
    general = sum(len(render_plain(text, model.vocabulary).ids) for text in general_texts())
    read = cases["probabilities"] * len(context.findings) * len(prompt) + 2 * general  # these by the base model, too
    return rate, said, (seconds + read / (3 * rate)) / 3600  # not learned: a third


def _image_hours(recipe: Recipe, images: int, time: Time, devices: int = 1) -> dict[str, float]:
    """Hours of the image tokenizer's training, which ends by the clock where the recipe says so, by part, and of encoding."""
    hours = {name: time(0, n) or 0.0 for name, n in speed.image_operations(recipe, images, devices).items()}
    training = sum(value for name, value in hours.items() if name != "codes")
    share = min(1.0, (recipe.image_tokenizer.minutes or math.inf) / 60 / training) if training else 1.0
    return {name: value * (1.0 if name == "codes" else share) for name, value in hours.items()}


def _other_hours(
    context: Context, options: PlanOptions, images: int, wanted: set[str], time: Time, evaluation: float | None
) -> dict[str, float]:
    """Hours of the `wanted` stages that do not tune, where they are known; `evaluation` is measured already."""
    hours = dict[str, float]()
    if options.measure:
        seconds = speed.image_stages(context.recipe, list(context.findings), images, context.processes)
        hours = {name: value / 3600 for name, value in seconds.items()}
        if evaluation is not None:
            hours["evaluation"] = evaluation
    elif options.rate is None and options.tflops is not None:
        hours = _image_hours(context.recipe, images, time, options.devices)
    return {name: value for name, value in hours.items() if name.partition(",")[0] in wanted}


def _check(recipe: Recipe, devices: int) -> None:
    """`UserError` where the batches of a step cannot be shared."""
    each = recipe.tuning.batches_per_step
    if each % devices:
        raise UserError(
            f"tuning.batches_per_step is {each}: {devices} devices need a multiple of their number, "
            f"e.g. tuning.batches_per_step={devices * math.ceil(each / devices)}."
        )


def _find_model(recipe: Recipe, options: PlanOptions, notes: list[str]) -> _Model:
    """What the recipe's LLM is, and what tuning it costs."""
    tuning, name = recipe.tuning, recipe.llm
    (config, origin), (tokenizer, own) = find_config(name), find_tokenizer(name)
    vocabulary = ImageVocabulary.grow(copy.deepcopy(tokenizer), recipe.image_tokenizer.architecture.codebook_size)
    if not own:
        notes.append(f"The tokenizer of {name} is not on disk: text is counted by that of {STAND_IN}.")
        vocabulary.first_id = config.get_text_config().vocab_size
    dtype = asked_precision(recipe.precision, pick_device(recipe.device))["training"]
    if recipe.precision == "auto" and options.tflops is not None and dtype != torch.bfloat16:
        dtype = torch.bfloat16
        notes.append("The device of --tflops trains in bfloat16; precision=float32 plans the other.")
    meta = build_tunable(config, vocabulary, tuning, torch.device("meta"), dtype)
    size, cost = size_of(meta, quantised=tuning.method == "qlora"), cost_of(meta, config, tuning)
    template = build_template(tuning.template, vocabulary.tokenizer, tuning.system_prompt)
    return _Model(f"{name} ({config.model_type}, {origin})", config, vocabulary, template, dtype, size, cost)


def _draw_all(context: Context, model: _Model, real: bool, own_language: bool, size: int) -> list[_Sample]:
    """Of each tuning stage; how often items are seen is known where they are on disk."""
    recipe, samples = context.recipe, list[_Sample]()
    for stage in recipe.tuning.stages:
        items, _ = task_items(context, stage, "train")
        if not items:
            raise UserError(f"{stage.name}: the data has nothing for any task of its mixture. Set other weights.")
        weights = {task: stage.mixture[task] for task in items}
        mixture = Mixture(items, weights, stage.examples, recipe.tuning.seed_of(stage, recipe.seed))
        known = {t: len(own) for t, own in items.items() if (own_language if t == "language" else real)}
        samples.append(_draw(stage, mixture, known, recipe, model.template, model.vocabulary, size))
    return samples


def _alignment_plan(recipe: Recipe, model: _Model, tokens: int, images: int, time: Time) -> StagePlan:
    """Prompts of so many `tokens` through the first layers."""
    share = min(LAYERS, model.size.layers) / model.size.layers
    n = recipe.tuning.alignment.steps * min(BATCH, images)
    codes = recipe.image_tokenizer.architecture.grid**2
    counts = Counts(n, n * tokens, n * tokens**2, n * tokens, n * codes, 0, 0, 0, 0, 0)
    flops = share * model.cost.operations(counts)
    hours = time(n * tokens * share, flops)
    return StagePlan("alignment", counts, recipe.tuning.alignment.steps, flops, hours, share=share)


def _stage_plan(sample: _Sample, recipe: Recipe, model: _Model, time: Time) -> tuple[StagePlan, np.ndarray]:
    """The whole stage from its sample, and the largest of each count of a batch."""
    tuning, stage = recipe.tuning, sample.stage
    each = np.array([counts_of(batch, model.vocabulary, tuning) for batch in sample.batches])
    scale = stage.examples / (each[:, 0].sum() + sample.left_out)
    counts = Counts(*(each.sum(0) * scale))._replace(examples=stage.examples)
    drawn = {str(task): n for task, n in sample.mixture.counts().items()}
    flops, steps = model.cost.operations(counts), math.ceil(len(each) * scale / tuning.batches_per_step)
    epochs = {task: count / sample.items[task] for task, count in drawn.items() if task in sample.items}
    cut, left_out = (round(n * scale) for n in (sum(r.cut is not None for r in sample.kept), sample.left_out))
    hours = time(counts.tokens, flops)
    return StagePlan(stage.name, counts, steps, flops, hours, drawn, epochs, cut, left_out), each.max(0)


def _memory(recipe: Recipe, model: _Model, largest: Counts, aligned: float, devices: int) -> dict[str, Memory]:
    """Of a device, by how devices share it; alignment has so many tokens through all layers in a step."""
    tokens, kept = recipe.tuning.tokens_per_batch, model.cost.kept
    whole = device_memory(model.size, tokens, kept, largest)
    whole = dataclasses.replace(whole, activations=max(whole.activations, round(aligned * kept)))
    kinds = {"each holds all" if devices > 1 else "": whole}
    if devices > 1 and recipe.tuning.method != "qlora":
        kinds["sharded (FSDP2)"] = device_memory(model.size, tokens, kept, largest, devices)
    return kinds


def _disk(context: Context, size: ModelSize | None, images: int, wanted: set[str]) -> dict[str, int]:
    """Bytes of what the `wanted` stages leave; `size` of the language model, where it is tuned."""
    architecture = context.recipe.image_tokenizer.architecture
    disk = {"pixels": images * architecture.image_size**2}
    if "codes" in wanted:
        disk["codes"] = images * architecture.grid**2 * 2
    if size is not None:
        disk["weights of the stages"] = size.gradient_bytes * len(wanted & {*trainings(context)})
        disk["checkpoint, and the one before it"] = 2 * (size.optimizer_bytes + 4 * size.image_rows * size.width)
    if size is not None and "model" in wanted:
        disk["model"] = 2 * size.parameters
    return disk


def _plan_tuning(
    recipe: Recipe, model: _Model, samples: Sequence[_Sample], prompt: int, train: int, time: Time, devices: int
) -> tuple[LanguagePlan, list[StagePlan]]:
    """The language model, and its stages; alignment on so many `train` images with a `prompt` of so many tokens."""
    planned, largest = zip(*(_stage_plan(one, recipe, model, time) for one in samples), strict=True)
    aligning, aligned = list[StagePlan](), 0.0
    if recipe.tuning.alignment.steps:
        aligning.append(_alignment_plan(recipe, model, prompt, train, time))
        aligned = aligning[0].counts.tokens / aligning[0].steps * aligning[0].share
    memory = _memory(recipe, model, Counts(*np.max(largest, 0)), aligned, devices)
    first = planned[0]
    paper = PAPER_IMAGES * PAPER_EPOCHS / (1 - PAPER_LANGUAGE) / first.counts.examples  # times the first stage
    of_paper = (paper * first.counts.tokens, time(paper * first.counts.tokens, paper * first.flops))
    return LanguagePlan(model.name, model.dtype, model.size, memory, of_paper), [*aligning, *planned]


def plan(recipe: Recipe, options: PlanOptions = PlanOptions(), sample: int = 1024) -> Plan:  # noqa: B008 (frozen)
    """Plan of a run of `recipe`; about `sample` examples of each tuning stage are drawn and rendered.

    `UserError` where the recipe trains nothing, where the LLM's configuration cannot be had, where a task of a mixture
    has no data, where the batches of a step cannot be shared by the devices, or for an unknown stage.
    """
    recipe, notes = with_given_sizes(recipe), list[str]()
    if recipe.model is not None:
        raise UserError(
            f"the recipe measures the finished model {recipe.model} and trains nothing, so there is nothing to plan."
        )
    recipe = dataclasses.replace(recipe, start=None)  # what it starts from need not be there: the work is the same
    run, tuning = Run(recipe), recipe.tuning
    wanted = run.workflow.needed_until(options.until)
    if tuned := [stage for stage in tuning.stages if stage.name in wanted]:
        recipe = dataclasses.replace(recipe, tuning=dataclasses.replace(tuning, stages=tuned))
        _check(recipe, options.devices)
        return _whole_plan(recipe, options, wanted, sample, notes)
    context = run.context
    images, _ = find_data(context, run.workflow.has("studies"), options, [])  # its notes are on reports
    if not context.source.on_disk and context.source.assumed_images is None:
        notes.append(f"The data are not there: assumed {images:,} images.")
    if "alignment" in wanted:
        notes.append(f"Alignment is planned with tuning: --until {tuning.stages[0].name}.")
    options = dataclasses.replace(options, rate=None)  # it is of tuning
    others = _other_hours(context, options, images, wanted, _hours(options, None), None)
    said = f"measured here ({context.device.type})" if options.measure else _said(options)
    return Plan(recipe, options, None, [], others, _disk(context, None, images, wanted), said, notes)


def _said(options: PlanOptions) -> str:
    """The speed that is given, in words; "" for none."""
    if options.rate is not None:
        return f"as given: {options.rate:,.0f} tokens/s on each device, no padding counted"
    if options.tflops is not None:
        return f"as given: {options.utilisation:.0%} of {options.tflops:,.1f} TFLOP/s on each device"
    return ""


def _whole_plan(recipe: Recipe, options: PlanOptions, wanted: set[str], sample: int, notes: list[str]) -> Plan:
    """Of a run that tunes the language model, in all stages of `recipe`."""
    model, tuning, run = _find_model(recipe, options, notes), recipe.tuning, Run(recipe)
    language = tuning.language.instructions
    if missing := language is not None and not language.is_file():
        notes.append(f"{language} is not there: language is taken as long as in the shipped instructions.")
        shipped = dataclasses.replace(tuning.language, instructions=None)
        run = Run(dataclasses.replace(recipe, tuning=dataclasses.replace(tuning, language=shipped)))
    context = run.context
    images, real = find_data(context, run.workflow.has("studies"), options, notes)
    samples = _draw_all(context, model, real, not missing, sample)
    codes = np.zeros(recipe.image_tokenizer.architecture.grid**2, dtype=np.uint16)
    prompt = alignment_prompt(codes, model.template, model.vocabulary)
    rate, said, evaluation = options.rate, _said(options), None
    if options.measure:
        cases = measured_cases(context, real) if "evaluation" in wanted else None
        rate, said, evaluation = _measure_tuning(context, model, prompt, samples, cases)
    time = _hours(options, rate)
    others = _other_hours(context, options, images, wanted, time, evaluation)
    train = sum(s.split == "train" for s in context.studies) if real else images
    language_plan, stages = _plan_tuning(recipe, model, samples, len(prompt), train, time, options.devices)
    if stages[-1].hours is not None:
        own = sum(s.hours or 0 for s in stages if s.name != "alignment")
        others["measuring while tuning, at most"] = tuning.measure_share * own
    disk = _disk(context, model.size, images, wanted)
    return Plan(recipe, options, language_plan, stages, others, disk, said, notes)
