"""Whether a question and its answer may be used: form, what they refer to, and whether the report says so.

`check_pairs` takes the pairs of one report. Question and answer together are read as a statement, and that is compared
with what the report states (`statements.py`), then with labels where the report is silent. What disagrees is rejected;
what the report neither says nor denies is kept, and marked "unknown". Each pair leaves with its type as the rules see it
and, where one was found, the sentence that answers it. English only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from llmcxr.metrics.scores import normalize_answer
from llmcxr.studies.sentences import sentences
from llmcxr.synthesis.asking import MAYBE, NO, NORMAL_ASKED, POLAR, WHAT_DEVICE, YES, asserted, content_of, type_of
from llmcxr.synthesis.attributes import AXIS_OF, MANY, one_sided, opposed
from llmcxr.synthesis.form import fault_of_form
from llmcxr.synthesis.pairs import QaPair
from llmcxr.synthesis.statements import (
    ACUTE,
    DEVICE,
    NARROWER,
    WIDER,
    Statement,
    says_all_is_normal,
    says_whole_is_normal,
    statements_of,
    terms_named,
)
from llmcxr.synthesis.wording import Agreement, denied_alone
from llmcxr.synthesis.wording import agreement as shared_words

# Why a pair is rejected, in the order in which it is looked for.
REASONS: dict[str, str] = {
    "empty": "question or answer is missing, or holds no word",
    "not a question": "the question asks nothing",
    "length": "question or answer is too long, or too short to ask anything",
    "no answer": "the answer says that there is none",
    "report": "refers to the report, or to who wrote it",
    "patient": "names, dates, age, symptoms or history",
    "not in the image": "advice, cause or technique, which no image shows",
    "other views": "refers to another view or another kind of imaging",
    "priors": "refers to earlier studies, or asks for change",
    "contradicted": "the report says otherwise",
    "duplicate": "the same question was asked of this study",
    "paraphrase": "the same is asked of this study in other words",
}
_ONLY = re.compile(
    r"\b(?:only|(?:limited|confined|restricted) to|exclusively|solely|unilateral(?:ly)?|one side|isolated to|alone)\b"
)
# One side against the other: which, and whether it has more or less.
_AGAINST = re.compile(
    r"\b(?P<a>left|right)(?:[- ]sided?)?(?: \w+){0,3}?"
    r" (?P<how>greater|larger|bigger|worse|more(?: \w+)?|smaller|less(?: \w+)?)"
    r" than (?:(?:on|in|at|that) )?(?:the )?(?:\w+ )?(?:left|right|other|opposite)\b"
    r"|\b(?P<how2>greater|larger|bigger|worse|more(?: \w+)?|smaller|less(?: \w+)?) (?:on|in|at) the (?P<b>left|right)\b"
)
_SAME = re.compile(r"\b(?:same (?:size|amount|extent|severity|degree)|equal(?:ly)?|as (?:large|big|severe|much))\b")
_PART = re.compile(
    r"(?:,|:|;|\band|\bwith)\s(?:one|another|(?:the|a) (?:other|second|third))\b[^,;:]*?"
    r"(?=,|;|:| and (?:one|the|another)|$)"
)
_SINGULAR = re.compile(r"(?:nodule|mass|granuloma|fracture|lesion|tube|catheter|line|drain)$")
_PLURAL = re.compile(r"(?:nodules|masses|granulomas|fractures|lesions|tubes|catheters|lines|drains)$")
_BY_NOUN = {"granuloma", "pulmonary edema"}
_OF_SEVERAL = {"interstitial markings", "opacity"}  # terms of several things: "septal lines, possible fibrosis"
_UNSAID = {"bone", "spine"}  # axes that go without saying: "does the spine show scoliosis"
_OPPOSITE = {"hypoinflation": "hyperinflation", "hyperinflation": "hypoinflation"}
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was were there any of in on at to this that it be seen visible present shown image radiograph chest x"
        " ray xray show shows does do can you see evidence sign signs have has patient which what where how and film",
    )
)


def check_pairs(report: str, pairs: Sequence[QaPair], labels: Mapping[str, int] | None = None) -> list[QaPair]:
    """The pairs of one study in their order, each with verdict, reason, type, evidence and finding.

    `report` is what the pairs were made from (findings and impression). `labels` (finding -> 1, 0, -1) count where the
    report is silent. Never raises for what a model wrote.
    """
    said = Said(report, labels or {})
    asked: dict[object, int] = {}
    result = []
    for number, pair in enumerate(pairs):
        checked = _checked(pair, said)
        if checked.kept:
            for reason, key in (("duplicate", _words(pair.question)), ("paraphrase", _meaning(checked))):
                if asked.setdefault(key, number) != number:
                    checked = dataclasses.replace(checked, verdict="rejected", reason=reason)
                    break
        result.append(checked)
    return result


def _checked(pair: QaPair, said: Said) -> QaPair:
    question, answer = _plain(pair.question), _plain(pair.answer)
    if reason := fault_of_form(question, answer):
        return dataclasses.replace(pair, verdict="rejected", reason=reason)
    statements, negated = asserted(question, answer)
    agreement, evidence = said.compare(question, answer, statements, negated)
    terms_ = {s.term for s in statements}
    return dataclasses.replace(
        pair,
        type=type_of(question, answer, pair.type),
        verdict="rejected" if agreement == "contradicted" else agreement,
        reason="contradicted" if agreement == "contradicted" else "",
        evidence=evidence or (pair.evidence if _words(pair.evidence) in said.words else ""),
        finding=pair.finding or (terms_.pop() if len(terms_) == 1 else ""),
    )


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("’", "'").split())


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


class Said:
    """What a report says, for comparison; with labels where it is silent."""

    def __init__(self, report: str, labels: Mapping[str, int]) -> None:
        self.statements = statements_of(report)
        self.sentences = [sentence.lower() for sentence in sentences(report)]
        self.words = {""} | {_words(s.sentence) for s in self.statements}
        self.normal, self.whole = says_all_is_normal(report), says_whole_is_normal(report)
        self._by_term: dict[str, list[Statement]] = {}
        for statement in self.statements:
            self._by_term.setdefault(statement.term, []).append(statement)
        for term, state in _terms_of(labels):
            if term not in self._by_term:
                self._by_term[term] = [Statement(term, state, "")]
        affirmed = [s for s in self.statements if s.state == 1 and s.term != DEVICE]
        self.abnormal = affirmed[0] if affirmed else None

    def of(self, term: str, state: int, claim: Statement | None = None) -> list[Statement]:
        """Its statements of a term in a state: affirmed or doubted ones of narrower terms, denied ones of wider.

        Of a term that several things go by ("congestion, no edema") those with the noun of `claim`, where there are any.
        """
        others = WIDER if state == 0 else NARROWER
        found = [s for t in (term, *others.get(term, ())) for s in self._by_term.get(t, ())]
        if term in _BY_NOUN and claim is not None:
            same = [s for s in found if _head(s.noun) == _head(claim.noun)]
            found = [
                s for s in same if s.state or not s.degrees or claim.degrees
            ] or found  # "no overt edema" leaves others
        return [s for s in found if s.state == state]

    def compare(
        self, question: str, answer: str, statements: Sequence[Statement], negated: bool
    ) -> tuple[Agreement, str]:
        """Whether the report says what is asserted, and the sentence that says so."""
        told = self._told(question, answer, statements, negated)
        polar, yes, no = bool(POLAR.match(question)), YES.match(answer), NO.match(answer)
        bare = polar and yes and told[0] == "unknown" and len({claim.term for claim in statements}) == 1
        # "is there cavitation in the mass": "No cavitation", after the sentence on the mass
        if bare and (denied := denied_alone(content_of(question), statements[0].noun, self.sentences)):
            return "contradicted", denied
        if told != ("unknown", "") or any(claim.kinds for claim in statements):
            return told
        chosen = polar and " or " in question and not (yes or no or MAYBE.match(answer))
        if (polar and not (yes or no or chosen)) or (no and not polar):
            return told
        content = content_of(question) + (f" {answer[yes.end() :]}" if polar and yes else "")
        return shared_words(content, answer, bool(yes) if polar and not chosen else None, self.sentences)

    def _told(
        self, question: str, answer: str, statements: Sequence[Statement], negated: bool
    ) -> tuple[Agreement, str]:
        """By findings that the labeller knows."""
        if not statements:
            return self._whole(question, answer)
        if (compared := self._compared(question, answer, statements)) is not None:
            return compared
        if negated:
            return self._negated(statements)
        which = not POLAR.match(question)
        found = [self._affirmed(s, question, answer) if s.state else self._denied(s, which) for s in statements]
        for agreement in ("contradicted", "unknown"):
            if (own := next((f for f in found if f[0] == agreement), None)) is not None:
                return own
        return found[0]

    def _whole(self, question: str, answer: str) -> tuple[Agreement, str]:
        """Of the whole image: "Is this radiograph normal?"."""
        asked = NORMAL_ASKED.search(question)
        yes, no = bool(YES.match(answer)), bool(NO.match(answer))
        if asked and (yes or no) and POLAR.match(question):
            normal = yes == (
                "normal" in question.replace("abnormal", "") or "free of" in question or "unremark" in question
            )
        elif says_all_is_normal(answer):
            if re.search(r"\b(?:lungs?|heart|bones?|aorta|spine|devices?|tubes?|lines?)\b", question):
                return "unknown", ""
            normal = True
        else:
            return "unknown", ""
        if self.abnormal is not None:
            return ("contradicted" if normal else "entailed"), self.abnormal.sentence
        if self.normal and not self.of(DEVICE, 1):  # whether an image with a device alone is normal, people differ
            return ("entailed" if normal else "contradicted"), ""
        return "unknown", ""

    def _affirmed(self, claim: Statement, question: str, answer: str) -> tuple[Agreement, str]:
        own, doubted = self.of(claim.term, 1, claim), self.of(claim.term, -1, claim)
        if claim.term == DEVICE and claim.kinds:
            return self._device(claim, own, question, answer)
        if not own and not doubted:
            if denied := self._denials(claim):
                return "contradicted", denied[0].sentence
            if other := self.of(_OPPOSITE.get(claim.term, ""), 1):
                return "contradicted", other[0].sentence
            return ("contradicted" if self._normal_without(claim) else "unknown"), ""
        found = own or doubted
        sides = frozenset[str]().union(*(s.sides for s in found))
        if len(sides) == 2 and len(claim.sides) < 2 and self._one_side_only(claim, found, question, answer):
            return "contradicted", found[0].sentence
        if (agreement := _qualified(claim, found)) == "entailed" and not own and claim.state == 1:
            agreement = "unknown"  # the report is not sure
        return agreement, _best(claim, found).sentence

    @staticmethod
    def _one_side_only(claim: Statement, found: Sequence[Statement], question: str, answer: str) -> bool:
        """Whether a claim is of one side only, or of the other one as the worse, where the report tells of both."""
        if one_sided(answer if re.search(r"\bor\b", question) else f"{question} {answer}"):
            return True
        if not claim.sides:
            return False
        worse = {_more_on(s.sentence.lower()) for s in found} - {""}
        asked = re.search(r"\b(?:larger|greater|bigger|worse|more)\b", question)
        return bool(_ONLY.search(f"{question} {answer}") or (asked and worse and not worse & claim.sides))

    def _compared(self, question: str, answer: str, statements: Sequence[Statement]) -> tuple[Agreement, str] | None:
        """Of one side against the other; None where it is not that what is asked, or the report does not compare."""
        asked, same = _more_on(question), bool(_SAME.search(question))
        yes, no = bool(YES.match(answer)), bool(NO.match(answer))
        if not POLAR.match(question) or not (asked or same) or not (yes or no):
            return None
        for found in (s for claim in statements for s in self.of(claim.term, 1, claim)):
            if more := _more_on(found.sentence.lower()):
                claimed = _more_on(answer) or asked if yes or _more_on(answer) else ""
                fits = no if same else yes == (more == asked)
                return ("entailed" if fits and claimed in ("", more) else "contradicted"), found.sentence
        return None

    def _denials(self, claim: Statement) -> list[Statement]:
        """The report's statements that deny a claim: "no acute fracture" denies no old one."""
        return [
            s
            for s in self.of(claim.term, 0, claim)
            if s.denies(claim.sides)
            and not opposed(claim.traits, s.traits)
            and not (claim.degrees and s.degrees and not claim.degrees & s.degrees)
        ]

    def _normal_without(self, claim: Statement) -> bool:
        """Whether the report, which does not name a finding, excludes it by calling all normal, or nothing acute."""
        if self.abnormal is None:
            return claim.term != DEVICE and (self.whole or (self.normal and claim.term in ACUTE))
        # an opacity may be another word for what there is
        return (
            self.normal
            and claim.term in ACUTE
            and WIDER.get(claim.term, ()) != ("lung abnormality",)
            and "opacity" not in (claim.term, *WIDER.get(claim.term, ()))
        )

    def _device(self, claim: Statement, own: Sequence[Statement], question: str, answer: str) -> tuple[Agreement, str]:
        same = [s for s in own if s.kinds & claim.kinds]
        denied = [s for s in self.of(DEVICE, 0) if not s.kinds or s.kinds & claim.kinds]
        if same:
            sides = frozenset[str]().union(*(s.sides for s in same))
            if len(sides) == 2 and len(claim.sides) < 2 and self._one_side_only(claim, same, question, answer):
                return "contradicted", same[0].sentence
            return _qualified(claim, same), same[0].sentence
        if denied:
            return "contradicted", denied[0].sentence
        if WHAT_DEVICE.search(question) and own and all(s.kinds for s in own):
            return "contradicted", own[0].sentence  # it names the devices, and this is none of them
        return "unknown", ""

    def _denied(self, claim: Statement, which: bool = False) -> tuple[Agreement, str]:
        """Of a claim that a finding is absent; `which`: where is asked for, not whether."""
        own, denied = self.of(claim.term, 1, claim), self._denials(claim)
        same = self._by_term.get(claim.term, ()) if claim.term in NARROWER else ()
        if same and all(s.state == 0 for s in same):  # in the report's own words, whatever it says of details
            if any(s.denies(claim.sides) for s in same):
                return "entailed", same[0].sentence
            if len(claim.sides) == 1 and which:  # "which lung is spared" names the other one
                return "contradicted", same[0].sentence
        if own:
            if claim.term == DEVICE and claim.kinds and not (own := [s for s in own if s.kinds & claim.kinds]):
                return "unknown", ""
            if claim.state == 0 and len(claim.sides) == 2:
                claim = dataclasses.replace(claim, sides=frozenset())  # "both angles are sharp": neither is blunted
            fits = _qualified(claim, own)
            if self._only_suspected(claim, own, fits):
                return "unknown", ""
            agreement: Agreement = {"entailed": "contradicted", "contradicted": "entailed"}.get(fits, "unknown")  # type: ignore[assignment]
            return agreement, own[0].sentence
        # "the left lung is clear", whatever is suspected elsewhere
        if denied and (not self.of(claim.term, -1, claim) or any(s.sides and s.sides == claim.sides for s in denied)):
            return "entailed", denied[0].sentence
        return ("entailed" if self._normal_without(claim) else "unknown"), ""

    def _only_suspected(self, claim: Statement, own: Sequence[Statement], fits: Agreement) -> bool:
        """Whether what a claim names is suspected, beside another of its term that is there."""
        doubted = [s for s in self.of(claim.term, -1, claim) if claim.term != DEVICE]
        if fits == "contradicted":
            return any(_qualified(claim, [s]) == "entailed" for s in doubted)
        return (
            claim.term in _OF_SEVERAL
            and all(_head(s.noun) != _head(claim.noun) for s in own)
            and any(_head(s.noun) == _head(claim.noun) for s in doubted)
        )

    def _negated(self, statements: Sequence[Statement]) -> tuple[Agreement, str]:
        """Of the answer "no": what the question states is not so; of "are the lungs clear" some finding is there."""
        absent = [s for s in statements if s.state == 0]
        if not absent:
            found = [self._denied(s) for s in statements]
            # "no" to "effusion or pneumothorax" denies both; one that is there contradicts
            for agreement in ("contradicted", "unknown"):
                if (own := next((f for f in found if f[0] == agreement), None)) is not None:
                    return own
            return found[0]
        there = [self._denied(s) for s in absent]
        if (own := next((f for f in there if f[0] == "contradicted"), None)) is not None:
            return "entailed", own[1]
        if all(f[0] == "entailed" for f in there):
            return "contradicted", there[0][1]
        return "unknown", ""


