"""What a text says of each finding, finer than labels: side, severity, level of the lung, size, number, kind of device.

The rule labeller finds the mentions (`labelling/rules.py`), each term on its own. A word that qualifies belongs to the
mention that is nearest, over as few others, commas and conjunctions as possible, and never across a new statement.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from dataclasses import dataclass, replace

from llmcxr.labelling import cues, terms
from llmcxr.labelling.base import Mention
from llmcxr.labelling.rules import RuleLabeller
from llmcxr.studies.findings import normal_form
from llmcxr.studies.sentences import sentences
from llmcxr.synthesis.attributes import AXES, AXIS_OF, GROUPS, PLACE, SIZE, both_sides, numbers, sizes_of, words_of

DEVICE = "support device"
# A term and what is an instance of it: "consolidation" states an opacity, "no opacity" denies consolidation.
NARROWER: dict[str, tuple[str, ...]] = {
    "opacity": ("consolidation", "pneumonia"),
    "lung lesion": ("mass", "nodule"),
    "lung abnormality": ("opacity", "consolidation", "pneumonia", "atelectasis", "pulmonary edema", "interstitial markings",
                         "mass", "nodule", "lung lesion", "cavity", "bronchiectasis", "bulla", "contusion", "collapse"),
    "pleural abnormality": ("pleural effusion", "pneumothorax", "pleural change"),
    "vascular abnormality": ("pulmonary edema",),
    "volume abnormality": ("hypoinflation", "hyperinflation"),
    "heart abnormality": ("cardiomegaly",),
    "mediastinum abnormality": ("wide mediastinum",),
    "diaphragm abnormality": ("elevated diaphragm",),
    "bone injury": ("fracture",),
    "bone abnormality": ("fracture", "bone lesion", "vertebral deformity", "osteopenia", "degenerative change",
                         "scoliosis"),
}  # fmt: skip
WIDER: dict[str, tuple[str, ...]] = {
    term: tuple(wide for wide, named in NARROWER.items() if term in named)
    for term in dict.fromkeys(term for named in NARROWER.values() for term in named)
}
_UNSEEN_TIP = re.compile(
    r"\b(?:the |its )?tip (?:is |was |which is )?(?:not|out of|outside|beyond)(?: well| clearly| fully)?"
    r" (?:seen|visuali[sz]ed|included|imaged|identified|the (?:image|field|view)\w*)",
    re.IGNORECASE,
)
# "Effusion, moderate in size", "effusions, small on the right": a comma that opens no statement.
_IN_SIZE = re.compile(
    r",\s?(?:\w+ |\w+ to )?\w+ (?:in (?:size|severity|degree|extent)|(?:on|at) the (?:left|right))\b"
    r"|,\s?\w+(?: to \w+)?\.?$"
)
_ON_SIDE = re.compile(r" (?:(?:on|in|at) the )?(left|right)\b")
_PART = re.compile(r",? (?:and |with )?(?=the (?:largest|biggest|dominant)\b)", re.IGNORECASE)
_PRONOUN = re.compile(
    r"(?:(?:the )?(?:largest|larger|biggest|dominant|smaller|smallest) ?(?:one)?(?=,| of| is| measur| in | at )"
    r"|it|its (?P<tip>tip)?"
    r"|the (?P<tip2>tip)|this|these|they|both|one is|all)\b",
    re.IGNORECASE,
)
_IS_NORMAL = re.compile(r" (?:(?:is|are|appears?|remains?) )?(?:\w+ly )?(?:normal|unremarkable|within normal limits)\b")
_LEADS = {"single": "one", "dual": "two", "triple": "three"}
# "The fourth through seventh ribs": more than are named.
_RANGE = re.compile(r"\bthrough\b|\b(?:\w+(?:th|rd|nd|st)|[tlc]\d+)(?: to |-)(?:\w+th|\w+rd|[tlc]?\d+)\b")
_OF_ANOTHER = {"calcium", "inside"}  # axes whose words name a finding and say something of one further off
_IN_THE_NAME = {"interstitial markings": {"interstitial"}}
_MISPLACED = {"bronchus", "esophagus"}  # where no device ends well
_CLOSE = 20  # characters
_PAUSE = re.compile(r",|;|\b(?:and|or|with|without|no)\b")
_BOTH = re.compile(
    r"\b(?:left|right)(?:-sided)?(?: (?!atri|ventric)\w+)? and (?:an? )?(?:\w+ )?"
    r"(?:(?:on|at|in) the )?(?:left|right)\b(?! atri| ventric)"
)
_REACH = 90  # characters
_WHOLE_NORMAL = re.compile(
    r"\b(?:normal|unremarkable|negative) (?:\w+ ){0,2}(?:chest|examination|exam|study|radiograph|cxr|x-?ray)\b"
    r"|\b(?:chest|examination|exam|study|radiograph|image) (?:is|appears) (?:\w+ )?(?:normal|unremarkable)\b"
    r"|^\W*(?:normal|none|nothing)\W*$"
)
_NOTHING_ACUTE = re.compile(
    r"\bno (?:(?!osseous|bony|skeletal|bone|pleural|hilar|abdominal|mediastinal|spinal)[\w/-]+ ){0,3}"
    r"(?:abnormalit(?:y|ies)|abnormal findings?|disease|process|findings?)\b"
)
# What "no acute process" excludes.
ACUTE = frozenset(
    ("opacity", "consolidation", "pneumonia", "pulmonary edema", "pleural effusion", "pneumothorax", "lung abnormality",
     "free air", "bone injury")
)  # fmt: skip
# Of which there is one: "the heart is normal in size and shifted to the left".
_MIDLINE = {"cardiomegaly", "heart abnormality", "tortuous aorta", "scoliosis", "hiatal hernia", "wide mediastinum"}
_VOCABULARY = {
    normal_form(name): named for vocabulary in (terms.CHEXPERT, terms.FINDINGS) for name, named in vocabulary.items()
}

_LABELLER = RuleLabeller({term: (term,) for term in terms.PRESENT})


@dataclass(frozen=True, slots=True)
class Statement:
    """One mention of a finding with what is said of it; a set is empty where the text says nothing."""

    term: str  # of `terms.PRESENT`
    state: int  # 1 affirmed, 0 denied, -1 uncertain
    sentence: str
    sides: frozenset[str] = frozenset()  # "left", "right"
    degrees: frozenset[str] = frozenset()  # "mild", "moderate", "severe": of severity or size
    levels: frozenset[str] = frozenset()  # "upper", "middle", "lower", "hilar"
    traits: frozenset[str] = frozenset()  # of `AXES`
    kinds: frozenset[str] = frozenset()  # of `DEVICES`
    counts: frozenset[int] = frozenset()
    sizes: frozenset[float] = frozenset()  # mm
    spots: frozenset[str] = frozenset()  # of `SPOTS`: of a device
    place: str = ""  # the part of the lung, as the text has it
    noun: str = ""  # the finding, as the text has it

    def denies(self, sides: frozenset[str] = frozenset()) -> bool:
        """Of a statement that denies: whether it does on these sides (none: anywhere). "The left lung is clear" leaves the
        right one open."""
        return self.term in _MIDLINE or len(self.sides) != 1 or (bool(sides) and sides <= self.sides)


def terms_named(finding: str) -> tuple[str, ...]:
    """The terms of a finding as data spell it ("Pleural_Effusion"); none where it is no finding of the labeller."""
    return _VOCABULARY.get(normal_form(finding), ())


def says_all_is_normal(text: str) -> bool:
    """Whether a text calls the whole image normal, or denies all (acute) abnormality."""
    return says_whole_is_normal(text) or bool(_NOTHING_ACUTE.search(text.lower()))


def says_whole_is_normal(text: str) -> bool:
    """Whether a text calls the whole image normal in so many words."""
    return bool(_WHOLE_NORMAL.search(text.lower()))


def statements_of(text: str) -> list[Statement]:
    """What a text says, in its order."""
    result: list[Statement] = []
    last: tuple[Statement, ...] = ()
    for whole in sentences(text):
        for sentence in _PART.split(whole):
            found = _said(sentence)
            if (start := _PRONOUN.match(sentence)) and all(s.term == DEVICE and not s.kinds for s in found):
                # "The largest, at the apex, is 9 mm", "Its tip is in the stomach": of the one thing that was just said
                tip = start["tip"] or start["tip2"]
                wanted = {s.noun for s in last if s.state == 1 and (s.term == DEVICE or not tip)}
                wanted = {noun for noun in wanted if noun.endswith("s")} or wanted if len(wanted) > 1 else wanted
                found = _said(f"{wanted.pop()} {sentence}") if len(wanted) == 1 else found
            result += found if sentence == whole else [replace(s, sentence=whole) for s in found]
            last = found or last
    return result


@functools.lru_cache(maxsize=50_000)  # reports repeat their sentences
def _said(sentence: str) -> tuple[Statement, ...]:
    # "Tube below the diaphragm, tip not seen": the tube is there; letters keep their places
    read = _UNSEEN_TIP.sub(lambda match: " " * len(match[0]), sentence)
    mentions = sorted(_LABELLER.read(read).mentions, key=lambda m: (m.start, m.end))
    if not mentions:
        return ()
    lower = sentence.lower()
    clusters = _clusters(mentions)
    own: list[dict[str, set[str]]] = [{} for _ in clusters]
    by_side: list[dict[str, set[str]]] = [{} for _ in clusters]
    # "moderate left and small right effusions" are two, though "and small" opens a statement elsewhere
    pairs = [m.span() for m in _BOTH.finditer(lower) if not any(m.start() < c[0].start < m.end() for c in clusters)]
    breaks = [m.start() for m in cues.BREAK.finditer(lower) if not _IN_SIZE.match(lower, m.start())]
    first = min(cluster[0].start for cluster in clusters)
    breaks = [b for b in breaks if b > first or not lower.startswith("with ", b)]  # "left lung with mild atelectasis"
    breaks = [b for b in breaks if not any(a < b < z for a, z in pairs)]
    every = range(len(clusters))
    devices = [c for c in every if any(m.finding == DEVICE for m in clusters[c])]
    found = [(group, span) for group in GROUPS for span in words_of(lower, group)]
    found += [(group, (*m.span(), m[0])) for group, p in (("sizes", SIZE), ("place", PLACE)) for m in p.finditer(lower)]
    for group, (start, end, value) in found:
        targets = devices if group in ("kinds", "spots") else every
        if group == "traits":  # "the nodule is calcified": said of the nodule, though it makes a granuloma, too
            others = [c for c in every if (clusters[c][0].start, clusters[c][0].end) != (start, end)]
            far = AXIS_OF[value] in _OF_ANOTHER or any(clusters[c][0].start == end + 1 for c in others)
            targets = others if others and far else every
        if (at := _nearest(lower, start, end, clusters, targets, breaks)) is not None:
            own[at].setdefault(group, set()).add(value)
            if group == "degrees" and (side := _ON_SIDE.match(lower, end)):
                by_side[at].setdefault(side[1], set()).add(value)
    for start, end in pairs:
        if (at := _nearest(lower, start, end, clusters, every, breaks)) is not None:
            own[at]["sides"] = {"both"}
    parts = _parts_of_devices(clusters, own, devices, breaks)
    result = []
    for c, cluster in enumerate(clusters):
        for told in [_statement(m, own[c], sentence) for m in cluster if c not in parts]:
            if len(by_side[c]) == 2:  # "moderate on the right and small on the left"
                graded = sorted(by_side[c].items())
                result += [replace(told, sides=frozenset({side}), degrees=frozenset(v)) for side, v in graded]
            else:
                result.append(told)
    return tuple(result)


def _parts_of_devices(
    clusters: list[list[Mention]], own: list[dict[str, set[str]]], devices: list[int], breaks: list[int]
) -> set[int]:
    """Devices of no kind that are part of one before them or close behind ("ICD with its lead tip in ..."): what is said of
    them is said of that."""
    parts = set()
    for k, at in enumerate(devices):
        if own[at].get("kinds"):
            continue
        start, before = clusters[at][0].start, [c for c in reversed(devices[:k]) if own[c].get("kinds")]
        near = [c for c in before if not _apart(clusters[c][0].start, start, breaks)]
        near += [c for c in devices[k + 1 : k + 2] if own[c].get("kinds") and clusters[c][0].start - start < _CLOSE]
        if near:
            for group, values in own[at].items():
                own[near[0]].setdefault(group, set()).update(values)
            parts.add(at)
        elif before:  # "bilateral chest tubes; the left tube ends at the apex"
            own[at]["kinds"] = set(own[before[0]]["kinds"])
    return parts


def _apart(low: int, high: int, breaks: list[int]) -> bool:
    return bisect_left(breaks, low) < bisect_left(breaks, high)


def _statement(mention: Mention, words: dict[str, set[str]], sentence: str) -> Statement:
    read = words.get("sides", set[str]())
    if mention.finding in terms.SIDED and read != {"both"} and mention.state:
        read = {mention.side} - {""} or read  # the labeller's, which tells none of "the left lung is clear"
    places = sorted(words.get("place", ()))
    traits, spots = words.get("traits", set[str]()), words.get("spots", set[str]())
    counts = words.get("counts", set[str]()) | {leads for kind, leads in _LEADS.items() if kind in traits}
    traits = traits - _IN_THE_NAME.get(mention.finding, set())
    if _RANGE.search(sentence.lower()):
        traits = traits - AXES["number"].keys() - AXES["vertebra"].keys()
    if mention.finding != DEVICE:
        traits, spots = traits - AXES["wires"].keys() - AXES["position"].keys(), set()
    # "The right jugular line ends in the subclavian vein": the vein where it ends is not the one where it enters
    traits = traits - {spot.removesuffix(" vein") for spot in spots}
    if mention.finding == DEVICE and spots & _MISPLACED:
        traits = traits | {"misplaced"}
    noun, after = sentence[mention.start : mention.end].lower(), sentence[mention.end :].lower()
    return Statement(
        mention.finding,
        0 if mention.finding != DEVICE and _IS_NORMAL.match(after) else mention.state,
        sentence,
        both_sides(read),
        frozenset(words.get("degrees", ())),
        frozenset(words.get("levels", ())),
        frozenset(traits),
        frozenset(words.get("kinds", ())) if mention.finding == DEVICE else frozenset(),
        numbers(counts),
        frozenset(sizes_of(" ".join(words.get("sizes", ())))),
        frozenset(spots),
        places[0] if len(places) == 1 else "",
        noun,
    )


def _clusters(mentions: list[Mention]) -> list[list[Mention]]:
    """Mentions that share characters are about one thing ("calcified nodule")."""
    clusters: list[list[Mention]] = []
    end = -1
    for mention in mentions:
        if mention.start < end:
            clusters[-1].append(mention)
        else:
            clusters.append([mention])
        end = max(end, mention.end)
    return clusters


def _nearest(
    text: str, start: int, end: int, clusters: list[list[Mention]], targets: range | list[int], breaks: list[int]
) -> int | None:
    """The cluster that the word at [start, end) belongs to."""
    ranked = []
    for at in targets:
        first, last = clusters[at][0].start, max(m.end for m in clusters[at])
        low, high = (last, start) if start >= first else (end, first)
        gap = text[low:high]
        if len(gap) > _REACH or _apart(low, high, breaks):
            continue
        crossed = sum(low <= cluster[0].start < high for k, cluster in enumerate(clusters) if k != at)
        ranked.append((2 * crossed + len(_PAUSE.findall(gap)), len(gap), at))
    return min(ranked)[2] if ranked else None
