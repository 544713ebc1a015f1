"""The stages that tune the language model, and the folder that users load (sections 2.2 and 2.4)."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llmcxr import __version__
from llmcxr.foundation.artifacts import read_json, write_json
from llmcxr.foundation.checkpoints import load_weights
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import settings_to_dict
from llmcxr.foundation.workflow import Stage
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.model.calibration import save_calibration
from llmcxr.model.decoding import DecodingSettings
from llmcxr.model.folder import ModelInfo, save_model
from llmcxr.model.outside import FEWEST, write_limits
from llmcxr.model.patients import patient_hash, seen_patients
from llmcxr.stages.calibration import IMAGES, fitted_calibration, lacking
from llmcxr.stages.context import Context, start_files
from llmcxr.stages.outside import limits_of
from llmcxr.studies.cohort import select_cohort
from llmcxr.studies.study import Collection, Split, sided_labels
from llmcxr.tasks.base import Items, TaskData, tasks
from llmcxr.tasks.language import SHIPPED, instructions_of
from llmcxr.tuning.alignment import align, alignment_prompt
from llmcxr.tuning.four_bit import bitsandbytes
from llmcxr.tuning.keep_language import LanguageCheck, save_texts, write_texts
from llmcxr.tuning.settings import StageSettings
from llmcxr.tuning.trackers import check_tracker
from llmcxr.tuning.trainer import Stage as TuningStage
from llmcxr.tuning.trainer import load_stage
from llmcxr.tuning.tunable import TunableModel
from llmcxr.vocabulary.growing import projected_rows, random_rows, table_of
from llmcxr.vocabulary.reader import reader_rows, word_vectors


def trainings(context: Context) -> list[str]:
    """Names of what trains the language model, in order."""
    tuning = context.recipe.tuning
    return ["alignment"] * bool(tuning.alignment.steps) + [stage.name for stage in tuning.stages]


def image_rows(context: Context, tokenizer: PreTrainedTokenizerBase, text_rows: torch.Tensor) -> torch.Tensor:
    """Starts of the image rows [K, d] (section 2.2: random; the recipes': what the codes speak for)."""
    tuning, codebook, seed = context.recipe.tuning, context.image_tokenizer.codebook.cpu(), context.recipe.seed
    if tuning.row_start == "random":
        return random_rows(text_rows, len(codebook), seed)
    if tuning.row_start == "codebook" or not context.findings:
        return projected_rows(codebook, text_rows, seed)
    studies = [s for s in context.studies if s.split == "train"]
    codes = np.stack([context.codes[s.image_id] for s in studies])
    names, labels = sided_labels(studies, context.findings)
    words = word_vectors(names, tokenizer, text_rows)
    return reader_rows(codebook, codes, labels, words, text_rows, seed)


def tunable_model(context: Context, after: str | None = None, empty: bool = False) -> TunableModel:
    """The model as it is tuned; with what the training `after` saved, which is all that is trained, rows included.

    `empty`: without weights, where the main process will give them (`Processes.receives`).
    """
    model, vocabulary = context.base(empty)
    tuning, seed = context.recipe.tuning, context.recipe.seed
    text_rows = table_of(model).detach()[: vocabulary.first_id]
    if empty:
        with torch.device("meta"):
            return TunableModel(model, vocabulary, torch.zeros(vocabulary.size, text_rows.shape[1]), tuning, seed)
    if after is None and context.start is None:
        return TunableModel(model, vocabulary, image_rows(context, vocabulary.tokenizer, text_rows), tuning, seed)
    tunable = TunableModel(model, vocabulary, torch.zeros(vocabulary.size, text_rows.shape[1]), tuning, seed)
    if after is None:
        assert context.start is not None
        tunable.load_state(load_weights(context.start.weights), str(context.start.weights))
    else:
        load_stage(tunable, context.folder / after)
    return tunable


def task_items(context: Context, stage: StageSettings, split: Split) -> tuple[dict[str, Items], Collection]:
    """Items of every task with a weight in a stage, for the patients of a split, and the stage's cohort among them.

    Tasks for which the data has nothing are left out.
    """
    tuning = context.recipe.tuning
    cohort = select_cohort([s for s in context.studies if s.split == split], stage.cohort)
    first: tuple[str, ...] = tuple(tuning.findings_first)
    if split != "train":  # asked as it was trained
        first = tuple(n for n, own in task_items(context, stage, "train")[0].items() if own.findings_first)
    data = TaskData(
        split,
        cohort.studies,
        context.codes,
        context.findings,
        context.labeller,
        stage.cohort.sections,
        context.questions,
        context.replay if split == "train" else (),
        first,
        {**vars(tuning), **vars(stage)},
    )
    items = {n: task.items(data) for n, task in tasks().items() if stage.mixture.get(n, 0) > 0}
    return {name: own for name, own in items.items() if len(own)}, cohort


def _shared(context: Context) -> dict[str, Any]:
    """Settings of tuning that every training depends on, without those that change no weight, and those of single stages."""
    tuning = context.recipe.tuning
    language = dataclasses.replace(tuning.language, instructions=None, replay_texts=0)
    same = dataclasses.replace(
        tuning,
        decoding=DecodingSettings(),
        language=language,
        logging="none",
        measure_share=0.0,
        gradient_checkpointing=False,
    )
    return settings_to_dict(same) | {"stages": []}


def _llm(context: Context) -> tuple[Path, ...]:
    """The base LLM's folder, where it is one."""
    return (Path(context.recipe.llm),) if Path(context.recipe.llm).is_dir() else ()


def alignment_stage(context: Context) -> list[Stage]:
    """The first layers learn findings from codes; ours, not the paper's."""
    recipe, settings = context.recipe, context.recipe.tuning.alignment
    if not settings.steps:
        return []

    def run() -> str | None:
        if not context.findings:
            return "no finding is known both present and absent"
        align_model(context, tunable_model(context), context.folder / "alignment")
        return None

    return [
        Stage(
            "alignment",
            "the first layers of the language model learn which findings the codes show",
            run,
            settings=(recipe.llm, _shared(context), recipe.seed, recipe.start is not None),
            after=("codes",),
            outputs=("alignment",),
            reads=(*_llm(context), *start_files(context)),
            check=lambda: _check_model(context),
            everywhere=True,
        )
    ]


def align_model(context: Context, tunable: TunableModel, folder: Path) -> None:
    """Align a model that is not yet tuned with this run's codes; the weights come into `folder`."""
    template = context.template(tunable.vocabulary)
    studies = [s for s in context.studies if s.split == "train"]
    prompts = np.array([alignment_prompt(context.codes[s.image_id], template, tunable.vocabulary) for s in studies])
    _, labels = sided_labels(studies, context.findings)
    align(tunable, prompts, labels, context.recipe.tuning.alignment, context.recipe.seed, folder, context.processes)


def replay_stage(context: Context) -> list[Stage]:
    """Texts that the base model writes itself."""
    recipe, language = context.recipe, context.recipe.tuning.language
    if not language.replay_texts:
        return []

    def run() -> None:
        model, vocabulary = context.base()
        texts = write_texts(model.to(context.device), vocabulary, language.replay_texts, recipe.seed)  # type: ignore[arg-type]
        save_texts(context.folder / "replay.jsonl", texts)
        print(f"    {len(texts)} texts; {language.replay_texts - len(texts)} left out: empty")

    return [
        Stage(
            "replay",
            "the base model writes texts of its own, by which it is kept while it is tuned",
            run,
            settings=(recipe.llm, language.replay_texts, recipe.seed),
            outputs=("replay.jsonl",),
            check=context.check_llm,
            reads=_llm(context),
        )
    ]


def _check_model(context: Context) -> None:
    """`UserError` for what tuning needs and is not there: the base LLM, and the packages of the method."""
    context.check_llm()
    if context.recipe.tuning.method == "qlora":
        bitsandbytes()
        if context.processes.sharded:
            raise UserError(
                "tuning.method: qlora does not go with FSDP2, which shards weights that are not packed. Set "
                "tuning.method=lora, or launch with accelerate/ddp.yaml of the shipped recipes."
            )


def tuning_stages(context: Context) -> list[Stage]:
    """The stages of instruction tuning (section 2.4.2: two)."""
    recipe, tuning = context.recipe, context.recipe.tuning
    language = tuning.language.instructions

    def check() -> None:
        check_tracker(tuning.logging)
        _check_model(context)
        if language is not None and not language.is_file():
            raise UserError(
                f"the language instructions {language} do not exist. Set tuning.language.instructions to a JSONL file with "
                "instruction, input (or context) and response in each line, or to null for the shipped set."
            )

    result, before = [], ("alignment",) if tuning.alignment.steps else ("codes",)
    for index, stage in enumerate(tuning.stages):
        replay = ("replay",) if tuning.language.replay_texts and stage.mixture.get("language", 0) > 0 else ()
        first = index == 0 and not tuning.alignment.steps
        result.append(
            Stage(
                stage.name,
                "teaches the language model to read and write image tokens"
                if index == 0
                else "the same on selected data",
                functools.partial(_tune, context, stage),
                settings=(recipe.llm, _shared(context), stage, recipe.seed, first and recipe.start is not None),
                after=(*before, "codes", "vqa", *replay),
                outputs=(stage.name,),
                reads=(*_llm(context), language or SHIPPED, *(start_files(context) if first else ())),
                check=check,
                everywhere=True,
            )
        )
        before = (stage.name,)
    return result


def _tune(context: Context, stage: StageSettings) -> None:
    folder = context.folder / stage.name
    # Trained, and stopped before language was measured?
    trained = (folder / "summary.json").exists() and not (folder / "checkpoint.pt").exists()
    if not context.processes.from_main(trained):
        _train(context, stage, folder)
    context.processes.on_main(lambda: _measure_language(context, stage, folder))


def _before(context: Context, stage: StageSettings) -> str | None:
    """What a stage goes on from: the training before it that had something to do."""
    names = trainings(context)
    done = [
        name for name in names[: names.index(stage.name)] if (context.folder / name / "weights.safetensors").exists()
    ]
    return done[-1] if done else None


def _train(context: Context, stage: StageSettings, folder: Path) -> None:
    tuning, seed = context.recipe.tuning, context.recipe.seed
    before = _before(context, stage)
    tunable = tunable_model(context, before, empty=context.processes.receives)
    tunable.shrink_adapters(stage.adapters_kept)  # a checkpoint of this stage, if there is one, replaces them
    train, cohort = task_items(context, stage, "train")
    unseen, _ = task_items(context, stage, "validate")
    if not train:
        raise context.processes.fault(
            f"{stage.name}: the data has nothing for any task of its mixture. Set other weights."
        )
    if context.processes.main:
        write_json(folder / "cohort.json", cohort.as_json())
        for line in cohort.told():
            print(f"    {stage.name}: {line}")
        for name in stage.mixture:
            if name not in train and stage.mixture[name] > 0:
                print(f"    {name}: the data has nothing for this task, so it is left out")
        for own in train.values():
            if own.note:
                print(f"    {own.note}")
    # Weights are those with which the stage before ended, unless they were changed in between.
    same = before != "alignment" and stage.adapters_kept == 1
    stage = dataclasses.replace(stage, mixture={name: stage.mixture[name] for name in train})
    template = context.template(tunable.vocabulary)
    begun = context.folder / before if before is not None and same else None
    TuningStage(tunable, template, tuning, stage, train, unseen, folder, context.processes, seed, begun).run()


def _measure_language(context: Context, stage: StageSettings, folder: Path) -> None:
    """Add what language became to the stage's summary: from saved weights, so that a model in parts is no matter."""
    tuning, names = context.recipe.tuning, [s.name for s in context.recipe.tuning.stages]
    summary = read_json(folder / "summary.json")
    # Each of the measurements that this stage ends with has an equal part of what unseen patients left of the share.
    left = max(0.0, tuning.measure_share * summary["seconds"] - summary["measuring_seconds"])
    budget = left / (1 + len(trainings(context)))
    model, vocabulary = context.base()
    rows = torch.zeros(vocabulary.size, table_of(model).shape[1])
    held_out = instructions_of(tuning.language.instructions, "validate")
    check = LanguageCheck(vocabulary, context.template(vocabulary), held_out, tuning.max_tokens)
    if index := names.index(stage.name):
        trace = read_json(context.folder / names[index - 1] / "summary.json")["language"]
    else:
        trace = check.extend([], "base", model.to(context.device), budget)  # type: ignore[arg-type]
    tunable = TunableModel(model, vocabulary, rows, tuning, context.recipe.seed)
    known = {entry["after"] for entry in trace}
    order = trainings(context)
    for name in order[: order.index(stage.name) + 1]:
        if name not in known and (context.folder / name / "weights.safetensors").exists():
            load_stage(tunable, context.folder / name)
            trace = check.extend(trace, name, tunable.model.to(context.device))  # type: ignore[arg-type]
    for what, count in summary["too_long"].items():
        print(f"    longer than tuning.max_tokens ({tuning.max_tokens}), {count:,} examples: {what}")
    last = trace[-1]
    print(f"    language: perplexity {last['perplexity']:.2f}, {last['perplexity_ratio']:.3f} of the base model's")
    write_json(folder / "summary.json", summary | {"language": trace})


def _learn_of_validation_patients(context: Context) -> None:
    """Calibration, and how unlike the training images unseen ones are, into the finished model's folder."""
    folder = context.folder / "model"
    model = LlmCxr.from_pretrained(folder, str(context.device))  # as users do
    if why := lacking(context, IMAGES):
        print(f"    no calibration: {why}")
    else:
        fitted = fitted_calibration(context, model=model)
        save_calibration(folder, fitted)
        print(f"    calibrated on {fitted.fitted_on.images} validation images: {fitted.method}")
    if limits := limits_of(model, context.of_split("validate")[1]):
        write_limits(folder, limits)
    else:
        print(f"    under {FEWEST} validation images: the model will not say which images are outside its data")


def model_stage(context: Context) -> Stage:
    """The folder that users load: a stock checkpoint, the text and image tokenizers, and what using it needs."""
    tuning = context.recipe.tuning

    def write() -> None:
        last = tuning.stages[-1]
        tunable = tunable_model(context, last.name)
        named: dict[str, bool] = {}  # how each task was last trained
        for stage in tuning.stages:
            summary = read_json(context.folder / stage.name / "summary.json")
            named |= {task: task in summary["findings_first"] for task in summary["examples"]}
        first = tuple(task for task in named if named[task])
        decoding = tuning.decoding.possible(first)
        if context.image_tokenizer.clinical is None:
            decoding = dataclasses.replace(decoding, drawing_candidates=1)
        info = ModelInfo(
            base=context.recipe.llm,
            codebook_size=tunable.vocabulary.size,
            grid=context.image_tokenizer.grid,
            image_size=context.image_tokenizer.image_size,
            geometry=context.geometry,
            image_tokenizer=context.image_tokenizer.fingerprint,
            template=tuning.template,
            system_prompt=tuning.system_prompt,
            findings=tuple(context.findings),
            report=last.cohort.sections,
            views=tuple(last.cohort.views),
            earliest_only=last.cohort.earliest_only,
            findings_first=first,
            decoding=decoding,
            unguided_share=tuning.unguided_share,
            max_tokens=tuning.max_tokens,
            version=__version__,
        )
        own = frozenset(patient_hash(s.patient_id) for s in context.studies if s.split == "train")
        before = seen_patients(context.start.folder) if context.start is not None else frozenset()
        patients = None if before is None else own | before
        tokenizer = context.folder / "image_tokenizer"
        save_model(context.folder / "model", tunable.merge(), tunable.vocabulary, tokenizer, info, patients)

    def run() -> None:
        write()  # whose model is forgotten before it is loaded as users do
        _learn_of_validation_patients(context)

    return Stage(
        "model",
        "the tuned model as an ordinary checkpoint",
        run,
        settings=tuning.decoding,
        after=(tuning.stages[-1].name, "studies"),
        outputs=("model",),
    )
