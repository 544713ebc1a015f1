"""References to earlier studies in a report: what a reader of this one image cannot know ("unchanged", "compared to
___").

A model that learns to write them writes them without having seen anything earlier. Rules in the style of ConText
(Harkema et al., 2009): cues make a sentence a reference, and phrases that look like cues but speak of this image, of
the patient's history or of what is to come are taken out first ("stable granuloma" is a cue, "prior sternotomy",
"larger than the left" and "follow-up is recommended" are none).

A policy says what becomes of such sentences. It changes the text that is learned and scored, after labels were read
from the whole report: a finding stays known when the sentence that compares it goes.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmcxr.studies.report_cleaning import clean_text
from llmcxr.studies.sentences import sentences
from llmcxr.studies.study import Study

PriorReferences = Literal["keep", "drop", "rewrite"]
# What a policy does: texts of sections that hold references to as many new texts.
ReportEdit = Callable[[Sequence[str]], list[str]]

_STUDY = (
    r"(?:stud(?:ies|y)|exams?|examinations?|films?|radiographs?|images?|imaging|x-?rays?|cxrs?|cts?|scans?|comparisons?"
    r"|reports?|views?)"
)
_SURGERY = (
    r"(?:surg\w+|sternotom\w+|thoracotom\w+|cabg|bypass|operati\w+|resection|lobectom\w+|mastectom\w+"
    r"|cholecystectom\w+|\w+ectomy|repair|"
    r"procedures?|interventions?|granulomatous|infections?|inflamm\w+|disease|exposure|trauma|fractures?|injur\w+"
    r"|radiation|biops\w+|"
    r"infarct\w*|tuberculosis|tb|episodes?|history|instrumentation|\w+plasty|fusion|valve|stent\w*|line|placement"
    r"|aspiration|hemorrhage)"
)
# Look like cues, and are none. Searched first; what they cover is not searched again.
_NO_CUES = re.compile(
    rf"""
      \b(?:prior|previous|old|remote|earlier|recent)\ (?:\w+[ /-]){{0,3}}?{_SURGERY}\b
    | \bpreviously\ (?:repaired|resected|operated|fractured|healed)\b
    | \b(?:clinically|hemodynamically|haemodynamically)\ stable\b
    | \b(?:compared|comparison|relative)\ (?:to|with)\ (?:the\ )?(?:left|right|contralateral|opposite|other)\b
    | \b(?:larger|smaller|greater|more|less|worse|higher|lower)\ (?:\w+\ )?(?:than\ (?:the\ )?
        |on\ (?:the\ )?)(?:left|right)\b
    | \b(?:degenerative|postsurgical|post-surgical|postoperative|post-operative|chronic|arthritic|hypertrophic
        |fibrotic|emphysematous|cystic
        |bullous|osteophytic|scoliotic|inflammatory|interstitial|senescent|radiation|copd|pleural|bony|osseous
        |spondylotic)\ (?:\w+\ ){{0,2}}?changes?\b
    | \bincreased?\ (?:interstitial|bronchovascular|lung|retrosternal|ap|a\.p\.|anteroposterior|perihilar
        |vascular|markings?|lucency|density
        |densities|opacity|opacities|opacification|attenuation|kyphosis|prominence|volumes?|retrocardiac|airspace
        |bibasilar|basilar|linear|streaky|hazy|pulmonary\ (?:vascular\w*|markings?|arter\w+))\b
    | \bdecreased?\ (?:lung|inspiratory|bone|lung\ volumes?|volumes?|mineralization|expansion|inspiration|aeration)\b
    | \b(?:follow[ -]?up|repeat|further|additional|dedicated|subsequent)\ (?:\w+\ ){{0,4}}?{_STUDY}
    | \b(?:new|acute)[ -]onset\b | \bnew\ york\b
    | \b(?:worsening|worsened|increasing|increased|new|progressive|persistent|continued|recent)\ (?:shortness
        |dyspnea|cough|hypoxia|fevers?|symptoms?
        |sob|pain|oxygen|chest\ pain|white)\b
    | \b(?:if|should|should\ there\ be)\ (?:\w+\ ){{0,4}}?(?:persists?|worsens?|remains?)\b
        | \bclinical\ concern\ (?:\w+\ )?(?:persists?|remains?)\b
    | \bsince\ (?:the\ )?(?:patient|this|there|it)\b | \bremaining\b | \bremainder\b
    | \bincreases?\ in\ (?:the\ )?(?:interstitial|bronchovascular|perihilar|lung|pulmonary|vascular
        |bronchial)\ markings?\b
    | \b(?:when|once|after|until)\ (?:\w+\ ){{0,4}}?(?:improved|improves|resolved|resolves|cleared|clears
        |resolution|clearing)\b
    | \bsensitivity\ (?:\w+\ ){{0,6}}?(?:diminished|decreased|reduced)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_CUES = re.compile(
    rf"""
      \bun-?changed\b | \bstable\b | \bstability\b | \bstably\b | \bsimilar\ (?:to|in|appearance|compared|appearing)\b
    | \bno\ (?:\w+\ ){{0,3}}?change\b | \bnot\ (?:\w+\ ){{0,2}}?changed\b | \bwithout\ (?:\w+\ ){{0,2}}?change\b
        | \blittle\ (?:\w+\ )?change\b
    | \b(?:interval|intervening)\b | \bin\ the\ interim\b | \binterim\b
    | \bcompar(?:ed|ison|isons|ing|able)\b | \bin\ comparison\b | \bcorrelat\w+\ with\ (?:\w+\ )?(?:prior|previous)
    | \b(?:prior|previous|previously|priors|earlier|preceding|preexisting|pre-existing|antecedent)\b
    | \brecent\ (?:\w+\ )?{_STUDY} | \blast\ (?:\w+\ )?{_STUDY} | \bsince\b | \byesterday\b | \bas\ before\b
        | \bthan\ before\b | \bold\ {_STUDY}
    | \bagain\b | \bre-?demonstrat\w+ | \bre-?identified\b
    | \bpersist\w*\b | \bremains?\b | \bremained\b | \bcontinu(?:es?|ed|ing)\b(?!\s+(?:with|into)\b) | \bstill\b
        | \bunaltered\b | \bconstant\b
    | \b(?:has|have|had)\ (?:\w+\ ){{0,3}}?(?:increased|decreased|improved|worsened|progressed|resolved|cleared
        |developed|enlarged|diminished|grown
        |appeared|disappeared|changed|moved|migrated|advanced|receded|re-?expanded|been\ (?:\w+\ )?(?:removed
        |placed|inserted|withdrawn|extubated|intubated
        |advanced|repositioned|retracted|replaced|exchanged|discontinued|pulled))\b
    | \b(?:is|are|was|were|appears?|appearing)\ (?:\w+\ ){{0,2}}?(?:new|newly|increased|decreased|improved|worse
        |worsened|resolved|diminished
        |larger|smaller|progressed|reduced|increasing|decreasing|improving|worsening|resolving)\b
    | \b(?:improv(?:ed|ing|ement)|worsen(?:ed|ing)|worse|progress(?:ed|ion|ing|ive)|regress(?:ed|ion|ing)
        |resolv(?:ed|ing)|resolution|clearing)\b
    | \bdecreased\b | \b(?:slightly|mildly|markedly|minimally|moderately|substantially)\ increased\b
    | \b(?:effusions?|edema|atelectasis|opacit\w+|consolidations?|pneumothora\w+|congestion)\ (?:\w+\ )?increased\b
    | \b(?:better|best)\ (?:seen|evaluated|assessed|detailed|demonstrated|visualized)\ (?:on|in|by
        |with)\ (?:\w+\ ){{0,3}}?(?:ct|cta|mri)\b
    | \b(?:increas|decreas)(?:ed|e|ing)\ (?:in|since|from|of|compared)\b | \b(?:increasing|decreasing
        |diminishing)\b | \bslightly\ (?:more|less|larger|smaller)\b
    | \b(?:more|less)\ (?:conspicuous|pronounced|prominent|extensive|severe|dense|apparent|marked)\b
    | \bnew\b | \bnewly\b | \bno\ longer\b | \bnow\b | \binterval(?:ly)?\b | \bpost\ removal\b
        | \bstatus\ post\ removal\b | \bre-?accumulat\w+
    | \bre-?expan\w+ | \brecurren(?:t|ce)\b | \bevol(?:ved|ving|ution)\b | \bre-?develop\w+
        | \bincreased\ from\b | \bchanged?\ (?:from|since)\b
    | \bover\ (?:the\ )?(?:\w+\ )?(?:days?|weeks?|months?|years?|time)\b | \b(?:days?|weeks?|months?|years?
        |hours?)\ (?:ago|earlier|before)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class Edited:
    """A text without its references to earlier studies, and the sentences that went."""

    text: str
    dropped: tuple[str, ...]


def cues_of(sentence: str) -> tuple[str, ...]:
    """The words of a sentence that refer to an earlier study; none where it speaks of this image alone."""
    rest = _NO_CUES.sub(lambda match: " " * len(match[0]), sentence)
    return tuple(match[0] for match in _CUES.finditer(rest))


def drop_references(text: str) -> Edited:
    """Drop the sentences that refer to an earlier study; the others stay as they are. Idempotent."""
    said = sentences(clean_text(text))
    kept = [sentence for sentence in said if not cues_of(sentence)]
    return Edited(" ".join(kept), tuple(sentence for sentence in said if cues_of(sentence)))


_EDITS: dict[PriorReferences, ReportEdit] = {"drop": lambda texts: [drop_references(text).text for text in texts]}


@dataclass
class PriorCounts:
    """What a policy met and did, over studies: for the data page."""

    sentences: int = 0  # that refer to an earlier study
    reports: int = 0  # with such a sentence
    emptied: int = 0  # of which nothing is left
    cues: Counter[str] = dataclasses.field(default_factory=Counter)  # sentences by their first cue
    examples: list[str] = dataclasses.field(default_factory=list)  # the first few sentences
    rewriting: Counter[str] = dataclasses.field(default_factory=Counter)  # sentences by what rewriting made of them

    def as_json(self) -> dict[str, Any]:
        """For `studies.json`."""
        return dataclasses.asdict(self) | {
            "cues": dict(self.cues.most_common(20)),
            "rewriting": dict(self.rewriting.most_common()),
        }

    def said(self, policy: PriorReferences) -> str:
        """One line for the log."""
        emptied = f", which leaves {self.emptied:,} reports empty" if self.emptied else ""
        made = ", ".join(f"{count:,} {what}" for what, count in self.rewriting.most_common())
        done = {"keep": "kept (prior_references)", "drop": f"dropped{emptied}", "rewrite": f"{made}{emptied}"}[policy]
        return f"{self.sentences:,} sentences of {self.reports:,} reports refer to earlier studies: {done}"


def edit_prior_references(
    studies: Sequence[Study], policy: PriorReferences, rewrite: ReportEdit | None = None
) -> tuple[list[Study], PriorCounts]:
    """The studies with their reports by the policy, in their order, and counts of references (under any policy).

    `rewrite` is what the policy of that name does (synthesis/rewriting.py).
    Images of one study share their report, which is counted once. Labels stay as they are. A study whose report is
    emptied stays, without text: the cohort leaves it out for that.
    """
    counts, seen = PriorCounts(), set[tuple[str, str]]()
    found = {
        text: _references(text)
        for text in dict.fromkeys(t for s in studies for t in (s.findings_text, s.impression_text))
    }
    with_references = [text for text, references in found.items() if references]
    edited = {text: text for text in found}
    if policy != "keep":
        edit = _EDITS.get(policy, rewrite)
        assert edit is not None, policy
        edited |= zip(with_references, edit(with_references), strict=True)
    result = []
    for study in studies:
        own = (study.findings_text, study.impression_text)
        new = tuple(edited[text] for text in own)
        result.append(dataclasses.replace(study, findings_text=new[0], impression_text=new[1]))
        if (study.patient_id, study.study_id) not in seen:
            seen.add((study.patient_id, study.study_id))
            references = [reference for text in own for reference in found[text]]
            counts.sentences += len(references)
            counts.reports += bool(references)
            counts.emptied += any(own) and not any(new)
            counts.cues.update(cue for cue, _ in references)
            counts.examples += [sentence for _, sentence in references][: max(0, 5 - len(counts.examples))]
    return result, counts


def _references(text: str) -> list[tuple[str, str]]:
    """(first cue, sentence) of each sentence that refers to an earlier study."""
    return [(cues[0].lower(), sentence) for sentence in sentences(clean_text(text)) if (cues := cues_of(sentence))]
