"""Words that deny, doubt or set aside the findings in their scope, after ConText (Harkema et al., 2009).

A cue acts on mentions behind it ("no", "possible") or before it ("is not seen", "cannot be excluded"), up to a word
that opens a new statement. Where cues overlap the leftmost counts, and of those that begin together the one that
stands first here: so "not apparent" is a denial, and "has not resolved" holds no "resolved".

What is doubt follows the CheXpert labeller (Irvin et al., AAAI 2019): "may", "possible", "probable", "suspected",
"concern for", "A or B" and "A versus B" are uncertain; "likely" and "consistent with" affirm. Unlike there
"suggestive of" is a doubt: MeSH tags of real reports agree with that.
"""

from __future__ import annotations

import re

from llmcxr.labelling.terms import compile_phrases

_COPULA = r"(?:is|are|was|were|has been|have been|be|appears?|remains?)"
_GOES = r"(?:resol\w+|clear(?:ed|ing|ance)|disappear\w*|regress\w*)"
_SEEN = (
    r"(?:seen|identified|visuali[sz]ed|present|evident|appreciated|detected|demonstrated|noted|apparent|visible|found|"
    r"observed|"
    r"definite|discernible|suspected)"
)

# kind -> phrases; an earlier kind wins where two begin at the same word.
CUES: dict[str, str] = {
    # Takes words away from the kinds below, and says nothing itself.
    "none": rf"""
        no (?:\w+ ){{0,2}}?change\b | without (?:\w+ ){{0,2}}?change\b | not (?:\w+ )?changed\b | not only\b
        | (?:no|without|not) (?:\w+ ){{0,2}}?(?:increase|decrease|improvement|worsening (?:of|in)|
          {_GOES})\b(?: (?:in|of))?
        | (?:(?:has|have|had|is|are|was|were) )?not (?:yet )?(?:\w+ly )?(?:been )?
          (?:{_GOES}|increased|decreased|changed|worsened|improved|progressed|grown|removed|moved|advanced)\b
        | (?:has|have|had) not (?:\w+ )?enlarged\b
        | (?:(?:has|have|had|is|are|was|were) )?(?:near(?:ly)?|almost|partial(?:ly)?|incomplete(?:ly)?|mostly|
          largely|virtually|
          substantially|markedly)[ -](?:complete(?:ly)? |total(?:ly)? |entire(?:ly)? )?{_GOES}(?: of)?
        | not (?:well )?visuali[sz]ed on (?:the )?lateral
        | no (?:prior|previous|comparison)\w*\b | clinically significant\b | without (?:\w+ )?complication\w*
        | without (?:comparison|priors?)\b | no longer as\b | not (?:negative for|without|free of|clear of)\b
        | no doubt\b | not (?:a )?surpris\w+ | no (?:definite |clear )?explanation\b
        | can ?not be (?:\w+ )?distinguished
    """,
    # What is behind it is a question, a wish, the past, or no statement about the finding's being there.
    "ignore": r"""
        history of\b | h/o\b | hx (?:of)?\b
        | (?:evaluat\w+|assess\w*|eval|check\w*|look\w*|follow(?:-| )?up) (?:for|of)\b
        | if (?:\w+ ){0,6}?(?:concern|suspicion|suspected|symptom\w*|clinically)\b | indication\b | r/o\b
        | high risk (?:for|of)\b | (?<!cannot )(?<!can not )(?<!can't )(?<!to )rule[- ]out\b
        | detection of\b | simulat\w+\b | mimic\w*\b
        | sensitivity (?:\w+ )?(?:to|for|of)\b | to (?:detect|diagnose|visuali[sz]e|identify)\b
        | (?:limit\w*|obscur\w*|preclud\w*|difficult|hinder\w*) (?:the )?(?:evaluation|assessment|detection) (?:of|
          for)\b
        | no (?:further )?(?:enlarging|increasing|worsening|progressive|progression of|progressing|growing)
          (?=[\w -]*)(?!,)(?! or new)
    """,
    "doubt_after": rf"""
        (?:can|could) ?(?:no|')t be (?:\w+ )?(?:excluded|ruled out)
        | (?:is|are)? ?not (?:\w+ )?(?:excluded|ruled out)
        | (?<!there ){_COPULA} (?:\w+ly )?(?:also )?(?:less likely|possible|questioned|suspected|questionable|
          considered|equivocal|presumed|conceivable)
        | {_COPULA} (?:probably|possibly) (?:also )?{_SEEN}
        | (?:may|might|could) (?:\w+ )?(?:be|coexist) (?:present|seen|considered)
        | (?:should|could|may|might|must) (?:also )?be considered | (?:is|remains) an? (?:\w+ )?(?:possibility|
          consideration|concern)
    """,
    "doubt_before": r"""
        possib(?:le|ly|ility)\b | probabl[ey]\b | perhaps\b | presum\w+
        | (?:may|might|could|can|would) (?:(?!not)\w+ )?(?:be|represent|reflect|indicate|relate|suggest|have|
          include|correspond|signify)\b
        | (?:can|could) ?(?:no|')t (?:be )?(?:\w+ )?(?:exclude|rule out)\b(?!d)
        | not (?:\w+ )?(?:exclude|rule out)\b(?!d)
        | suspicio\w+ (?:for|of)\b | suspect\w*\b | concern\w* (?:for|of|is for)\b | worrisome for\b
        | question\w*(?: of)?\b | equivocal\b | suggest\w*\b | favor\w*\b | if there (?:is|are) (?:any |an? )?
        | differential\b | maybe\b
        | raises? (?:the )?(?:possibility|question) of\b | potential(?:ly)?\b | less likely\b
    """,
    # Doubts what is behind it, and the one finding directly before it.
    "either": r"""
        versus\b | vs\.? | \?
        | (?:(?:is|are|would be|remains?) )?(?:difficult|hard|impossible) to (?:\w+ )?(?:exclude|rule out)\b
    """,
    # The same, across a verb: "effusions are small if any".
    "if_any": r"if (?:any|present|real|there (?:is|are) any|at all)\b",
    "not_after": rf"""
        {_COPULA} (?:\w+ )?(?:absent|resolved|cleared|gone|excluded|removed|ruled out|unlikely)\b
        | (?:has|have|had) (?:\w+ )?(?:resolved|cleared|disappeared|been removed|been excluded)\b | unlikely\b
        | (?:not|no longer) (?:\w+ ){{0,2}}?{_SEEN}\b
        | (?:has|have) not (?:\w+ )?(?:recurred|re-?accumulated|developed|returned)\b
        | resolved\b(?= ?(?:[.,;]|$|since|in the interval|compared))
        | within (?:the )?(?:limits of normal|normal limits)\b | (?:is|are) not\b$
    """,
    "colon": r"""
        (?:,\s|\s-\s)(?:none|nil|absent|negative)\b(?= ?(?:[.,;]|$))
        | : ?(?:none|no|nil|negative|absent|not (?:seen|present|identified))\b
          (?= ?(?:[.,;]|$|seen|identified|present)|\s\w+(?: \w+){0,2} ?:)
    """,
    "not_before": r"""
        no\b | not\b | without\b | w/o\b | free (?:of|from)\b | negative (?:for|of)\b
        | clear (?:of|from)\b | absen(?:ce|t)\b
        | lack\w* (?:of)?\b | neither\b | nor\b | never\b | den(?:y|ies)\b | resolution of\b
        | resolved (?!from) | mistaken for\b
        | clearing of\b | clearance of\b | removal of\b | removed\b | rather than\b | devoid of\b
        | excludes?\b | non\b | (?<!cannot )(?<!to )(?:rules|ruled) out\b
        | unremarkable for\b
    """,
    # The mention before it is explained away.
    "ignore_after": r"""
        (?:(?:most |very )?(?:likely|probably) )?(?:represent\w*|reflect\w*|is|are|due to|from|consistent with|
          compatible with|likely|probably)
        \s(?:an? )?(?:\w+ ){0,2}?(?:nipple|artifact|skin ?fold|summation)\w*
        | (?:can|could) ?not be (?:\w+ )?(?:assessed|evaluated|determined)
    """,
}
# A word that opens a new statement: cues do not reach across it.
_NEW = (
    r"(?:stable|unchanged|persistent|increased|increasing|new|worsen\w+|improv\w+|mild\w*|moderate\w*|severe\w*|"
    r"minimal\w*|there|known|the heart|heart|the lungs|lungs|low lung|low volume|again|redemonstrat\w+|status|chronic|"
    r"probable|possible|possibly|probably|calcified|tortuous|the aorta|aorta|degenerative|scoliosis|patient|"
    r"hyperexpan\w+|hyperinflat\w+|bony|"
    r"visuali[sz]ed|the (?:\w+ ){1,3}(?:is|are))"
)
BREAK = re.compile(
    r"\b(?:but|however|although|though|except|aside from|apart from|other than|yet|which|whereas|while|besides|"
    r"otherwise|despite|with the exception of|there (?:is|are|has|have|may|might|was|were))\b"
    # "no new, worsening, or enlarging nodule" is one list
    rf"|,\s?(?:and |with )?(?={_NEW}\b)(?![^;]{{0,80}}, (?:or|nor)\b)"
    r"|,\s?(?=(?:an? )?(?:small|tiny|trace)\b)(?![^;]{0,80}\b(?:or|nor)\b)"
    rf"|\band (?=(?:(?:an? )?{_NEW}|small|trace|a)\b)"
    r"|\band (?=(?:the )?(?:\w+ ){1,3}(?:is|are|has|have|appears?|remains?)\b(?! not))"
    rf"|(?<!compatible )(?<!consistent )\bwith (?=(?:an? )?(?:{_NEW}|small|large|trace|bilateral|enlarge\w+)\b)"
    r"|[;()]"
)
# Beyond these a doubt does not reach once it has met a finding: "possible pneumonia with effusion" doubts the
# pneumonia.
DOUBT_ENDS = re.compile(
    r"\b(?:with|due to|from|in addition to|as well as|superimposed on|adjacent to|in the setting of|related to|"
    r"secondary to|caused by|accompany\w+|associated with)\b"
)
VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|seen|present|noted)\b"
    r"(?! on (?:the )?(?:prior|previous|ct|chest ct|recent|\w+ ct)\b)"
)
COPULA_END = re.compile(rf"\b{_COPULA} ?$")
# A degree directly after a mention belongs to the next one ("no pneumothorax mild cardiomegaly") ...
DEGREE = re.compile(r" (?:mild|moderate|severe|stable|unchanged|small|low|the heart|heart|the lungs|lungs)\b")
# ... but for a list without commas ("no consolidation small effusion or pneumothorax").
LIST_END = re.compile(r"\b(?:or|nor)\b")
ALTERNATIVE = re.compile(r",? or (?:\w+ ){0,3}")


def _compile_cues() -> re.Pattern[str]:
    parts = []
    for kind, phrases in CUES.items():
        pattern = compile_phrases(phrases).pattern
        parts.append(rf"(?P<{kind}>{pattern})")
    return re.compile(r"(?:\b|(?=[?:]))(?:" + "|".join(parts) + ")")


_CUES = _compile_cues()


def find_cues(sentence: str) -> dict[str, list[tuple[int, int]]]:
    """Spans in order, by kind of cue."""
    found: dict[str, list[tuple[int, int]]] = {kind: [] for kind in CUES}
    for match in _CUES.finditer(sentence):
        found[str(match.lastgroup)].append(match.span())
    return found
