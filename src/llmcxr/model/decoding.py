"""How a finished model writes and draws where nobody says otherwise; kept in its folder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated

from llmcxr.foundation.settings import Range, Settings, setting

Guidance = Annotated[float, Range(0, 100, above=True)]
Candidates = Annotated[int, Range(1, 1000)]


@dataclass(frozen=True)
class DecodingSettings(Settings):
    """How a model writes and draws by default. All ours; 1 everywhere is as in the paper."""

    report_guidance: Guidance = setting(
        1.0,
        "how strongly reports follow the findings that the model named first: 1 as the model says, 2 leads them away from the "
        "report of a normal image (classifier-free guidance)",
    )
    report_candidates: Candidates = setting(
        1, "reports written of an image; the one is kept from which the model would most likely read those findings"
    )
    ask_sides: bool = setting(
        False,
        "whether the side of each finding that the model named is asked for by itself, before the report is written",
    )
    drawing_guidance: Guidance = setting(
        1.0,
        "how strongly drawings follow their report: 1 as the model says, 2 or 3 lead them away from any radiograph (needs an "
        "unguided_share)",
    )
    drawing_candidates: Candidates = setting(
        1,
        "images drawn of a report; the one is kept on which the clinical network most likely sees the findings it states (needs "
        "image_tokenizer.architecture.clinical_input)",
    )

    def possible(self, findings_first: Collection[str]) -> DecodingSettings:
        """These without what a model cannot do that names findings first in the tasks `findings_first` only."""
        own = self
        if "cxr_to_report" not in findings_first:
            own = replace(own, report_guidance=1.0, ask_sides=False)
        if "report_to_cxr" not in findings_first:
            own = replace(own, drawing_candidates=1)
        return own if {"cxr_to_report", "report_to_cxr"} <= {*findings_first} else replace(own, report_candidates=1)
