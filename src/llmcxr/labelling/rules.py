"""Rule-based labels for `PHANTOM_FINDINGS` from free text: which findings a report states, denies or doubts.

Each sentence is searched for mentions (one phrase list a finding) and for cues. A cue acts on the mentions in its
scope: forward ("no", "possible") or backward ("is not seen", "cannot be excluded"), up to a word that opens a new
statement.
States over a report: 1 where any mention is affirmed, else -1 where any is uncertain, else 0. A finding that is not
mentioned is not in the result. Mentions of history, of questions put by the referrer and of what is only hypothetical
("evaluate for pneumonia", "if there is concern for effusion") count as no mention.

Generated text is often ungrammatical, so nothing here relies on parsing, capitals or complete sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llmcxr.labelling.base import Mention, Reading
from llmcxr.studies.findings import Finding, LabelSet
from llmcxr.studies.labels import PHANTOM_FINDINGS

# Building blocks. Each pattern works on one lower-case sentence with single spaces.
_LUNG = r"(?:lungs?|lung fields?|lung parenchyma|pulmonary parenchyma)"
_HEART = (
    r"(?:heart|cardiac|cardiomediastinal|cardio-mediastinal|cardiopericardial|cardiovascular|cardiomediastinum|"
    r"cardiothymic|mediastinal and cardiac)"
)
_BIG = r"(?:enlarge\w*|prominen\w+|increased|big|large[rd]?|widened)"
_ADVERB = r"(?:\w+ly |\w+-to-\w+ |mild to moderate )?"
_AORTA = r"(?:aorta|aortic(?: arch| knob| contour)?|arch)"
_HYPO_VOLUME = r"(?:low|small|decreased|diminished|reduced|shallow|poor|suboptimal|limited)"

# Text between a subject and its predicate: not across a conjunction, another organ or a cue of the opposite sense.
_TO = r"(?:(?!\b(?:but|however|although|though|lungs?|there|pulmonary|effusions?|pneumothora\w+)\b).){0,70}?"
_TO_SHORT = r"(?:(?!\b(?:but|however|although|though|there)\b).){0,35}?"

# The part of a pattern named `m` is the mention that cues act on; without it, the whole match is.
_PRESENT: dict[str, str] = {
    "granuloma": r"""
        granuloma\w* | \bcalcified (?:\w+ ){0,3}?(?:lymph|hil\w+|mediastinal|paratracheal|subcarinal)\b
        | \bgranulomata\b | \bghon\b | \branke\b
        | \bcalcified (?:\w+[ /,-]+){0,4}?(?:lymph )?(?:nodes?|nodules?|nodular|adenopathy|lymphadenopathy|hila\b|hilum)
        | (?:lymph )?(?:nodes?|nodules?|adenopathy|lymphadenopathy) (?:\w+ ){0,4}?(?P<m>calcifi\w+)
        | (?:hilar|perihilar|nodal|node|mediastinal|parenchymal|lung|pulmonary|paratracheal|subcarinal) (?:\w+ ){0,2}?
          (?:calcifications?|calcific densit\w+|calcified densit\w+)
        | calcifications? (?:\w+ ){0,3}?(?:hil\w+|lungs?|lobe|lymph|apex|base)\b
    """,
    "opacity": r"""
        \bopaci\w+ | \bopacif\w+ | \binfiltrat\w+ | \bconsolidat\w+ | \bpneumoni(?:a|as|tis|c)\b
        | \bbronchopneumonia\w*
        | \bair[ -]?space (?:\w+ )?(?:disease|process\w*|abnormalit\w+|opac\w+|infiltrat\w+|consolidation)\w*
        | \bdensit(?:y|ies)\b | \bhaz(?:e|y|iness)\b | \bground[ -]glass\b | \bparenchymal disease\b
        | \bairspace opac\w+ | \bparenchymal (?:\w+ )?(?:process|abnormalit\w+) | \bcovid(?:-19)?\b
    """,
    "atelectasis": r"""
        \batelecta\w+ | \bsub-?segmental collapse\b | \blobar collapse\b | \bvolume loss\b | \bloss of volume\b
        | \bcollapse of (?:the )?(?:left|right)?\s?(?:upper|middle|lower|lobe|lung)
        | \b(?:lobe|lung|lower lobe|upper lobe) collapse\b
    """,
    "cardiomegaly": rf"""
        \bcardiomegal\w+ | \bcardiomyopathy\b
        | \benlarge(?:d|ment) (?:of )?(?:the )?(?:\w+ )?{_HEART}
        | \b{_HEART} enlargement | \b(?:left|right|bi)?\s?(?:ventricular|atrial) enlargement\b
        | \b{_HEART}\b{_TO}\b(?P<m>{_BIG})\b(?!\s(?:pulmonary|aort|hil))
        | \b(?:prominent|large|big) (?:heart|cardiac (?:silhouette|shadow|contour|size))
    """,
    "hypoinflation": rf"""
        \bhypo-?\s?(?:inflat|aerat|ventilat|expan)\w+ | \bunder-?\s?(?:inflat|aerat)\w+
        | \b{_HYPO_VOLUME} (?:\w+ ){{0,2}}?(?:lung|inspiratory|respiratory|pulmonary) (?:lung )?volumes?\b
        | \b(?:lung|inspiratory|pulmonary) volumes? (?:\w+ ){{0,4}}?(?P<m>{_HYPO_VOLUME})\b
        | \b{_HYPO_VOLUME} (?:\w+ )?(?:inspirat\w+|inspiration|inflation|expansion|volumes?\b|aeration)
        | \b(?:inspirat\w+|expansion|inflation) (?:\w+ ){{0,3}}?(?P<m2>{_HYPO_VOLUME})\b
        | \bvolumes? (?:are|is) {_ADVERB}(?P<m3>low)\b
    """,
    "hyperinflation": rf"""
        \bhyper-?\s?(?:inflat|expan|disten|aerat|lucen)\w+ | \bover-?\s?(?:inflat|expan|disten|aerat)\w+
        | (?<!subcutaneous )(?<!soft tissue )(?<!mediastinal )\bemphysem\w+ | \bcopd\b
        | \bchronic obstructive\b | \bobstructive (?:lung|pulmonary|airway\w*) (?:disease|change)
        | \bflattening of (?:\w+ ){{0,3}}?(?:hemi-?)?diaphragm\w*
        | \bflatten(?:ed|ing) (?:of )?(?:\w+ )?(?:hemi-?)?diaphragm\w*
        | \b(?:hemi-?)?diaphragm\w* {_TO_SHORT}\b(?P<m>flat(?:ten\w*)?)\b | \bdiaphragmatic flattening\b
        | \b(?:large|increased|high) (?:\w+ )?lung volumes?\b
        | \blung volumes? (?:\w+ ){{0,3}}?(?P<m2>large|increased|high)\b
        | \bincreased (?:ap|anteroposterior|a\.p\.) diameter | \bair[ -]trapping\b
    """,
    "tortuous aorta": rf"""
        \b(?:tortuo\w+|ecta\w+|unfold\w+|uncoil\w+|dilat\w+|aneurysm\w*|elongat\w+|prominen\w+|enlarge\w+)\b
          (?:(?!\b(?:and|with|heart|cardiac|pulmonary|hil\w+|mediastin\w+)\b).){{0,40}}?\b{_AORTA}\b
        | \b{_AORTA}\b(?:(?!\b(?:but|however|heart|cardiac|pulmonary|lungs?|there|valve|stent|graft)\b).){{0,45}}?
          \b(?P<m>tortuo\w+|ecta\w+|unfold\w+|uncoil\w+|dilat\w+|aneurysm\w*|elongat\w+|prominen\w+|enlarge\w+)
    """,
    "pleural effusion": r"""
        (?<!pericardial )\beffusions? | \bhydro-?(?:pneumo)?thora\w+ | \bhemo-?(?:pneumo)?thora\w+ | \bempyema\w*
        | \b(?:pleural|fissural|layering) fluid\b | \bfluid in the (?:\w+ )?(?:pleura\w*|fissure\w*)
        | \bblunt\w* (?:\w+ ){0,6}?(?:costo-?(?:phrenic|diaphragmatic)|cp angle|sulc\w+|angles?\b)
        | (?:costo-?(?:phrenic|diaphragmatic)|\bcp) (?:\w+ ){0,8}?(?P<m>blunt\w*)
        | \b(?:sulc\w+|angles?) (?:\w+ ){0,3}?(?P<m2>blunt\w*)
    """,
    "pneumothorax": r"\b(?:hydro-?|hemo-?)?pneumothora\w+ | \bptx\b | \bpleural air\b",
    "elevated diaphragm": rf"""
        \belevat(?:ed|ion) (?:of )?(?:\w+ ){{0,4}}?(?:hemi-?\s?)?diaphragm\w* | \beventrat\w+
        | \b(?:hemi-?\s?)?diaphragm\w* {_TO_SHORT}\b(?P<m>elevat\w+|raised)
        | \braised (?:\w+ ){{0,2}}?(?:hemi-?)?diaphragm\w* | \bdiaphragmatic elevation\b
    """,
    "pulmonary edema": r"""
        \b(?:o)?edema\b | \bvascular congestion\b
        | \b(?:pulmonary|venous|central|chf|vascular|interstitial) (?:\w+ )?congestion\b
        | \bcongesti(?:ve|on)\b | \bheart failure\b | \bchf\b | \bfluid overload\b | \bvolume overload\b
        | \bcephalization\b
        | \bkerley\b | \bpulmonary venous (?:hypertension|engorgement) | \bvascular engorgement\b
        | \bvascular prominence\b
        | \b(?:prominen\w+|increased|engorged) (?:\w+ ){0,5}?vascul(?:ature|arity)\b
        | \bvascul(?:ature|arity) (?:\w+ ){0,3}?(?P<m>engorg\w+|prominent|increased|congested)\b
        | \bearly failure\b | \b(?:cardiac|chf) decompensation
    """,
    "interstitial markings": r"""
        \binterstiti\w+ (?:(?!edema|pulm|opaci|infiltr|densit)\w+ ){0,2}?
          (?:marking|thickening|prominence|change|disease|pattern|lung|fibros|process|
          abnormalit|coarsening|scarring|crowding)\w*
        | \b(?:prominen\w+|increased?|coarse\w*|chronic|accentuat\w+|thicken\w+|exaggerat\w+) (?:\w+[ ,]+){0,4}?
          (?:interstiti\w+|markings?|bronchovascular)\b(?! (?:\w+ ){0,2}?(?:opaci|infiltr|densit|edema|pulmonary edema))
        | \b(?:interstiti\w+|markings?) (?:(?!edema|opaci|infiltr|densit)\w+ ){0,4}?
          (?P<m>prominen\w+|increase\w*|coarse\w*|accentuat\w+|thicken\w+)
        | \b(?:pulmonary|interstitial|lung|basilar|bibasilar|parenchymal|chronic|apical) fibro(?:sis|tic)\b
        | (?<!cystic )\bfibrosis\b | (?<!cystic )\bfibrotic\b
        | \breticul\w+(?! (?:\w+ )?(?:opaci|infiltr|densit)) | \bseptal lines?\b | \bb[ -]lines?\b | \bcrowded\b
        | \bhoneycomb\w* | \bcrowding\b
    """,
    "mass": r"""
        (?<!soft tissue )(?<!thyroid )(?<!breast )(?<!chest wall )(?<!body )(?<!bone )(?<!muscle )
        \bmass(?:es|-?like)?\b(?! effect)
        | \b(?:lung|pulmonary|bronchogenic|hilar|mediastinal|parenchymal) (?:cancer|carcinoma|neoplasm|tumou?r)s?\b
    """,
    "nodule": r"""
        \b(?:micro)?nodul(?:es?|arity|arities)\b
        | \b(?:fibro|reticulo)-?nodular\b | \bnodular\b(?! (?:\w+ ){0,2}?(?:opaci|densit|infiltr|prominence|contour))
    """,
    "hiatal hernia": r"""
        \b(?:hiatal|hiatus|hiatial)\s?hernia\w* | \bherniat\w+ (?:of )?(?:\w+ )?stomach
        | \bretrocardiac (?:\w+ )?hernia\w*
        | \bintrathoracic stomach
    """,
    "scoliosis": r"""
        \b(?:levo|dextro|kypho|roto)?-?\s?scolio\w+ | \b(?:dextro|levo)-?(?:curv|convex|rotat)\w+
        | \bs-?\s?shaped curv\w+
        | \bcurvature of (?:the )?(?:\w+ )?(?:spine|vertebra\w+)
        | (?:spine|spinal|thorac\w+|lumbar) (?:\w+ ){0,3}?curvature
    """,
    "support device": r"""
        \bpace-?\s?makers? | \bpacer\b | \b(?:pacing|pacer) (?:leads?|wires?|device)s? | \baicd\b | \bicd\b
        | \bdefibrillator\w*
        | \bcardiac (?:\w+ )?device\w* | \bgenerator\b | \bport-?\s?a-?\s?cath\w* | \bmedi-?\s?port\w*
        | \bport\b(?!able)
        | \bcatheter\w* | \bpicc\b | \bcentral (?:venous )?(?:line|access)s?
        | \b(?:ij|jugular|subclavian) (?:\w+ )?(?:line|sheath)
        | \bcvc\b | \btubes?\b | \btracheostomy\b | \bendotracheal\b | \bett\b | \bnasogastric\b | \bstents?\b
        | \bshunt\b
        | \bleads?\b(?! to) | \bsternotomy\b | \bsternal (?:\w+ )?(?:wire|suture)s?
        | \bsurgical (?:\w+ )?(?:clip|staple|material|suture|device|hardware)s?
        | \b(?:wires?|clips?|staples?|sutures?)\b | \bhardware\b | (?<!breast )\bprosthe\w+
        | \bvalve (?:replacement|repair) | \bcabg\b
        | \bcoronary artery bypass | \bbypass (?:graft|surg)\w* | \b(?:neuro-?)?stimulator\w*
        | \btips?\b(?= (?:\w+ ){0,3}?(?:project|overl|terminat|at|in|within|over)) | (?:xxxx|___)-a-(?:xxxx|___)
        | (?<!monitoring )\bdevices?\b | \b(?:ivc|caval) (?:filter|xxxx|___) | \bloop recorder
        | (?<!breast )\bimplant\w* | \b(?:chest|feeding|ng|et|enteric) tube\w*
    """,
}

# Statements of normality, and of doubt that is built into the words.
_NORMAL_WORD = r"(?:normal|unremarkable|within (?:the )?(?:\w+ )?(?:normal )?limits|not enlarged|wnl)"
_UPPER_NORMAL = r"(?:upper (?:limits? )?(?:of )?normal|upper limits?|top[ -]normal|high normal|borderline|at the upper)"
_ABSENT: list[tuple[tuple[str, ...], str]] = [
    (
        ("cardiomegaly",),
        rf"""
        \b{_HEART}\b(?:(?!\b(?:but|however|although|{_BIG}|lungs are|upper|borderline)\b).){{0,60}}?
          \b(?<!upper )(?<!\bnot ){_NORMAL_WORD}
        | (?<!upper )\bnormal (?:\w+[ /,]+){{0,4}}?{_HEART}
        | \b(?:unremarkable) (?:\w+ ){{0,2}}?{_HEART}
        """,
    ),
    (
        ("opacity", "atelectasis", "pulmonary edema", "mass", "nodule"),
        rf"\b{_LUNG} (?:\w+ )?(?:are|is|appear\w*|remain\w*|were)?\s?(?:\w+ ){{0,3}}?"
        r"(?<!not )(?:clear|normal|unremarkable)\b(?! of)"
        r" | \bclear (?:\w+ )?lungs?\b",
    ),
    (("scoliosis",), r"\b(?:spine|spinal alignment) (?:\w+ ){0,3}?(?:straight|normally aligned)"),
    (("tortuous aorta",), r"\b(?:thoracic )?aort\w+ (?:\w+ ){0,4}?(?<!not )(?:normal|unremarkable)\b"),
    (
        ("hypoinflation", "hyperinflation"),
        r"\b(?:normal|well|normally|satisfactory) (?:\w+ )?(?:lung volumes|inflated|expanded|aerated|inflation)\b",
    ),
    (("pleural effusion",), r"\bcosto-?phrenic (?:angles?|sulc\w+) (?:\w+ ){0,3}?(?:sharp|clear)\b"),
]
_DOUBTFUL: dict[str, str] = {
    "cardiomegaly": rf"""
        \b{_UPPER_NORMAL}\b(?=.{{0,40}}\b{_HEART}|.{{0,10}}\benlarge|.{{0,15}}cardiomegal)
        | \b{_HEART}\b(?:(?!\b(?:but|lungs?)\b).){{0,60}}?\b{_UPPER_NORMAL}
    """,
}

_COPULA = r"(?:is|are|was|were|has been|have been|be|appears?|remains?)"
_CUES: dict[str, str] = {
    # Stand first, so that the words in them are not read as other cues.
    "none": r"""
        \bno (?:\w+ ){0,2}?change\b | \bwithout (?:\w+ ){0,2}?change\b | \bnot (?:\w+ )?changed\b | \bnot only\b
        | \bno (?:\w+ ){0,2}?(?:increase|decrease|improvement|worsening)\b(?: (?:in|of))?
        | \bnot (?:well )?visuali[sz]ed on (?:the )?lateral
        | \bno (?:prior|previous|comparison)\w*\b | \bclinically significant\b | \bwithout (?:\w+ )?complication\w*
        | \bwithout (?:comparison|priors?)\b | \bno longer as\b
    """,
    "ignore": r"""
        \bhistory of\b | \bh/o\b | \bhx (?:of)?\b
        | \b(?:evaluat\w+|assess\w*|eval|check\w*|look\w*|follow(?:-| )?up) (?:for|of)\b
        | \bif (?:\w+ ){0,6}?(?:concern|suspicion|suspected|symptom\w*|clinically)\b | \bindication\b | \br/o\b
        | \bhigh risk (?:for|of)\b | \brule out\b
    """,
    "doubt_before": r"""
        \bpossib(?:le|ly|ility)\b | \bprobabl[ey]\b | \bperhaps\b
        | \b(?:may|might|could|can) (?:also )?(?:be|represent|reflect|indicate|relate|suggest|have)\b
        | \b(?:can|could)\s?not (?:be )?(?:\w+ )?(?:exclude|rule out) | \bcan't (?:\w+ )?(?:exclude|rule out)
        | \bsuspicio\w+ (?:for|of)\b | \bsuspect\w*\b | \bconcern\w* (?:for|of)\b | \bworrisome for\b
        | \bquestion\w*(?: of)?\b | \bequivocal\b
        | \bsuggest\w*\b | \bversus\b | \bvs\.? | \brule out\b | \bdifferential\b | \bmaybe\b | \bnot exclude\w*
        | \braises? (?:the )?(?:possibility|question) of\b | \bpotential(?:ly)?\b | \bapparent\b
    """,
    "doubt_after": rf"""
        \b(?:can|could)\s?not (?:be )?(?:\w+ )?(?:excluded?|ruled out) | \bcan't be (?:\w+ )?(?:excluded|ruled out)
        | \b(?:is|are)?\s?not (?:\w+ )?(?:excluded|ruled out)
        | \b{_COPULA} (?:also )?(?:possible|questioned|suspected|questionable|considered|equivocal)
        | \bversus\b | \bvs\.? | \bnot excluded | \bwould be (?:difficult|hard) to exclude | \?
    """,
    "not_after": rf"""
        \b{_COPULA} (?:\w+ )?(?:absent|resolved|cleared|gone|excluded|removed|ruled out|unlikely)\b
        | \b(?:has|have) (?:\w+ )?(?:resolved|cleared|disappeared|been removed|been excluded)\b | \bunlikely\b
        | \b(?:not|no longer) (?:\w+ ){{0,2}}?
          (?:seen|identified|visuali[sz]ed|present|evident|appreciated|detected|demonstrated|
          noted|apparent|visible|found|observed)\b
        | \bresolved\b(?= ?(?:[.,;]|$|since|in the interval|compared))
        | \bwithin (?:the )?(?:limits of normal|normal limits)\b | \b(?:is|are) not\b$
    """,
    "not_before": r"""
        \bno\b | \bnot\b | \bwithout\b | \bw/o\b | \bfree (?:of|from)\b | \bnegative (?:for|of)\b
        | \bclear (?:of|from)\b | \babsen(?:ce|t)\b
        | \black\w* (?:of)?\b | \bneither\b | \bnor\b | \bnever\b | \bden(?:y|ies)\b | \bresolution of\b
        | \bresolved (?!from)
        | \bclearing of\b | \bclearance of\b | \bremoval of\b | \bremoved\b | \brather than\b | \bdevoid of\b
        | \bexcludes?\b | \bnon\b
        | \bunremarkable for\b
    """,
}
# A word that opens a new statement: cues do not reach across it.
_NEW = (
    r"(?:stable|unchanged|persistent|increased|increasing|new|worsen\w+|improv\w+|mild\w*|moderate\w*|severe\w*|"
    r"minimal\w*|there|the heart|heart|the lungs|lungs|low lung|low volume|again|redemonstrat\w+|status|chronic|"
    r"probable|possible|possibly|probably|calcified|tortuous|the aorta|aorta|degenerative|scoliosis|patient|"
    r"hyperexpan\w+|hyperinflat\w+|bony|"
    r"visuali[sz]ed|the (?:\w+ ){1,3}(?:is|are))"
)
_BREAK = re.compile(
    r"\b(?:but|however|although|though|except|aside from|apart from|other than|yet|which|whereas|while|besides|"
    r"otherwise|despite|secondary to|with the exception of|there (?:is|are|has|have|may|might|was|were))\b"
    rf"|,\s?(?:and |with )?(?={_NEW}\b)(?![^;]*, (?:or|nor)\b)"  # "no new, worsening, or enlarging nodule" is one list
    rf"|\band (?=(?:(?:an? )?{_NEW}|small|trace|a)\b)"
    r"|\band (?=(?:the )?(?:\w+ ){1,3}(?:is|are|has|have|appears?|remains?)\b(?! not))"
    rf"|\bwith (?=(?:an? )?(?:{_NEW}|small|large|trace|bilateral|enlarge\w+)\b)"
    r"|[;()]"
)
_SENTENCE = re.compile(
    r"(?<=[.!?;])(?:\s+|(?=[a-z]))|\s*\b(?:findings?|impressions?|conclusions?)\s?:|(?<=\s)\d{1,2}[.)]\s|^\d{1,2}[.)]\s"
)


def _compile(pattern: str) -> re.Pattern[str]:
    """Phrases stand apart by " | " and may be broken over lines anywhere; single spaces inside them count."""
    phrases = re.sub(r"\s+\|\s+", "|", pattern.strip())
    return re.compile(re.sub(r"\s*\n\s*(?!\|)", "", phrases))


_PRESENT_RE = {name: _compile(_PRESENT[name]) for name in PHANTOM_FINDINGS}
_ABSENT_RE = [(names, _compile(pattern)) for names, pattern in _ABSENT]
_DOUBTFUL_RE = {name: _compile(pattern) for name, pattern in _DOUBTFUL.items()}
_CUE_RE = {kind: _compile(pattern) for kind, pattern in _CUES.items()}
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|seen|present|noted)\b")
_COPULA_END = re.compile(rf"\b{_COPULA} ?$")
_DEGREE = re.compile(r" (?:mild|moderate|severe|stable|unchanged|small|large|low|the heart|heart|the lungs|lungs)\b")
_OR = re.compile(r",? or (?:\w+ ){0,3}")


@dataclass(frozen=True)
class _Mention:
    name: str
    start: int
    end: int
    state: int  # 1, 0 or -1


def _sentences(text: str) -> Iterator[str]:
    """Lower-case sentences with single spaces. A blank line, a heading and a list number end a sentence too."""
    text = re.sub(r"\b(vs|dr|approx)\.", r"\1", text.lower())
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _SENTENCE.split(" ".join(paragraph.split())):
            if sentence := sentence.strip():
                yield sentence


def _cues(sentence: str) -> dict[str, list[tuple[int, int]]]:
    """Spans by kind of cue; what an earlier kind has taken is not read again ("cannot exclude" holds no "exclude")."""
    found: dict[str, list[tuple[int, int]]] = {}
    taken: list[tuple[int, int]] = []
    for kind, pattern in _CUE_RE.items():
        spans = [m.span() for m in pattern.finditer(sentence)]
        # "versus" counts forward and backward, hence doubt is not masked by doubt
        masks = taken if kind != "doubt_after" else [span for span in taken if span not in found["doubt_before"]]
        found[kind] = [s for s in spans if not any(s[0] < end and start < s[1] for start, end in masks)]
        taken = taken + found[kind]
    return found


def _state(
    sentence: str, start: int, end: int, cues: dict[str, list[tuple[int, int]]], breaks: list[int]
) -> int | None:
    """What the cues make of the mention at [start, end): 1, 0, -1, or None where it is to be ignored."""

    def before(kind: str) -> bool:
        return any(stop <= start and not any(stop <= b <= start for b in breaks) for _, stop in cues[kind])

    def after(kind: str) -> bool:
        # "the tube and the line have been removed": an "and" before the verb joins subjects
        for begin, _ in cues[kind]:
            between = _COPULA_END.sub("", sentence[end:begin]) if begin >= end else None
            if (
                between is not None
                and not any(end <= b <= begin and not sentence.startswith("and", b) for b in breaks)
                and not _VERB.search(between)
            ):
                return True
        return False

    if before("ignore"):
        return None
    if before("not_before") or after("not_after"):
        return 0
    return -1 if before("doubt_before") or after("doubt_after") else 1


def _mentions(sentence: str) -> list[_Mention]:
    cues = _cues(sentence)
    breaks = [m.start() for m in _BREAK.finditer(sentence)]
    spans: list[tuple[int, int, str]] = []
    for name, pattern in _PRESENT_RE.items():
        for match in pattern.finditer(sentence):
            group = next((g for g in pattern.groupindex if match[g]), 0)
            spans.append((*match.span(group), name))
    spans.sort()
    # "no pneumothorax mild cardiomegaly": a degree directly after a mention belongs to the next one
    breaks += [end for _, end, _ in spans if _DEGREE.match(sentence, end)]
    found = [
        _Mention(name, start, end, state)
        for start, end, name in spans
        if (state := _state(sentence, start, end, cues, breaks)) is not None
    ]
    alternatives = set()
    for first, second in zip(found, found[1:], strict=False):
        if first.name != second.name and _OR.fullmatch(sentence[first.end : second.start]):
            alternatives |= {first, second}
    return [_Mention(m.name, m.start, m.end, -1) if m in alternatives and m.state == 1 else m for m in found]


def label_report(text: str) -> dict[str, int]:
    """Findings that `text` mentions: 1 affirmed, 0 denied (or stated normal), -1 uncertain. Never raises.

    Keys are of `PHANTOM_FINDINGS`; a finding that is not mentioned has no key. Affirmed wins over uncertain, uncertain
    over denied: "no pleural effusion on the left; small right effusion" is 1. A heart at the upper limits of normal or
    of borderline size is -1; one called borderline enlarged is 1.
    """
    states: dict[str, set[int]] = {}
    for sentence in _sentences(text):
        for mention in _mentions(sentence):
            states.setdefault(mention.name, set()).add(mention.state)
        for name, pattern in _DOUBTFUL_RE.items():
            if pattern.search(sentence):
                states.setdefault(name, set()).add(-1)
        for names, pattern in _ABSENT_RE:
            if pattern.search(sentence):
                for name in names:
                    states.setdefault(name, set()).add(0)
    return {
        name: next(state for state in (1, -1, 0) if state in states[name])
        for name in PHANTOM_FINDINGS
        if name in states
    }


SIDED_FINDINGS: frozenset[str] = frozenset(
    ("granuloma", "opacity", "atelectasis", "pleural effusion", "pneumothorax", "elevated diaphragm", "mass", "nodule")
)
_BOTH = (
    r"bilateral(?:ly)?|bibasilar|bibasal|(?:lung |the )bases|biapical|both"
    r"|(?:left|right)(?: and | and/or |/)(?:the )?(?:left|right)"
    r"|(?:left|right) (?:greater|larger|more|worse) than (?:the )?(?:left|right)"
)
_SIDE = re.compile(rf"\b(?:(?P<both>{_BOTH})|(?P<left>left(?:-sided)?|lingular?)|(?P<right>right(?:-sided)?))\b")
_PAUSE = re.compile(r",|;|\b(?:and|or|with)\b")


def find_sides(text: str) -> dict[str, str]:
    """The stated side of each finding in `SIDED_FINDINGS` that `text` affirms or doubts: "left", "right" or "both".

    The patient's side. Each mention takes the word for a side that is nearest to it, crossing as few other mentions,
    commas and conjunctions as possible, within its sentence; a finding without such a word has no key. Mentions on the
    left and on the right together are "both".
    """
    sides: dict[str, set[str]] = {}
    for sentence in _sentences(text):
        mentions = _mentions(sentence)
        words = list(_SIDE.finditer(sentence))
        breaks = [m.start() for m in _BREAK.finditer(sentence)]
        for mention in mentions:
            if mention.name not in SIDED_FINDINGS or mention.state == 0:
                continue
            ranked = []
            for word in words:
                ahead = word.start() >= mention.start
                low, high = (mention.end, word.start()) if ahead else (word.end(), mention.start)
                # A side inside the mention ("blunting of the left angle") has an empty gap.
                gap = sentence[low:high]
                if len(gap) > 120 or any(low <= b <= high for b in breaks):
                    continue
                crossed = sum(low <= other.start < high and other.name != mention.name for other in mentions)
                ranked.append((2 * crossed + len(_PAUSE.findall(gap)), len(gap), str(word.lastgroup)))
            if ranked:
                sides.setdefault(mention.name, set()).add(min(ranked)[2])
    return {
        name: next(iter(found)) if len(found) == 1 else "both"
        for name in PHANTOM_FINDINGS
        if (found := sides.get(name))
    }


def stated_findings(text: str) -> tuple[Finding, ...]:
    """The findings that `text` affirms, each with the side that it states ("" where it states none)."""
    sides = find_sides(text)
    return tuple(Finding(name, sides.get(name, "")) for name, state in label_report(text).items() if state == 1)


class RuleLabeller:
    """These rules as a `Labeller`."""

    findings = LabelSet(PHANTOM_FINDINGS)

    def read(self, text: str) -> Reading:
        """What one text says. Never raises."""
        sides = find_sides(text)
        states = label_report(text)
        return Reading(states, tuple(Mention(n, s, 0, len(text), sides.get(n, "")) for n, s in states.items()))
