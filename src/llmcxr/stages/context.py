"""What the stages of a run share: the recipe, its folder, and what the stages before have written."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import yaml
from transformers import PreTrainedModel

from llmcxr import __version__
from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.devices import Use, precision
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.foundation.settings import SettingsError, settings_to_dict
from llmcxr.image_tokens.codes import read_codes
from llmcxr.image_tokens.tokenizer import ImageTokenizer, architecture_of
from llmcxr.instructions.example import Turn
from llmcxr.instructions.questions import QuestionAnswer, read_questions
from llmcxr.instructions.templates import Template, build_template
from llmcxr.labelling.base import unreadable
from llmcxr.labelling.registry import build_labeller
from llmcxr.model.find import Start, find_model, find_start
from llmcxr.model.folder import ModelInfo, load_checked, load_info
from llmcxr.model.patients import check_unseen
from llmcxr.recipe import Recipe
from llmcxr.sources.registry import build_source
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.geometry import Geometry
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.study import Split, Study, known_findings, read_manifest
from llmcxr.tuning.keep_language import load_texts
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import (
    check_language_model,
    empty_language_model,
    load_language_model,
    load_text_tokenizer,
)


def with_given_sizes(recipe: Recipe) -> Recipe:
    """The recipe with the sizes of the image tokenizer that it names. `UserError` where the rest does not go with them."""
    settings = recipe.image_tokenizer
    if settings.given is None:
        return recipe
    try:
        architecture = architecture_of(settings.given)
    except UserError:
        return recipe  # its stage says so, with all else that is missing
    own = dataclasses.replace(recipe, image_tokenizer=dataclasses.replace(settings, architecture=architecture))
    if faults := own.sizes_at_fault():
        raise SettingsError(f"the recipe, with the image tokenizer {settings.given},", faults)
    return own


class Context:
    """A recipe, its folder, and the processes that work on it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe = with_given_sizes(recipe)
        self.folder = recipe.runs / recipe.name
        self.processes = Processes(recipe.device)
        self.device = self.processes.device
        self.processes.agree_on_precision(recipe.precision)
        self.source = build_source(recipe.source, recipe.seed)
        self.labeller = build_labeller(recipe.labeller, recipe.chexbert, str(self.device))

    @property
    def labeller_files(self) -> tuple[Path, ...]:
        """What the labeller reads from disk, besides its code."""
        return () if self.recipe.chexbert is None else (self.recipe.chexbert / "chexbert.pth",)

    # --- the data

    @cached_property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.recipe.image_tokenizer.architecture.image_size if self.given is None else self.info.image_size

    @cached_property
    def geometry(self) -> Geometry:
        """How images become squares."""
        return self.recipe.source.geometry if self.given is None else self.info.geometry

    @cached_property
    def studies(self) -> list[Study]:
        """All studies; row i of `pixels` is study i. `UserError` where a model that is used has seen the test patients."""
        studies = read_manifest(self.folder / "manifest.parquet")
        for model in filter(None, (self.given, self.start.folder if self.start else None)):
            said = check_unseen(studies, model, self.recipe.allow_seen_patients)
            if said and self.processes.main:
                print(f"    note: {said}")
        return studies

    @cached_property
    def pixels(self) -> PixelStore:
        """uint8 [N, S, S], mapped from disk."""
        return PixelStore.open(self.folder / "pixels.npy")

    def of_split(self, split: Split) -> tuple[list[Study], PixelStore]:
        """Studies of a split, and their images uint8 [N, S, S], read from the mapped file as they are indexed."""
        rows = [i for i, study in enumerate(self.studies) if study.split == split]
        return [self.studies[i] for i in rows], self.pixels.select(rows)

    @cached_property
    def findings(self) -> LabelSet:
        """Findings that occur both present and absent in training (of a given model: anywhere in the data)."""
        return LabelSet(known_findings([s for s in self.studies if s.split == "train" or self.given is not None]))

    @property
    def unread(self) -> tuple[str, ...]:
        """Findings of the data that the labeller does not know: nothing that is told by text can be scored of them."""
        return unreadable(self.labeller, self.findings)

    @cached_property
    def questions(self) -> Sequence[QuestionAnswer]:
        """Questions about all images, none where no finding is known. `UserError` where an earlier version wrote them."""
        path, earlier = self.folder / "vqa.parquet", self.folder / "vqa.jsonl"
        if earlier.exists() and not path.exists():  # scores would be made without what they are read against
            raise UserError(
                f"{earlier} holds questions as an earlier version wrote them. `llmcxr run {self.folder / 'recipe.yaml'} --until vqa` "
                "makes them anew."
            )
        return read_questions(path) if path.exists() else []

    @cached_property
    def codes(self) -> dict[str, np.ndarray]:
        """image_id -> codes uint16 [L]."""
        return read_codes(self.folder / "codes" / "codes.parquet", self.image_tokenizer.fingerprint)

    # --- the models

    @cached_property
    def given(self) -> Path | None:
        """Folder of the finished model that is measured, where one is."""
        if self.recipe.model is None:
            return None
        folder = find_model(self.recipe.model)
        load_checked(folder)
        return folder

    @property
    def model(self) -> Path:
        """Folder of the model that is measured: the given one, or the one that this run makes."""
        return self.given or self.folder / "model"

    @cached_property
    def info(self) -> ModelInfo:
        """What the measured model says of itself."""
        return load_info(self.model)

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
    def image_tokenizer(self) -> ImageTokenizer:
        """The trained (or given) image tokenizer."""
        return ImageTokenizer.from_pretrained((self.given or self.folder) / "image_tokenizer").to(self.device)

    def base(self, empty: bool = False) -> tuple[PreTrainedModel, ImageVocabulary]:
        """The base model, not yet grown, in the precision of training, and its vocabulary with the image tokens.

        `empty`: without weights, where the main process will give them (`Processes.receives`).
        """
        vocabulary = ImageVocabulary.grow(load_text_tokenizer(self.recipe.llm), len(self.image_tokenizer.codebook))
        load = empty_language_model if empty else load_language_model
        return load(self.recipe.llm, precision(self.device, "training")), vocabulary

    def template(self, vocabulary: ImageVocabulary) -> Template:
        """How instructions and responses are written."""
        return build_template(self.recipe.tuning.template, vocabulary.tokenizer, self.recipe.tuning.system_prompt)

    def check_llm(self) -> None:
        """`UserError` for a base LLM that cannot be had, is none, or does not go with the template and the sizes of
        this recipe."""
        self._llm_checked  # noqa: B018 - once for all stages that need it

    @cached_property
    def _llm_checked(self) -> bool:
        recipe = self.recipe
        config, tokenizer = check_language_model(recipe.llm)
        template = build_template(recipe.tuning.template, tokenizer, recipe.tuning.system_prompt)
        template.pieces((Turn("a", "", "a"), Turn("a")))
        _ = template.marks
        context = getattr(config, "max_position_embeddings", None)
        if context and context <= (tokens := recipe.image_tokenizer.architecture.grid**2):
            raise UserError(
                f"llm: {recipe.llm} reads {context:,} tokens at most, of which an image alone takes {tokens:,}. Set "
                f"fewer codes an image (image_tokenizer.architecture), or another llm."
            )
        return True

    @cached_property
    def replay(self) -> list[str]:
        """Texts of the base model; none where the recipe asks for none."""
        return load_texts(self.folder / "replay.jsonl") if self.recipe.tuning.language.replay_texts else []

    def write_recipe(self) -> None:
        """All settings as resolved, with the libraries' versions."""
        libraries = []
        for name in ("torch", "transformers", "peft", "vector-quantize-pytorch", "numpy"):
            with contextlib.suppress(PackageNotFoundError):
                libraries.append(f"{name} {version(name)}")
        kinds: tuple[Use, ...] = ("training", "generating")
        use = " and ".join(f"{str(precision(self.device, k)).removeprefix('torch.')} for {k}" for k in kinds)
        with atomic_path(self.folder / "recipe.yaml") as temporary:
            text = yaml.safe_dump(settings_to_dict(self.recipe), sort_keys=False, allow_unicode=True)
            head = f"# llmcxr {__version__}; {', '.join(libraries)}; {self.device}: {use}"
            temporary.write_text(f"{head}\n{text}", encoding="utf-8")


def start_files(context: Context) -> tuple[Path, ...]:
    """Files of what training goes on from."""
    if context.start is None:
        return ()
    return context.start.weights, context.start.image_tokenizer / "model.safetensors"
