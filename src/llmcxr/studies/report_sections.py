"""Free-text radiology reports to sections, and a Study to the report text that models are trained on.

Rules, where reports leave a choice:
- a heading is a known heading word in any case, followed by a colon, at the start of a line or of a sentence; or any
  run of capitals followed by a colon at the start of a line ("CHEST RADIOGRAPH:");
- headings for the same section are joined in the order of the text;
- text without any heading is the impression: it is the one section that both training stages use;
- a report that has headings but neither findings nor impression has its body as the last paragraph, which is the
  impression too (so are most MIMIC-CXR reports without these headings written);
- text before the first heading is kept as `other["preamble"]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from llmcxr.studies.study import Study

ReportPart = Literal["findings_and_impression", "impression"]
BLANK = "___"  # MIMIC-CXR's mark for removed text; every other mark is turned into it

_FINDINGS = {"finding", "findings"}
_IMPRESSION = {"impression", "impressions", "conclusion", "conclusions", "opinion", "findings and impression"}
_OTHER = (
    r"indications?|clinical (?:indication|history|information|data)|(?:medical )?history|techniques?|comparisons?|"
    r"exam(?:ination)?|reason for (?:the )?(?:exam(?:ination)?|study)|procedure|study|recommendations?|notifications?|"
    r"wet read|final report|addendum|views?"
)
_KNOWN = (
    r"findings?(?: ?(?:/|and|&) ?impressions?)?|impressions?(?: ?(?:/|and|&) ?findings?)?|conclusions?|opinion|"
    + _OTHER
)
_HEADING = re.compile(
    rf"(?:(?:^|(?<=[.!?\n]))[ \t]*(?P<known>(?i:{_KNOWN}))[ \t]*:)"
    r"|(?:^[ \t]*(?P<capitals>[A-Z][A-Z ,/&()-]{2,50}?)[ \t]*:)",
    re.MULTILINE,
)
_BLANKS = re.compile(r"\[\*\*.*?\*\*\]|_{2,}|(?<![A-Za-z])[Xx]{4,}(?![A-Za-z])")
_BLANK_RUN = re.compile(rf"{BLANK}(?:[\s_]*{BLANK})+")


@dataclass(frozen=True)
class ReportSections:
    """Cleaned sections of one report; "" where a section is missing. Keys of `other` are lower-case headings."""

    findings: str = ""
    impression: str = ""
    other: dict[str, str] = field(default_factory=dict)


def clean_text(text: str) -> str:
    """Join wrapped lines, collapse white space, and write every run of de-identification blanks as one `___`.

    Idempotent. Words are never changed or removed.
    """
    while True:  # a replacement can complete another blank ("XXXX_"); the text gets no longer, so this ends
        cleaned = _BLANK_RUN.sub(BLANK, _BLANKS.sub(BLANK, " ".join(text.split())))
        if cleaned == text:
            return cleaned
        text = cleaned


def _section(heading: str) -> str:
    name = clean_text(heading).lower().strip(" ,")
    if name in _FINDINGS:
        return "findings"
    if name in _IMPRESSION or ("finding" in name and "impression" in name):
        return "impression"
    return name


def parse_report(text: str) -> ReportSections:
    """Split a report into its sections by the rules of this module. Never raises; no word of the text is lost."""
    text = "\n".join(text.splitlines())
    marks = list(_HEADING.finditer(text))
    if not marks:
        return ReportSections(impression=clean_text(text))
    parts: list[tuple[str, str]] = [("preamble", text[: marks[0].start()])]
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        heading = _section(mark["known"] or mark["capitals"])
        parts.append((heading, text[mark.end() : following.start() if following else len(text)]))
    if not any(name in ("findings", "impression") and body.strip() for name, body in parts):
        name, body = parts[-1]
        before, gap, last = body.rstrip().rpartition("\n\n")
        if gap and before.strip():
            parts[-1:] = [(name, before), ("impression", last)]
    sections: dict[str, str] = {}
    for name, body in parts:
        if body := clean_text(body):
            sections[name] = clean_text(f"{sections[name]} {body}") if name in sections else body
    return ReportSections(sections.pop("findings", ""), sections.pop("impression", ""), sections)


def report_text(study: Study, sections: ReportPart) -> str:
    """The report text of a study, cleaned: the impression, or findings then impression, whichever exist.

    "" where the wanted sections are missing.
    """
    impression = clean_text(study.impression_text)
    if sections == "impression":
        return impression
    findings = clean_text(study.findings_text)
    if findings and impression and findings[-1] not in ".!?:;":
        findings += "."
    return f"{findings} {impression}".strip()
