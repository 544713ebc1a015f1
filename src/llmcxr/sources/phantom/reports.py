"""The Indiana University reports: sections and MeSH tags, and what a tag asks the phantom to draw.

One XML file a report; of interest are the sections and the tags, e.g. (invented):

    <AbstractText Label="FINDINGS">Small left effusion. XXXX unchanged.</AbstractText>
    <AbstractText Label="IMPRESSION">Small left pleural effusion.</AbstractText>
    <MeSH><major>Pleural Effusion/left/small</major></MeSH>

A tag is a heading, then place, side and severity in any order. `XXXX` is a de-identification blank.
"""

from __future__ import annotations

import re
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llmcxr.foundation.errors import UserError
from llmcxr.labelling.registry import build_labeller
from llmcxr.studies.findings import Finding

Verdict = tuple[Finding, ...] | Literal["neutral", "cannot draw"]


@dataclass(frozen=True)
class IndianaReport:
    """A report; `tags` are its MeSH tags as written, e.g. "Pleural Effusion/left/small"."""

    uid: str
    findings: str
    impression: str
    tags: tuple[str, ...]


_SEVERITY = {
    "mild": "mild",
    "small": "mild",
    "borderline": "mild",
    "moderate": "moderate",
    "large": "severe",
    "severe": "severe",
    "prominent": "moderate",
}
_SIDE = {"left": "left", "right": "right", "bilateral": "both"}
_PLACES = ("upper lobe", "middle lobe", "lower lobe", "lingula", "apex", "base", "hilum", "retrocardiac", "mediastinum")
_LUNG_WORDS = {"lung", "pleura", "thorax", "pulmonary alveoli", "costophrenic angle", "sulcus", "bronchi"}
_COUNT = {"multiple", "scattered", "multilobar", "diffuse"}
_ELSEWHERE = {  # places that the opacity or calcification of a lung does not have
    "ribs", "clavicle", "humerus", "spine", "shoulder", "abdomen", "neck", "breast", "sternum", "trachea", "esophagus",
    "thoracic vertebrae", "lumbar vertebrae", "cervical vertebrae", "heart", "adipose tissue", "azygos lobe",
}  # fmt: skip

# Headings that a frontal view shows too little of for the picture to contradict the report.
_NEUTRAL = {
    "thoracic vertebrae", "lumbar vertebrae", "cervical vertebrae", "spine", "spondylosis", "osteophyte", "kyphosis", "arthritis",
    "bone diseases, metabolic", "osteoporosis", "hyperostosis, diffuse idiopathic skeletal", "bone and bones", "shoulder",
    "nipple shadow", "epicardial fat", "adipose tissue", "cholelithiasis", "sclerosis", "hypertension, pulmonary", "atherosclerosis", "hypovolemia",
}  # fmt: skip
_OPACITY = {"opacity", "airspace disease", "infiltrate", "pneumonia", "consolidation", "density"}
_DEVICE = {
    "implanted medical device",
    "catheters, indwelling",
    "surgical instruments",
    "tube, inserted",
    "medical device",
    "sutures",
}


def _split(tag: str) -> tuple[str, list[str]]:
    heading, *words = (re.sub(r"\s+", " ", part).strip().lower() for part in tag.split("/"))
    return heading, words


def _is_aortic_calcification(heading: str, words: set[str]) -> bool:
    return heading == "atherosclerosis" or (heading == "calcinosis" and bool(words & {"aorta", "aorta, thoracic"}))


def _device(heading: str, words: set[str], finding: Finding) -> Verdict:
    if words & {"humerus", "breast", "neck", "shoulder", "esophagus", "ribs", "clavicle"}:
        return "cannot draw"
    if words & {"cervical vertebrae", "lumbar vertebrae"}:
        return "neutral"
    if heading == "catheters, indwelling":
        return (replace(finding, kind="central line"),)
    if heading == "tube, inserted":
        return (replace(finding, side="", kind="tube"),) if words & {"trachea", "trachea, carina"} else "cannot draw"
    if heading in ("surgical instruments", "sutures"):
        if finding.place == "mediastinum" or "heart" in words:
            return (replace(finding, side="", kind="sternal wires", place="mediastinum"),)
        return (replace(finding, kind="clips", place="abdomen" if "abdomen" in words else finding.place),)
    if words & {"aortic valve", "mitral valve"}:
        return (replace(finding, side="", kind="valve"),)
    if words & {"abdomen", "spine", "thoracic vertebrae"}:
        return "cannot draw"
    if heading == "medical device":
        return (replace(finding, kind="port"),)
    return (replace(finding, side=finding.side if finding.side != "both" else "", kind="pacemaker"),)