def _qualified(claim: Statement, found: Sequence[Statement]) -> Agreement:
    """Whether all that a claim says of a finding is what the report's statements of it say."""
    known = True
    for rank, first in (("largest", max), ("smallest", min)):
        if rank in claim.traits:
            measured = [s for s in found if _size_of(s)]
            named = [s for s in found if rank in s.traits] or measured[1:] and [first(measured, key=_size_of)]
            claim, found = dataclasses.replace(claim, traits=claim.traits - {rank}), named or found
    sides = frozenset[str]().union(*(s.sides for s in found))
    if claim.sides:
        if sides and not claim.sides <= sides:
            return "contradicted"
        known &= bool(sides)
        found = [s for s in found if not s.sides or s.sides & claim.sides] or found
    for name in ("degrees", "levels", "traits", "counts", "sizes", "spots"):
        wanted: frozenset[object] = getattr(claim, name)
        if not wanted:
            continue
        there = (
            _numbers(found, claim)
            if name == "counts"
            else frozenset[object]().union(*(getattr(s, name) for s in found))
        )
        fits = wanted <= there if name == "levels" else wanted & there  # "in the mid and lower zones": in both
        if opposed(wanted, there) if name == "traits" else there and not fits:
            return "contradicted"
        known &= {v for v in wanted if AXIS_OF.get(str(v)) not in _UNSAID} <= there if name == "traits" else bool(there)
    return "entailed" if known else "unknown"


