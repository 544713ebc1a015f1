"""What tuning by a recipe takes, before anything runs: tokens, steps, memory, disk and hours of each stage.

No weights are loaded: the language model is built from its configuration on torch's meta device, by the code that tunes it.
Examples are drawn and rendered by the code that trains; what is not on disk is replaced by stated assumptions.

Letters: P parameters, V rows of the table with K image rows among them, d width, T tokens of an example or batch.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from llmcxr.foundation.assets import ASSETS
from llmcxr.foundation.devices import pick_device
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.instructions.example import Task
from llmcxr.instructions.mixture import Mixture, TaskItems
from llmcxr.instructions.questions import questions_of
from llmcxr.instructions.rendering import RenderedExample, fit, supervise_all
from llmcxr.instructions.templates import build_template
from llmcxr.pipeline import Run, tasks_of
from llmcxr.recipe import Recipe
from llmcxr.sources import table
from llmcxr.studies.findings import Finding
from llmcxr.studies.labels import PHANTOM_FINDINGS
from llmcxr.studies.study import Study
from llmcxr.tuning import four_bit
from llmcxr.tuning.alignment import alignment_prompt
from llmcxr.tuning.batches import collate, plan_batches
from llmcxr.tuning.feed import WINDOW
from llmcxr.tuning.settings import LanguageSettings, StageSettings, TuningSettings
from llmcxr.tuning.trainer import Losses
from llmcxr.tuning.tunable import UPDATED_AT_ONCE, MasterAdamW, TunableModel
from llmcxr.vocabulary.head import after_head
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_config, load_text_tokenizer

GIB = 2**30
PAPER_IMAGES, PAPER_EPOCHS, PAPER_LANGUAGE = 377_000, 5, 0.2  # section 2.4.2 and the published settings
PHANTOM_WORDS = (32, 11)  # findings and impression: the mean of the embedded Indiana University reports
TABLE_WORDS = (50, 20)  # a round guess for reports of other data
STAND_IN = "smollm2-135m-instruct"  # its tokenizer counts text where the model's own is not at hand

# Configurations of the recipes' models, so that they can be planned where the hub is out of reach.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "databricks/dolly-v2-3b": (
        "gpt_neox",
        {
            "hidden_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "intermediate_size": 10240,
            "vocab_size": 50280,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
    ),
}
for _name, _width, _inner, _layers, _heads in (
    ("Qwen/Qwen3-0.6B", 1024, 3072, 28, 16),
    ("Qwen/Qwen3-1.7B", 2048, 6144, 28, 16),
    ("Qwen/Qwen3-4B", 2560, 9728, 36, 32),
    ("Qwen/Qwen3-4B-Instruct-2507", 2560, 9728, 36, 32),
):
    SHAPES[_name] = (
        "qwen3",
        {
            "hidden_size": _width,
            "intermediate_size": _inner,
            "num_hidden_layers": _layers,
            "num_attention_heads": _heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    )


@dataclass(frozen=True)
class PlanOptions:
    """What the recipe does not say. Rates are those of one device."""

    devices: int = 1  # data-parallel processes, which share the batches of each step
    rate: float | None = None  # tokens a second, no padding counted
    measure: bool = False  # time the real step here
    tflops: float | None = None  # dense bfloat16 matrix rate, 10^12 operations a second
    utilisation: float = 0.45  # share of `tflops` that training reaches
    images: int = 377_110  # images of a source that is not on disk (all of MIMIC-CXR-JPG)
    words: tuple[int, int] | None = None  # of findings and impression, for reports that are not on disk


@dataclass(frozen=True)
class ModelSize:
    """Counts of the grown model as it is tuned."""

    parameters: int  # P, of the stock model that results
    trained: int  # parameters with a gradient, image rows included
    matrices: int  # weights that multiply every token: no tables, no head
    trained_matrices: int
    rows: int  # V
    image_rows: int  # K
    width: int
    layers: int
    attention_width: int  # query width (heads x head size), summed over layers
    weight_bytes: int
    gradient_bytes: int  # while a batch is computed
    step_gradient_bytes: int  # while the optimiser steps: the same, and float32 copies of some at a time
    optimizer_bytes: int  # float32 masters and both moments
    table_copies: (
        int  # beside the table: with image rows laid over it, that one's gradient, the head's where it is trained
    )
    logit_bytes: int  # that a logit keeps: 2, or 8 where the head's output is capped or scaled


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. The peak is in the backward pass or in the optimiser's step."""

    weights: int
    optimizer: int
    gradients: int
    step_gradients: int
    activations: int

    @property
    def peak(self) -> int:
        """The larger of the two moments."""
        return self.weights + self.optimizer + max(self.gradients + self.activations, self.step_gradients)


