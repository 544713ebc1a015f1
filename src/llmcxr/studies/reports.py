"""A report as a data set gives it, whole or in sections, to the two texts of a study, and what has to be counted on the
way."""

from __future__ import annotations

from dataclasses import dataclass

from llmcxr.studies.report_cleaning import clean_text, is_no_text
from llmcxr.studies.report_language import is_english
from llmcxr.studies.report_sections import Structure, parse_report

LONG = 300  # words; the longest of 4,867 reports that were looked at has 230, case histories have more
MOST = 100_000  # characters; what is longer is no report, and would take minutes to read
LOST = "\ufffd"  # stands where bytes could not be read as text


@dataclass(frozen=True)
class Report:
    """What a study learns from a report. `problem` says why both texts are empty, "" where one is not.

    `excerpt` is the beginning of a report with a problem. `warnings`: what is odd about a report that is used, each
    with the place in the text.
    """

    findings: str = ""
    impression: str = ""
    structure: Structure = ""
    problem: str = ""
    excerpt: str = ""
    warnings: tuple[tuple[str, str], ...] = ()


def read_report(whole: str = "", findings: str = "", impression: str = "") -> Report:
    """The texts of a study from its whole report, or from sections that the data give apart, which come first.

    Cells that say "nan", "None" or "N/A" are empty. A report that is not in English is a problem, not a text, since
    nothing here can read it, nor is one of more than `MOST` characters. Never raises.
    """
    if max(map(len, (whole, findings, impression))) > MOST:
        longest = max((whole, findings, impression), key=len)
        return Report(problem=f"more than {MOST:,} characters", excerpt=clean_text(longest[:200]))
    given = ["" if is_no_text(text) else clean_text(text) for text in (findings, impression)]
    structure: Structure = "headings" if any(given) else ""
    problem = "no text"
    if not any(given) and not is_no_text(whole):
        sections = parse_report(whole)
        given, structure, problem = [sections.findings, sections.impression], sections.structure, sections.reason
    text = " ".join(given).strip()
    if text and not is_english(text):
        given, problem = ["", ""], "not in English"
    if not any(given):
        source = clean_text(" ".join((whole, findings, impression)))
        return Report(problem=problem, excerpt="" if problem == "no text" else source[:200])
    warnings = []
    if len(words := text.split()) > LONG:
        warnings.append((f"more than {LONG} words (a case history?)", " ".join(words[:30])))
    if LOST in text:
        place = text.index(LOST)
        warnings.append(("lost characters (U+FFFD)", text[max(0, place - 60) : place + 60]))
    return Report(given[0], given[1], structure, warnings=tuple(warnings))
