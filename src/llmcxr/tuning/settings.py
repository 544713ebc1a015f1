"""Settings of instruction tuning: what is tuned, on which mixture, in which stages (paper, section 2.4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from llmcxr.foundation.settings import (
    Count,
    LearningRate,
    Number,
    Range,
    Settings,
    Share,
    ShareBelowAll,
    Weight,
    setting,
)
from llmcxr.instructions.templates import TemplateName
from llmcxr.model.decoding import DecodingSettings
from llmcxr.studies.cohort import CohortSettings
from llmcxr.tasks.base import tasks
from llmcxr.tasks.cxr_vqa import CONVERSATIONS

ImageSoftmax = Literal["image_rows", "all_rows"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio", "none"]
RowStart = Literal["random", "codebook", "reader"]


def unknown_tasks(key: str, names: Iterable[str]) -> list[str]:
    """Faults of a setting that names tasks."""
    return [f"{key}.{t}: no such task; tasks are {', '.join(tasks())}" for t in names if t not in tasks()]


@dataclass(frozen=True)
class StageSettings(Settings):
    """One stage of tuning. The paper has two: everything, noisy; then frontal, earliest, impression only."""

    name: str = setting("stage1", "folder of the stage in the run")
    examples: Annotated[int, Range(1, 10_000_000_000)] = setting(100_000, "examples drawn from the mixture")
    cohort: CohortSettings = setting(
        CohortSettings(), "which studies take part, and which part of the report is the text"
    )
    mixture: dict[str, Weight] = setting(
        {"language": 0.2, "report_to_cxr": 0.25, "cxr_to_report": 0.25, "cxr_vqa": 0.3},
        "weights of the tasks (paper: 0.2 language, 0.8 images)",
    )
    conversations: dict[str, Weight] = setting(
        {"list": 0.4, "presence": 0.5, "normal": 0.05, "count": 0.05, "open": 0.2},
        "shares of the conversations of cxr_vqa; the list of findings says most in the fewest tokens",
    )
    learning_rate: LearningRate = setting(
        1e-4, "AdamW: linear warm-up, flat, linear to a tenth over the last third; paper: 5e-6 for full tuning of 3 B"
    )
    rows_learning_rate: LearningRate = setting(2e-3, "the same for the new image rows")
    task_loss_weights: dict[str, Weight] = setting(
        {}, "weight of a task's supervised tokens in the loss (1 where not named)"
    )
    rare_findings: Share = setting(
        0.0,
        "reports that state a finding rarer than this share are drawn from more often, by the root of how much rarer it is "
        "(repeat factor sampling; ours); 0: all equally often",
    )
    adapters_kept: Share = setting(
        1.0,
        "share of the adapters with which the stage begins (lora, qlora): below 1 goes back towards the base LLM, whose language "
        "comes back faster than what tuning taught is lost (after WiSE-FT; ours)",
    )

    def faults(self) -> list[str]:
        """Impossible combinations."""
        faults = unknown_tasks("mixture", self.mixture)
        for name in ("mixture", "conversations") if self.mixture.get("cxr_vqa") else ("mixture",):
            if not any(weight > 0 for weight in getattr(self, name).values()):
                faults.append(f"{name}: {getattr(self, name)} needs a weight above 0")
        faults += [
            f"conversations.{name}: no such conversation; they are {', '.join(CONVERSATIONS)}"
            for name in self.conversations
            if name not in CONVERSATIONS
        ]
        return faults + unknown_tasks("task_loss_weights", self.task_loss_weights)


@dataclass(frozen=True)
class LanguageSettings(Settings):
    """How the base model's language is kept."""

    loss: Literal["answers", "base_model"] = setting(
        "answers",
        "'answers' as in the paper, or 'base_model' (adapters only): stay close to the base model's own distribution",
    )
    instructions: Path | None = setting(None, "JSONL with instruction, input, response; null: the shipped set")
    replay_texts: Number = setting(
        0,
        "texts that the base model writes before tuning, further items of the language task; for loss: base_model (ours)",
    )

    def faults(self) -> list[str]:
        """Impossible combinations."""
        if self.replay_texts and self.loss != "base_model":
            return ["replay_texts: the base model's own texts are for loss: base_model (lora or qlora)"]
        return []


@dataclass(frozen=True)
class AlignmentSettings(Settings):
    """How the first layers are aligned with the codes."""

    steps: Number = setting(0, "optimiser steps of 16 images; 0 goes straight to tuning, as in the paper")
    learning_rate: LearningRate = setting(1e-3, "of these layers; twice that of the image rows")


