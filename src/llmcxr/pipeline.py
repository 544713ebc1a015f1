"""The stages of a run, in order. Each reads what the ones before wrote in the run's folder and skips itself when done.

A stage is done when its record holds the fingerprint of its settings and of everything it depends on. If those change,
what it wrote is removed and it runs again, and so do the stages after it.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmcxr import __version__
from llmcxr.evaluation.evaluate import Cases, Evaluation, Results, save_results, shortfalls
from llmcxr.evaluation.judge import Judge, judge_findings
from llmcxr.evaluation.model_card import model_card
from llmcxr.evaluation.page import PageContent, glance, write_page
from llmcxr.foundation.artifacts import atomic_path, fingerprint, folder_fingerprint, read_json, write_json
from llmcxr.foundation.checkpoints import load_weights
from llmcxr.foundation.devices import core_count
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.foundation.settings import settings_to_dict
from llmcxr.image_tokens.classifier import train_classifier
from llmcxr.image_tokens.clinical_features import ClinicalFeatures, published_features
from llmcxr.image_tokens.codes import encode_images, read_codes, write_codes
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.image_tokens.training import train_image_tokenizer
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.inference.provenance import save_marked_png
from llmcxr.instructions.example import Task, Turn
from llmcxr.instructions.mixture import TaskItems
from llmcxr.instructions.questions import (
    QuestionAnswer,
    questions_of,
    read_questions,
    seen_list,
    stated_list,
    write_questions,
)
from llmcxr.instructions.templates import Template, build_template
from llmcxr.model.decoding import DecodingSettings
from llmcxr.model.folder import ModelInfo, load_info, save_model
from llmcxr.model.packed import Start, find_model, find_start, pack
from llmcxr.recipe import Recipe
from llmcxr.sources import table
from llmcxr.sources.phantom import source as phantom
from llmcxr.studies.cohort import check_splits, select_cohort
from llmcxr.studies.radiographs import load_all
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Split, Study, known_findings, label_matrix, read_manifest, sided_labels, write_manifest
from llmcxr.tasks.cxr_to_report import CxrToReportTask, ImageReport
from llmcxr.tasks.cxr_vqa import CxrVqaTask
from llmcxr.tasks.language import SHIPPED, LanguageTask, load_instructions
from llmcxr.tasks.report_to_cxr import ReportToCxrTask
from llmcxr.tuning.alignment import align, alignment_prompt
from llmcxr.tuning.four_bit import bitsandbytes
from llmcxr.tuning.keep_language import LanguageCheck, load_texts, save_texts, write_texts
from llmcxr.tuning.settings import StageSettings
from llmcxr.tuning.trackers import check_tracker
from llmcxr.tuning.trainer import Stage as TuningStage
from llmcxr.tuning.trainer import load_stage
from llmcxr.tuning.tunable import TunableModel
from llmcxr.vocabulary.growing import projected_rows, random_rows, table_of
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import empty_language_model, load_language_model, load_text_tokenizer
from llmcxr.vocabulary.reader import reader_rows, word_vectors

_READ_CHUNK = 4096  # images read at once


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: str
    about: str  # what it is for, shown to people
    settings: Any  # all that its result depends on, besides the stages in `after`
    after: tuple[str, ...]
    outputs: tuple[str, ...]  # below the run folder
    run: Callable[[], None]
    everywhere: bool = False  # run by all processes together, not by the main one while the others wait


def instructions_of(recipe: Recipe, split: Split) -> list[Turn]:
    """Language instructions; every tenth is kept from training."""
    turns = load_instructions(recipe.tuning.language.instructions or SHIPPED)
    return [turn for i, turn in enumerate(turns) if (i % 10 == 0) == (split != "train")]


def tasks_of(
    recipe: Recipe,
    stage: StageSettings,
    split: Split,
    studies: Sequence[Study],
    codes: Mapping[str, np.ndarray],
    questions: Sequence[QuestionAnswer],
    replay: Sequence[str] = (),
) -> tuple[dict[Task, TaskItems], Counter[str]]:
    """Items of every task of a tuning stage for the patients of a split, and the studies left out, by reason.

    `replay` are texts of the base model, further items of the language task.
    """
    cohort = select_cohort([s for s in studies if s.split == split], stage.cohort)
    part = stage.cohort.sections
    findings = known_findings([s for s in studies if s.split == "train"])
    pairs = []
    for study in cohort.studies:
        if text := report_text(study, part):
            pair = ImageReport(study.image_id, codes[study.image_id], text)
            if "cxr_to_report" in recipe.tuning.findings_first:
                pair = dataclasses.replace(pair, seen=seen_list(study, findings))
            if "report_to_cxr" in recipe.tuning.findings_first:
                pair = dataclasses.replace(pair, stated=stated_list(text, findings))
            pairs.append(pair)
    if recipe.tuning.findings_first and pairs and all(p.seen is None and p.stated is None for p in pairs):
        raise UserError(
            "tuning.findings_first: no report has findings that are known, so none could be named first. Set it to []."
        )
    own_codes = {s.image_id: codes[s.image_id] for s in cohort.studies}
    tasks: dict[Task, TaskItems] = {
        "language": LanguageTask(instructions_of(recipe, split), replay),
        "report_to_cxr": ReportToCxrTask(pairs, recipe.tuning.unguided_share, stage.rare_findings),
        "cxr_to_report": CxrToReportTask(pairs),
        "cxr_vqa": CxrVqaTask(questions, own_codes, recipe.tuning.questions_per_image, stage.conversations),
    }
    return tasks, cohort.dropped


def _tuned_rows(folder: Path, stages: Sequence[str], rank: int) -> list[tuple[str, str]]:
    """(stage, how it was tuned) of finished stages in the folder of a run, for the model card."""
    rows = []
    for name in stages:
        done = read_json(folder / name / "summary.json")
        tasks = ", ".join(f"{count:,} {task}" for task, count in done["examples"].items())
        rows.append((name, f"LoRA of rank {rank}, {done['tokens']:,} tokens in {done['step']:,} steps ({tasks})"))
    return rows


def _rows_before(start: str | None) -> list[tuple[str, str]]:
    """(what, how) of the training before this run: that of the run, or a word on the packed model, that it starts from."""
    if start is None:
        return []
    path = Path(start).expanduser() / "recipe.yaml"
    name = Path(start).name
    if not path.exists():
        return [("start", f"trains on from the packed model {name}")]
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    tokenizer, tuning = recipe["image_tokenizer"], recipe["tuning"]
    tuned = _tuned_rows(path.parent, [stage["name"] for stage in tuning["stages"]], tuning["lora_rank"])
    rows = [("image tokenizer", f"{tokenizer['steps']:,} steps of {tokenizer['batch_size']} images"), *tuned]
    return [*_rows_before(recipe.get("start")), *((f"{what}, in the run {name} before", how) for what, how in rows)]


class Run:
    """A recipe and its folder."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.folder = Path(recipe.runs) / recipe.name
        self.processes = Processes(recipe.device)
        self.device = self.processes.device
        self.processes.agree_on_precision(recipe.precision)

    # --- what stages read

    @cached_property
    def studies(self) -> list[Study]:
        """All studies; row i of `pixels` is study i."""
        return read_manifest(self.folder / "manifest.parquet")

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 [N, S, S], mapped from disk."""
        return np.load(self.folder / "pixels.npy", mmap_mode="r", allow_pickle=False)

    def of_split(self, split: Split) -> tuple[list[Study], np.ndarray]:
        """Studies of a split, and their images uint8 [N, S, S] in memory-mapped rows."""
        rows = [i for i, study in enumerate(self.studies) if study.split == split]
        return [self.studies[i] for i in rows], self.pixels[rows]

    @cached_property
    def given(self) -> Path | None:
        """Folder of the finished model that is measured, where one is."""
        return None if self.recipe.model is None else find_model(self.recipe.model)

    @cached_property
    def start(self) -> Start | None:
        """What training goes on from, where it does not begin with nothing."""
        if self.recipe.start is None:
            return None
        start = find_start(self.recipe.start)
        if start.info.base != self.recipe.llm:
            raise UserError(f"start: {self.recipe.start} was tuned from {start.info.base}, not from {self.recipe.llm}.")
        return start

    @property
    def given_judge(self) -> Path | None:
        """Folder of the judge that comes with the given model, where one does."""
        folder = self.given / "judge" if self.given is not None else None
        return folder if folder is not None and (folder / "model.safetensors").exists() else None

    @cached_property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        if self.given is None:
            return self.recipe.image_tokenizer.architecture.image_size
        size, own = load_info(self.given).image_size, self.recipe.source.phantom.image_size
        if self.recipe.source.kind == "phantom" and own != size:
            raise UserError(
                f"source.phantom.image_size is {own}, but the model {self.recipe.model} sees {size} pixels."
            )
        return size

    @cached_property
    def findings(self) -> tuple[str, ...]:
        """Findings that occur both present and absent in training (of a given model: anywhere in the data)."""
        return known_findings([s for s in self.studies if s.split == "train" or self.given is not None])

    @cached_property
    def image_tokenizer(self) -> ImageTokenizer:
        """The trained (or given) image tokenizer."""
        return ImageTokenizer.from_pretrained((self.given or self.folder) / "image_tokenizer").to(self.device)

    @cached_property
    def codes(self) -> dict[str, np.ndarray]:
        """image_id -> codes uint16 [L]."""
        return read_codes(self.folder / "codes" / "codes.parquet", self.image_tokenizer.fingerprint)

    @cached_property
    def replay(self) -> list[str]:
        """Texts of the base model; none where the recipe asks for none."""
        return load_texts(self.folder / "replay.jsonl") if self.recipe.tuning.language.replay_texts else []

    # --- the stages

    def stages(self) -> list[Stage]:
        """All stages of this recipe, in order."""
        r = self.recipe
        source: tuple[Any, ...] = (r.source.phantom, phantom.RENDER_VERSION)
        if (
            r.source.table is not None and r.source.kind == "table"
        ):  # a changed table is new data, changed images are not seen
            source = (r.source.table, fingerprint(r.source.table.path) if r.source.table.path.is_file() else "")
        studies = Stage(
            "studies",
            "radiographs and their reports: the data that everything else learns from",
            (r.source.kind, source, self.image_size),
            (),
            ("manifest.parquet", "pixels.npy", "studies.json"),
            self._studies,
        )
        vqa = Stage(
            "vqa",
            "questions about the images, with answers that are known to be right",
            r.vqa_seed,
            ("studies",),
            ("vqa.jsonl",),
            self._vqa,
        )

        def codes(settings: Any, after: str) -> Stage:
            about = "every radiograph written as image tokens, once"
            return Stage("codes", about, settings, (after,), ("codes",), self._codes)

        own_judge = self.given_judge / "model.safetensors" if self.given_judge is not None else None

        def measuring(*after: str) -> list[Stage]:
            classifier = "an independent classifier that measures what images show"
            judging = (r.evaluation.judge, fingerprint(own_judge)) if own_judge is not None else r.evaluation.judge
            about = "how well the model reads and draws patients it has never seen"
            return [
                Stage("judge", classifier, judging, ("studies",), ("judge",), self._judge, everywhere=True),
                Stage("evaluation", about, r.evaluation, (*after, "judge", "vqa"), ("evaluation",), self._evaluation),
            ]

        if self.given is not None:
            return [studies, codes(self._with_content(r.model, str(self.given)), "studies"), vqa, *measuring("codes")]

        def started(settings: Any) -> Any:
            """`settings`, with the fingerprints of what training goes on from."""
            if self.start is None or not self.processes.main:
                return settings
            files = self.start.weights, self.start.image_tokenizer / "model.safetensors"
            return settings, *map(fingerprint, files)

        result = [
            studies,
            Stage(
                "clinical_features",
                "a network that knows findings, so that image tokens keep what matters clinically",
                started(r.clinical_features),
                ("studies",),
                ("clinical_features",),
                self._clinical_features,
                everywhere=True,
            ),
            Stage(
                "image_tokenizer",
                "learns to write a radiograph as a small grid of codes, and to paint it again from them",
                started(self._with_content(r.image_tokenizer, r.image_tokenizer.pretrained)),
                ("studies", "clinical_features"),
                ("image_tokenizer",),
                self._image_tokenizer,
                everywhere=True,
            ),
            codes(None, "image_tokenizer"),
            vqa,
        ]
        before: tuple[str, ...] = ("codes", "vqa")
        # Where curves are shown, how often state is saved, and how the finished model decodes by default change no training;
        # replay comes in by the stage that writes it, where a stage of tuning takes it.
        shared = dataclasses.replace(
            r.tuning,
            stages=[],
            logging="none",
            checkpoint_minutes=0.0,
            decoding=DecodingSettings(),
            language=dataclasses.replace(r.tuning.language, replay_texts=0, replay_tokens=96),
            measure_share=0.0,
        )
        instructions = r.tuning.language.instructions or SHIPPED
        content = fingerprint(instructions) if instructions.exists() else ""
        llm = self._with_content(r.llm, r.llm)
        if r.tuning.alignment.steps:
            about = "the first layers of the language model learn which findings the codes show"
            result.append(
                Stage(
                    "alignment",
                    about,
                    started((llm, shared, r.seed)),
                    before,
                    ("alignment",),
                    self._align,
                    everywhere=True,
                )
            )
            before = ("alignment",)
        language = r.tuning.language
        if language.replay_texts:
            about = "the base model writes texts of its own, by which it is kept while it is tuned"
            result.append(
                Stage(
                    "replay",
                    about,
                    (llm, language.replay_texts, language.replay_tokens, r.seed),
                    (),
                    ("replay.jsonl",),
                    self._replay,
                )
            )
        for index, stage in enumerate(r.tuning.stages):
            replay = ("replay",) if language.replay_texts and stage.mixture.get("language", 0) > 0 else ()
            about = (
                "teaches the language model to read and write image tokens"
                if index == 0
                else "the same on selected data"
            )
            settings: Any = (llm, shared, stage, content, r.seed)
            if index == 0 and not r.tuning.alignment.steps:
                settings = started(settings)
            tune: Callable[[], None] = lambda i=index: self._tune(i)  # type: ignore[misc] # noqa: E731
            result.append(Stage(stage.name, about, settings, (*before, *replay), (stage.name,), tune, everywhere=True))
            before = (stage.name,)
        about = "the tuned model as an ordinary checkpoint"
        model = Stage("model", about, r.tuning.decoding, before, ("model",), self._model)
        return [*result, model, *measuring("model")]

    def _with_content(self, settings: Any, folder: str | None) -> Any:
        """`settings`, with the fingerprint of the model in `folder` where they name one that is on disk.

        Only the main process compares fingerprints, so the others read no weights for them.
        """
        if folder is None or not self.processes.main or not Path(folder).is_dir():
            return settings
        return settings, folder_fingerprint(Path(folder), self.folder / ".stages" / "model_hashes")

    def _check_inputs(self, todo: set[str]) -> None:
        """`UserError` for the user's files and packages that a stage of `todo` needs and that are not there: said before
        hours are spent on the stages before it."""
        source, tuning = self.recipe.source, self.recipe.tuning
        if todo.intersection(s.name for s in tuning.stages):
            check_tracker(tuning.logging)
        if tuning.method == "qlora" and todo.intersection([*self._trainings(), "model"]):
            bitsandbytes()
            if self.processes.sharded:
                raise UserError(
                    "tuning.method: qlora does not go with FSDP2, which shards weights that are not packed. Set "
                    "tuning.method=lora, or launch with recipes/accelerate/ddp.yaml."
                )
        how = f"\n{source.access.strip()}" if source.access else ""
        if "studies" in todo and source.kind == "table" and source.table is not None:
            path, images = source.table.path.expanduser(), source.table.images
            if images is not None and not images.expanduser().is_dir():
                raise UserError(
                    f"the folder of the images, {images}, does not exist. Set source.table.images to where they are "
                    f"(relative to where llmcxr is started).{how}"
                )
            if not path.is_file():
                raise UserError(
                    f"the table {path} does not exist. Set source.table.path to it (relative to where llmcxr is "
                    f"started).{how}"
                )
        language = tuning.language.instructions
        if language is not None and not language.is_file() and todo.intersection(s.name for s in tuning.stages):
            raise UserError(
                f"the language instructions {language} do not exist. Set tuning.language.instructions to a JSONL file with "
                f"instruction, input (or context) and response in each line, or to null for the shipped set."
            )
        pretrained = self.recipe.image_tokenizer.pretrained
        if "image_tokenizer" in todo and pretrained is not None and not Path(pretrained).is_dir():
            raise UserError(
                f"the image tokenizer {pretrained} does not exist. Set image_tokenizer.pretrained to its folder, or to null "
                "to train one."
            )

    def _studies(self) -> None:
        source = self.recipe.source
        if source.kind == "phantom":
            collection = phantom.collect(source.phantom, self.folder)
        else:
            assert source.table is not None  # Recipe.faults
            collection = table.collect(source.table, self.folder)
        check_splits(collection.studies)
        dropped = collection.dropped
        if not collection.studies:
            raise UserError(f"the source holds no usable study; left out: {dict(dropped)}.")
        size = self.image_size
        kept: list[Study] = []
        with atomic_path(self.folder / "pixels.npy") as temporary:
            shape = (len(collection.studies), size, size)
            pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            for first in range(0, shape[0], _READ_CHUNK):
                part = collection.studies[first : first + _READ_CHUNK]
                images, readable, unreadable = load_all(part, self.folder, size, core_count())
                pixels[len(kept) : len(kept) + len(readable)] = images
                kept += readable
                dropped.update(unreadable)
            pixels.flush()
        write_manifest(self.folder / "manifest.parquet", kept)
        counts = {split: sum(s.split == split for s in kept) for split in ("train", "validate", "test")}
        write_json(self.folder / "studies.json", {"studies": counts, "left_out": dict(dropped)})
        print(f"    {counts['train']} training, {counts['validate']} validation and {counts['test']} test images")
        for reason, count in dropped.most_common(8):
            print(f"    left out {count}: {reason}")

    def _clinical_features(self) -> None:
        settings, folder = self.recipe.clinical_features, self.folder / "clinical_features"
        if settings.weights != "train":
            self.processes.on_main(lambda: published_features(settings.weights).save(folder))
            return
        if not self.findings:
            raise self.processes.fault(
                "no label occurs both present and absent in training, so no clinical network can be trained. Set clinical_features.weights."
            )
        studies, images = self.of_split("train")
        torch.manual_seed(self.recipe.seed)
        names, labels = sided_labels(studies, self.findings)
        features = ClinicalFeatures(names, settings.resolution)
        if self.start and (earlier := ImageTokenizer.from_pretrained(self.start.image_tokenizer).clinical):
            features.take_weights(earlier)
        name = "clinical network"
        train_classifier(features, images, labels, settings.training, self.recipe.seed, folder, name, self.processes)

    def _image_tokenizer(self) -> None:
        settings, folder = self.recipe.image_tokenizer, self.folder / "image_tokenizer"
        if settings.pretrained is not None:
            given = settings.pretrained
            self.processes.on_main(lambda: ImageTokenizer.from_pretrained(given).save_pretrained(folder))
            return
        features = ClinicalFeatures.load(self.folder / "clinical_features")
        start = ImageTokenizer.from_pretrained(self.start.image_tokenizer) if self.start else None
        images = self.of_split("train")[1]
        train_image_tokenizer(settings, features, images, self.recipe.seed, folder, self.processes, start)

    def _codes(self) -> None:
        codes = encode_images(self.image_tokenizer, self.pixels, self.device)
        ids = [s.image_id for s in self.studies]
        write_codes(self.folder / "codes" / "codes.parquet", ids, codes, self.image_tokenizer.fingerprint)

    def _vqa(self) -> None:
        questions = [
            question
            for split in ("train", "validate", "test")
            for question in questions_of([s for s in self.studies if s.split == split], self.recipe.vqa_seed)
        ]
        write_questions(self.folder / "vqa.jsonl", questions)
        print(f"    {len(questions)} questions")

    def tasks(self, stage: StageSettings, split: Split) -> dict[Task, TaskItems]:
        """Items of every task for the patients of a split."""
        questions = read_questions(self.folder / "vqa.jsonl")
        replay = self.replay if split == "train" else ()
        tasks, dropped = tasks_of(self.recipe, stage, split, self.studies, self.codes, questions, replay)
        if split == "train" and self.processes.main:
            for reason, count in dropped.items():
                print(f"    left out of {stage.name}, {count}: {reason}")
        return tasks

    def _rows(self, tokenizer: PreTrainedTokenizerBase, text_rows: torch.Tensor) -> torch.Tensor:
        """Starts of the image rows [K, d]."""
        tuning, codebook = self.recipe.tuning, self.image_tokenizer.codebook.cpu()
        if tuning.row_start == "random":
            return random_rows(text_rows, len(codebook), self.recipe.seed)
        if tuning.row_start == "codebook":
            return projected_rows(codebook, text_rows, self.recipe.seed)
        studies = [s for s in self.studies if s.split == "train"]
        codes = np.stack([self.codes[s.image_id] for s in studies])
        names, labels = sided_labels(studies, self.findings)
        words = word_vectors(names, tokenizer, text_rows)
        return reader_rows(codebook, codes, labels, words, text_rows, self.recipe.seed)

    def _base(self, empty: bool = False) -> tuple[PreTrainedModel, ImageVocabulary]:
        """The base model (`empty`: without weights), not yet grown, and its vocabulary with the image tokens."""
        vocabulary = ImageVocabulary.grow(load_text_tokenizer(self.recipe.llm), len(self.image_tokenizer.codebook))
        load = empty_language_model if empty else load_language_model
        return load(self.recipe.llm, torch.bfloat16), vocabulary

    def tunable(self, after: str | None = None, empty: bool = False) -> TunableModel:
        """The model as it is tuned; with what the training `after` saved, which is all that is trained, rows included.

        `empty`: shapes only, for a process that gets its weights from the main one.
        """
        model, vocabulary = self._base(empty)
        text_rows = table_of(model).detach()[: vocabulary.first_id]
        if empty:
            with torch.device("meta"):
                rows = torch.zeros(vocabulary.size, text_rows.shape[1])
                return TunableModel(model, vocabulary, rows, self.recipe.tuning, self.recipe.seed)
        if after is None and self.start is None:
            return TunableModel(
                model, vocabulary, self._rows(vocabulary.tokenizer, text_rows), self.recipe.tuning, self.recipe.seed
            )
        tunable = TunableModel(
            model, vocabulary, torch.zeros(vocabulary.size, text_rows.shape[1]), self.recipe.tuning, self.recipe.seed
        )
        if after is None:
            assert self.start is not None
            tunable.load_state(load_weights(self.start.weights), str(self.start.weights))
        else:
            load_stage(tunable, self.folder / after)
        return tunable

    def _replay(self) -> None:
        model, vocabulary = self._base()
        language = self.recipe.tuning.language
        count, tokens = language.replay_texts, language.replay_tokens
        texts = write_texts(model.to(self.device), vocabulary, count, tokens, self.recipe.seed)  # type: ignore[arg-type]
        save_texts(self.folder / "replay.jsonl", texts)
        print(f"    {len(texts)} texts; {count - len(texts)} left out: empty")

    def template(self, vocabulary: ImageVocabulary) -> Template:
        """How instructions and responses are written."""
        return build_template(self.recipe.tuning.template, vocabulary.tokenizer, self.recipe.tuning.system_prompt)

    def _trainings(self) -> list[str]:
        """Names of what trains the language model, in order."""
        tuning = self.recipe.tuning
        return ["alignment"] * bool(tuning.alignment.steps) + [stage.name for stage in tuning.stages]

    def _align(self) -> None:
        self.align(self.tunable(), self.folder / "alignment")

    def align(self, tunable: TunableModel, folder: Path) -> None:
        """Align a model that is not yet tuned with this run's codes; the weights come into `folder`."""
        if not self.findings:
            raise self.processes.fault("no label is known, so nothing can be aligned. Set tuning.alignment.steps to 0.")
        template = self.template(tunable.vocabulary)
        studies = [s for s in self.studies if s.split == "train"]
        prompts = np.array([alignment_prompt(self.codes[s.image_id], template, tunable.vocabulary) for s in studies])
        _, labels = sided_labels(studies, self.findings)
        align(tunable, prompts, labels, self.recipe.tuning.alignment, self.recipe.seed, folder, self.processes)

    def _tune(self, index: int) -> None:
        stage = self.recipe.tuning.stages[index]
        folder = self.folder / stage.name
        # Trained, and stopped before language was measured?
        trained = (folder / "summary.json").exists() and not (folder / "checkpoint.pt").exists()
        if not self.processes.from_main(trained):
            self._train(stage, folder)
        self.processes.on_main(lambda: self._measure_language(stage, folder))

    def _train(self, stage: StageSettings, folder: Path) -> None:
        before = self._trainings()[: self._trainings().index(stage.name)]
        tunable = self.tunable(before[-1] if before else None, empty=self.processes.receives)
        tunable.shrink_adapters(stage.adapters_kept)  # a checkpoint of this stage, if there is one, replaces them
        template = self.template(tunable.vocabulary)
        train, unseen = self.tasks(stage, "train"), self.tasks(stage, "validate")
        # Weights are those with which the stage before ended, unless they were changed in between.
        same = len(before) > 0 and before[-1] != "alignment" and stage.adapters_kept == 1
        TuningStage(
            tunable,
            template,
            self.recipe.tuning,
            stage,
            train,
            unseen,
            folder,
            self.processes,
            self.recipe.seed,
            self.folder / before[-1] if same else None,
        ).run()

    def _measure_language(self, stage: StageSettings, folder: Path) -> None:
        """Add what language became to the stage's summary: from saved weights, so that a model in parts is no matter."""
        tuning = self.recipe.tuning
        model, vocabulary = self._base()
        rows = torch.zeros(vocabulary.size, table_of(model).shape[1])
        template, held_out = self.template(vocabulary), instructions_of(self.recipe, "validate")
        check = LanguageCheck(vocabulary, template, held_out, tuning.max_tokens)
        names = [s.name for s in tuning.stages]
        if index := names.index(stage.name):
            trace = read_json(self.folder / names[index - 1] / "summary.json")["language"]
        else:
            # Each of the measurements that this stage ends with has an equal part of what unseen patients left of the share.
            spent = read_json(folder / "summary.json")
            left = max(0.0, tuning.measure_share * spent["seconds"] - spent["measuring_seconds"])
            seconds = left / (1 + len(self._trainings()))
            trace = check.extend([], "base", model.to(self.device), seconds)  # type: ignore[arg-type]
        tunable = TunableModel(model, vocabulary, rows, tuning, self.recipe.seed)
        known = {entry["after"] for entry in trace}
        for name in self._trainings()[: self._trainings().index(stage.name) + 1]:
            if name not in known:
                load_stage(tunable, self.folder / name)
                trace = check.extend(trace, name, tunable.model.to(self.device))  # type: ignore[arg-type]
        last = trace[-1]
        print(f"    language: perplexity {last['perplexity']:.2f}, {last['perplexity_ratio']:.3f} of the base model's")
        write_json(folder / "summary.json", read_json(folder / "summary.json") | {"language": trace})

    def _model(self) -> None:
        tuning = self.recipe.tuning
        tunable = self.tunable(tuning.stages[-1].name)
        info = ModelInfo(
            base=self.recipe.llm,
            codebook_size=tunable.vocabulary.size,
            grid=self.image_tokenizer.grid,
            image_size=self.image_tokenizer.architecture.image_size,
            image_tokenizer=self.image_tokenizer.fingerprint,
            template=tuning.template,
            system_prompt=tuning.system_prompt,
            findings=self.findings,
            report=tuning.stages[-1].cohort.sections,
            findings_first=bool(tuning.findings_first),
            decoding=tuning.decoding,
            unguided_share=tuning.unguided_share,
            version=__version__,
        )
        save_model(self.folder / "model", tunable.merge(), tunable.vocabulary, self.folder / "image_tokenizer", info)

    def _judge(self) -> None:
        known = self.given_judge
        if not self.findings:
            raise self.processes.fault("no label occurs both present and absent in the data, so nothing can be scored.")
        if known is not None and set(self.findings) <= set(judge_findings(known)):

            def copy() -> None:
                with atomic_path(self.folder / "judge") as temporary:
                    shutil.copytree(known, temporary)

            self.processes.on_main(copy)
            return
        if not any(study.split == "train" for study in self.studies):
            raise self.processes.fault(
                f"the data has no training split from which a judge could learn {', '.join(self.findings)}, and none that knows "
                "them comes with the model. Give some patients the split train."
            )
        studies, images = self.of_split("train")
        labels = label_matrix(studies, self.findings)
        settings, folder = self.recipe.evaluation.judge, self.folder / "judge"
        Judge.train_on(images, labels, self.findings, settings, self.recipe.seed, folder, self.processes)

    def _evaluation(self) -> None:
        model = LlmCxr.from_pretrained(self.given or self.folder / "model", self.recipe.device)
        test, images = self.of_split("test")
        if not test:
            raise UserError(
                "the data has no test split, so nothing can be measured. Give some patients the split test."
            )
        train = [s for s in self.studies if s.split == "train"]
        cases = Cases(test, images, self.codes, train, read_questions(self.folder / "vqa.jsonl"), self.findings)
        judge = Judge.load(self.folder / "judge", self.findings).to(self.device)
        results = Evaluation(model, judge, cases, model.info.base, self.recipe.evaluation).run()
        if self.given is None:
            last = self.folder / self.recipe.tuning.stages[-1].name / "summary.json"
            results.summary["language"]["trace"] = read_json(last).get("language", [])
        save_results(self.folder / "evaluation", results)
        self._page(results, model.info)

    def pack(self, folder: Path) -> None:
        """Pack the finished run into `folder`. `UserError` where it trained nothing, is not finished, or cannot be packed."""
        recipe = self.recipe
        if recipe.model is not None:
            raise UserError(
                f"{recipe.name} trains nothing (it measures the model {recipe.model}), so there is nothing to pack."
            )
        if missing := [name for name in ("model", "judge", "evaluation") if not self.has(name)]:
            raise UserError(f"{self.folder} has no finished {missing[0]}; `llmcxr run` it first.")
        tuning, tokenizer = recipe.tuning, recipe.image_tokenizer
        hours = {s.name: self.record(s.name).get("seconds", 0) / 3600 for s in self.stages()}
        training = _rows_before(recipe.start)
        training.append(("image tokenizer", f"{tokenizer.steps:,} steps of {tokenizer.batch_size} images"))
        if align := tuning.alignment.steps:
            training.append(
                (
                    "alignment",
                    f"{align:,} steps of {tuning.alignment.batch_size} images, {tuning.alignment.layers} layers",
                )
            )
        if tuning.language.replay_texts:
            of = ", ".join(s.name for s in tuning.stages if s.mixture.get("language", 0) > 0)
            texts = (
                f"{tuning.language.replay_texts:,} texts of the base model itself, among the language examples of {of}"
            )
            training.append(("replay", texts))
        training += _tuned_rows(self.folder, [stage.name for stage in tuning.stages], tuning.lora_rank)
        took = ", ".join(f"{name} {value:.1f}" for name, value in hours.items() if value >= 0.05)
        training += [("hours", f"{took} ({self.device.type}, {core_count()} cores)")] if took else []
        card = model_card(
            folder.name,
            load_info(self.folder / "model"),
            recipe.source.kind == "phantom",
            read_json(self.folder / "studies.json")["studies"],
            training,
            read_json(self.folder / "evaluation" / "summary.json"),
        )
        pack(self.folder, tuning.stages[-1].name, tuning.method, folder, card)

    def _page(self, results: Results, info: ModelInfo) -> None:
        train_loss: dict[str, list[tuple[float, float, float]]] = {}
        unseen_loss: dict[str, list[tuple[float, float, float]]] = {}
        changes: list[float] = []
        step = tokens = 0.0
        for stage in self.recipe.tuning.stages if self.given is None else []:
            curve = read_json(self.folder / stage.name / "curves.json")
            for record in curve:
                for target, key in ((train_loss, "train"), (unseen_loss, "unseen")):
                    for task, loss in record[key].items():
                        target.setdefault(task, []).append((step + record["step"], tokens + record["tokens"], loss))
            step, tokens = step + curve[-1]["step"], tokens + curve[-1]["tokens"]
            changes.append(step)
        minutes = {stage.name: self.record(stage.name).get("seconds", 0) / 60 for stage in self.stages()}
        counts = read_json(self.folder / "studies.json")["studies"]
        tuning = f"{self.recipe.tuning.method}, {tokens:,.0f} tokens, {step:,.0f} steps"
        facts = {
            "Recipe": self.recipe.name,
            "Model": "trained in this run" if self.recipe.model is None else self.recipe.model,
            "Base LLM": info.base,
            "Radiographs": f"{counts['train']} training, {counts['validate']} validation, {counts['test']} test",
            "Image tokens": f"{info.grid} x {info.grid} of {info.codebook_size} codes, {info.image_size} px",
            "Tuning": tuning if self.given is None else "",
            "Questions, right by kind": ", ".join(
                f"{k} {v:.2f}" for k, v in results.summary.get("vqa", {}).get("by_kind", {}).items()
            ),
            "Minutes": ", ".join(f"{name} {value:.1f}" for name, value in minutes.items() if value),
            "Machine": f"{self.device.type}, {core_count()} cores, {platform.machine()}",
            "Versions": f"llmcxr {__version__}, torch {version('torch')}, transformers {version('transformers')}",
        }
        overview = glance(results.drawings)
        page = PageContent(
            title=f"llmcxr: {self.recipe.name}",
            facts={name: value for name, value in facts.items() if value},
            summary=results.summary,
            reconstructions=results.reconstructions,
            reports=results.reports,
            drawings=results.drawings,
            overview=overview,
            questions=results.questions,
            findings=results.findings,
            train_loss=train_loss,
            unseen_loss=unseen_loss,
            stage_changes=changes[:-1],
            notes=shortfalls(results.summary),
            simulated=self.recipe.source.kind == "phantom",
        )
        write_page(self.folder / "evaluation" / "report.html", page)
        if overview is not None:
            # Without the reports: a picture to show should not carry texts that may not be handed on.
            rows = "top: radiographs; middle: the same from their image tokens; bottom: drawn by a model"
            save_marked_png(self.folder / "evaluation" / "glance.png", overview, Comment=rows)

    # --- running and skipping

    def record(self, name: str) -> dict[str, Any]:
        """What is known of a stage: its fingerprint, whether it is finished, its seconds."""
        path = self.folder / ".stages" / f"{name}.json"
        return read_json(path) if path.exists() else {}

    def _fingerprints(self) -> dict[str, str]:
        result: dict[str, str] = {}
        for stage in self.stages():
            settings = json.loads(json.dumps(settings_to_dict(stage.settings), default=str))
            result[stage.name] = fingerprint(settings, [result[name] for name in stage.after])
        return result

    def is_done(self, stage: Stage, wanted: str) -> bool:
        """Whether the stage was finished with the same settings and inputs, and its outputs are still there."""
        record = self.record(stage.name)
        same = record.get("fingerprint") == wanted and record.get("finished", False)
        return bool(same) and all((self.folder / output).exists() for output in stage.outputs)

    def has(self, name: str) -> bool:
        """Whether the named stage is done with this recipe's settings."""
        stage = next(stage for stage in self.stages() if stage.name == name)
        return self.is_done(stage, self._fingerprints()[name])

    def run(self, only: str | None = None) -> None:
        """Run all stages, or the named one (the stages before it must be done). `UserError` for an unknown name."""
        stages = self.stages()
        names = [stage.name for stage in stages]
        if only is not None and only not in names:
            raise self.processes.fault(f"no stage is called {only!r}. Stages: {', '.join(names)}.")
        wanted: dict[str, str] = {}  # fingerprints, on the main process

        def prepare() -> None:
            wanted.update(self._fingerprints())
            todo = {s.name for s in stages if only in (None, s.name) and not self.is_done(s, wanted[s.name])}
            self._check_inputs(todo)
            self._write_recipe()

        self.processes.on_main(prepare)
        for number, stage in enumerate(stages, 1):
            done = self.processes.from_main(self.processes.main and self.is_done(stage, wanted[stage.name]))
            if only is not None and stage.name != only:
                before = names.index(stage.name) < names.index(only) and stage.name in _ancestors(stages, only)
                if before and not done:
                    raise self.processes.fault(
                        f"stage {only} needs {stage.name}, which is not done. Run it first, or `llmcxr run` without a stage."
                    )
                continue
            if self.processes.main:
                print(f"[{number}/{len(stages)}] {stage.name}: {stage.about}{' (done)' * done}", flush=True)
            if not done:
                self._start(stage, wanted.get(stage.name, ""))

    def _write_recipe(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / "recipe.yaml") as temporary:
            libraries = {
                name: version(name)
                for name in ("torch", "transformers", "peft", "diffusers", "vector-quantize-pytorch", "numpy")
            }
            resolved = settings_to_dict(self.recipe)
            header = f"# llmcxr {__version__}; " + ", ".join(f"{k} {v}" for k, v in libraries.items())
            temporary.write_text(header + "\n" + yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))

    def _start(self, stage: Stage, wanted: str) -> None:
        """Run a stage and keep its record: tuning on all processes, anything else on the main one."""
        path = self.folder / ".stages" / f"{stage.name}.json"
        record: dict[str, Any] = {}

        def begin() -> None:
            record.update(self.record(stage.name))
            if record.get("fingerprint") != wanted:  # what is there, half done or not, belongs to other settings
                for output in stage.outputs:
                    old = self.folder / output
                    shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
                record.update({"fingerprint": wanted, "seconds": 0.0})
            write_json(path, record | {"finished": False})

        def end(finished: bool) -> None:
            record["seconds"] = record.get("seconds", 0.0) + time.monotonic() - clock
            write_json(path, record | {"finished": finished})

        self.processes.on_main(begin)
        clock = time.monotonic()
        try:
            stage.run() if stage.everywhere else self.processes.on_main(stage.run)
        except BaseException:
            if self.processes.main:
                end(False)
            raise
        if self.processes.main:
            end(True)
            print(f"    {record['seconds']:.0f} s", flush=True)


def _ancestors(stages: list[Stage], name: str) -> set[str]:
    by_name = {stage.name: stage for stage in stages}
    result: set[str] = set()
    todo = list(by_name[name].after)
    while todo:
        current = todo.pop()
        if current not in result:
            result.add(current)
            todo += by_name[current].after
    return result
