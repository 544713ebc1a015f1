"""The words of each finding: what names it, what only looks like it, and statements of normality and doubt.

Every pattern works on one lower-case sentence with single spaces. Phrases stand apart by " | " and may be broken over
lines anywhere; single spaces inside them count. The part of a pattern named `m` (`m2`, ...) is the mention that cues
act on; without it, the whole match is.
"""

from __future__ import annotations

import re

# Building blocks.
_LUNG = r"(?:lungs?|lung fields?|lung parenchyma|pulmonary parenchyma)"
_HEART = (
    r"(?:heart|cardiac|cardiomediastinal|cardio-mediastinal|cardiopericardial|cardiovascular|cardiomediastinum|"
    r"cardiothymic|mediastinal and cardiac)"
)
_BIG = r"(?:enlarge\w*|prominen\w+|increased|big|large[rd]?|widened)"
_ADVERB = r"(?:\w+ly |\w+-to-\w+ |mild to moderate )?"
_AORTA = r"(?:aorta|aortic(?: arch| knob| contour)?|arch)"
_HYPO_VOLUME = r"(?:low(?:er)?|small|decreas(?:ed|ing)|diminished|reduced|shallow|poor|suboptimal|limited)"

# Text between a subject and its predicate: not across a conjunction, another organ or a cue of the opposite sense.
_TO = r"(?:(?!\b(?:but|however|although|though|lungs?|there|pulmonary|effusions?|pneumothora\w+)\b).){0,70}?"
_TO_SHORT = r"(?:(?!\b(?:but|however|although|though|there)\b).){0,35}?"

