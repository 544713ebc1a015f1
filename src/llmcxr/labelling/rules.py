"""The rule-based labeller: which findings a text states, denies or doubts, where it says so, and on which side.

Each sentence is searched for mentions (`terms.py`) and, where it has any, for cues (`cues.py`). A cue acts on the
mentions in its scope: forward ("no", "possible") or backward ("is not seen", "cannot be excluded"), up to a word that
opens a new statement. States over a report: 1 where any mention is affirmed, else -1 where any is uncertain, else 0. A
finding that is not mentioned is not in the result. Mentions of history, of questions put by the referrer and of what
is only hypothetical ("evaluate for pneumonia", "if there is concern for effusion") count as no mention, nor do
sections such as INDICATION.

Generated text is often ungrammatical, so nothing here relies on parsing, capitals or complete sentences. Reading takes
time in proportion to the length, of a sentence too. English only.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from llmcxr.labelling import cues, terms
from llmcxr.labelling.base import Mention, Reading
from llmcxr.studies.findings import NO_FINDING, LabelSet

# Sections that ask, tell of the past or of the technique; they end with the next heading, or at a blank line.
_ASKING = (
    r"(?:indications?|(?:\w+ )?history|clinical (?:information|indications?|data|statement|details?)|"
    r"reasons? for (?:this |the )?(?:\w+ )?(?:exam\w*|study|visit|consult\w*)|technique|comparisons?|"
    r"exam(?:ination)?|procedure|study|"
    r"type of (?:exam\w*|study)|notification|radiation dose)"
)
_TELLING = r"(?:findings?|impressions?|conclusions?|findings? (?:and|/) ?impressions?|interpretation|opinion|report)"
_SENTENCE = re.compile(
    r"(?:(?<=[.!;])|(?<=[\w)]\?))(?:\s+|(?=[a-z]))"
    rf"|\s*\b(?P<asking>{_ASKING})\s?:|\s*\b{_TELLING}\s?:|(?<=\s)\d{{1,2}}[.)]\s|^\d{{1,2}}[.)]\s"
)
_WORD = re.compile(r"\S+")
_BLANK_LINE = re.compile(r"\n\s*\n")
_TITLE = re.compile(r"\b(vs|dr|approx)\.")


@dataclass(frozen=True)
class _Sentence:
    """A lower-case sentence with single spaces, and from where in the text its words are."""

    text: str
    starts: list[int] = field(repr=False)  # of the words of its paragraph, in the paragraph
    origins: list[int] = field(repr=False)  # of the same words, in the text that is read
    offset: int  # of the sentence in the paragraph

    def origin(self, place: int) -> int:
        """Where the character at `place` is in the text that is read."""
        word = bisect_right(self.starts, place + self.offset) - 1
        return self.origins[word] + place + self.offset - self.starts[word]


def sentences(text: str) -> Iterator[_Sentence]:
    """The sentences of a text that tell of the images. A blank line, a heading and a list number end a sentence too."""
    # Every character keeps its place: those that have no small letter of one character stay as they are.
    lower = text.lower()
    if len(lower) != len(text):
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    lower = _TITLE.sub(r"\1 ", lower)
    first = 0
    asked = False  # inside a section that asks, of which nothing has been read yet
    for gap in [*_BLANK_LINE.finditer(lower), None]:
        words = list(_WORD.finditer(lower, first, gap.start() if gap else len(lower)))
        first = gap.end() if gap else 0
        joined, origins = " ".join(word.group() for word in words), [word.start() for word in words]
        starts, begin = list(accumulate((len(word.group()) + 1 for word in words), initial=0)), 0
        asking, asked = asked, False
        for mark in [*_SENTENCE.finditer(joined), None]:
            part = joined[begin : mark.start() if mark else len(joined)]
            if sentence := part.strip():
                asked = False
                if not asking:
                    yield _Sentence(sentence, starts, origins, begin + len(part) - len(part.lstrip()))
            if mark:
                begin = mark.end()
                if ":" in mark.group():
                    asking = asked = mark["asking"] is not None


class _Scope:
    """Which cues of one sentence reach which of its mentions."""

    def __init__(self, sentence: str, spans: Sequence[tuple[int, int, str]]) -> None:
        self.sentence = sentence
        self.cues = cues.find_cues(sentence)
        self.breaks = [match.start() for match in cues.BREAK.finditer(sentence)]
        self.verbs = [match.start() for match in cues.VERB.finditer(sentence)]
        self.starts, self.ends = [start for start, _, _ in spans], sorted(end for _, end, _ in spans)
        lists = [match.start() for match in cues.LIST_END.finditer(sentence)]
        # "no pneumothorax mild cardiomegaly": a degree opens a new statement, but in a list that goes on with "or".
        degrees = [end for end in self.ends if cues.DEGREE.match(sentence, end) and not self._goes_on(end, lists)]
        self.stops = sorted({*self.breaks, *degrees})
        joints = [match.start() for match in cues.DOUBT_ENDS.finditer(sentence)]
        joints += [
            match.start()
            for match in re.finditer(r", (?!or\b|and/or\b)", sentence)
            if not self._listed(match.end(), lists)
        ]
        self.joints = sorted(joint for joint in joints if bisect_right(self.ends, joint))
        self.stop_of = {kind: [stop for _, stop in found] for kind, found in self.cues.items()}
        self.start_of = {kind: [start for start, _ in found] for kind, found in self.cues.items()}

    def _goes_on(self, end: int, lists: list[int]) -> bool:
        """Whether an "or" joins what follows `end` to a list: at most one further finding stands before it."""
        at = bisect_left(lists, end)
        if at == len(lists) or lists[at] - end > 60:
            return False
        crossed = bisect_left(self.breaks, end) < bisect_left(self.breaks, lists[at])
        denied = bisect_left(self.cues["not_before"], (end, 0)) < bisect_left(self.cues["not_before"], (lists[at], 0))
        return not crossed and not denied and bisect_left(self.starts, lists[at]) - bisect_left(self.starts, end) == 1

    def _listed(self, place: int, lists: list[int]) -> bool:
        at = bisect_left(lists, place)
        return at < len(lists) and lists[at] - place <= 80

    def before(self, kind: str, start: int) -> int | None:
        """End of the last cue of a kind that stands before `start` and reaches it."""
        at = bisect_right(self.stop_of[kind], start)
        if not at:
            return None
        stop = self.stop_of[kind][at - 1]
        crossed = bisect_right(self.stops, start)
        return stop if not crossed or self.stops[crossed - 1] < stop else None

    def doubted(self, start: int, end: int) -> bool:
        """Whether a doubt reaches the mention at [start, end) from either side."""
        if any(self._doubts(self.before(kind, start), start) for kind in ("doubt_before", "either")):
            return True
        at = bisect_left(self.start_of["either"], end)
        if at < len(self.start_of["either"]) and self.after("either", end):
            # the nearest, which is not "concerning for" what stands here
            begin, hedges = self.start_of["either"][at], self.start_of["doubt_before"]
            if all(bisect_left(places, begin) == bisect_left(places, end) for places in (self.starts, hedges)):
                return True
        if self.after("doubt_after", end) or self.after("if_any", end):
            return True
        # "minimal if any effusion"; but "effusions are minimal if any, cardiomegaly" has met its finding
        stop = self.before("if_any", start)
        return stop is not None and not bisect_right(self.ends, stop)

    def _doubts(self, stop: int | None, start: int) -> bool:
        """Whether a doubt that ends at `stop` reaches `start`: not across a joint behind a finding that it has met."""
        if stop is None:
            return False
        joint = bisect_right(self.joints, start) - 1
        if joint < 0 or self.joints[joint] < stop:
            return True
        return bisect_right(self.ends, self.joints[joint]) == bisect_right(self.ends, stop)

    def after(self, kind: str, end: int) -> bool:
        """Whether the first cue of a kind behind `end` reaches back to it: over no verb but the cue's own."""
        at = bisect_left(self.start_of[kind], end)
        if at == len(self.start_of[kind]):
            return False
        begin = self.start_of[kind][at]
        # "the tube and the line have been removed": an "and" before the verb joins subjects
        for place in self.breaks[bisect_left(self.breaks, end) : bisect_right(self.breaks, begin)]:
            if not self.sentence.startswith("and", place):
                return False
        verb = bisect_left(self.verbs, end)
        if kind == "if_any" or verb == len(self.verbs) or self.verbs[verb] >= begin:
            return True
        tail = cues.COPULA_END.search(self.sentence, max(end, begin - 12), begin)
        return tail is not None and self.verbs[verb] >= tail.start()

    def state(self, start: int, end: int) -> int | None:
        """What the cues make of the mention at [start, end): 1, 0, -1, or None where it is to be ignored."""
        if self.before("ignore", start) is not None or self.after("ignore_after", end):
            return None
        at = bisect_left(self.start_of["colon"], end)
        if at < len(self.start_of["colon"]) and not self.sentence[end : self.start_of["colon"][at]].strip():
            return 0
        if self.before("not_before", start) is not None or self.after("not_after", end):
            return 0
        return -1 if self.doubted(start, end) else 1


