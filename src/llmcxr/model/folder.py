"""The folder that users load: a stock causal LM and text tokenizer, the image tokenizer, and llmcxr.json."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from llmcxr.foundation.artifacts import atomic_path, read_json, write_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Count, NameOrPath, Range, Settings, SettingsError, ShareBelowAll, build_settings
from llmcxr.image_tokens.codec import ImageCodec
from llmcxr.image_tokens.settings import CodebookSize, ImageSize
from llmcxr.instructions.templates import TemplateName
from llmcxr.model.calibration import CALIBRATION, Calibration, save_calibration
from llmcxr.model.decoding import DecodingSettings
from llmcxr.model.outside import NAME as OUTSIDE
from llmcxr.model.outside import OutsideLimits, write_limits
from llmcxr.model.patients import write_patients
from llmcxr.model.sums import SUMS, check_sums, remedy, write_sums
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.geometry import Geometry
from llmcxr.studies.report_sections import ReportPart
from llmcxr.tasks.base import tasks
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

FORMAT = 3
LEARNED_LATER = (CALIBRATION, OUTSIDE)  # of validation patients: neither codes nor answers depend on them


@dataclass(frozen=True)
class ModelInfo(Settings):
    """llmcxr.json: all that using the model needs beyond the stock files."""

    base: NameOrPath  # the LLM it was tuned from
    codebook_size: CodebookSize
    grid: Annotated[int, Range(1, 1024)]  # codes along one side
    image_size: ImageSize
    image_tokenizer: str  # fingerprint of its weights
    template: TemplateName
    system_prompt: str | None
    findings: tuple[str, ...]  # names that presence questions were asked about
    report: ReportPart
    version: str
    findings_first: tuple[str, ...] = ()  # tasks whose response comes after a turn that names the findings
    decoding: DecodingSettings = DecodingSettings()  # how it writes and draws by default
    unguided_share: ShareBelowAll = (
        0.0  # of the drawings that were learned without a report; 0: drawing cannot be guided
    )
    views: tuple[str, ...] = ()  # that the last stage was for; empty: every view
    earliest_only: bool = False  # whether it was for patients' earliest studies
    geometry: Geometry = Geometry()  # how images became squares in training, and do in use
    max_tokens: Count | None = None  # of the longest examples that it was tuned on; None: not known
    report_instruction: str | None = None  # what asks for a report; None: ours, as in `tasks`
    drawing_instruction: str | None = None  # and for a drawing
    format: Annotated[int, Range(FORMAT, FORMAT)] = FORMAT

    def asked(self, task: str) -> dict[str, Any]:
        """What the prompt of a task takes beside its contents: the instruction, where the model has one of its own."""
        own = {"cxr_to_report": self.report_instruction, "report_to_cxr": self.drawing_instruction}.get(task)
        return {} if own is None else {"instruction": own}

    def faults(self) -> list[str]:
        """Impossible combinations."""
        able = [name for name, task in tasks().items() if task.can_name_findings]
        faults = [
            f"findings_first: {t!r} should be one of {', '.join(able)}" for t in self.findings_first if t not in able
        ]
        if self.image_size % self.grid:
            faults.append(f"grid: {self.grid} does not divide image_size ({self.image_size})")
        if len(LabelSet(self.findings)) < len(self.findings):
            faults.append("findings: two of them are one (case, spaces, _ and - do not count)")
        if self.decoding.possible(self.findings_first) != self.decoding:
            faults.append(f"decoding: not of a model that names findings first in {list(self.findings_first)} only")
        if self.decoding.drawing_guidance != 1 and not self.unguided_share:
            faults.append("decoding.drawing_guidance: needs an unguided_share above 0")
        return faults


def save_model(
    folder: Path,
    model: PreTrainedModel,
    vocabulary: ImageVocabulary,
    image_tokenizer: Path,
    info: ModelInfo,
    patients: Iterable[str] | None,
    judge: Path | None = None,
    calibration: Calibration | None = None,
    limits: OutsideLimits | None = None,
) -> None:
    """Write the whole folder at once; the LM is stored in bfloat16. `judge`, `calibration` and `limits` go with it where given.

    `patients` are hashes of the patients that it was trained on (`patients.patient_hash`); None where they are not known.
    """
    with atomic_path(folder) as temporary:
        cast(nn.Module, model).to(torch.bfloat16)
        model.save_pretrained(temporary)
        vocabulary.tokenizer.save_pretrained(temporary)
        shutil.copytree(
            image_tokenizer, temporary / "image_tokenizer", ignore=shutil.ignore_patterns("curves.json", "logs", ".*")
        )
        if judge is not None:
            shutil.copytree(judge, temporary / "judge")
        if patients is not None:
            write_patients(temporary, patients)
        if calibration is not None:
            save_calibration(temporary, calibration)
        write_json(temporary / "llmcxr.json", asdict(info))
        if limits is not None:
            write_limits(temporary, limits)
        write_sums(temporary)


def load_info(folder: Path) -> ModelInfo:
    """Read llmcxr.json, also of format 2. `UserError` where the folder is no llmcxr model or of another format."""
    path = Path(folder) / "llmcxr.json"
    if not path.exists():
        raise UserError(f"{folder} is not a llmcxr model (it has no llmcxr.json). Give a run's model/ folder.")
    try:
        values = read_json(path)
    except UserError as error:
        raise UserError(f"{path} is not readable as JSON. {remedy(Path(folder))}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} should hold an object. {remedy(Path(folder))}")
    if values.get("format") not in (2, FORMAT):
        raise UserError(f"{path} has format {values.get('format')}, this version reads formats 2 and {FORMAT}.")
    if values["format"] == 2:  # one flag for both tasks then
        values["findings_first"] = ["cxr_to_report", "report_to_cxr"] if values.get("findings_first") else []
        values["format"] = FORMAT
    try:
        return build_settings(ModelInfo, values, str(path))
    except SettingsError as error:
        raise UserError(f"{error}\n{remedy(Path(folder))}") from error


def load_checked(folder: Path) -> ModelInfo:
    """`load_info`, of a folder none of whose files has changed since it was made (where it says what they were).

    `UserError` names the file that is missing or damaged.
    """
    if (Path(folder) / SUMS).exists():
        check_sums(Path(folder))
    return load_info(folder)


def check_image_tokenizer(folder: Path, info: ModelInfo, codec: ImageCodec) -> None:
    """`UserError` where the image tokenizer in a model's folder is not the one on whose codes it was tuned."""
    own = (info.image_tokenizer, info.codebook_size, info.grid, info.image_size)
    given = (codec.fingerprint, len(codec.codebook), codec.grid, codec.image_size)
    names = ("image_tokenizer", "codebook_size", "grid", "image_size")
    if wrong := [f"{n} {g}, not {o}" for n, o, g in zip(names, own, given, strict=True) if o != g]:
        raise UserError(
            f"{folder}: image_tokenizer/ is not the one that llmcxr.json names; it has {', '.join(wrong)}. Codes of "
            f"two tokenizers mean different things. {remedy(folder)}"
        )