_UNSEEN_AT = {  # places where these do not show on a frontal film
    "deformity": {"thoracic vertebrae", "lumbar vertebrae", "spine", "cervical vertebrae"},
    "fractures, bone": {"thoracic vertebrae", "lumbar vertebrae", "sternum"},
}


def parse_tag(tag: str) -> Verdict:
    """What a MeSH tag asks for: findings to draw, "neutral" (a frontal view hardly shows it), or "cannot draw"."""
    heading, listed = _split(tag)
    words = set(listed)
    sides = {_SIDE[w] for w in listed if w in _SIDE}
    side = "both" if len(sides) > 1 else next(iter(sides), "")
    severity = next((_SEVERITY[w] for w in listed if w in _SEVERITY), "")
    place = next((p for p in _PLACES if p in words), "")
    sized = severity if "prominent" not in words else ""
    lung = Finding("", side, sized, place)
    many = "multiple" if words & _COUNT else ""
    if heading in _NEUTRAL:
        return "neutral"
    if heading in ("cardiomegaly", "cardiac shadow"):
        if heading == "cardiac shadow" and not words & {"enlarged", "borderline", "prominent"}:
            return "cannot draw"
        return (Finding("cardiomegaly", severity=sized, kind="borderline" if "borderline" in words else ""),)
    if heading == "pleural effusion":
        return (Finding("pleural effusion", side, sized),)
    if heading == "costophrenic angle":
        blunt = "blunted" in words or "obscured" in words
        return (Finding("pleural effusion", side, "mild", "costophrenic angle"),) if blunt else "cannot draw"
    if heading == "lung":
        if "hypoinflation" in words:
            return (Finding("hypoinflation", severity=sized),)
        if "hyperdistention" in words:
            return (Finding("hyperinflation", severity=sized),)
        if "interstitial" in words:
            return (Finding("interstitial markings", side, sized, place),)
        return "cannot draw"
    if heading in ("emphysema", "pulmonary emphysema", "pulmonary disease, chronic obstructive"):
        return (Finding("hyperinflation", severity=sized),)
    if heading == "lung, hyperlucent" and not side and not place:
        return (Finding("hyperinflation", severity=sized),)
    if heading == "diaphragm":
        if "flattened" in words:
            return (Finding("hyperinflation", severity=sized),)
        return (Finding("elevated diaphragm", side, sized),) if "elevated" in words else "cannot draw"
    if heading == "diaphragmatic eventration":
        return (Finding("elevated diaphragm", side, sized, kind="eventration"),)
    if heading in _OPACITY:
        if words & _ELSEWHERE or place == "mediastinum":
            return "cannot draw"
        if "interstitial" in words or "reticular" in words:
            return (replace(lung, name="interstitial markings", side=side or "both"),)
        if heading == "density" and not words & (_LUNG_WORDS | set(_PLACES)):
            return "cannot draw"
        if "costophrenic angle" in words:
            return (Finding("pleural effusion", side, "mild", "costophrenic angle"),)
        kind = next((k for k in ("round", "streaky", "patchy") if k in words), "")
        if words & {"diffuse", "bilateral"} and not side:
            lung = replace(lung, side="both")
        return (replace(lung, name="opacity", kind=kind),)
    if heading == "pulmonary atelectasis":
        return (replace(lung, name="atelectasis", place="" if place == "mediastinum" else place),)
    if heading == "pneumothorax":
        return (replace(lung, name="pneumothorax", place="apex" if place == "apex" else ""),)
    if heading in ("pulmonary edema", "pulmonary congestion", "heart failure"):
        return (Finding("pulmonary edema", "both", sized or ("mild" if heading == "pulmonary congestion" else "")),)
    if heading == "markings":
        return (replace(lung, name="interstitial markings", side=side or "both"),)
    if heading in ("pulmonary fibrosis", "lung diseases, interstitial", "fibrosis"):
        return (replace(lung, name="interstitial markings", side=side or "both", kind="fibrosis"),)
    if heading in ("mass", "nodule"):
        if words & (_ELSEWHERE | {"mediastinum", "paratracheal"}):
            return "cannot draw"
        return (replace(lung, name=heading, kind=many),)
    if heading in ("calcified granuloma", "granulomatous disease", "granuloma", "calcinosis"):
        if _is_aortic_calcification(heading, words):
            return "neutral"
        nodes = "lymph nodes" in words
        where = words & (_LUNG_WORDS | set(_PLACES) | {"lymph nodes"})
        if heading == "calcinosis" and (not where or words & _ELSEWHERE - {"trachea"}):
            return "neutral" if words & {"ribs", "trachea", "mitral valve", "blood vessels"} else "cannot draw"
        if words & {"abdomen"}:
            return "neutral"
        if place == "mediastinum" or words & {"paratracheal", "trachea, carina"}:
            place, side = "mediastinum", side or "right"
        return (Finding("granuloma", side, "", place, "nodes" if nodes else many),)
    if heading in ("aorta", "aorta, thoracic"):
        if words & {"tortuous", "enlarged", "prominent"}:
            return (Finding("tortuous aorta", severity=sized),)
        return "cannot draw"
    if heading == "hernia, hiatal":
        return (Finding("hiatal hernia", severity=sized),)
    if heading == "scoliosis":
        return (
            (Finding("scoliosis", side if side != "both" else "", sized),)
            if "lumbar vertebrae" not in words
            else "neutral"
        )
    if heading == "spinal fusion":
        return "cannot draw" if "thoracic vertebrae" in words else "neutral"
    if heading in _UNSEEN_AT:
        return "neutral" if words & _UNSEEN_AT[heading] else "cannot draw"
    if heading in _DEVICE:
        return _device(heading, words, Finding("support device", side if side != "both" else "", "", place))
    return "cannot draw"