def _more_on(text: str) -> str:
    """The side on which a lower-case text says that there is more than on the other; "" where it does not."""
    if (told := _AGAINST.search(text)) is None:
        return ""
    side, how = told["a"] or told["b"], told["how"] or told["how2"]
    return side if not how.startswith(("less", "smaller")) else {"left": "right", "right": "left"}[side]


def _size_of(statement: Statement) -> float:
    """Something to compare by: a measure, else a degree; 0 where it has neither."""
    return max(statement.sizes, default=0) or max(
        (["mild", "moderate", "severe"].index(d) + 1 for d in statement.degrees), default=0
    )


def _numbers(found: Sequence[Statement], claim: Statement) -> frozenset[object]:
    """How many there may be: by numbers, alone or added up, else by whether nouns are of one or of several."""
    found = [_all_or_part(s, claim) for s in found]
    if told := [s.counts for s in found if s.counts]:
        return frozenset[object]().union(*told) | {sum(max(counts) for counts in told)}
    if any(_PLURAL.search(s.noun) for s in found):
        return MANY
    return frozenset(range(1, len(found) + 1)) if all(_SINGULAR.search(s.noun) for s in found) else frozenset()


def _all_or_part(said: Statement, claim: Statement) -> Statement:
    """A statement with the number of all ("two tubes, one at the apex and one at the base": two), or of those parts
    that have a word of the claim which the rest has not."""
    text = said.sentence.lower()
    parts = [m[0] for m in _PART.finditer(text)]
    if len(parts) < 2 or len(parts) not in said.counts:
        return said
    whole = {_stem(w) for w in re.findall(r"[a-z]{4,}", text.split(parts[0])[0])}
    named = {_stem(w) for w in re.findall(r"[a-z]{4,}", claim.sentence.lower())} - whole
    shared = [len(named & {_stem(w) for w in re.findall(r"[a-z]{4,}", part)}) for part in parts]
    return dataclasses.replace(said, counts=frozenset({shared.count(max(shared))}))


