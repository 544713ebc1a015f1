"""A recipe: everything about a run, in one YAML file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llmcxr.evaluation.settings import EvaluationSettings
from llmcxr.foundation.settings import NameOrPath, Precision, Seed, Settings, setting
from llmcxr.foundation.workflow import RESERVED
from llmcxr.image_tokens.settings import ClinicalFeatureSettings, ImageTokenizerSettings
from llmcxr.labelling.registry import LabellerName
from llmcxr.sources.registry import SourceSettings
from llmcxr.studies.prior_references import PriorReferences
from llmcxr.synthesis.settings import ChatSettings, VqaSettings
from llmcxr.tuning.settings import TuningSettings

# What lies in a run's folder beside the tuning stages, also where a recipe leaves it out.
TAKEN = (
    *RESERVED,
    "studies",
    "clinical_features",
    "image_tokenizer",
    "codes",
    "encoded",
    "synthesis",
    "vqa",
    "alignment",
    "replay",
    "model",
    "judge",
    "evaluation",
)


@dataclass(frozen=True)
class Recipe(Settings):
    """All settings of a run."""

    name: str = setting("run", "folder of the run inside `runs`")
    about: str = setting("", "one line for people")
    runs: Path = setting(Path("runs"), "folder of all runs")
    seed: Seed = setting(0, "of everything that is drawn by chance: order, wording, starts of weights, samples")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, ...")
    precision: Precision = setting(
        "auto", "of matrix products: float32, bfloat16, or auto (whichever is measured to be faster here)"
    )
    llm: NameOrPath = setting("smollm2-135m-instruct", "base LLM: an asset, a local folder, or a Hugging Face id")
    model: NameOrPath | None = setting(
        None,
        "measure a finished model (a shipped one by name, or a folder) instead of training one: only `source` and `evaluation` "
        "count then",
    )
    start: NameOrPath | None = setting(
        None,
        "train on from a finished run (its folder) or a packed model (a shipped one by name, or its folder): from its clinical "
        "network, image tokenizer and adapters, instead of from nothing",
    )
    allow_seen_patients: bool = setting(
        False,
        "measure, or train on from, a model also where it was trained on patients of the validation or test split",
    )
    source: SourceSettings = setting(SourceSettings(), "data")
    labeller: LabellerName = setting(
        "rules",
        "what reads findings from text: rules (17 findings), the same rules for CheXpert's 14 observations (chexpert), "
        "CheXbert's own network (chexbert), or none",
    )
    chexbert: Path | None = setting(None, "folder with chexbert.pth and vocab.txt, for labeller: chexbert")
    prior_references: PriorReferences = setting(
        "keep",
        "sentences of reports that refer to earlier studies, which no reader of one image knows: keep them, drop them, or let the "
        "chat LLM (`chat`) rewrite them; what does not pass its checks is dropped",
    )
    chat: ChatSettings = setting(ChatSettings(), "the chat LLM that writes questions and rewrites sentences")
    vqa: VqaSettings = setting(VqaSettings(), "questions about images")
    clinical_features: ClinicalFeatureSettings = setting(
        ClinicalFeatureSettings(), "network of the clinical feature loss"
    )
    image_tokenizer: ImageTokenizerSettings = setting(ImageTokenizerSettings(), "VQ-GAN")
    tuning: TuningSettings = setting(TuningSettings(), "instruction tuning")
    evaluation: EvaluationSettings = setting(EvaluationSettings(), "measurements on unseen patients")

    def faults(self) -> list[str]:
        """Impossible combinations across components."""
        faults = []
        if not re.fullmatch(r"\w[\w.-]{0,99}", self.name):
            faults.append(
                f"name: {self.name!r} should be the name of a folder: letters, digits, '-', '_' and '.' inside"
            )
        if self.labeller == "chexbert" and self.chexbert is None:
            faults.append("chexbert: `labeller: chexbert` needs the folder that holds chexbert.pth and vocab.txt")
        if self.start is not None and self.model is not None:
            faults.append("start: nothing is trained where `model` is given; set one of the two")
        if self.start is not None and self.tuning.method != "lora":
            faults.append(f"start: needs tuning.method lora, is {self.tuning.method}")
        for i, name in enumerate(names := [s.name for s in self.tuning.stages]):  # each is a folder that is removed
            if not re.fullmatch(r"\w[\w-]{0,99}", name):
                faults.append(f"tuning.stages[{i}].name: {name!r} should be letters, digits, '-' and '_'")
            elif name.casefold() in TAKEN:
                faults.append(
                    f"tuning.stages[{i}].name: {name!r} is the name of something else in a run's folder, be it there or not; "
                    "give that stage another"
                )
            elif name.casefold() in [n.casefold() for n in names[:i]] and name not in names[:i]:
                faults.append(f"tuning.stages[{i}].name: {name!r} is on some disks the same as another stage's")
        if self.start is not None and self.image_tokenizer.start is not None:
            faults.append("image_tokenizer.start: `start` has an image tokenizer to train on from; set one of the two")
        return faults if self.image_tokenizer.given else faults + self.sizes_at_fault()

    def sizes_at_fault(self) -> list[str]:
        """What does not go with the sizes of the image tokenizer (of a given one, once they are known)."""
        architecture, faults = self.image_tokenizer.architecture, []
        if self.tuning.decoding.drawing_candidates > 1 and not architecture.clinical_input:
            faults.append(
                "tuning.decoding.drawing_candidates: needs image_tokenizer.architecture.clinical_input, whose network chooses"
            )
        if (longest := architecture.grid**2) >= self.tuning.max_tokens:
            faults.append(
                f"tuning.max_tokens: {self.tuning.max_tokens} leaves no room for text beside {longest} image tokens"
            )
        return faults