@dataclass(frozen=True)
class Lengths:
    """Counts [n] over sampled examples: all tokens, image tokens, supervised ones inside images and outside."""

    tokens: np.ndarray
    image: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    language: np.ndarray  # bool


@dataclass(frozen=True)
class StagePlan:
    """One stage that trains the language model; counts are over the whole stage."""

    name: str
    examples: int
    tasks: dict[str, int]
    epochs: dict[str, float]  # how often each item of a task is seen; {} where the source is not on disk
    tokens: int
    image_tokens: int
    supervised: int
    padded: int
    steps: int
    cut: int  # examples whose report is cut, as they are longer than `max_tokens`
    left_out: int  # examples that are longer than that and cannot be cut
    flops: float
    hours: float | None
    share: float = 1.0  # of the layers; below 1 for alignment, which runs on one device


@dataclass(frozen=True)
class Plan:
    """Everything that `plan_text` prints."""

    recipe: str
    llm: str
    method: str
    size: ModelSize
    stages: list[StagePlan]
    memory: Memory
    sharded: Memory | None  # FSDP2 over the devices; QLoRA does not go with it
    disk: dict[str, int]
    host_bytes: int
    paper_tokens: float
    paper_hours: float | None
    speed: str
    options: PlanOptions
    notes: list[str] = field(default_factory=list)


# --- the language model


def find_config(name: str) -> tuple[PreTrainedConfig, str]:
    """Configuration of the LLM `name`, and where it is from. `UserError` where it is neither here nor known."""
    if name not in ASSETS and not Path(name).is_dir():
        try:
            config = AutoConfig.from_pretrained(name, local_files_only=True).get_text_config(decoder=True)
            return config, "from the hub's cache"
        except (OSError, ValueError):
            if name in SHAPES:
                kind, values = SHAPES[name]
                return AutoConfig.for_model(kind, **values), "shape as published"
    return load_config(name), "from its config.json" if name not in ASSETS else "embedded asset"


def find_tokenizer(name: str) -> tuple[PreTrainedTokenizerBase, bool]:
    """Text tokenizer of `name`, or the stand-in where it cannot be had without a connection; whether it is its own."""
    if name in ASSETS or Path(name).is_dir():
        return load_text_tokenizer(name), True
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True), True
    except (OSError, ValueError):
        return load_text_tokenizer(STAND_IN), False


def build_tunable(
    config: PreTrainedConfig, vocabulary: ImageVocabulary, settings: TuningSettings, device: torch.device
) -> TunableModel:
    """The model as it is tuned, in bfloat16 with random (on the meta device: no) weights.

    There are no weights to pack on the meta device: QLoRA is LoRA there, and `size_of` counts its 4 bits.
    """
    if device.type == "meta" and settings.method == "qlora":
        settings = dataclasses.replace(settings, method="lora")
    with device:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.bfloat16)
        width = model.get_input_embeddings().weight.shape[1]
        return TunableModel(model, vocabulary, torch.zeros(vocabulary.size, width), settings)