_RANK = {"": 0, "mild": 1, "moderate": 2, "severe": 3}
MAX_FINDINGS = 8
# Findings that contradict each other in one picture.
_CLASH = (("hypoinflation", "hyperinflation"),)


def findings_of(report: IndianaReport) -> tuple[Finding, ...] | str:
    """The findings that a report's tags ask for (none for a normal one), or the reason why it is left out."""
    if "normal" in [t.lower() for t in report.tags]:
        return ()
    kept: dict[tuple[str, ...], Finding] = {}
    for tag in report.tags:
        heading, _ = _split(tag)
        if heading == "no indexing":
            return "not indexed"
        if heading.startswith("technical quality"):
            return "technical quality unsatisfactory"
        verdict = parse_tag(tag)
        if verdict == "cannot draw":
            return f"tag cannot be drawn: {heading}"
        if verdict == "neutral":
            continue
        for finding in verdict:
            # The same finding told twice (Aorta/tortuous and Aorta, Thoracic/tortuous/mild) is one.
            key = (finding.name, finding.side, finding.place, finding.kind)
            if key not in kept or _RANK[finding.severity] > _RANK[kept[key].severity]:
                kept[key] = finding
    findings = list(kept.values())
    # A tag without details repeats a detailed one of the same name.
    findings = [
        f for f in findings if f.side or f.place or f.kind or f.severity or sum(g.name == f.name for g in findings) == 1
    ]
    # Calcium in its wall is drawn only where the aorta is drawn.
    if any(_is_aortic_calcification(heading, set(words)) for heading, words in map(_split, report.tags)):
        findings = [replace(f, kind="calcified") if f.name == "tortuous aorta" else f for f in findings]
    whole_body = (
        "tortuous aorta",
        "cardiomegaly",
        "hypoinflation",
        "hyperinflation",
        "scoliosis",
        "pulmonary edema",
        "hiatal hernia",
    )
    for name in whole_body:
        same = [f for f in findings if f.name == name]
        if len(same) > 1:
            best = max(same, key=lambda f: _RANK[f.severity])
            findings = [f for f in findings if f.name != name or f is best]
    names = {f.name for f in findings}
    for a, b in _CLASH:
        if a in names and b in names:
            return f"contradicting tags: {a} and {b}"
    return tuple(findings) if len(findings) <= MAX_FINDINGS else "more than 8 findings"


# Phrases whose blank can be filled or dropped without changing what is said.
_FILL = (
    (re.compile(r"\b(chest )?x-XXXX\b", re.I), r"\1x-ray"),
    (re.compile(r"\b(no|without) XXXX (of|for)\b", re.I), r"\1 evidence \2"),
    (re.compile(r"\bhilar lymph XXXX|\blymph XXXX", re.I), lambda m: m.group().replace("XXXX", "nodes")),
    (re.compile(r"\bbilateral (cost|cardi)ophrenic XXXX\b", re.I), r"bilateral \1ophrenic angle"),
    (re.compile(r"\b(cost|cardi)ophrenic XXXX\b", re.I), r"\1ophrenic angle"),
    (re.compile(r"\bsternotomy XXXX\b", re.I), "sternotomy wires"),
    (re.compile(r"\b(the )?XXXX (and soft tissues|(?:are|appear) (?:grossly )?intact)\b", re.I), r"\1bones \2"),
    # A lost adverb or date before a word that stands by itself.
    (
        re.compile(
            r"\bXXXX (?=(opacit|focal|acute|atelect|scar|airspace|deform|calcif|cardiac|subsegment|consolid|infiltr|pleural|"
            r"effusion|pneumo|granulom|degenerat|bilateral|left|right|mild|minimal|stable|unchanged|sternotomy))",
            re.I,
        ),
        "",
    ),
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9])")


