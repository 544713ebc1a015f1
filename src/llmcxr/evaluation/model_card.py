"""The model card of a packed model, written from what its run recorded (after Mitchell et al., FAT* 2019).

Its words are in model_card.md.j2. It says of the data only what is checked here, on the studies themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from llmcxr.evaluation.scoring import look_up, score_rows
from llmcxr.model.calibration import Calibration
from llmcxr.model.folder import ModelInfo
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import SPLITS, Study


def _decoding(guidance: float, candidates: int, judged_by: str) -> str:
    kept = "" if candidates == 1 else f", as the best of {candidates} by {judged_by}"
    return f"guidance {guidance:g}{kept}"


def _shared(studies: Sequence[Study], key: Callable[[Study], str]) -> int:
    """How many values of `key` are in more than one split; "" does not count."""
    splits: dict[str, set[str]] = {}
    for study in studies:
        splits.setdefault(key(study), set()).add(study.split)
    return sum(len(found) > 1 for value, found in splits.items() if value)


def _separation(studies: Sequence[Study], info: ModelInfo) -> str:
    """What splits share, as a sentence."""
    texts = _shared(studies, lambda study: " ".join(report_text(study, info.report).split()).lower())
    patients = _shared(studies, lambda study: study.patient_id)
    found = [f"{count:,} {what}" for count, what in ((patients, "patients"), (texts, "report texts")) if count]
    if found:
        return f"{' and '.join(found)} are in more than one of them."
    return "No patient and no report text is in two of them."


def model_card(
    name: str,
    info: ModelInfo,
    data: str,
    simulated: bool,
    studies: Sequence[Study],
    training: Sequence[tuple[str, str]],
    summary: Mapping[str, Any],
    continued: bool = False,
    calibration: Calibration | None = None,
) -> str:
    """Markdown with the metadata that the Hugging Face hub reads.

    `studies` are all of the manifest, `training` (what, how) in order, `summary` what the evaluation wrote; `continued` where the
    model was trained on from another; `calibration` is the model's.
    """
    own, counts = info.decoding, Counter(study.split for study in studies)
    reports = _decoding(own.report_guidance, own.report_candidates, "the model's own reading")
    head, *rows = score_rows(summary)
    metadata = ModelCardData(
        language="en",
        license="other",
        license_name="research-only",
        library_name="llmcxr",
        pipeline_tag="image-text-to-text",
        tags=["medical", "radiology", "chest-x-ray", "research-only", *(["simulated-data"] if simulated else [])],
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(Path(__file__).with_name("model_card.md.j2")),
        name=name,
        info=info,
        simulated=simulated,
        data=data,
        example=f"There is {info.findings[0]}." if info.findings else "Normal chest.",
        reports=reports + (", sides asked for one by one" if own.ask_sides else ""),
        drawings=_decoding(own.drawing_guidance, own.drawing_candidates, "its clinical network"),
        counts={split: counts[split] for split in SPLITS},
        separation=_separation(studies, info),
        training=training,
        continued=continued,
        calibration=calibration,
        rows=[head, ["---"] * len(head), *rows],
        notes=summary.get("notes") or [],
        perplexity_ratio=look_up(summary, "language.perplexity_ratio"),
    )
    return str(card)