@dataclass(frozen=True)
class TuningSettings(Settings):
    """Instruction tuning."""

    method: Literal["lora", "qlora", "full"] = setting(
        "lora",
        "'full' as in the paper, low-rank adapters on all linear layers, or those over frozen 4-bit weights (qlora)",
    )
    lora_rank: Annotated[int, Range(1, 4096)] = setting(64, "rank of the adapters (their scale alpha equals it)")
    row_start: RowStart = setting(
        "codebook", "how image rows begin: random (paper), codebook (projected), reader (of codes)"
    )
    alignment: AlignmentSettings = setting(
        AlignmentSettings(), "before the stages: findings learned by the first layers (needs labels)"
    )
    template: TemplateName = setting("paper", "'paper' (Instruction, Input, Response) or 'chat' (the model's own)")
    system_prompt: str | None = setting(None, "of the chat template; null keeps the model's default")
    image_softmax: ImageSoftmax = setting(
        "image_rows", "softmax inside an image: image_rows, or all_rows as in the paper"
    )
    read_image_weight: Weight = setting(
        0.0,
        "weight of the codes of images that are read, which are then learned, too: every example teaches how radiographs go on "
        "(ours; 0 as in the paper)",
    )
    language: LanguageSettings = setting(LanguageSettings(), "how the base model's language is kept")
    loss: Literal["response", "sequence"] = setting(
        "response", "learn the responses only, or every token of an example after its first (the paper's ablation)"
    )
    findings_first: list[str] = setting(
        [],
        "tasks in which a turn names the findings before a report is written (cxr_to_report), or an image drawn from one "
        "(report_to_cxr); where labels and labeller know them (ours; none as in the paper)",
    )
    unguided_share: ShareBelowAll = setting(
        0.0, "share of the drawings that are learned without their report, so that drawing can be guided (ours)"
    )
    decoding: DecodingSettings = setting(
        DecodingSettings(), "how the finished model writes and draws where nobody says otherwise; changes no training"
    )
    questions_per_image: Annotated[int, Range(1, 1000)] = setting(
        4, "most questions asked on one reading of an image; the paper asks 1"
    )
    max_tokens: Count = setting(
        1024,
        "longest example; a longer report is cut at the end of a sentence, any other example left out, both counted; "
        "an image is never cut",
    )
    tokens_per_batch: Count = setting(2048, "padded tokens computed at once")
    batches_per_step: Annotated[int, Range(1, 100_000)] = setting(
        1, "batches of one optimiser step, over all processes: a multiple of their number; each accumulates its share"
    )
    gradient_checkpointing: bool = setting(
        False,
        "keep no activations inside the layers, but compute them again: less memory, about a third more time (paper)",
    )
    measure_share: Share = setting(
        0.1, "most of a stage's time that goes to losses on unseen patients and to language, beyond the least of both"
    )
    logging: TrackerName = setting(
        "none",
        "where curves are also shown: tensorboard (in STAGE/logs), wandb, mlflow, trackio (if installed), or none",
    )
    stages: list[StageSettings] = setting([StageSettings()], "in order; each begins where the one before ended")

    def seed_of(self, stage: StageSettings, seed: int) -> int:
        """Seed of the mixture and the batches of one of the stages of a run with `seed`."""
        return seed * 1000 + [s.name for s in self.stages].index(stage.name)

    def faults(self) -> list[str]:
        """Impossible combinations."""
        names = [stage.name for stage in self.stages]
        faults = [] if len(set(names)) == len(names) else [f"stages: need different names, have {names}"]
        if not names:
            faults.append("stages: needs at least one stage, e.g. [{}] for one with all defaults")
        if self.system_prompt and self.template == "paper":
            faults.append("system_prompt: the paper's template has none; set template: chat, or system_prompt: null")
        language = self.language
        if language.replay_texts and not any(s.mixture.get("language", 0) > 0 for s in self.stages):
            faults.append("language.replay_texts: no stage takes the texts; give one a mixture.language above 0")
        if language.loss == "base_model" and self.method == "full":
            faults.append(
                "language.loss: base_model needs method: lora or qlora (the base model is the model without its adapters)"
            )
        if self.method == "full" and any(stage.adapters_kept != 1 for stage in self.stages):
            faults.append("stages: adapters_kept needs method: lora or qlora")
        able = [name for name, task in tasks().items() if task.can_name_findings]
        faults += [
            f"findings_first: {t!r} should be one of {', '.join(able)}" for t in self.findings_first if t not in able
        ]
        if "report_to_cxr" not in self.findings_first and any(stage.rare_findings for stage in self.stages):
            faults.append(
                "stages: rare_findings needs findings_first: [report_to_cxr], whose lists say what a report states"
            )
        if self.read_image_weight > 0 and self.loss == "sequence":
            faults.append("read_image_weight: loss: sequence learns those codes already; set one of the two")
        decoding = self.decoding
        if decoding.drawing_guidance != 1 and not self.unguided_share:
            faults.append(f"decoding.drawing_guidance: {decoding.drawing_guidance} needs an unguided_share, e.g. 0.1")
        if decoding.possible(self.findings_first) != decoding:
            faults.append(
                "decoding: report_guidance and ask_sides need findings_first: [cxr_to_report]; drawing_candidates needs "
                "findings_first: [report_to_cxr]; report_candidates needs both"
            )
        if self.max_tokens > self.tokens_per_batch:
            faults.append(f"max_tokens: {self.max_tokens} exceeds tokens_per_batch ({self.tokens_per_batch})")
        return faults
