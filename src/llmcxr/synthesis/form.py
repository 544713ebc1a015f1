"""What is wrong with a question and its answer whatever the report says: form, and what they refer to."""

from __future__ import annotations

import re

from llmcxr.studies.prior_references import cues_of

LEAST_WORDS, MOST_QUESTION, MOST_ANSWER = 3, 40, 60  # words
_ASKS = re.compile(
    r"(?:is|are|was|were|do|does|did|can|could|has|have|what|which|where|how|who|why|when|whose|in which|on which|in what"
    r"|on what|at which|to which|describe|name|list|identify|locate|characteri[sz]e|compare|state)\b"
)
_NO_ANSWER = re.compile(
    r"\b(?:(?:not|un)[ -]?(?:specified|stated|mentioned|known|given|provided|reported|answerable|described|determined)"
    r"|unspecified|unknown|unclear|n/?a|can ?not (?:be )?(?:determined?|answer(?:ed)?|tell|said|assessed)|no information"
    r"|unable to (?:determine|answer|tell)|i (?:do not|don't) know|does not (?:say|mention|specify|state))\b|^none given\b"
)
_REPORT = re.compile(
    r"\b(?:(?:the|this|a|your|radiology|above|given) (?:\w+ )?(?:report|text|dictation|passage|description|statement)"
    r"|reports?(?! card)|radiologists?|physicians?|doctors?|clinicians?|according to|as (?:mentioned|described|stated|noted)"
    r"|(?:is|are|was|were) (?:\w+ )?(?:mentioned|stated|reported|described|documented|dictated)|mentioned|dictat\w+"
    r"|(?:findings|impression|indication|technique|comparison) section|(?:the|in) impression|author|conclude[ds]?)\b"
)
_PRIORS = re.compile(
    r"\b(?:chang(?:e|es|ed)|compared?|comparison|previous(?:ly)?|priors?|earlier|interval|since|improv\w+|worsen\w+"
    r"|progress\w*|stable|unchanged|resol\w+|follow-?up|baseline|already|over time"
    r"|last (?:study|exam\w*|film|image|radiograph|day|night|week|month|year))\b"
)
_NO_CHANGE = re.compile(
    r"\b(?:degenerative|chronic|postsurgical|post-surgical|postoperative|fibrotic|emphysematous|pleural|bony|osseous"
    r"|interstitial|arthritic|hypertrophic|cystic) (?:\w+ )?changes?\b"
)
# Of one side against the other, or of what was done once: none of it speaks of an earlier image.
_WITHIN = re.compile(
    r"\b(?:(?:larger|smaller|greater|bigger|worse|higher|lower)\b(?= than (?:the )?(?:left|right|other|opposite)| (?:on|in|at|side|one)\b)"
    r"|(?<=which )(?:\w+ ){0,4}?(?:larger|smaller|greater|bigger|worse|higher|lower)|(?<=where is the )(?:larger|smaller|bigger)"
    r"|(?:old|chronic|healed) or (?:new|recent)|(?:new|recent) or (?:old|chronic|healed)"
    r"|(?:valves?|shoulders?|breasts?|lobes?|lungs?|joints?|ribs?|gallbladder|kidneys?|spleen)"
    r" (?:has|have|was|were|is|are) (?:been )?(?:surgically )?(?:removed|replaced|resected)"
    r"|(?:larger|smaller|greater|bigger|worse|higher|lower)\b(?= (?:\w+ )?(?:on|in|at) (?:the )?(?:left|right)\b)"
    r"|same (?:\w+ )?(?=(?:on|in|at) (?:both|the two|either|each)\b)"
    r"|(?:which|what) (?:way|side|direction|vein|vessel|route|approach) (?:has|have) (?:\w+ ){1,4}"
    r"(?:moved|shifted|inserted|introduced|placed|passed|threaded))\b"
)
# "Is the effusion larger?", without the side that it is compared with
_GROWN = re.compile(
    r"(?:is|are|has|have|does|did)\b(?!.*\b(?:left|right|side|one)\b)[^?,]*(?<!the )"
    r"\b(?:larger|smaller|bigger|worse|better)\W*$"
)
# "The left is larger", in answer to a question of that kind.
_THAN_THE_OTHER = re.compile(
    r"\b(?:larger|smaller|greater|bigger|worse|higher|lower)\b(?! than (?:before|prior|previous|earlier))"
)
_VIEWS = re.compile(
    r"\b(?:lateral(?: (?:view|image|film|projection|radiograph)s?)|on (?:the )?lateral|(?:two|both|other|another|frontal and"
    r" lateral|pa and lateral|which|what) (?:views?|projections?)|oblique|decubitus|ct\b|cta|mri|pet|ultrasound|sonogra\w+"
    r"|echocardiogra\w+|tomogra\w+|mammogra\w+|scans?)\b"
)
_PATIENT = re.compile(
    r"\b(?:year[s]?[ -]old|(?:patient'?s?|his|her) (?:\w+ )?(?:name|age|sex|gender|history|symptoms?|complaints?|condition"
    r"|diagnosis|weight|height|medication\w*|race)|how old(?! (?:is|are) the (?:\w+ ){0,3}(?:fracture|injur|deformit))|symptoms?|fevers?|cough\w*|pain|dyspn\w+|shortness of breath|"
    r"medications?|medical history|history|smok\w+|surgeries|admitted|admission|hospital\w*|male or female|born|"
    r"(?:mr|mrs|ms|dr)\.? [a-z]+|\d{1,2}[/-]\d{1,2}[/-]\d{2,4}|(?:19|20)\d\d|(?:on|of|in) (?:january|february|march|april"
    r"|may|june|july|august|september|october|november|december)|dates?|what time|yesterday|today|heart rate"
    r"|blood pressure|oxygen|temperature|white (?:blood )?count|laborator\w+"
    # what the patient feels, does and went through; what was done to the body is seen ("has there been a sternotomy")
    r"|complain\w*|heartburn|nause\w+|vomit\w*|weight loss|los[te] weight|palpitations?|hemoptysis|wheez\w+|dysphagia"
    r"|fatigue\w*|headaches?|chills|sweats?|allerg\w+|alcohol|occupation\w*|profession|for a living|as a child"
    r"|childhood"
    r"|in the past|past (?:illness\w*|infections?|operations?)|exposed to|(?:his|her"
    r"|the patient's) (?:\w+ )?(?:cancer|job)"
    r"|illness\w*|vaccinat\w+|trouble breathing|brought the patient"
    r"|in an? (?:\w+ ){0,2}(?:accident|fall|crash|collision|fight)|(?:fell|a fall) (?:down|from|off|on)"
    r"|what happened|how did (?:the|this) (?:\w+ ){1,3}(?:break|happen|occur|arise|come|get|start|develop"
    r"|fracture|injure)"
    r"|did (?:the|this) patient(?! undergo| have an? \w+(?:ectomy|otomy|plasty)\b)|(?:has|had) (?:the"
    r"|this) patient (?:ever"
    r"|lost|fallen|travel\w+|worked|lived|used|taken|been (?:an? |in |at |ill|sick|unwell|injured|hurt|exposed|treated"
    r"|abroad|diagnosed|losing))"
    r"|(?:the|this) patient (?:\w+ly )?(?:feel|drink|work|live|travel|weigh|eat|sleep|take|injured|hurt|stabbed"
    r"|shot)\w*"
    r"|(?:the|this) patient (?:an? )?(?:\w+ly )?(?:diabetic|immuno\w+|pregnant|ill|sick|septic|conscious"
    r"|alcoholic|alive"
    r"|in (?:\w+ )?(?:distress|shock))"
    r"|why (?:was|were|did|has|had|have) (?:\w+ ){1,5}(?:removed|resected|replaced|amputated|operated|performed"
    r"|undergo\w*"
    r"|done))\b|___|xxxx"
)
_NOT_SEEN = re.compile(
    r"\b(?:recommend\w*|should|treat(?:ed|ment)?s?|therap\w+|prognos\w+|advi[sc]e\w*|next step|management|biops\w+"
    r"|caus(?:e|es|ed|ing)|etiolog\w+|reasons?|(?:purpose|indication) (?:of|for)|why|risk|survive|when (?:was|were|did|will)"
    r"|antibiotics?|surgery|technique|exposure|kvp|dose|(?:what|which) (?:type|kind) of (?:exam\w*|study|imaging)|who"
    r"|clinical\w*|urgent\w*|notified|(?:how many|how long|for how) (?:hours?|days?|weeks?|months?|years?)"
    r"|next (?:tests?|stud(?:y|ies)|exam\w*|imaging)|ejection fraction|drugs?|medicines?|chemotherap\w+"
    r"|infus(?:ed|ions?)"
    r"|needs?|needed|requires?|required(?=\W*$| (?:for|here|now|next)\b)|necessary|must|ought|benefit from|warrant\w*"
    r"|advisable|indicated(?=\W*$| (?:for|here|now|next)\b)|ha(?:s|ve) to be|be taken out|time to (?:remove|drain|stop)"
    r"|manag(?:ed?|ing)|safe to|ready (?:to|for)|be used|be (?:pulled|drawn) back|be (?:withdrawn|advanced"
    r"|repositioned))\b"
)


def fault_of_form(question: str, answer: str) -> str:
    """The reason to reject a pair whatever the report says; "" where there is none."""
    both = f"{question} {answer}"
    here, told = _NO_CHANGE.sub(" ", question), _NO_CHANGE.sub(" ", answer)
    if _WITHIN.search(here):
        here, told = _WITHIN.sub(" ", here), _THAN_THE_OTHER.sub(" ", told)
    counts = len(question.split()), len(answer.split())
    faults = {
        "empty": not re.search(r"[a-z]", question) or not re.search(r"\w", answer),
        "not a question": not _ASKS.match(question) and not question.endswith("?"),
        "length": not LEAST_WORDS <= counts[0] <= MOST_QUESTION or counts[1] > MOST_ANSWER,
        "no answer": bool(_NO_ANSWER.search(answer)),
        "report": bool(_REPORT.search(both)),
        "patient": bool(_PATIENT.search(both)),
        "not in the image": bool(_NOT_SEEN.search(both)),
        "other views": bool(_VIEWS.search(both)),
        "priors": bool(_GROWN.match(here)) or any(_PRIORS.search(text) or cues_of(text) for text in (here, told)),
    }
    return next((reason for reason, found in faults.items() if found), "")