# What names a finding. Several findings of a vocabulary may share a term (`VOCABULARIES`).
PRESENT: dict[str, str] = {
    "granuloma": r"""
        granuloma\w* | \bcalcified (?:\w+ ){0,3}?(?:lymph|hil\w+|mediastinal|paratracheal|subcarinal)\b(?: (?:lymph )?nodes?\b)?
        | \bgranulomata\b | \bghon\b | \branke\b
        | \bcalcified (?:\w+[ /,-]+){0,4}?(?:lymph )?(?:nodes?|nodules?|nodular|adenopathy|lymphadenopathy|hila\b|hilum)
        | (?:lymph )?(?:nodes?|nodules?|adenopathy|lymphadenopathy) (?:\w+ ){0,4}?(?P<m>calcifi\w+)
        | (?:hilar|perihilar|nodal|node|mediastinal|parenchymal|lung|pulmonary|paratracheal|subcarinal) (?:\w+ ){0,2}?
          (?:calcifications?|calcific densit\w+|calcified densit\w+)
        | calcifications? (?:\w+ ){0,3}?(?:hil\w+|lungs?|lobe|lymph|apex|base)\b
    """,
    "opacity": r"""
        \bopaci\w+ | \bopacif\w+ | \binfiltrat\w+ | \bdensit(?:y|ies)\b | \bhaz(?:e|y|iness)\b | \bground[ -]?glass\b
        | \bair[ -]?space (?:\w+ )?(?:disease|process\w*|abnormalit\w+|opac\w+|infiltrat\w+|consolidation)\w*
        | \bairspace opac\w+ | \bparenchymal disease\b | \bparenchymal (?:\w+ )?(?:process|abnormalit\w+)
        | \bcovid(?:-19)?\b
    """,
    "consolidation": r"\bconsolidat\w+",
    "pneumonia": r"\bpneumoni(?:a|as|tis|c)\b | \bbronchopneumonia\w*",
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
        \bhypo-?\s?(?:inflat|aerat|ventilat|expan)\w+ | \bpoorly (?:inflated|expanded|aerated)\b
        | \bunder-?\s?(?:inflat|aerat|expan)\w+
        | \b{_HYPO_VOLUME} (?:\w+ ){{0,2}}?(?:lung|inspiratory|respiratory|pulmonary) (?:lung )?volumes?\b
        | \b(?:lung|inspiratory|pulmonary) volumes? (?:\w+ ){{0,4}}?(?P<m>{_HYPO_VOLUME})\b(?! normal)
        | \b{_HYPO_VOLUME} (?:\w+ )?(?:inspirat\w+|inspiration|inflation|expansion|volumes\b|aeration)
        | \b(?:inspirat\w+|expansion|inflation) (?:\w+ ){{0,3}}?(?P<m2>{_HYPO_VOLUME})\b
        | \bvolumes? (?:are|is) {_ADVERB}(?P<m3>low)\b(?! normal)
    """,
    "hyperinflation": rf"""
        \bhyper-?\s?(?:inflat|expan|disten|aerat|lucen)\w+ | \bover-?\s?(?:inflat|expan|disten|aerat)\w+
        | \bemphysem\w+ | \bcopd\b
        | \bchronic obstructive\b | \bobstructive (?:lung|pulmonary|airway\w*) (?:disease|change)
        | \bflattening of (?:\w+ ){{0,3}}?(?:hemi-?)?diaphragm\w*
        | \bflatten(?:ed|ing) (?:of )?(?:\w+ )?(?:hemi-?)?diaphragm\w*
        | \b(?:hemi-?)?diaphragm\w* {_TO_SHORT}\b(?P<m>flat(?:ten\w*)?)\b | \bdiaphragmatic flattening\b
        | \b(?:large|increased|high) (?:\w+ )?lung volumes?\b
        | \blung volumes? (?:(?!with|and)\w+ ){{0,3}}?(?P<m2>large|increased|high)\b
        | \bincreased (?:ap|anteroposterior|a\.p\.) diameter | \bair[ -]trapping\b
    """,
    "tortuous aorta": rf"""
        \b(?:tortuo\w+|ecta\w+|unfold\w+|uncoil\w+|dilat\w+|aneurysm\w*|elongat\w+)\b
          (?:(?!\b(?:and (?!calcif|athero|arterio|ecta|tortuo|elongat|dilat|unfold|upper|abdom|thorac)|with|heart|
          cardiac|pulmonary|hil\w+|
          mediastin\w+)\b).){{0,60}}?\b{_AORTA}\b
        | \b(?:prominen\w+|enlarge\w+)\b
          (?:(?!\b(?:and|with|heart|cardiac|pulmonary|hil\w+|mediastin\w+|calcifications?|
          athero\w+)\b).){{0,40}}?\b{_AORTA}\b
        | \b{_AORTA}\b(?:(?!\b(?:but|however|heart|cardiac|pulmonary|lungs?|there|valve|stent|graft)\b).){{0,45}}?
          \b(?P<m>tortuo\w+|ecta\w+|unfold\w+|uncoil\w+|dilat\w+|aneurysm\w*|elongat\w+|prominen\w+|enlarge\w+)
    """,
    "pleural effusion": r"""
        \beffusions? | \bhydro-?(?:pneumo)?thora\w+ | \bhemo-?(?:pneumo)?thora\w+ | \bempyema\w*
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
        \binterstiti\w+ (?:(?!edema|pulm)[\w-]+[ ,/]+){0,2}?
          (?:marking|thickening|prominence|change|disease|pattern|lung|fibros|process|
          abnormalit|coarsening|scarring|crowding|opaci|infiltr|densit)\w*
        | \b(?:prominen\w+|increased?|coarse\w*|chronic|accentuat\w+|thicken\w+|exaggerat\w+) (?:\w+[ ,]+){0,4}?
          (?:interstiti\w+|markings?|bronchovascular)\b(?! (?:\w+ ){0,2}?(?:edema|pulmonary edema))
        | \b(?:interstiti\w+|markings?) (?:(?!edema)\w+ ){0,4}?
          (?P<m>prominen\w+|increase\w*|coarse\w*|accentuat\w+|thicken\w+)
        | \b(?:pulmonary|interstitial|lung|basilar|bibasilar|parenchymal|chronic|apical) fibro(?:sis|tic)\b
        | (?<!cystic )\bfibrosis\b | (?<!cystic )\bfibrotic\b
        | \breticul\w+ | \bseptal lines?\b | \bb[ -]lines?\b | \bcrowded\b
        | \bhoneycomb\w* | \bcrowding\b
    """,
    "mass": r"""
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
        \b(?:levo|dextro|kypho|roto)?-?\s?scolio\w+ | \b(?:dextro|levo)[ -]?(?:curv|convex|rotat)\w+
        | \bs-?\s?shaped curv\w+
        | \bcurvature of (?:the )?(?:\w+ )?(?:spine|vertebra\w+)
        | (?:spine|spinal|thorac\w+|lumbar) (?:\w+ ){0,3}?curvature
        | \bspine (?:\w+ly )?(?:is |appears )?(?:\w+ly )?(?:curv(?:es?|ed|ing)|bows?|bow(?:ed|ing)|bends?|bent|convex)\b
    """,
    "support device": r"""
        \bpace-?\s?makers? | \bpacer\b | \b(?:pacing|pacer) (?:leads?|wires?|device)s? | \baicd\b | \bicd\b
        | \bdefibrillator\w*
        | \bcardiac (?:\w+ )?device\w* | \bgenerator\b | \bport-?\s?a-?\s?cath\w* | \bmedi-?\s?port\w*
        | \bport\b(?!able)
        | \bcatheter\w* | \bpicc\b | \bcentral (?:venous )?(?:line|access)s?
        | \b(?:pic|ij|jugular|subclavian|venous|femoral|dialysis) (?:\w+ )?(?:line|sheath)s?\b
        | \bcvc\b | \b(?:swan|cordis|dobbhoff|dobhoff)\b | \btracheostomy\b
        | \b(?:chest|feeding|ng|og|et|nasogastric|orogastric|enteric|endotracheal|tracheal|tracheostomy|drainage|
          pleural|pigtail|
          gastric|thoracostomy) tubes?\b | \btubes?\b | \bendotracheal\b | \bett\b | \b[no]gt\b | \bnasogastric\b
        | \bshunt\b | \bpigtails?\b | \bballoon pump\b | \biabp\b | \blvad\b | \bimpella\b
        | \bleads?\b(?! to) | \bsternal (?:\w+ )?(?:wire|suture)s? | \bembolization coils?\b | \bcoils\b
        | \bsurgical (?:\w+ )?(?:clip|staple|material|suture|device|hardware|drain)s?
        | \b(?:pleural|chest|thoracic|mediastinal|pericardial) drains?\b
        | \b(?:wires?|clips?|staples?|sutures?)\b | \bhardware\b | \bprosthe\w+
        | \bvalve (?:replacement|repair)
        | \b(?:prosthetic|mechanical|artificial|bioprosthetic|metallic|heart) (?:\w+ )?valves?\b(?! calcif)
        | \b(?:neuro-?)?stimulator\w*
        | \btips?\b(?= (?:\w+ ){0,3}?(?:project|overl|terminat|at|in|within|over)) | (?:xxxx|___)-a-(?:xxxx|___)
        | \bdevices?\b | \b(?:ivc|caval) (?:filter|xxxx|___) | \bloop recorder
        | \bimplant\w*
    """,
    "lung lesion": r"""
        \b(?:lung|pulmonary|parenchymal|cavitary|cavitating|coin|spiculated) lesions? | \bmetasta\w+ | \btumou?rs?\b
        | \bnodular (?:opaci|densit)\w+
    """,
    "wide mediastinum": r"""
        \b(?:widen\w*|enlarge\w*|prominen\w+) (?:of (?:the )?)?(?:\w+ ){0,2}?(?:mediastin\w+|cardiomediastin\w+)
        | \b(?:mediastin\w+|cardiomediastin\w+)
          (?:(?!\b(?:but|lungs?|there|effusions?|lymph|nodes?)\b).){0,50}?\b(?P<m>widen\w*|enlarge\w*|prominen\w+)
    """,
    "pleural change": r"""
        \bpleur\w+ (?:[\w/-]+ ){0,2}?(?:thicken\w+|plaques?|scarring|calcif\w+|disease|abnormalit\w+|mass\w*|lesions?)\b
        | \b(?:thickened|calcified) (?:\w+ )?pleura\w* | \bpleural-parenchymal scarring\b | \bpleuroparenchymal scar\w*
        | \bfibrothorax\b
    """,
    "fracture": r"""
        \bfractur\w+ | \bbroken (?:\w+ )?(?:ribs?|bones?|clavicles?)\b
        | \b(?:ribs?|bones?|clavicles?) (?:is |are )?broken\b
    """,
    # Of no vocabulary: what questions ask of beside the findings. "Abnormality" is of a whole organ, and what its being
    # called normal denies.
    "lung abnormality": r"""
        \blungs? (?:is |are )?(?:\w+ )?(?:affected|involved|abnormal|diseased)\b
        | (?<!acute )\b(?:lung|pulmonary|parenchymal) (?:disease|abnormalit\w+|process\w*|findings?)\b
        | \b(?:abnormal\w*|disease|process\w*|findings?) (?:\w+ ){0,3}?(?:in|of|within|affecting) (?:the )?(?:\w+ )?lungs?\b
    """,
    "cavity": r"\bcavit(?:y|ies|ary|ations?)\b",
    "bronchiectasis": r"\bbronchiecta\w+",
    "bulla": r"\bbulla\w* | \bblebs?\b",
    "contusion": r"\bcontusions?\b",
    "pleural abnormality": r"\bpleural (?:space )?(?:abnormalit|patholog|process)\w*",
    "vascular abnormality": r"\b(?:pulmonary )?vascul(?:ar|ature|arity) (?:is )?abnormal\w*",
    "volume abnormality": r"\babnormal (?:lung )?volumes?",
    "mediastinum abnormality": r"\babnormal\w* (?:of (?:the )?)?(?:cardio)?mediastin\w+",
    "hilar abnormality": r"""
        \bhil(?:ar|um|a) (?:is |are |appears? |remains? )?(?:\w+ ){0,2}?(?:enlarge|prominen|full|bulky|abnormal|elevat|displac)\w*
        | \b(?:enlarge|prominen|full|bulky|abnormal|elevat|displac)\w* (?:of (?:the )?)?(?:\w+ )?(?:hila|hilum|hilar)\b
        | \bhilar (?:\w+ ){0,3}?(?:lymph)?adenopathy\b
    """,
    "heart abnormality": r"\babnormal (?:heart|cardiac)\b | \b(?:heart|cardiac \w+) (?:is )?abnormal\b",
    "diaphragm abnormality": r"\bdiaphragm\w* (?:is )?abnormal\w*"
    r" | \babnormal\w* (?:of the )?(?:\w+ )?(?:hemi-?)?diaphragm\w*",
    "collapse": r"\bcollaps\w+",
    "bone injury": r"\bacute (?:\w+ )?(?:osseous|bony|skeletal|bone)"
    r" (?:\w+ )?(?:abnormalit|injur|process|lesion|finding|patholog)\w*",
    "bone abnormality": r"(?<!acute )\b(?:osseous|bony|skeletal|bones?)"
    r" (?:(?:or|and) (?:\w+ ){1,2})?(?:\w+ )?(?:abnormalit|patholog|destruction)\w*",
    "bone lesion": r"""
        \b(?:bone|bony|osseous|rib|vertebral|lytic|sclerotic|blastic|expansile) (?:\w+ ){0,3}?lesions?
        | \b(?:bony|osseous|bone|lytic|sclerotic|blastic) (?:\w+ ){0,2}?(?:destruction|foc(?:us|i)|metasta\w+)
        | \blesions? (?:is |are )?(?:in|of) (?:the )?(?:\w+ ){0,3}?(?:ribs?|vertebra\w*|bones?|clavicle|scapula|humer\w+)
    """,
    "vertebral deformity": r"""
        \bcompression (?:deformit|fractur)\w+ | \bwedge\w* (?:deformit|compression)\w*
        | \b(?:loss of (?:\w+ )?height|height loss)\b | \bvertebral (?:\w+ )?(?:deformit|collapse)\w*
    """,
    "osteopenia": r"\bosteop(?:en|or)\w+ | \b(?:de|under)-?mineraliz\w+"
    r" | \b(?:low|reduced|decreased) bone (?:mineral )?density",
    "degenerative change": r"\bdegenerat\w+ | \bspondylo\w+ | \bosteophyt\w+"
    r" | \b(?:osteo)?arthr(?:itic|itis|osis)\b | \bspur(?:s|ring)\b",
    "adenopathy": r"""
        \b(?:lymph)?adenopathy\b | \b(?:enlarge\w*|prominent) (?:of )?(?:the )?(?:\w+ ){0,2}?(?:lymph )?nodes?\b
        | \b(?:lymph )nodes? (?:\w+ ){0,2}?(?P<m>enlarge\w*)
    """,
    "free air": r"""
        \bpneumoperitoneum\b | \bfree (?:\w+ )?(?:air|gas)\b
        | \b(?:sub-?diaphragmatic|intra-?peritoneal|intra-?abdominal) (?:free )?(?:air|gas)\b
        | \b(?:air|gas) (?:\w+ )?(?:under|beneath|below) (?:\w+ ){0,3}?(?:hemi-?)?diaphragm\w*
    """,
    "subcutaneous emphysema": r"""
        \b(?:sub-?\s?cutaneous|subcutis|soft[ -]tissue|chest wall|surgical) (?:\w+ )?(?:emphysem\w+|air|gas)\b
        | \b(?:emphysem\w+|air|gas) (?:(?:is|are|has|seen|present|visible|noted|track(?:s|ed|ing)?|dissect\w*|
          extend\w*|collect\w*) ){0,3}?(?:in|into|of|within|through|throughout|along) (?:the )?(?:\w+ ){0,2}?
          (?:soft tissues?|chest wall|subcut\w+)
    """,
}
# What looks like a finding and is none: a mention that overlaps such words does not count.
_ELSEWHERE = (
    r"(?:over|overlying|overlies|projecting over|projects? over|superimposed (?:on|over)|adjacent to|"
    r"surrounding|within|in) "
    r"(?:\w+ ){0,5}?(?:ribs?|clavicles?|scapula|humer\w+|spine|vertebra\w*|shoulder|breast|heart|mediastinum|"
    r"subcutaneous|soft tissues?)\b"
)
UNRELATED: dict[str, str] = {
    "opacity": rf"""
        \b(?:interstiti\w+|reticul\w+) (?:(?!air|alveolar|patchy|focal|ground|consolid|haz)[\w-]+[ /,]+){{0,3}}?
          (?:opaci|infiltr|densit)\w+
        | \b(?:bone|bony|osseous|mineral|breast|metal\w*|soft tissue|radi\w*opaque|contrast) (?:\w+ )?(?:densit|opac)\w+
        | \bdensit(?:y|ies) (?:\w+ ){{0,2}}?{_ELSEWHERE}
    """,
    "hyperinflation": r"""
        \b(?:sub-?\s?cutaneous|surgical|soft[ -]tissue|mediastinal|chest wall|subq|extrapleural|interstitial)
          (?: (?:and|or) [\w-]+)? emphysem\w+
        | \bemphysem\w+ (?:\w+ ){0,3}?(?:soft tissues?|chest wall|neck|axilla\w*|subcutaneous)
    """,
    "pleural effusion": r"""
        (?<!pleural and )(?<!pleural or )(?<!pleural/)\b(?:peri-?cardial|joint) (?:\w+ )?effusions?
        | \bblunt\w* (?:(?!effusion)[\w-]+ ){0,9}?(?:due to|from|secondary to|related to|consistent with|
          compatible with|reflects?|represents?)
          \s(?:\w+ ){0,3}?(?:scar\w*|(?:pleural )?thicken\w+|fibrosis|adhesions?)
    """,
    "pulmonary edema": r"""
        \b(?:soft[ -]tissue|peripheral|ankle|pedal|leg|extremity|laryngeal|cerebral|subcutaneous|chest wall|
          body wall) (?:\w+ )?
          (?:o)?edema
    """,
    "mass": r"\b(?:soft[ -]tissue|thyroid|breast|chest wall|body|bone|muscle|abdominal|renal|liver|adrenal) mass\w*",
    "nodule": r"\b(?:thyroid|breast|soft[ -]tissue) nodul\w+",
    "tortuous aorta": r"\bcalcifications? (?:\w+ ){0,2}?prominen\w+ | \bprominen\w+ (?:\w+ )?calcifications?",
    "scoliosis": r"\bkypho(?:sis|tic) (?:\w+ )?curvature",
    "support device": r"""
        \b(?:ekg|ecg|monitor\w*|telemetry|cardiac monitor\w*|external|electro\w*) (?:\w+ )?(?:leads?|wires?|
          devices?|electrodes?)
        | \bclip (?:number|\#|no\b|___) | \bbreast (?:\w+ )?(?:implant|prosthe)\w* | \btubes? to tissue
        | \beustachian tubes?
        | \b(?:status post|s/p) (?:\w+ ){0,3}?removal (?:of )?(?:(?!with|and|there|now)[\w-]+ ?){1,5}
    """,
    "fracture": r"""
        \bfracture (?:risk|line of) | \b(?:wire|lead|device|hardware|catheter|clip)s? fractures?
        | \bfractured (?:\w+ ){0,2}?(?:wire|lead|catheter|hardware)s?
    """,
    "wide mediastinum": rf"\bmediastin\w+ (?:\w+ )?(?:lymph|nod|aden)\w+ | \b{_AORTA} (?:\w+ )?(?:prominen|enlarge)\w+",
}

# Statements of normality, and of doubt that is built into the words. Evidence is the whole statement ("lungs are
# clear").
_NORMAL_WORD = r"(?:normal|unremarkable|within (?:the )?(?:\w+ )?(?:normal )?limits|not enlarged|wnl)"
_UPPER_NORMAL = (
    r"(?:upper (?:limits? )?(?:of )?normal|upper limits?|top[ -](?:limits? (?:of )?)?normal|high normal|borderline|"
    r"at the upper)"
)
_BONES = (
    r"(?:bones?|(?:osseous|bony|skeletal) (?:structures?|thorax|elements?)|bony (?:thorax|thoracic cage)|skeleton|ribs?"
    r"|spine|vertebra\w*|clavicles?|visuali[sz]ed osseous structures)"
)
_SPARED = (
    rf"\b{_LUNG}:? (?:is|are|appear\w*|remain\w*)? ?(?:\w+ )?"
    r"(?:spared|unaffected|uninvolved|not involved|free of (?:\w+ )?disease)\b"
    rf"|\b(?:spared|unaffected|uninvolved) (?:\w+ )?{_LUNG}\b"
)


def _organ(organ: str, *others: str) -> str:
    """Where a sentence calls an organ normal, alone or in a list ("hila and vessels are normal")."""
    normal = "|".join((*others, r"normal(?! variant| saline)", "unremarkable", r"within (?:the )?normal limits"))
    is_ = r"(?:is|are|was|were|appears?|appear|remains?|looks?|look)"
    return (
        rf"\b(?:{organ})\b(?:,? (?!(?:{is_}|but|no|not|shows?|there|with|without)\b)[\w/-]+){{0,6}}?(?:,? {is_})?\s"
        rf"(?:\w+ly |otherwise |both |also |in (?:a )?)?(?:{normal})\b"
        rf"|(?<!not )\b(?:{normal}) (?:[\w/-]+,? ){{0,3}}?(?:{organ})\b"
    )


_LUNGS_CLEAR = (
    rf"\b{_LUNG}:? (?:\w+ )?(?:are|is|appear\w*|remain\w*|were)?\s?(?:\w+ ){{0,3}}?"
    r"(?<!not )(?:clear|normal|unremarkable)\b(?! of)(?! (?:in )?volume)"
    r" | \bclear (?:\w+ )?lungs?\b | (?<!not )\bunremarkable (?:\w+ )?lungs\b"
)
ABSENT: list[tuple[tuple[str, ...], str]] = [
    (
        ("cardiomegaly",),
        rf"""
        \b{_HEART}\b(?:(?!\b(?:but|however|although|{_BIG}|lungs are|upper|top|high|borderline)\b).){{0,60}}?
          \b(?<!upper )(?<!\bnot ){_NORMAL_WORD}
        | (?<!upper )(?<!top )(?<!top-)(?<!high )(?<!limits of )(?<!limit of )(?<!not )
          \bnormal (?:\w+[ /,]+){{0,4}}?{_HEART}
        | \bunremarkable (?:\w+[ ,]+){{0,3}}?{_HEART}
        """,
    ),
    (
        ("wide mediastinum",),
        r"""
        \b(?:mediastin\w+|cardiomediastin\w+) (?:(?!\b(?:but|wid|enlarg|prominen)).){0,50}?\b(?<!not )(?:normal|
          unremarkable|within)
        | (?<!not )\b(?:normal|unremarkable) (?:\w+[ /,]+){0,3}?(?:mediastin\w+|cardiomediastin\w+)
        """,
    ),
    (
        ("opacity", "atelectasis", "pulmonary edema", "mass", "nodule", "consolidation", "pneumonia", "lung lesion"),
        _LUNGS_CLEAR,
    ),
    (("scoliosis",), r"\b(?:spine|spinal alignment) (?:\w+ ){0,3}?(?:straight|normally aligned)"),
    (("tortuous aorta",), r"\b(?:thoracic )?aort\w+ (?:\w+ ){0,4}?(?<!not )(?:normal|unremarkable)\b"),
    (
        ("hypoinflation", "hyperinflation"),
        r"\b(?:normal|well|normally|satisfactory) (?:\w+ )?(?:lung volumes|inflated|expanded|aerated|inflation)\b",
    ),
    (("pleural effusion",), r"\bcosto-?phrenic (?:angles?|sulc\w+) (?:\w+ ){0,3}?(?:sharp|clear)\b"),
    (("lung abnormality",), rf"{_SPARED} | {_LUNGS_CLEAR} | {_organ(_LUNG, 'clear')}"),
    (("pleural abnormality",), _organ(r"pleura(?:l (?:spaces?|surfaces?|cavit\w+))?", "clear")),
    (("pleural abnormality",), _organ(r"(?:lateral )?costo-?phrenic (?:angles?|sulc\w+)", "clear", "sharp")),
    (("vascular abnormality",), _organ(r"(?:pulmonary )?vascul(?:ature|arity)|pulmonary vessels")),
    (("volume abnormality",), _organ(r"lung volumes?")),
    (("heart abnormality",), rf"{_organ(_HEART)}|\b{_HEART} (?:\w+ )?(?:is |appears )?(?:small|narrow)\b(?! effus)"),
    (
        ("collapse",),
        rf"\b{_LUNG} (?:is |are |remain\w* )?(?:\w+ )?(?:well|fully|normally|symmetrically)"
        r"[- ](?:re-?)?(?:aerat|expand|inflat|ventilat)\w+",
    ),
    (("hilar abnormality",), _organ(r"hila|hilum|hilar (?:contours?|structures?|regions?)")),
    (("mediastinum abnormality",), _organ(r"(?:cardio)?mediastin\w+")),
    (("adenopathy",), _organ(r"lymph nodes?")),
    (("diaphragm abnormality",), _organ(r"(?:hemi-?\s?)?diaphragm\w*")),
    (("bone injury",), _organ(_BONES, "intact")),
    (("bone abnormality",), _organ(_BONES)),
    (("subcutaneous emphysema",), _organ(r"soft tissues?")),
    (
        ("osteopenia",),
        _organ(r"bone (?:mineral )?density|mineraliz\w+", "preserved", "maintained")
        + r"|\b(?:normally|well) mineralized",
    ),
]
DOUBTFUL: dict[str, str] = {
    "cardiomegaly": rf"""
        \b{_UPPER_NORMAL}\b(?=.{{0,40}}\b{_HEART}|.{{0,10}}\benlarge|.{{0,15}}cardiomegal)
        | \b{_HEART}\b(?:(?!\b(?:but|lungs?)\b).){{0,60}}?\b{_UPPER_NORMAL}
    """,
}


def compile_phrases(pattern: str) -> re.Pattern[str]:
    """The pattern without its layout."""
    phrases = re.sub(r"\s+\|\s+", "|", pattern.strip())
    return re.compile(re.sub(r"\s*\n\s*(?!\|)", "", phrases))


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


# What a finding of a list is called -> the terms that name it.
FINDINGS: dict[str, tuple[str, ...]] = {
    **_same("granuloma"),
    "opacity": ("opacity", "consolidation", "pneumonia"),
    **_same(
        "atelectasis",
        "cardiomegaly",
        "hypoinflation",
        "hyperinflation",
        "tortuous aorta",
        "pleural effusion",
        "pneumothorax",
        "elevated diaphragm",
        "pulmonary edema",
        "interstitial markings",
        "mass",
        "nodule",
        "hiatal hernia",
        "scoliosis",
        "support device",
    ),
}
# The CheXpert labeller's observations (Irvin et al., AAAI 2019), in its order; "No Finding" follows from the others.
CHEXPERT: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": ("wide mediastinum",),
    "Cardiomegaly": ("cardiomegaly",),
    "Lung Opacity": ("opacity", "interstitial markings"),
    "Lung Lesion": ("lung lesion", "mass", "nodule"),
    "Edema": ("pulmonary edema",),
    "Consolidation": ("consolidation",),
    "Pneumonia": ("pneumonia",),
    "Atelectasis": ("atelectasis",),
    "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("pleural effusion",),
    "Pleural Other": ("pleural change",),
    "Fracture": ("fracture",),
    "Support Devices": ("support device",),
}
# Terms of which one side is told.
SIDED = {
    "granuloma",
    "opacity",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pleural effusion",
    "pneumothorax",
    "elevated diaphragm",
    "mass",
    "nodule",
    "lung lesion",
    "pleural change",
}