def fill_blanks(text: str, counts: Counter[str] | None = None) -> str:
    """Fill the blanks whose meaning is plain ("chest x-XXXX"), and drop every other sentence that has a blank.

    White space and list numbers are normalised. `counts` collects how many blanks were filled and sentences dropped.
    """
    text = re.sub(r"\s+", " ", text or "").strip()
    counts = counts if counts is not None else Counter()
    for pattern, words in _FILL:
        text, n = pattern.subn(words, text)  # type: ignore[arg-type]
        counts["blank filled"] += n
    kept = []
    for sentence in _SENTENCE.split(text):
        if "XXXX" in sentence:
            counts["sentence with a blank dropped"] += 1
        elif re.search(r"[A-Za-z]{2}", sentence):
            kept.append(sentence[0].upper() + sentence[1:])
    text = re.sub(r"(^|(?<=[.] ))\(?\d{1,2}[.)]\s*(?=[A-Z])", "", " ".join(kept))
    return re.sub(r"\s*\.(\s*\.)+", ".", text).strip()


def with_sides(findings: Sequence[Finding], text: str) -> tuple[Finding, ...]:
    """Take a side that the tags leave open from the report's text."""
    told = build_labeller("rules").read(text).sides()
    return tuple(f if f.side else replace(f, side=told.get(f.name, "")) for f in findings)


_OPPOSITE = {"left": "right", "dextro": "levo", "lul": "rul", "lll": "rll"}
_OPPOSITE |= {b: a for a, b in _OPPOSITE.items()}
_SIDE_WORD = re.compile(r"\b(?:(?:left|right)(?:(?=ward)|\b)|(?:dextro|levo)|(?:[lr]ul|[lr]ll)\b)", re.I)
# What only one side has: with its side exchanged, such a report would tell of no body.
_ONE_SIDED = re.compile(
    r"\b(?:middle lobe|rml|lingula\w*|(?:bi)?ventric\w*|atri(?:um|a|al)|(?:heart|cardiac) border|paratracheal|azygos|"
    r"retrocardiac|(?:left|right)[- ]sided (?:aort\w*|arch))\b",
    re.I,
)
_ONE_SIDED_PLACES = {"middle lobe", "lingula", "retrocardiac", "mediastinum"}


def mirror_words(text: str) -> str:
    """`text` with every word for a side exchanged for its opposite; capitals are kept. Twice gives the text again."""

    def opposite(match: re.Match[str]) -> str:
        word, other = match.group(), _OPPOSITE[match.group().lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _SIDE_WORD.sub(opposite, text)


def can_be_mirrored(findings: Sequence[Finding], text: str) -> bool:
    """Whether a report still tells of a body when its sides are exchanged, and tells sides at all."""
    sided = any(f.side in ("left", "right") for f in findings) and _SIDE_WORD.search(text) is not None
    return sided and not _ONE_SIDED.search(text) and not any(f.side and f.place in _ONE_SIDED_PLACES for f in findings)


def mirror_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The same findings on the other side."""
    return tuple(replace(f, side=_OPPOSITE.get(f.side, f.side)) for f in findings)


def read_reports(archive: Path) -> list[IndianaReport]:
    """Read every report of NLMCXR_reports.tgz, sorted by number; texts are as in the file, with blanks.

    Raises `UserError` that names the archive (and the member) where it is damaged.
    """
    reports = []
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() and member.name.endswith(".xml") else None
                if file is None:
                    continue
                try:
                    root = ElementTree.fromstring(file.read())
                except ElementTree.ParseError as error:
                    raise UserError(
                        f"{archive}: {member.name} is not valid XML ({error}). Delete the archive and fetch it again."
                    ) from error
                sections = {
                    e.get("Label", ""): " ".join("".join(e.itertext()).split()) for e in root.iter("AbstractText")
                }
                tags = tuple(t for e in root.iter("major") if (t := " ".join((e.text or "").split())))
                uid = Path(member.name).stem
                reports.append(IndianaReport(uid, sections.get("FINDINGS", ""), sections.get("IMPRESSION", ""), tags))
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(
            f"{archive} is not a readable archive of reports ({error}). Delete it and fetch it again."
        ) from error
    if not reports:
        raise UserError(f"{archive} holds no XML report. Delete it and fetch it again.")
    return sorted(reports, key=lambda r: (len(r.uid), r.uid))