_BOTH = (
    r"bilateral(?:ly)?|bibasilar|bibasal|(?:lung |the )bases|biapical|both"
    r"|(?:left|right)(?: and | and/or |/)(?:the )?(?:left|right)"
    r"|(?:left|right) (?:greater|larger|more|worse) than (?:the )?(?:left|right)"
)
_SIDE = re.compile(rf"\b(?:(?P<both>{_BOTH})|(?P<left>left(?:-sided)?|lingular?)|(?P<right>right(?:-sided)?))\b")
_PAUSE = re.compile(r",|;|\b(?:and|or|with)\b")
_REACH = 120  # characters


def _side(
    sentence: str, mention: Mention, starts: list[int], words: list[tuple[int, int, str]], breaks: list[int]
) -> str:
    """The word for a side that is nearest to a mention, crossing as few others, commas and conjunctions as possible.

    `starts` are those of all mentions, `words` the (start, end, side) of the sentence, `breaks` its new statements.
    """
    ranked = []
    for start, end, side in words[
        bisect_left(words, (mention.start - _REACH - 40,)) : bisect_right(words, (mention.end + _REACH + 1,))
    ]:
        ahead = start >= mention.start
        low, high = (mention.end, start) if ahead else (end, mention.start)
        # A side inside the mention ("blunting of the left angle") has an empty gap.
        gap = sentence[low:high]
        if len(gap) > _REACH or bisect_left(breaks, low) < bisect_right(breaks, high):
            continue
        own = low <= mention.start < high
        crossed = max(0, bisect_left(starts, high) - bisect_left(starts, low) - own)
        ranked.append((2 * crossed + len(_PAUSE.findall(gap)), len(gap), side))
    return min(ranked)[2] if ranked else ""