def size_of(tunable: TunableModel, quantised: bool = False) -> ModelSize:
    """Counts of a model as it is tuned (also on the meta device). `quantised`: frozen linear layers are in 4 bits (QLoRA)."""
    model = cast(nn.Module, tunable.model)
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = cast(Any, tunable.model).get_output_embeddings()
    tables |= {id(p) for p in head.parameters()}
    overlays = {id(p) for o in tunable.image_rows for p in o.parameters()}
    parameters = {id(p): p for p in model.parameters()}
    trained = [p for p in parameters.values() if p.requires_grad]
    matrices = [p for key, p in parameters.items() if p.ndim == 2 and key not in tables | overlays]
    adapters = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    config = tunable.model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    table = cast(Any, tunable.model).get_input_embeddings().parametrizations.weight.original
    packed = {id(m.weight) for _, m in four_bit.linears(tunable.model) if quantised and not m.weight.requires_grad}
    weights = sum(p.numel() * (four_bit.BYTES if key in packed else p.element_size()) for key, p in parameters.items())
    count, gradients = sum(p.numel() for p in trained), sum(p.numel() * p.element_size() for p in trained)
    return ModelSize(
        parameters=sum(p.numel() for key, p in parameters.items() if key not in overlays) - adapters,
        trained=count,
        matrices=sum(p.numel() for p in matrices),
        trained_matrices=sum(p.numel() for p in matrices if p.requires_grad),
        rows=table.shape[0],
        image_rows=tunable.vocabulary.size,
        width=table.shape[1],
        layers=config.num_hidden_layers,
        attention_width=config.num_hidden_layers * heads * head_size,
        weight_bytes=round(weights),
        gradient_bytes=gradients,
        step_gradient_bytes=gradients + 4 * min(count, UPDATED_AT_ONCE + max(p.numel() for p in trained)),
        table_copies=2 + table.requires_grad,
        logit_bytes=8 if any(after_head(config)) else 2,
        optimizer_bytes=sum((8 if p.dtype == torch.float32 else 12) * p.numel() for p in trained),
    )


def activation_bytes(config: PreTrainedConfig, settings: TuningSettings, vocabulary: ImageVocabulary) -> float:
    """Bytes that the layers keep for the backward pass, for each token of a batch.

    Counted, not estimated: one and two layers of the model's own width, with unset weights, are run on a few tokens, and
    what autograd saves is added up. No gradient checkpointing. (Kernels for CPUs keep less.)
    """

    def saved(layers: int, T: int = 32) -> int:
        shallow = copy.deepcopy(config)
        text = shallow.get_text_config()
        text.vocab_size = 8
        text.pad_token_id = text.bos_token_id = text.eos_token_id = None
        if kinds := getattr(text, "layer_types", None):
            text.layer_types = list(kinds)[:layers]
        text.num_hidden_layers = layers
        words = copy.copy(vocabulary)
        words.first_id, words.size = 8, 2
        tunable = build_tunable(shallow, words, settings, torch.device("meta"))
        model = cast(nn.Module, tunable.model).to_empty(device="cpu").train()
        own = {t.untyped_storage().data_ptr() for t in itertools.chain(model.parameters(), model.buffers())}
        kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

        def pack(tensor: Tensor) -> Tensor:
            address = tensor.untyped_storage().data_ptr()
            if address not in own:
                kept.setdefault(address, tensor)
            return tensor

        ids = torch.zeros(1, T, dtype=torch.long)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            tunable.model.base_model(input_ids=ids, use_cache=False)
        return sum(t.untyped_storage().nbytes() for t in kept.values()) // T

    one, two = saved(1), saved(2)
    return one + (two - one) * (config.get_text_config().num_hidden_layers - 1)


def device_memory(
    size: ModelSize,
    tokens: int,
    token_bytes: float,
    inside: int,
    outside: int,
    all_rows: bool,
    anchored: int = 0,
    shards: int = 1,
) -> Memory:
    """Bytes on one device for batches of `tokens` padded tokens, `inside` and `outside` of them supervised, `anchored` of these
    against the base model's distribution (8 bytes a logit).

    `token_bytes` are the layers' activations. The head adds `logit_bytes` a logit (2: it becomes its own
    gradient), and the table exists `table_copies` times more. `shards` > 1: weights,
    gradients and optimizer states are spread over that many devices, and one layer's weights are gathered at a time.
    """
    logits = (outside - anchored) * size.rows + inside * (size.rows if all_rows else size.image_rows)
    gathered = 0 if shards == 1 else 2 * size.weight_bytes // max(1, size.layers)  # this layer and the next
    return Memory(
        weights=size.weight_bytes // shards + gathered,
        optimizer=size.optimizer_bytes // shards,
        gradients=size.gradient_bytes // shards,
        step_gradients=size.step_gradient_bytes // shards,
        activations=round(
            tokens * token_bytes
            + size.logit_bytes * logits
            + 8 * anchored * size.rows
            + 2 * size.table_copies * size.rows * size.width
        ),
    )


