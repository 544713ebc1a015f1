"""What a question asks, and what it states together with its answer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from llmcxr.synthesis.attributes import AXES, AXIS_OF, one_sided, qualifiers_of, without_words, words_of
from llmcxr.synthesis.pairs import PairType
from llmcxr.synthesis.statements import DEVICE, Statement, statements_of

_ENTRY = re.compile(
    r"\b(?:access\w*|approach|route|enter(?:s|ed|ing)?|entry|insert\w*|introduc\w*|vein (?:was|is|has been|does|did)"
    r"|vessel (?:was|is|has been|does|did)|(?:via|through|from) (?:which|what)|which (?:way|path)|cannulat\w+"
    r"|punctur\w+|(?:pass|course|run|travel|travers|thread)\w*)\b|\bfrom where\b"
)
_END = re.compile(
    r"\b(?:ends?|ending|terminat\w+|tips?|lies?|rests?|reach(?:es)?|located|in (?:which|what) (?:vein|vessel))\b"
)
_CHOICE = re.compile(r"\b([\w-]+) or (?:the |an? )?([\w-]+)\b")
_ONE_OR_BOTH = re.compile(r"\b(?:one|a single) (?:side |lung )?or (?:both|two)\b(?: sides?| lungs?)?")
POLAR = re.compile(r"(?:is|are|was|were|do|does|did|can|could|has|have|will|would)\b ?(?:you see |one see )?")
_ASKING = re.compile(
    r"\bhow (?:large|big|severe|extensive|many|much|wide|marked|bad)\b|\b(?:what|which|where|how|in|on)\b(?= (?:is|are|was"
    r"|side|lung|lobe|part|zone|size|type|kind|degree|number|hemithorax|severity|which|what))"
    r"|\b(?:what|which|where|how|name|describe|list)\b"
)
YES = re.compile(r"(?:yes|yeah|correct|true|definitely)\b[,.;:]?\s*")
NO = re.compile(
    r"(?:no|not|none|neither|nowhere|absent|nothing|negative|false)\b(?=[,.;:]|$|\s(?:there|it|the)\b)[,.;:]?\s*"
)
MAYBE = re.compile(r"(?:possibly|maybe|perhaps|probably|possible|uncertain|equivocal|likely)\b")
NORMAL_ASKED = re.compile(
    r"(?:chest|radiograph|x-?ray|image|film|study|cxr|this|exam\w*)\b[^?]{0,30}\b(?:normal|unremarkable|abnormal"
    r"|free of (?:\w+ )?(?:disease|abnormalit\w+))|any (?:\w+ ){0,2}(?:abnormalit\w+|findings?|disease)"
)
WHAT_DEVICE = re.compile(
    r"\b(?:what|which) (?:\w+ ){0,3}(?:devices?|tubes?|lines?|catheters?|hardware|apparatus|airways?)\b|\bdevices?\b"
)
_WHERE = re.compile(
    r"\bwhere\b|\b(?:which|what) (?:\w+ )?(?:sides?|lungs?|lobes?|zones?|parts?|hemithora\w+|locations?|regions?|areas?"
    r"|bas[ei]s?|(?:hemi)?diaphragms?)\b|\blocat\w+|\b(?:left|right)(?: side)? or (?:on )?(?:the )?(?:left|right)\b"
    r"|\bone side or both\b|\bunilateral or bilateral\b|\bone or both (?:sides?|lungs?)\b|\bhow far\b|\b(?:position|direction) (?:of|is)\b"
    r"|\b(?:which|what) (?:\w+ ){0,2}(?:angles?|borders?|hil(?:um|a)|clavicles?|ribs?|direction|position|ventricles?|atri(?:um|a)|apex)\b"
)
_HOW_SEVERE = re.compile(
    r"\bhow (?:large|big|small|severe|extensive|marked|wide|enlarged|much)\b|\b(?:size|severity|degree|extent)\b"
    r"|\bpartial or complete\b|\bcomplete or partial\b"
    r"|\b(?:mild|small|moderate)\b.*\bor (?:severe|large|moderate)\b"
)
_WHAT_TYPE = re.compile(
    r"\b(?:what|which) (?:\w+ ){0,2}(?:type|kind|sort|shape|variant|pattern|form)\b|\blooks? like\b"
    r"|\b(?:acute|healed|old|chronic) or (?:acute|healed|old|chronic)\b"
)
_SHORT = 5  # words of an answer that tells but one thing
_PLACES = {"bone", "spine", "vertebra", "number", "center", "depth", "end", "relation"}


def type_of(question: str, answer: str, told: PairType) -> PairType:
    """What a lower-case question asks for, by its words; `told` where they do not say."""
    polar = bool(POLAR.match(question)) and bool(YES.match(answer) or NO.match(answer) or MAYBE.match(answer))
    if re.search(r"\bhow many\b|\bnumber of\b", question):
        return "count"
    if polar and NORMAL_ASKED.search(question) and not any(s.state for s in statements_of(content_of(question))):
        return "normal"
    if polar and re.search(
        r"\b(?:normal|unremarkable|clear|abnormal|intact|sharp|well aerated|position(?:ed)?)\b", question
    ):
        return "normal"
    if polar:
        return "presence"
    if _WHERE.search(question):
        return "location"
    if _HOW_SEVERE.search(question):
        return "severity"
    if WHAT_DEVICE.search(question):
        return "device"
    if _WHAT_TYPE.search(question):
        return "type"
    if told == "open" and len(answer.split()) <= _SHORT and not statements_of(answer):
        return _type_by(qualifiers_of(answer))
    return told if told in ("open", "type", "device", "severity", "location") else "open"


def _type_by(told: Mapping[str, frozenset[object]]) -> PairType:
    """What is asked for, by what a short answer tells."""
    axes = {AXIS_OF[str(value)] for value in told.get("traits", ())}
    if {"sides", "levels", "spots"} & told.keys() or axes & _PLACES:
        return "location"
    if {"degrees", "sizes"} & told.keys() or "completeness" in axes:
        return "severity"
    return "count" if "counts" in told else "type" if axes else "open"


def content_of(question: str) -> str:
    """A lower-case question as the words of a statement."""
    text = POLAR.sub("", question.rstrip("? ."), count=1) if POLAR.match(question) else question.rstrip("? .")
    text = re.sub(r"\b(?:the )?patient intubated\b", "endotracheal tube", text)
    text = re.sub(r"(?<!is )(?<!are )\b(absent|resolved)$", r"is \1", text)
    return " ".join(_ASKING.sub(" ", text).split())


def asserted(question: str, answer: str) -> tuple[list[Statement], bool]:
    """What a lower-case question and its answer state together, and whether the answer says that it is not so."""
    claims, negated = _asserted(question, answer)
    if _ENTRY.search(question) and not _END.search(question):
        claims = [_of_entry(claim) if claim.term == DEVICE else claim for claim in claims]
    return claims, negated


def _of_entry(claim: Statement) -> Statement:
    """A claim on where a device enters, or what it passes: it says nothing of where the device ends."""
    veins = {spot.removesuffix(" vein") for spot in claim.spots} & AXES["line"].keys()
    return dataclasses.replace(claim, traits=(claim.traits - AXES["position"].keys()) | veins, spots=frozenset())


def _asserted(question: str, answer: str) -> tuple[list[Statement], bool]:
    content, polar = content_of(question), bool(POLAR.match(question))
    yes, no = YES.match(answer), NO.match(answer)
    if polar and yes:
        rest = answer[yes.end() :]
        return _joined(content, rest), False
    if no:
        rest = answer[no.end() :]
        return statements_of(content), True
    if "how many" in question and words_of(answer, "counts"):
        return statements_of(f"{answer.rstrip('. ')} {content}"), False
    own = statements_of(answer)
    if own and (without_words(answer, "traits").strip(". ") or not statements_of(content)):
        # "What is seen in the left lung?" "An effusion.": the place is in the question, the finding in the answer.
        about = "" if statements_of(content) else content
        sided = about and not any(s.sides for s in own) and words_of(about, "sides")
        joined = statements_of(f"{answer.rstrip('. ')} in the {sided[0][2]} lung") if sided and len(own) == 1 else own
        if sided and sided[0][2] == "both":
            joined = own
        return joined, False
    return _joined(content, answer), False


def _joined(content: str, answer: str) -> list[Statement]:
    """Question and answer as one sentence; words of a group that the answer has are taken out of the question."""
    content, told = _ONE_OR_BOTH.sub(" ", content), qualifiers_of(answer)
    if veins := {str(spot).removesuffix(" vein") for spot in told.get("spots", ())}:  # where it ends: not its own name
        told["traits"] = told.get("traits", frozenset()) - veins
    about = {claim.term for claim in statements_of(content)}
    for choice in _CHOICE.finditer(content):  # "low or high?" "Low."
        if len(left := [word for word in choice.groups() if not re.search(rf"\b{word}\b", answer)]) == 1:
            content = re.sub(rf"\bor\b|\b{left[0]}\b", " ", content)
    if not answer.strip(". "):
        return statements_of(content)
    for group in ("sides", "degrees", "levels"):
        if group in told or (group == "sides" and one_sided(answer)):
            content = re.sub(r"\bor\b", " ", without_words(content, group))
    for axis in {AXIS_OF[str(value)] for value in told.get("traits", ())}:
        content = without_words(content, "traits", AXES[axis])
    claims = statements_of(f"{' '.join(content.split())} is {answer}")
    if about and not without_words(answer, "traits").strip(". "):
        claims = [claim for claim in claims if claim.term in about]  # "which pattern have the opacities?" "Reticular."
    # of what the answer says of itself, nothing is lost that stands too far from the finding
    lost = {group: v for group, v in told.items() if not any(v <= getattr(claim, group) for claim in claims)}
    if any(claim.term != DEVICE for claim in claims):
        lost.pop("spots", None)
    return [dataclasses.replace(claim, **lost) for claim in claims]  # type: ignore[arg-type]