class RuleLabeller:
    """Labels by phrases and cues, without a model.

    `vocabulary`: what it can read, finding -> terms of `terms.PRESENT`.
    """

    def __init__(self, vocabulary: Mapping[str, Sequence[str]] = terms.FINDINGS) -> None:
        self._terms: dict[str, list[str]] = {}  # term -> findings
        for finding, named in vocabulary.items():
            for term in named:
                self._terms.setdefault(term, []).append(finding)
        self._chexpert = vocabulary is terms.CHEXPERT
        self.findings = LabelSet([*vocabulary, NO_FINDING] if self._chexpert else vocabulary)
        self.sided = LabelSet(f for f, named in vocabulary.items() if terms.SIDED & set(named))
        self._present = {term: terms.compile_phrases(terms.PRESENT[term]) for term in self._terms}
        self._unrelated = {t: terms.compile_phrases(p) for t, p in terms.UNRELATED.items() if t in self._terms}
        self._absent = [
            (kept, terms.compile_phrases(pattern))
            for named, pattern in terms.ABSENT
            if (kept := [term for term in named if term in self._terms])
        ]
        self._doubtful = {t: terms.compile_phrases(p) for t, p in terms.DOUBTFUL.items() if t in self._terms}
        # Reports repeat their sentences; a long one is hardly met again.
        self._remembered = functools.lru_cache(maxsize=20_000)(self._said)

    def read_all(self, texts: Sequence[str]) -> list[Reading]:
        """What texts say, in order."""
        return [self.read(text) for text in texts]

    def spans(self, sentence: str) -> list[tuple[int, int, str]]:
        """(start, end, term) of all mentions in a lower-case sentence with single spaces, in order."""
        spans = []
        for term, pattern in self._present.items():
            found = []
            for match in pattern.finditer(sentence):
                group = next((g for g in pattern.groupindex if match[g]), 0)
                found.append((*match.span(group), term))
            if found and term in self._unrelated:
                void = [match.span() for match in self._unrelated[term].finditer(sentence)]
                found = [s for s in found if not void or not _overlaps(s, void)]
            spans += found
        return sorted(spans)

    def _said(self, sentence: str) -> tuple[Mention, ...]:
        """All mentions in a sentence by term, with sides, and statements of normality and doubt; places as in it."""
        spans, said = self.spans(sentence), []
        if spans:
            scope = _Scope(sentence, spans)
            found = [
                Mention(term, state, start, end)
                for start, end, term in spans
                if (state := scope.state(start, end)) is not None
            ]
            alternatives = set()
            for first, second in zip(found, found[1:], strict=False):
                gap = sentence[first.end : second.start] if second.start - first.end < 60 else ""
                if first.finding != second.finding and cues.ALTERNATIVE.fullmatch(gap):
                    alternatives |= {first, second}
            found = [replace(m, state=-1) if m in alternatives and m.state == 1 else m for m in found]
            words = [(w.start(), w.end(), str(w.lastgroup)) for w in _SIDE.finditer(sentence)]
            starts = [m.start for m in found]
            for mention in found:
                sided = words and mention.finding in terms.SIDED and mention.state != 0
                side = _side(sentence, mention, starts, words, scope.breaks) if sided else ""
                said.append(replace(mention, side=side) if side else mention)
        for term, pattern in self._doubtful.items():
            if match := pattern.search(sentence):
                said.append(Mention(term, -1, *match.span()))
        for named, pattern in self._absent:
            if match := pattern.search(sentence):
                said += [Mention(term, 0, *match.span()) for term in named]
        return tuple(said)

    def read(self, text: str) -> Reading:
        """What a text says; see `Reading`. Never raises.

        Affirmed wins over uncertain, uncertain over denied (or stated normal): "no pleural effusion on the left; small
        right effusion" is 1. A heart at the upper limits of normal or of borderline size is -1; one called borderline
        enlarged is 1. Sides are the patient's, and are of `sided` only. Evidence of normality is the whole statement
        ("lungs are clear"). CheXpert's "No Finding" is 1 where nothing but a device is affirmed or doubted; else it
        has no entry.
        """
        mentions = tuple(
            Mention(finding, m.state, sentence.origin(m.start), sentence.origin(m.end - 1) + 1, m.side)
            for sentence in sentences(text)
            for m in (self._remembered if len(sentence.text) < 400 else self._said)(sentence.text)
            for finding in self._terms[m.finding]
        )
        told: dict[str, set[int]] = {}
        for mention in mentions:
            told.setdefault(mention.finding, set()).add(mention.state)
        states: dict[str, int] = {
            name: next(s for s in (1, -1, 0) if s in told[name]) for name in self.findings if name in told
        }
        if self._chexpert and text.strip() and not any(s for name, s in states.items() if name != "Support Devices"):
            states[NO_FINDING] = 1
        return Reading(states, mentions)


def _overlaps(span: tuple[int, int, str], others: list[tuple[int, int]]) -> bool:
    """Whether `span` shares a character with any of `others`, which are in order and apart."""
    at = bisect_right(others, (span[0], span[0]))
    return (at > 0 and others[at - 1][1] > span[0]) or (at < len(others) and others[at][0] < span[1])