def _stem(word: str) -> str:
    return word[:5]


def _head(noun: str) -> str:
    return noun.split()[-1].rstrip("s") if noun else ""


def _best(claim: Statement, found: Sequence[Statement]) -> Statement:
    """The statement that tells most of what is claimed."""
    return max(
        found, key=lambda s: sum(bool(getattr(claim, n) and getattr(s, n)) for n in ("sides", "degrees", "levels"))
    )


def _terms_of(labels: Mapping[str, int]) -> list[tuple[str, int]]:
    """What labels say of the labeller's terms: a group that is absent is absent in all, one that is there in its first."""
    result = []
    for name, state in labels.items():
        named = terms_named(name)
        result += [(term, state) for term in (named if state == 0 else named[:1])]
    return result


def _meaning(pair: QaPair) -> object:
    """What a pair tells, whatever its words: two of one study that tell the same are paraphrases."""
    question, answer = _plain(pair.question), _plain(pair.answer)
    if pair.type in ("presence", "normal"):
        claims = statements_of(content_of(question))
        if claims:
            return pair.type, frozenset(
                (s.term, s.state, s.sides, s.degrees, s.levels, s.kinds, s.traits) for s in claims
            )
        content = frozenset(w for w in _words(question).split() if w not in _STOP)
        return pair.type, content
    named: frozenset[object] = frozenset((s.term, s.kinds) for s in statements_of(content_of(question)))
    if not named:
        named = frozenset(w for w in _words(question).split() if w not in _STOP)
    return pair.type, named, normalize_answer(answer, False)