# --- the data


def _assumed_studies(recipe: Recipe, length: tuple[int, int], count: int = 2000) -> list[Study]:
    """Training studies with reports of the assumed length and random findings, for a source that is not on disk."""
    sentence = "There is no consolidation, effusion or pneumothorax, and the heart is normal in size."

    def words(number: int) -> str:
        return " ".join(itertools.islice(itertools.cycle(sentence.split(" ")), number))

    settings = recipe.source.table if recipe.source.kind == "table" else None
    names = list(PHANTOM_FINDINGS) if settings is None else settings.label_columns or settings.label_values
    lines = list(settings.report_from_label.values()) if settings is not None else []
    studies = []
    for i in range(count):
        rng = stream("plan", i)
        labels = {name: int(rng.random() < 0.2) for name in names}
        truth = tuple(Finding(n, "left", "mild") for n, v in labels.items() if v) if settings is None else ()
        studies.append(
            Study(
                image_id=f"assumed-{i}",
                patient_id=str(i),
                study_id=str(i),
                image_path="",
                split="train",
                view="PA",
                findings_text="" if lines else words(length[0]),
                impression_text=lines[i % len(lines)] if lines else words(length[1]),
                labels=labels,
                truth=truth,
            )
        )
    return studies


def find_studies(recipe: Recipe, options: PlanOptions, notes: list[str]) -> tuple[list[Study], int, bool]:
    """Studies of the run or of its table, else assumed ones; the number of images; whether the studies are real."""
    run = Run(recipe)
    if run.has("studies"):
        return run.studies, len(run.studies), True
    settings = recipe.source.table
    if recipe.source.kind == "table" and settings is not None and settings.path.expanduser().is_file():
        studies = table.collect(settings, run.folder).studies
        return studies, len(studies), True
    phantom = recipe.source.phantom
    words = options.words or (PHANTOM_WORDS if recipe.source.kind == "phantom" else TABLE_WORDS)
    if recipe.source.kind == "phantom":
        images = phantom.train + phantom.validate + phantom.test
    else:
        assert settings is not None  # Recipe.faults
        images = options.images
        notes.append(f"{settings.path} is not there: assumed {images:,} images, each stage's cohort large enough.")
    if settings is None or recipe.source.kind == "phantom" or not settings.report_from_label:
        notes.append(f"Reports are not on disk: assumed {words[0]} words of findings and {words[1]} of impression.")
    return _assumed_studies(recipe, words), images, False


