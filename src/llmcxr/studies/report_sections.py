"""Free-text radiology reports to sections, and a Study to the report text that models are trained on.

An invented report in the form of MIMIC-CXR (blank lines hold one space there):

    WET READ: ___ ___ 10:01 PM
      Left pneumothorax.
     ______________________________________________________________________________
                                     FINAL REPORT
     INDICATION:  Line placement.

     PA AND LATERAL VIEWS OF THE CHEST:  Line ends in the SVC. No pneumothorax.

     IMPRESSION:  No pneumothorax.

Rules, where reports leave a choice:
- A heading is a line's beginning, up to a colon, that `report_headings` knows, in any case; or any few words in
  capitals. Within a line it is the name of a section after the end of a sentence, or in capitals. Wrapped prose that
  ends in a colon is none.
- Headings for the same section are joined in the order of the text. A list of views stands for the findings. Headings
  of organs, and others in capitals inside the findings or the impression, stay in the text ("Lungs: clear").
- "Findings and impression" is the impression, the one section that both training stages use; so is text without any
  heading.
- A report with headings and neither section has its body in the paragraphs after the first under its last heading:
  the impression, too. Failing that, the body is what says what is seen, by its words (`sentences`). So are findings
  that stand above an impression without a heading.
- Provisional readings ("WET READ", PFI) are kept apart. They count only where no final report stands below them and
  nothing else is there; a preliminary impression counts where there is no other.
- An addendum stands above what it corrects: its text comes first in the impression, its findings first in the
  findings.
- Everything else is kept in `other` under the name of its section. Nothing but marks ("FINAL REPORT", rules of
  underscores) is dropped.

The published parser of MIMIC-CXR (MIT-LCP/mimic-cxr, txt/) agrees in names, misspellings, views and the last
paragraphs. It takes the last of several sections of one name where we join them; loses findings without a heading;
reads organ headings as sections that nobody looks at; takes a comparison for the report where nothing else is left;
and lists 52 odd studies by number, which we read by the rules above.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from llmcxr.studies.report_cleaning import clean_text, is_no_text
from llmcxr.studies.report_headings import NAMES, Heading, is_view_list
from llmcxr.studies.report_parts import STAMP, Part, split_report
from llmcxr.studies.sentences import is_technical, names_what_is_seen, says_what_is_seen, sentences
from llmcxr.studies.study import Study

ReportPart = Literal["findings_and_impression", "impression"]
Structure = Literal[
    "", "headings", "a list of views", "no headings", "paragraphs without a heading", "sentences",
    "a provisional reading",
]  # fmt: skip


@dataclass(frozen=True)
class ReportSections:
    """Cleaned sections of one report; "" where a section is missing. Keys of `other` are lower-case names of sections.

    `structure` says how the sections were found, and is "" where both are empty; then `reason` says why.
    """

    findings: str = ""
    impression: str = ""
    other: dict[str, str] = field(default_factory=dict)
    structure: Structure = ""
    reason: str = ""


def parse_report(text: str) -> ReportSections:
    """Split a report into its sections by the rules of this module. Never raises; linear in the length of the text."""
    if is_no_text(text):
        return ReportSections(reason="no text")
    return _resolve(*split_report(text))


def _resolve(parts: list[Part], final: bool) -> ReportSections:
    """Sections out of the parts: what stands under headings, then what stands in for them.

    `final`: whether it says "FINAL REPORT".
    """
    for part in parts:
        if part.heading.kind == "view" and is_view_list(part.text):  # "Chest: frontal and lateral views"
            part.heading = Heading("context", "views")
    findings = [p for p in parts if p.heading.kind in ("findings", "view", "organ") and not is_no_text(p.text)]
    impression = [p for p in parts if p.heading.kind == "impression" and not is_no_text(p.text)]
    own_findings = [p for p in findings if not p.apart]
    own_impression = [p for p in impression if not p.apart]
    for part in parts:  # a first reading stands where there is no other
        if part.heading.name == "preliminary findings" and not own_findings and not is_no_text(part.text):
            own_findings = [part]
            findings.append(part)
        if part.heading.name == "preliminary impression" and not own_impression and not is_no_text(part.text):
            own_impression = [part]
            impression.append(part)
        if part.heading.kind == "summary" and own_findings and not own_impression and _is_prose(part.text):
            own_impression = [part]
            impression.append(part)
    structure: Structure = ""
    if own_findings or own_impression:
        by_name = own_impression or any(p.heading.kind == "findings" for p in own_findings)
        structure = "headings" if by_name else "a list of views"
    if own_impression and not own_findings:
        findings += [body for part in parts if (body := _take(part, "findings", _loose(part), says_what_is_seen))]
    if not own_findings and not own_impression:
        body, structure = _body(parts)
        if not body and (body := _provisional([p for p in parts if not (final and p.apart)])):
            structure = "a provisional reading"
        impression += [body] if body else []
    named = {id(p) for p in impression}
    corrections = [p for p in parts if p.apart and p.text and (p.heading.kind == "addendum" or id(p) in named)]
    impression = corrections + [p for p in impression if not p.apart]
    findings = [p for p in findings if p.apart] + [p for p in findings if not p.apart]
    used = {id(p) for p in [*findings, *impression]}
    remaining: dict[str, list[str]] = {}
    for part in parts:
        if id(part) not in used and (part.text or part.heading.name not in NAMES):  # an unknown heading is text, too
            remaining.setdefault(part.heading.name, []).append(part.text)
    other = {name: clean_text(" ".join(texts)) for name, texts in remaining.items()}
    texts = [clean_text(" ".join(p.text for p in chosen)) for chosen in (findings, impression)]
    if any(texts):
        return ReportSections(texts[0], texts[1], other, structure or "headings")
    provisional = any(p.heading.kind == "provisional" and p.text for p in parts)
    reason = (
        "only a provisional reading"
        if provisional
        else "nothing that describes the image"
        if other
        else "headings without text"
    )
    return ReportSections(other=other, reason=reason)


def _provisional(parts: list[Part]) -> Part | None:
    """The provisional readings without their time stamps, taken out of their parts; None where there is none."""
    taken, read = Part(Heading("impression", "impression")), [p for p in parts if p.heading.name == "provisional"]
    for paragraph in (paragraph for part in read for paragraph in part.paragraphs):
        taken.paragraphs.append([STAMP.sub("", line, count=1) for line in paragraph])
    if is_no_text(taken.text):
        return None
    for part in read:
        part.paragraphs = []
    return taken


def _is_prose(text: str) -> bool:
    """Whether a summary is a sentence rather than a code ("2-ABNORMAL, PREVIOUSLY REPORTED")."""
    return not re.match(r"\W*\d+ ?-", text) and not is_no_text(text)


def _loose(part: Part) -> range:
    """Numbers of the paragraphs that need not belong to the heading above them: all but the first."""
    if part.heading.kind not in ("context", "closing", "body") or part.apart:
        return range(0)
    return range(0 if part.heading.name in ("preamble", "body") else 1, len(part.paragraphs))


def _may_describe(sentence: str) -> bool:
    """Whether a sentence where the body stands can be of it: not of technique, not cut off before it says anything."""
    return not is_technical(sentence) and (names_what_is_seen(sentence) or sentence[-1] in ".!?")


def _take(
    part: Part, name: Literal["findings", "impression"], numbers: range, wanted: Callable[[str], bool]
) -> Part | None:
    """Move the paragraphs of `numbers` that hold a wanted sentence into a new part, without lists of views above them.

    None where there is no such paragraph.
    """
    taken, kept = Part(Heading(name, name)), Part(part.heading)
    for number, paragraph in enumerate(part.paragraphs):
        title = 0
        while number in numbers and title < len(paragraph) and is_view_list(paragraph[title]):
            title += 1
        said = sentences(clean_text(" ".join(paragraph[title:]))) if number in numbers else []
        if any(map(wanted, said)) and not is_no_text(" ".join(said)):
            kept.paragraphs += [paragraph[:title]] if title else []
            taken.paragraphs.append(paragraph[title:])
        else:
            kept.paragraphs.append(paragraph)
    if not taken.paragraphs:
        return None
    part.paragraphs = kept.paragraphs
    return taken


def _unwrapped(lines: list[str]) -> Iterator[str]:
    """Lines of a paragraph; a line that wraps (it is long, or the next begins with a small letter) with the next."""
    joined = last = ""
    for line in lines:
        if joined and len(last) < 50 and not line[:1].islower():
            yield joined
            joined = ""
        joined, last = f"{joined} {line}".strip(), line
    yield joined


def _body(parts: list[Part]) -> tuple[Part | None, Structure]:
    """The body of a report without headings for findings and impression, taken out of the part that holds it."""
    own = [
        p
        for p in parts
        if not p.apart and p.heading.kind in ("context", "closing", "body") and p.heading.name != "views"
    ]
    if all(p.heading.name == "preamble" for p in own if p.paragraphs) and not any(
        p.heading.kind == "provisional" for p in parts
    ):
        for part in own:
            if body := _take(part, "impression", _loose(part), lambda sentence: not is_technical(sentence)):
                return body, "no headings"
    for number, part in enumerate(reversed([p for p in own if p.heading.kind != "closing" and p.paragraphs])):
        certain = (
            number == 0
            or part.heading.kind == "body"
            or (part.heading.name == "preamble" and names_what_is_seen(part.text))
        )
        if body := _take(part, "impression", _loose(part), _may_describe if certain else says_what_is_seen):
            return body, "paragraphs without a heading"
    for part in reversed(own):
        said = [
            s for paragraph in part.paragraphs for line in _unwrapped(paragraph) for s in sentences(clean_text(line))
        ]
        first = next((i for i, sentence in enumerate(said) if says_what_is_seen(sentence)), None)
        if first is not None:
            part.paragraphs = [[" ".join(said[:first])]]
            return Part(Heading("impression", "impression"), [[" ".join(said[first:])]]), "sentences"
    return None, ""


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
