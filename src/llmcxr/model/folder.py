"""The folder that users load: a stock causal LM and text tokenizer, the image tokenizer, and llmcxr.json."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from llmcxr.foundation.artifacts import atomic_path, read_json, write_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings
from llmcxr.instructions.templates import TemplateName
from llmcxr.model.decoding import DecodingSettings
from llmcxr.model.patients import write_patients
from llmcxr.studies.geometry import Geometry
from llmcxr.studies.report_sections import ReportPart
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

FORMAT = 3


@dataclass(frozen=True)
class ModelInfo:
    """llmcxr.json: all that using the model needs beyond the stock files."""

    base: str  # the LLM it was tuned from
    codebook_size: int
    grid: int  # codes along one side
    image_size: int
    image_tokenizer: str  # fingerprint of its weights
    template: TemplateName
    system_prompt: str | None
    findings: tuple[str, ...]  # names that presence questions were asked about
    report: ReportPart
    version: str
    findings_first: tuple[str, ...] = ()  # tasks whose response comes after a turn that names the findings
    decoding: DecodingSettings = DecodingSettings()  # how it writes and draws by default
    unguided_share: float = 0.0  # of the drawings that were learned without a report; 0: drawing cannot be guided
    views: tuple[str, ...] = ()  # that the last stage was for; empty: every view
    earliest_only: bool = False  # whether it was for patients' earliest studies
    geometry: Geometry = Geometry()  # how images became squares in training, and do in use
    max_tokens: int | None = None  # of the longest examples that it was tuned on; None: not known
    format: int = FORMAT


def save_model(
    folder: Path,
    model: PreTrainedModel,
    vocabulary: ImageVocabulary,
    image_tokenizer: Path,
    info: ModelInfo,
    patients: Iterable[str] | None,
    judge: Path | None = None,
) -> None:
    """Write the whole folder at once; the LM is stored in bfloat16. `judge` goes with it where it is given.

    `patients` are hashes of the patients that it was trained on (`patients.patient_hash`); None where they are not known.
    """
    with atomic_path(folder) as temporary:
        cast(nn.Module, model).to(torch.bfloat16)
        model.save_pretrained(temporary)
        vocabulary.tokenizer.save_pretrained(temporary)
        shutil.copytree(
            image_tokenizer, temporary / "image_tokenizer", ignore=shutil.ignore_patterns("curves.json", ".*")
        )
        if judge is not None:
            shutil.copytree(judge, temporary / "judge")
        if patients is not None:
            write_patients(temporary, patients)
        write_json(temporary / "llmcxr.json", asdict(info))


def load_info(folder: Path) -> ModelInfo:
    """Read llmcxr.json, also of format 2. `UserError` where the folder is no llmcxr model or of another format."""
    path = Path(folder) / "llmcxr.json"
    if not path.exists():
        raise UserError(f"{folder} is not a llmcxr model (it has no llmcxr.json). Give a run's model/ folder.")
    values = read_json(path)
    if values.get("format") not in (2, FORMAT):
        raise UserError(f"{path} has format {values.get('format')}, this version reads formats 2 and {FORMAT}.")
    if values["format"] == 2:  # one flag for both tasks then
        values["findings_first"] = ["cxr_to_report", "report_to_cxr"] if values.get("findings_first") else []
        values["format"] = FORMAT
    try:
        decoding = DecodingSettings(**values["decoding"])
        if faults := decoding.faults():
            raise UserError(f"{path}: {'; '.join(faults)}")
        geometry = build_settings(Geometry, values.get("geometry", {}), f"{path}, geometry,")
        lists = {name: tuple(values.get(name, ())) for name in ("findings", "findings_first", "views")}
        return ModelInfo(**{**values, **lists, "decoding": decoding, "geometry": geometry})
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} is incomplete: {error}.") from error