def _windows(total: int, sample: int) -> Iterable[range]:
    """Whole windows of the trainer, spread evenly over the stage, of about `sample` examples together."""
    starts = range(0, total, WINDOW)
    wanted = max(1, min(len(starts), sample // WINDOW))
    for k in range(wanted):
        first = starts[k * len(starts) // wanted]
        yield range(first, min(first + WINDOW, total))


def _lengths(rendered: Sequence[RenderedExample], vocabulary: ImageVocabulary, read_images: bool) -> Lengths:
    end = vocabulary.first_id + vocabulary.size
    image = [(r.ids >= vocabulary.first_id) & (r.ids < end) for r in rendered]
    # As in the objective: the first code of an image competes with all rows.
    pairs = [(m[1:] & m[:-1], r.supervised[1:]) for m, r in zip(image, rendered, strict=True)]
    inside = [int((inner & (learned | read_images)).sum()) for inner, learned in pairs]
    outside = [
        int(r.supervised.sum() - (inner & learned).sum()) for r, (inner, learned) in zip(rendered, pairs, strict=True)
    ]
    return Lengths(
        tokens=np.array([len(r.ids) for r in rendered]),
        image=np.array([int(m.sum()) for m in image]),
        inside=np.array(inside),
        outside=np.array(outside),
        language=np.array([r.task == "language" for r in rendered]),
    )


def flops_of(size: ModelSize, settings: TuningSettings, lengths: Lengths) -> float:
    """Useful operations of one pass over the examples: no padding, nothing recomputed.

    A matrix costs 2 operations a weight and token forwards, 2 for the gradient of its input and, where it is trained, 2 for
    its own. Causal attention costs 2 T^2 a unit of query width forwards. The head runs at supervised tokens only.
    """
    tokens, squares = float(lengths.tokens.sum()), float((lengths.tokens.astype(float) ** 2).sum())
    body = tokens * (4 * size.matrices + 2 * size.trained_matrices) + 6 * squares * size.attention_width
    rows_inside = size.rows if settings.image_softmax == "all_rows" else size.image_rows
    head = 6.0 * size.width * (float(lengths.outside.sum()) * size.rows + float(lengths.inside.sum()) * rows_inside)
    if settings.language.loss == "base_model":  # the base model's own pass over language examples
        own = lengths.tokens[lengths.language].astype(float)
        body += own.sum() * 2 * size.matrices + 2 * (own**2).sum() * size.attention_width
        head += 2.0 * size.width * float(lengths.outside[lengths.language].sum()) * size.rows
    return body + head


# --- speed


def measure_rate(
    tunable: TunableModel,
    settings: TuningSettings,
    rendered: Sequence[RenderedExample],
    device: torch.device,
    seconds: float = 20.0,
) -> tuple[float, int]:
    """Tokens a second (no padding counted) of the real step: forward, backward, optimiser; and its peak bytes.

    One step warms up; then whole steps are timed for about `seconds`. The peak is the device's own on a GPU, the
    process's on a CPU.
    """
    losses_of = Losses(tunable, settings).train()
    plan = plan_batches(np.array([len(r.ids) for r in rendered]), settings.tokens_per_batch, 0)
    batches = itertools.cycle([collate([rendered[i] for i in group]).to(device) for group in plan])
    optimizer = MasterAdamW(tunable)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)

    def step() -> int:
        tokens, weight = 0, 0
        for _ in range(settings.batches_per_step):
            batch = next(batches)
            losses = losses_of(batch)[0]
            losses.sum().backward()
            tokens, weight = tokens + batch.tokens, weight + len(losses)
        optimizer.step({"body": 0.0, "rows": 0.0}, weight)
        if cuda:
            torch.cuda.synchronize(device)
        return tokens

    step()
    begin, tokens = time.monotonic(), 0
    while (spent := time.monotonic() - begin) < seconds or not tokens:
        tokens += step()
    peak = torch.cuda.max_memory_allocated(device) if cuda else _peak_of_process()
    return tokens / spent, peak


def _peak_of_process() -> int:
    try:
        import resource
    except ImportError:  # Windows
        from psutil import Process  # comes with accelerate

        return Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _hours(options: PlanOptions, rate: float | None) -> Callable[[float, float], float | None]:
    """(tokens, operations) -> hours on all devices."""
    if rate is not None:
        return lambda tokens, flops: tokens / rate / options.devices / 3600
    if options.tflops is not None:
        speed = options.tflops * 1e12 * options.utilisation * options.devices
        return lambda tokens, flops: flops / speed / 3600
    return lambda tokens, flops: None


# --- the plan


def _alignment(
    size: ModelSize,
    tuning: TuningSettings,
    prompt: int,
    image: int,
    per_step: int,
    options: PlanOptions,
    rate: float | None,
) -> StagePlan:
    """Alignment on prompts of `prompt` tokens, `image` of them codes: through the first layers only, without the head."""
    settings = tuning.alignment
    share = min(settings.layers, size.layers) / size.layers
    examples = settings.steps * per_step
    counts = np.full(1, prompt)
    lengths = Lengths(counts, np.full(1, image), np.zeros(1, int), np.zeros(1, int), np.zeros(1, bool))
    flops = flops_of(size, dataclasses.replace(tuning, language=LanguageSettings()), lengths) * share * examples
    return StagePlan(
        name="alignment",
        examples=examples,
        tasks={},
        epochs={},
        tokens=examples * prompt,
        image_tokens=examples * image,
        supervised=0,
        padded=examples * prompt,
        steps=settings.steps,
        cut=0,
        left_out=0,
        flops=flops,
        hours=_hours(dataclasses.replace(options, devices=1), rate)(examples * prompt * share, flops),
        share=share,
    )


def plan(recipe: Recipe, options: PlanOptions = PlanOptions(), sample: int = 1024) -> Plan:  # noqa: B008 (frozen)
    """Plan of the tuning stages of `recipe`; about `sample` examples of each are drawn and rendered.

    `UserError` where the recipe trains nothing, where the LLM's configuration cannot be had, where a task of a mixture
    has no data, or where the batches of a step cannot be shared by the devices.
    """
    tuning, architecture = recipe.tuning, recipe.image_tokenizer.architecture
    notes: list[str] = []
    if recipe.model is not None:
        raise UserError(
            f"the recipe measures the finished model {recipe.model} and trains nothing, so there is nothing to plan."
        )
    if tuning.batches_per_step % options.devices:
        raise UserError(
            f"tuning.batches_per_step is {tuning.batches_per_step}: {options.devices} devices need a multiple of their number, "
            f"e.g. tuning.batches_per_step={options.devices * math.ceil(tuning.batches_per_step / options.devices)}."
        )
    config, origin = find_config(recipe.llm)
    tokenizer, own = find_tokenizer(recipe.llm)
    template_source = copy.deepcopy(tokenizer)
    vocabulary = ImageVocabulary.grow(template_source, architecture.codebook_size)
    if not own:
        notes.append(f"The tokenizer of {recipe.llm} is not on disk: text is counted by that of {STAND_IN}.")
        vocabulary.first_id = config.get_text_config().vocab_size
    meta = build_tunable(config, vocabulary, tuning, torch.device("meta"))
    size = size_of(meta, quantised=tuning.method == "qlora")
    template = build_template(tuning.template, vocabulary.tokenizer, tuning.system_prompt)

    language = tuning.language.instructions
    drawn_from, real_language = recipe, True
    if language is not None and not language.is_file():
        notes.append(f"{language} is not there: language is taken as long as in the shipped instructions.")
        drawn_from = dataclasses.replace(
            recipe,
            tuning=dataclasses.replace(tuning, language=dataclasses.replace(tuning.language, instructions=None)),
        )
        real_language = False
    studies, images, real = find_studies(recipe, options, notes)
    codes = dict.fromkeys((s.image_id for s in studies), np.zeros(architecture.grid**2, dtype=np.uint16))
    questions = questions_of([s for s in studies if s.split == "train"], recipe.vqa_seed)

    replay = [" the" * tuning.language.replay_tokens] * tuning.language.replay_texts
    if replay:
        notes.append(
            "The texts of the base model (tuning.language.replay_texts) are taken as long as they can be; writing them is not counted."
        )

    samples: list[tuple[StageSettings, Mixture, Mapping[Task, TaskItems], list[list[RenderedExample]], int]] = []
    for stage in tuning.stages:
        tasks, _ = tasks_of(drawn_from, stage, "train", studies, codes, questions, replay)
        weights = cast("dict[Task, float]", stage.mixture)
        mixture = Mixture(tasks, weights, stage.examples, tuning.seed_of(stage, recipe.seed))
        windows, left_out = [], 0
        for window in _windows(stage.examples, sample):
            tried = (fit(mixture[i], template, vocabulary, tuning.max_tokens) for i in window)
            fitting = [r if tuning.loss == "response" else supervise_all(r) for r in tried if r is not None]
            left_out += len(window) - len(fitting)
            windows.append(fitting)
        if not any(windows):
            raise UserError(
                f"{stage.name}: every example is longer than tuning.max_tokens ({tuning.max_tokens}). Set it higher."
            )
        samples.append((stage, mixture, tasks, windows, left_out))

    rate, speed = options.rate, ""
    device = pick_device(recipe.device) if options.measure else torch.device("cpu")
    if options.measure:
        tunable = build_tunable(config, vocabulary, tuning, device)
        rate, peak = measure_rate(tunable, tuning, [r for w in samples[0][3] for r in w], device)
        speed = (
            f"measured here ({device.type}): {rate:,.0f} tokens/s, no padding counted; peak of "
            f"{'the process' if device.type == 'cpu' else 'the device'} {peak / GIB:.1f} GiB"
        )
        del tunable
    elif rate is not None:
        speed = f"as given: {rate:,.0f} tokens/s on each device, no padding counted"
    elif options.tflops is not None:
        speed = f"as given: {options.utilisation:.0%} of {options.tflops:,.1f} TFLOP/s on each device"
    hours = _hours(options, rate)

    train = sum(s.split == "train" for s in studies) if real else images
    stages: list[StagePlan] = []
    align = tuning.alignment
    aligned = 0.0  # tokens of a step of alignment, times its share of the layers
    if align.steps:
        prompt = len(alignment_prompt(next(iter(codes.values())), template, vocabulary))
        per_step = min(align.batch_size, train)
        stages.append(_alignment(size, tuning, prompt, architecture.grid**2, per_step, options, rate))
        aligned = per_step * prompt * stages[0].share
    inside = outside = anchored = 0
    per_example: list[tuple[float, float]] = []  # tokens and operations of an example of the first stage
    for stage, mixture, items, windows, left_out in samples:
        batches = padded = 0
        for number, rendered in enumerate(windows):
            own_lengths = np.array([len(r.ids) for r in rendered], dtype=int)
            groups = plan_batches(own_lengths, tuning.tokens_per_batch, number) if rendered else []
            batches += len(groups)
            lengths = _lengths(rendered, vocabulary, tuning.read_image_weight > 0) if rendered else None
            for group in groups:
                assert lengths is not None
                padded += len(group) * int(own_lengths[group].max())
                inside = max(inside, int(lengths.inside[group].sum()))
                outside = max(outside, int(lengths.outside[group].sum()))
                if tuning.language.loss == "base_model":
                    anchored = max(anchored, int((lengths.outside * lengths.language)[group].sum()))
        kept = [r for w in windows for r in w]
        lengths = _lengths(kept, vocabulary, tuning.read_image_weight > 0)
        drawn = len(kept) + left_out
        scale = stage.examples / drawn
        flops = flops_of(size, tuning, lengths) * scale
        tokens = float(lengths.tokens.sum()) * scale
        per_example.append((tokens / stage.examples, flops / stage.examples))
        counts = mixture.counts()
        stages.append(
            StagePlan(
                name=stage.name,
                examples=stage.examples,
                tasks={str(task): count for task, count in counts.items()},
                epochs={
                    str(t): c / len(items[t]) for t, c in counts.items() if (real_language if t == "language" else real)
                },
                tokens=round(tokens),
                image_tokens=round(float(lengths.image.sum()) * scale),
                supervised=round(float((lengths.inside + lengths.outside).sum()) * scale),
                padded=round(padded * scale),
                steps=math.ceil(batches * scale / tuning.batches_per_step),
                cut=round(sum(r.cut for r in kept) * scale),
                left_out=round(left_out * scale),
                flops=flops,
                hours=hours(tokens, flops),
            )
        )

    token_bytes = activation_bytes(config, tuning, vocabulary)
    arguments = (
        size,
        tuning.tokens_per_batch,
        token_bytes,
        inside,
        outside,
        tuning.image_softmax == "all_rows",
        anchored,
    )
    memory = device_memory(*arguments)
    memory = dataclasses.replace(memory, activations=max(memory.activations, round(aligned * token_bytes)))
    if aligned and options.devices > 1:
        notes.append("Alignment runs on one device, which holds all weights meanwhile.")
    paper_examples = PAPER_IMAGES * PAPER_EPOCHS / (1 - PAPER_LANGUAGE)
    S = architecture.image_size
    return Plan(
        recipe=recipe.name,
        llm=f"{recipe.llm} ({config.model_type}, {origin})",
        method=tuning.method,
        size=size,
        stages=stages,
        memory=memory,
        sharded=device_memory(*arguments, shards=options.devices)
        if options.devices > 1 and tuning.method != "qlora"
        else None,
        disk={
            "pixels": images * S * S,
            "codes": images * architecture.grid**2 * 2,
            "weights of the stages": size.gradient_bytes * len(stages),
            "checkpoint, and the one before it": 2 * (size.optimizer_bytes + 4 * size.image_rows * size.width),
            "model": 2 * size.parameters,
        },
        host_bytes=train * S * S,
        paper_tokens=paper_examples * per_example[0][0],
        paper_hours=hours(paper_examples * per_example[0][0], paper_examples * per_example[0][1]),
        speed=speed,
        options=options,
        notes=notes,
    )


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
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def plan_text(plan: Plan) -> str:
    """The plan for people."""
    size, devices = plan.size, plan.options.devices
    lines = [
        f"Plan of {plan.recipe}, on {devices} device{'s' * (devices > 1)}",
        "",
        f"Language model: {plan.llm}",
        f"  {_count(size.parameters)} parameters, {size.layers} layers, width {size.width}, {size.rows:,} rows of which "
        f"{size.image_rows:,} are image tokens",
        f"  tuned by {plan.method}: {_count(size.trained)} trained",
    ]
    if plan.notes:
        lines += ["", "Assumptions", *(f"  - {note}" for note in plan.notes)]
    head = ["", "examples", "tokens", "image", "text", "supervised", "with padding", "steps", "PFLOP", "time"]
    rows = [head]
    for s in plan.stages:
        numbers = (s.examples, s.tokens, s.image_tokens, s.tokens - s.image_tokens, s.supervised, s.padded)
        rows.append(
            [
                s.name,
                *map(_count, numbers),
                f"{s.steps:,}",
                f"{s.flops / 1e15:,.{1 if s.flops >= 1e16 else 3}f}",
                _time(s.hours),
            ]
        )
    lines += ["", "Tuning", *_columns(rows)]
    for s in plan.stages:
        parts = [
            f"{task} {_count(count)}" + (f" ({s.epochs[task]:.1f} epochs)" if task in s.epochs else "")
            for task, count in s.tasks.items()
        ]
        if s.share < 1:
            parts.append(f"through {s.share:.0%} of the layers, on one device")
        too_long = [f"{_count(n)} {what}" for n, what in ((s.cut, "cut"), (s.left_out, "left out")) if n]
        lines.append(f"  {s.name}: {', '.join(parts)}" + (f"; too long: {', '.join(too_long)}" if too_long else ""))
    lines.append(
        f"  speed {plan.speed}"
        if plan.speed
        else "  for the time: --rate TOKENS_PER_SECOND, --measure, or --tflops TFLOPS"
    )

    kinds = [("each holds all" if devices > 1 else "", plan.memory)]
    if plan.sharded is not None:
        kinds.append(("sharded (FSDP2)", plan.sharded))
    rows = [["", "weights", "optimizer", "gradients", "activations", "peak"]]
    for name, m in kinds:
        values = (m.weights, m.optimizer, max(m.gradients, m.step_gradients), m.activations, m.peak)
        rows.append([name, *(f"{v / GIB:.1f}" for v in values)])
    lines += ["", "Memory of a device, GiB (bfloat16, float32 masters and moments; gradients at the optimiser's step)"]
    lines += _columns(rows)
    lines.append(f"  memory of the host for training images: {plan.host_bytes / GIB:.1f} GiB")

    lines += ["", "Disk, GiB"]
    lines += _columns([[name, f"{value / GIB:.2f}"] for name, value in plan.disk.items()])
    lines += [
        "",
        f"The paper's stage 1 at this recipe's stage 1 examples: {PAPER_IMAGES:,} images x {PAPER_EPOCHS} epochs and 20 % language: "
        f"{_count(plan.paper_tokens)} tokens, {_time(plan.paper_hours)}",
    ]
    return "\n".join(lines)
