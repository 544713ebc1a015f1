"""A report to the parts that stand under its headings: the first half of `report_sections`, which says what a heading
is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmcxr.studies.report_cleaning import clean_text
from llmcxr.studies.report_headings import (
    Heading,
    Kind,
    as_prose,
    is_cut_short,
    is_organ_list,
    is_view_list,
    read_heading,
)


@dataclass(eq=False)
class Part:
    """What stands under one heading: paragraphs of lines."""

    heading: Heading
    paragraphs: list[list[str]] = field(default_factory=list)
    apart: bool = False  # of an addendum or a provisional reading above the report
    open: bool = False  # whether the next line belongs to the last paragraph

    def add(self, line: str) -> None:
        if not line.strip():
            return
        if not self.open:
            self.paragraphs.append([])
        self.paragraphs[-1].append(line)
        self.open = True

    @property
    def text(self) -> str:
        return clean_text(" ".join(line for paragraph in self.paragraphs for line in paragraph))

    @property
    def in_body(self) -> bool:
        return self.heading.kind not in ("context", "closing", "unknown")


_PREAMBLE = Heading("context", "preamble")
_LINE_BREAK = re.compile(r"\\r\\n|\\n|\\\.br\\|<br ?/?>", re.IGNORECASE)  # as exports write them
_MARK = re.compile(r"(?:_{10,}|(?P<report>final|preliminary) report ?:?)$", re.IGNORECASE)
_ABOVE = re.compile(
    r"\W*(?:(?:FINAL|SECOND|FIRST|THIRD) )?(?P<what>ADDEND(?:UM|A)|WET ?READ|PFI|PROVISIONAL|PRELIM\w*)\b(?:[ :(#*]|$)"
)
STAMP = re.compile(  # "WET READ: ___ ___ 10:01 PM", "WET READ VERSION #1"
    r"(?<![A-Za-z])(?:WET ?READ|PROVISIONAL(?: FINDINGS)?(?: IMPRESSION)?|PRELIM\w*(?: REPORT"
    r"| READ)?)\b(?: \(PFI\))?(?: VERSION #\d*)?"
    r"[\s:*]*(?:[_\s:]*\d{0,2}:[\d_]{1,3} ?[AP]M)?[\s*]*"
)
_HEADING = re.compile(
    r"(?P<before>[*#>•-]*[ \t]{0,9}(?:\d{1,2}[.)][ \t]{0,9})?)(?P<words>[A-Za-z](?:[\w ,./&()'#-]"
    r"|:(?=\d\d)){0,78}?)[ \t]{0,9}\*{0,3}:\*{0,3}(?!\d\d)"
)
_NAMES = (
    r"findings?|impressions?|conclusions?|indications?|history|comparisons?|techniques?|examination"
    r"|recommendations?(?: ?\(s\))?|information"
)
_INLINE = re.compile(
    rf"(?<![\w/])(?P<words>(?:(?:clinical|final|preliminary|radiographic|reason for|findings?"
    rf"|impressions?)[ /&]+(?:and )?){{0,2}}"
    rf"(?:{_NAMES})(?: ?(?:/|&|and) ?(?:findings?|impressions?|plan))?)[ \t]{{0,9}}:(?!\d\d)",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|be|been|seen|noted|shows?|there|this|which|we|i)\b", re.IGNORECASE
)
_PLAIN_WORDS = re.compile(
    rf"(?:\b(?:{_NAMES}|clinical|medical|patient|patient's|radiographic|radiological|chest|cxr|x-?ray|final|preliminary"
    rf"|provisional|wet|read|imaging"
    r"|other|additional|incidental|pertinent|relevant|reason|for|of|the|and|or|to|exam|study|studies|film|reference"
    r"|type|date|name|plan"
    r"|addendum|summary|report|narrative|procedure|comments?|protocol|opinion|interpretation|diagnosis|notification"
    r"|attestation|data|details"
    r"|question|brief|present|past)\b|\d|\W)*$",
    re.IGNORECASE,
)


def split_report(text: str) -> tuple[list[Part], bool]:
    """The parts of a report in their order, and whether it says "FINAL REPORT". Linear in the length of the text."""
    lines = (_LINE_BREAK.sub("\n", text) if "\\" in text or "<" in text else text).splitlines()
    capitals = sum(c.isupper() for c in text)
    spelling = "lower" if not capitals else "upper" if not any(c.islower() for c in text) else "mixed"
    parts: list[Part] = []
    for role, block in _blocks(lines):
        if role == "provisional":
            for part in _parts(block, True, spelling):
                if part.heading.kind != "context" or part.heading.name == "preamble":
                    part.heading = Heading("provisional", "provisional")
                parts.append(part)
        else:
            parts += _parts(block, role == "addendum", spelling)
    final = any(
        (mark := _MARK.match(line.strip())) and mark["report"] and mark["report"].lower() == "final" for line in lines
    )
    return parts, final


def _blocks(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """A report as "provisional", "addendum" and "report" blocks, apart by rules of underscores and "FINAL REPORT"."""
    blocks: list[tuple[str, list[str]]] = [("", [])]  # each with the word before "report" in the mark above it
    for line in lines:
        if mark := _MARK.match(line.strip()):
            blocks.append(((mark["report"] or "").lower(), []))
        else:
            blocks[-1][1].append(line)
    whole: list[str] = []
    last_final = max((i for i, (above, _) in enumerate(blocks) if above == "final"), default=0)
    for i, (above, block) in enumerate(blocks):
        if not any(line.strip() for line in block):
            continue
        first = _ABOVE.match(next(line for line in block if line.strip()))
        is_addendum = first is not None and first["what"].startswith("ADDEND")
        replaced = above == "preliminary" and i < last_final
        if is_addendum or replaced or (first and i + 1 < len(blocks)):
            if whole:
                yield "report", whole
            whole = []
            yield "addendum" if is_addendum else "provisional", block
        else:
            if above and whole:
                yield "report", whole
                whole = []
            whole += ["", *block]
    if whole:
        yield "report", whole


def _parts(lines: Sequence[str], apart: bool, spelling: str) -> list[Part]:
    """The parts of one block by its headings, the first without one."""
    parts = [Part(_PREAMBLE, apart=apart)]
    finished = True  # whether the line before ends a sentence
    for line in map(str.strip, lines):
        if not line:
            parts[-1].open = False
            finished = True
            continue
        rest = _open(parts, line, finished)
        for heading, piece in _inline(rest, parts[-1].in_body, spelling):
            if heading:
                parts.append(Part(heading, apart=parts[-1].apart))
            parts[-1].add(piece)
        finished = line[-1] in ".!?:;"
    return parts


def _open(parts: list[Part], line: str, finished: bool) -> str:
    """Begin a new part where the line begins with a heading; returns the line's text that belongs to the last part."""
    last = parts[-1]
    if (above := _ABOVE.match(line)) and above["what"][:2] in ("AD", "WE"):
        heading = (
            Heading("addendum", "addendum")
            if above["what"].startswith("ADD")
            else Heading("provisional", "provisional")
        )
        parts.append(Part(heading, apart=last.apart or heading.kind == "addendum"))
        return line if heading.kind == "provisional" else line[above.end() :].lstrip(": *")  # with its time stamp
    match = _HEADING.match(line)
    words = match["words"] if match else line.strip(" \t*#:-")
    alone = (
        not match and len(words) < 30 and (is_cut_short(words) or (_PLAIN_WORDS.match(words) and words[:1].isupper()))
    )
    if not match and not alone:
        return line  # without a colon, only a heading alone on its line
    heading, capitals = read_heading(words), not any(c.islower() for c in words)
    rest = line[match.end() :] if match else ""
    number = len(words.split())
    if heading.kind in ("unknown", "organ"):
        if not match or (rest and not rest[0].isspace()) or _VERB.search(words) or number > 6:
            return line
        if last.in_body and last.heading.kind != "body":  # a part of the section that is open
            return (
                match["before"] + as_prose(words) + ":" + rest if capitals and any(c.islower() for c in rest) else line
            )
        if not capitals and not (heading.kind == "organ" and is_organ_list(words)):
            return line
        if heading.kind == "organ" and last.heading.kind != "closing":
            parts.append(Part(Heading("organ", "findings"), apart=last.apart))
            return (
                match["before"]
                + (as_prose(words) if capitals and any(c.islower() for c in rest) else words)
                + ":"
                + rest
            )
        kind: Kind = "closing" if last.heading.kind == "closing" else "context"
        parts.append(Part(Heading(kind, heading.name), apart=last.apart))
        return rest
    if heading.kind == "view":
        if (
            not match
            or (rest and not rest[0].isspace())
            or not (is_view_list(words) or (capitals and not _VERB.search(words)))
        ):
            return line
        if last.heading.kind == "impression" and not last.paragraphs:  # "IMPRESSION:", then the views, then the text
            return rest
    elif capitals:
        if _VERB.search(words) or number > 8:
            return line
    elif not _PLAIN_WORDS.match(words) or number > 6 or not (words[0].isupper() or finished):
        return line
    if heading.kind == "view":
        parts.append(Part(Heading("context", "views"), [[words]], last.apart))
    parts.append(Part(heading, apart=last.apart or heading.kind == "addendum"))
    return rest


def _inline(line: str, in_body: bool, spelling: str) -> Iterator[tuple[Heading | None, str]]:
    """A line as pieces, each with the heading that opens it within the line; None for the first."""
    begin, current = 0, None
    for match in _INLINE.finditer(line):
        words, before = match["words"], line[: match.start()].rstrip()
        if not before:
            continue
        heading = read_heading(words)
        ended = before[-1] in ".!?;" and (words[0].isupper() or spelling == "lower")
        if not ended and not (words.isupper() and spelling == "mixed"):
            continue
        if in_body and heading.kind == "context" and not (words.isupper() and spelling == "mixed"):
            continue  # "Comparison: unchanged." in the findings
        yield current, line[begin : match.start()]
        begin, current, in_body = match.end(), heading, heading.kind in ("findings", "impression")
    yield current, line[begin:]
