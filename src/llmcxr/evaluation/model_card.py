"""The model card of a packed model, written from what its run recorded (after Mitchell et al., FAT* 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmcxr.evaluation.page import score_rows
from llmcxr.model.folder import ModelInfo


def _decoding(guidance: float, candidates: int, judged_by: str) -> str:
    kept = "" if candidates == 1 else f", as the best of {candidates} by {judged_by}"
    return f"guidance {guidance:g}{kept}"


def model_card(
    name: str,
    info: ModelInfo,
    data: str,
    simulated: bool,
    studies: Mapping[str, int],
    training: Sequence[tuple[str, str]],
    summary: Mapping[str, Any],
) -> str:
    """Markdown. `data` says what the model has learned from, `studies` are counts by split, `training` (what, how) in order, `summary` what the evaluation wrote."""
    head, *rows = score_rows(summary)
    table = [" | ".join(head), " | ".join(["---"] * len(head)), *(" | ".join(row) for row in rows)]
    language = summary.get("language", {})
    own = info.decoding
    reports = _decoding(own.report_guidance, own.report_candidates, "the model's own reading")
    reports += ", sides asked for one by one" if own.ask_sides else ""
    drawings = _decoding(own.drawing_guidance, own.drawing_candidates, "its clinical network")
    lines = [
        f"# {name}",
        "",
        "Reads and writes chest radiographs: report from image, image from report, questions about an image, plain chat. Made with "
        f"llmcxr {info.version}.",
        "",
        "> **For research only.** Not a medical device; not for diagnosis or treatment."
        + (" It has seen simulated radiographs only, and knows nothing about real patients." if simulated else ""),
        "",
        "```",
        f"llmcxr report image.png --model {name}",
        f'llmcxr draw "Large right pleural effusion." -o drawn.png --model {name}',
        "```",
        "",
        "## What it is",
        f"- Base LLM: `{info.base}`, under its own licence. It is not in this folder: adapters and image rows are merged onto it on first use.",
        f"- Images: {info.image_size} x {info.image_size} pixels as {info.grid} x {info.grid} tokens of {info.codebook_size} codes.",
        f"- Findings it was asked about: {', '.join(info.findings)}.",
        f"- Its reports hold the {info.report.replace('_', ' ')}"
        + (", and are written from findings that it names first." if info.findings_first else "."),
        f"- Unless told otherwise, reports are written with {reports}, drawings with {drawings}. The numbers below are of these.",
        "- `judge/` is an independent classifier of the findings, for scoring drawings. It took no part in training the rest.",
        "",
        "## Data",
        data,
        "",
        f"{studies.get('train', 0):,} training, {studies.get('validate', 0):,} validation and {studies.get('test', 0):,} test images; "
        + ("no patient and no report text is in two of them." if simulated else "no patient is in two of them."),
        "",
        "## Training",
        *(f"- {what}: {how}" for what, how in training),
        "",
        "## Numbers",
        "On test patients and report texts that no part of the model has seen, measured before weights were halved; intervals are 95 % by patient.",
        "",
        *(f"| {line} |" for line in table),
        "",
        "## Limits",
        "- A score between baseline and ceiling is not a reading that can be relied on.",
        "- What a radiograph shows beyond the findings above, the model does not know; it may still name something.",
        "- Drawn images are synthetic. llmcxr marks them, visibly and in their metadata.",
    ]
    if language:
        lines.append(
            f"- Its perplexity on general text is {language['perplexity_ratio']:.3f} times the base LLM's; it inherits that model's faults."
        )
    return "\n".join(lines) + "\n"
