"""The sources by name, the settings that choose one, and the studies that a run takes of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Settings, setting
from llmcxr.sources.base import Source
from llmcxr.sources.chexpert import ChexpertSettings
from llmcxr.sources.dicom_folder import DicomFolderSettings
from llmcxr.sources.mimic_cxr import MimicCxrSettings
from llmcxr.sources.openi import OpenISettings
from llmcxr.sources.phantom.settings import PhantomSettings
from llmcxr.sources.several import SeveralSources
from llmcxr.sources.table import TableSettings
from llmcxr.studies.cohort import CohortRules, select_cohort
from llmcxr.studies.geometry import Geometry
from llmcxr.studies.study import Collection


@dataclass(frozen=True)
class SourceSettings(Settings):
    """Where radiographs and reports come from: one block a source, of which `kind` names the one that is used."""

    kind: str = setting(
        "phantom",
        "which of the blocks here: phantom (simulated radiographs), table (your own files), mimic_cxr, openi, chexpert "
        "(also CheXpert Plus), dicom_folder; several are joined by +: phantom+table",
    )
    access: str = setting("", "how to get the data; said where they are missing")
    geometry: Geometry = setting(Geometry(), "how images become squares; belongs to the model that is trained")
    implausible: Literal["keep", "leave_out"] = setting(
        "keep", "images that are nearly black, white or constant, of two or three greys, or inverted by their histogram"
    )
    cohort: CohortRules = setting(
        CohortRules(), "what is used at all; what is not takes no part in any training, the image tokenizer's neither"
    )
    copies: Literal["report", "one_split"] = setting(
        "report",
        "images that are the same in every pixel: only report them, or put patients who share one into one split too",
    )
    phantom: PhantomSettings | None = setting(PhantomSettings(), "used where kind is phantom")
    table: TableSettings | None = setting(None, "used where kind is table")
    mimic_cxr: MimicCxrSettings | None = setting(None, "used where kind is mimic_cxr")
    openi: OpenISettings | None = setting(None, "used where kind is openi")
    chexpert: ChexpertSettings | None = setting(None, "used where kind is chexpert")
    dicom_folder: DicomFolderSettings | None = setting(None, "used where kind is dicom_folder")

    def faults(self) -> list[str]:
        """Impossible combinations."""
        about_all = ("kind", "access", "geometry", "implausible", "cohort", "copies")
        kinds = [f.name for f in fields(self) if f.name not in about_all]
        if unknown := [kind for kind in self.kinds if kind not in kinds]:
            return [f"kind: {unknown[0]!r} is not one of {', '.join(kinds)}"]
        if len(set(self.kinds)) < len(self.kinds):
            return [f"kind: {self.kind!r} names one twice"]
        return [f"{k}: is required where kind is {self.kind}" for k in self.kinds if getattr(self, k) is None]

    @property
    def kinds(self) -> list[str]:
        """Names of the blocks that are used."""
        return self.kind.split("+")


def build_source(settings: SourceSettings, seed: int) -> Source:
    """The source that the settings name; `seed` splits patients where the data states no splits."""
    parts: dict[str, Source] = {k: getattr(settings, k).build(seed, settings.access) for k in settings.kinds}
    return parts[settings.kind] if len(parts) == 1 else SeveralSources(parts)


def read_studies(source: Source, settings: SourceSettings, folder: Path, image_size: int) -> Collection:
    """The studies that a run uses: all of the source that pass the rules of `settings.cohort`.

    Raises `UserError` where none is left.
    """
    found = list(source.studies(folder, image_size))
    if not found:
        raise UserError(f"the source holds no usable study (left out: {source.tally.reasons()}).")
    chosen = select_cohort(found, settings.cohort)
    if not chosen.studies:
        told = {reason: f" ({why[0]})" for reason, why in source.tally.examples.items() if why}
        reasons = ", ".join(f"{reason}: {n:,}{told.get(reason, '')}" for reason, n in chosen.dropped.most_common())
        raise UserError(f"no study passes source.cohort; left out: {reasons}. Ask for less, or mend the data's column.")
    return chosen
