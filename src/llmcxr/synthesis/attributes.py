"""The words that qualify a finding, by group: side, severity, level of the lung, number, size, device and its end,
and axes of which a thing has one value ("acute" or "old", "lytic" or "sclerotic").
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping

# Each kind of device and its words, the more special first.
DEVICES: dict[str, str] = {
    "chest tube": r"chest (?:tubes?|drains?)|pigtails?(?: catheters?)?|thoracostomy(?: tubes?)?|pleural (?:tubes?|drains?)",
    "tracheostomy": r"tracheostomy(?: tubes?)?",
    "endotracheal tube": r"endotracheal(?: tubes?)?|intubated|\bett\b|\bet tubes?",
    "feeding tube": r"(?:feeding|ng|og|nasogastric|orogastric|enteric|gastric|(?:gastr|jejun)ostomy|peg) tubes?"
    r"|\bdob?bhoff(?: tubes?)?|nasogastric",
    "pacemaker": r"pace-?\s?makers?|pacers?|pac(?:ing|er) \w+|aicd|\bicd\b|(?:cardioverter.)?defibrillators?|generator|leads?",
    "port": r"port-?\s?a-?\s?cath\w*|medi-?\s?ports?|(?:chest |infusion |venous )?(?<!side )port",
    "central line": r"picc(?: lines?)?|central (?:venous )?(?:lines?|catheters?)|cvc"
    r"|(?:jugular|subclavian|femoral|ij|venous|dialysis) (?:venous )?(?:lines?|catheters?|sheaths?)|swan\S*(?: catheter)?",
    "loop recorder": r"(?:implantable )?loop recorders?",
    "balloon pump": r"(?:intra-?aortic )?balloon pumps?|iabp",
    "ventricular assist device": r"(?:left )?ventricular assist devices?|lvad|impella",
    "shunt": r"(?:ventriculoperitoneal |vp )?shunts?",
    "sternal wires": r"(?:sternal|sternotomy|median sternotomy) wires?",
    "surgical clips": r"(?:surgical )?clips?",
    "heart valve": r"(?:prosthetic |artificial |mechanical )?(?:heart |aortic |mitral |cardiac )?valves?",
}
COUNTS = {
    word: number
    for number, word in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], 1)
}
_ORDINALS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]
MANY = frozenset(range(2, 13))
# What excludes each other, of whatever finding: of an axis a thing has one value.
AXES: dict[str, dict[str, str]] = {
    "extent": {"focal": r"focal|localized", "diffuse": r"diffuse(?:ly)?|widespread|generali[sz]ed"},
    "age": {"acute": "acute|fresh|new|recent", "old": "old|healed|chronic|remote"},
    "rank": {"largest": "larger|largest|bigger|biggest|dominant", "smallest": "smaller|smallest"},
    "leads": {
        "single": r"(?:single|one)[- ](?:chamber|lead|lumen)",
        "dual": r"(?:dual|double|two)[- ](?:chamber|lead|lumen)",
        "triple": r"(?:triple|three)[- ](?:chamber|lead|lumen)|biventricular",
    },
    "calcium": {"noncalcified": r"(?:non-?|un|not )calcified|without calcifications?", "calcified": r"calcifi\w+"},
    "margin": {
        "irregular": r"spiculat\w+|irregular(?:ly)?|(?:ill|poorly)[- ](?:defined|marginated|circumscribed)",
        "smooth": r"smooth(?:ly)?|well[- ](?:defined|marginated|circumscribed)",
        "lobulated": r"lobulated",
    },
    "inside": {"cavitary": r"cavit\w+", "solid": "solid"},
    "wall": {"thick": r"thick(?:[- ]walled)?", "thin": r"thin(?:[- ]walled)?"},
    "displacement": {"nondisplaced": r"(?:non-?|un|not )displaced", "displaced": "displaced"},
    "pattern": {
        "linear": r"linear|plate-?like|discoid|band-?like|streaky|subsegmental",
        "rounded": "round(?:ed)?",
        "patchy": "patchy",
        "hazy": "haz(?:y|iness)|ground[- ]?glass",
        "reticular": r"reticul\w+",
        "compressive": "compressive|passive|relaxation",
        "obstructive": "(?:post-?)?obstructive",
        "wedge": "wedge(?:-shaped)?",
        "nodular": "nodular",
    },
    "edema": {"interstitial": "interstitial", "alveolar": r"alveolar|air-?space"},
    "fluid": {"loculated": "loculated|encapsulated|encysted", "free": "free[- ]flowing|layering|mobile"},
    "density": {"lytic": "lytic", "sclerotic": "sclerotic|blastic"},
    "completeness": {"partial": r"partial(?:ly)?|incomplete(?:ly)?", "complete": r"complete(?:ly)?|total(?:ly)?"},
    "wires": {"intact": "intact|unbroken", "broken": r"broken|disrupted|discontinu\w+|fractured"},
    "position": {
        "misplaced": r"(?:mal|mis)-?position\w*|misplaced|too (?:high|low|deep)"
        r"|(?:abnormal|poor|inappropriate|incorrect|improper|suboptimal)(?:ly)? (?:position\w*|locat\w+|placed)",
        "placed": r"(?:appropriate|satisfactory|standard|adequate|proper|good|expected|acceptable|correct|normal)(?:ly)?"
        r" (?:position\w*|locat\w+|place\w*)|well[- ]positioned",
    },
    "relation": {"above": "above|superior to", "below": "below|beneath|inferior to"},
    "end": {"proximal": "proximal", "distal": "distal"},
    "vertical": {"up": "upwards?", "down": "downwards?"},
    "depth": {"anterior": r"anterior(?:ly)?", "posterior": r"posterior(?:ly)?"},
    "center": {
        "central": r"centrally|central(?! venous| line| catheter)|(?:peri|para)hilar",
        "peripheral": r"peripher\w+|subpleural",
    },
    "symmetry": {"asymmetric": r"asymmetric\w*", "symmetric": r"symmetric\w*"},
    "valve": {"aortic valve": "aortic(?= (?:and mitral )?(?:valve|annul))", "mitral": "mitral", "tricuspid": "tricuspid"},
    "bone": {
        "clavicle": r"clavic\w+",
        "humerus": r"humer\w+",
        "scapula": r"scapula\w*",
        "sternum": r"sternum|sternal(?! wires?)",
        "rib": r"ribs?",
        "vertebra": r"vertebra\w*|spine",
    },
    "spine": {"cervical": "cervical", "thoracic": r"thoracic(?= (?:spine|vert|disc|level))", "lumbar": "lumbar"},
    "number": {k: rf"{word}|{n}(?:st|nd|rd|th)" for n, word in enumerate(_ORDINALS, 1) for k in [f"number {n}"]},
    "vertebra": {f"{v}{n}": rf"{v}-?{n}" for v, last in (("t", 12), ("l", 5), ("c", 7)) for n in range(1, last + 1)},
    "line": {
        "picc": "picc",
        "jugular": r"(?:internal )?jugular|ij",
        "subclavian": "subclavian",
        "femoral": "femoral",
    },
}  # fmt: skip
AXIS_OF = {value: axis for axis, values in AXES.items() for value in values}
# Where a device ends.
_OF_DEVICE = (
    r"(?! (?:[\w-]+ ){0,3}?(?:line|catheter|port|sheath|picc|tube|device|valve|balloon|swan|approach|access|route|cvc))"
)
SPOTS: dict[str, str] = {
    "cavoatrial junction": r"(?:superior )?cavo-?atrial junction|svc[ /-]+ra junction",
    "superior vena cava": "svc|superior vena cava",
    "inferior vena cava": r"ivc(?! filter)|inferior vena cava",
    "right atrium": r"right atri(?:um|al)|ra",
    "right ventricle": r"right ventric\w+|rv",
    "left atrium": r"left atri(?:um|al)",
    "left ventricle": r"left ventric\w+",
    "coronary sinus": "coronary sinus",
    "pulmonary artery": r"pulmonary (?:arter\w+|outflow \w+)",
    "brachiocephalic vein": "brachiocephalic|innominate",
    "subclavian vein": rf"subclavian{_OF_DEVICE}",
    "jugular vein": rf"(?:jugular|ij){_OF_DEVICE}",
    "femoral vein": rf"femoral{_OF_DEVICE}",
    "axilla": r"axill\w+",
    "azygos vein": "azygo(?:s|us)(?: vein| arch)?",
    "aorta": r"aortic (?:arch|knob)|(?:descending|ascending|thoracic) aorta",
    "trachea": r"carina|trachea|thoracic inlet|clavicular heads?",
    "bronchus": r"(?:main ?-?stem|main|intermediate) bronch\w+|bronchus(?: intermedius)?",
    "esophagus": r"o?esophag\w+",
    "esophagogastric junction": r"(?:(?:o?esophago-?gastric|gastro-?o?esophageal|ge|eg) junction)",
    "stomach": r"stomach|gastric(?! tube)|(?:below|beneath|under) the (?:\w+ )?(?:hemi-?)?diaphragm",
    "bowel": r"duoden\w+|jejun\w+|post-?pylor\w+|pylorus|small bowel",
    "abdomen": r"upper quadrant|abdom\w+",
    "neck": "neck|cervical",
    "breast": "breast",
}
# "Slightly asymmetric" grades no finding.
_OF_A_WORD = (
    r"(?! (?:a?symmetric|more|less|larger|smaller|greater|worse|lower|higher|rotated|clear|unremarkable|normal))"
)
GROUPS: dict[str, dict[str, str]] = {
    "sides": {
        "both": r"bilateral(?:ly)?|bibasilar|bibasal|biapical|both|(?:left|right) and (?:the )?(?:left|right)"
        r"(?! atri| ventric)",
        "left": r"left(?! (?:atri|ventric))(?:-sided|wards?)?|lingular?|levo\w+",
        "right": r"right(?! (?:atri|ventric))(?:-sided|wards?)?|dextro(?!card)\w+",
    },
    "degrees": {
        "mild": rf"(?:mild(?:ly)?|minimal(?:ly)?|small|trace|tiny|slight(?:ly)?|minor|subtle|minute"
        rf"|borderline|top[- ]normal|upper limits? of normal){_OF_A_WORD}",
        "moderate": rf"(?:moderate(?:ly)?|medium){_OF_A_WORD}",
        "severe": r"(?:severe(?:ly)?|large|marked(?:ly)?|massive(?:ly)?|extensive(?:ly)?|gross(?:ly)?|substantial(?:ly)?"
        rf"|huge(?:ly)?|overt|frank|florid|advanced){_OF_A_WORD}",
    },
    "levels": {
        "upper": r"upper(?! (?:limit|normal|abd|extrem|thoracic spine|quadrant))|apex|apices|apical(?:ly)?|biapical"
        r"|superior(?= svc)|proximal(?= svc| superior)",
        "middle": r"mid(?:dle)?(?=[ -](?:and|or|lobe|lung|zone|field|to|svc|superior))",
        "lower": r"lower(?! (?:limit|extrem|thoracic spine|lung volumes))|bas(?:e|es|al|ally|ilar)|bibasilar|bibasal"
        r"|retrocardiac|infrahilar|distal(?= svc| superior)",
        "hilar": r"(?:peri|para)?hilar|perihilum",
    },
    "traits": {value: pattern for values in AXES.values() for value, pattern in values.items()},
    "kinds": DEVICES,
    "spots": SPOTS,
    "counts": {word: rf"{word}|{number}(?! ?(?:mm|cm|\.|%))" for word, number in COUNTS.items()}
    | {
        "one": r"one(?![- ](?:side|lung|or\b))|single(?![- ](?:chamber|lead|lumen|view))|solitary|1(?! ?(?:mm|cm|\.|%))",
        "many": r"multiple|several|numerous|many|innumerable|countless|scattered",
    },
}
_ONE_SIDED = re.compile(
    r"\b(?:unilateral(?:ly)?|one[- ]sided?|one (?:lung|hemithorax|base|breast)|a single (?:side|lung))\b"
)
SIZE = re.compile(
    r"\b(\d+(?:\.\d+)?)(?: ?(?:x|by) ?(\d+(?:\.\d+)?))?[ -]?(mm|cm|millimet(?:er|re)s?|centimet(?:er|re)s?)\b"
)
# Words that open no statement of their own ("bilateral"), by group: where two begin together the longest counts.
_PATTERNS = {
    group: re.compile(r"\b(?:" + "|".join(f"(?P<w{k}>{pattern})" for k, pattern in enumerate(words.values())) + r")\b")
    for group, words in GROUPS.items()
}
# What a device passes on its way is not where it ends.
_ON_THE_WAY = re.compile(
    r"\b(?:via|through|by way of|from|along)(?: (?:the|an?|left|right|internal|external|common))* $"
)
PLACE = re.compile(
    r"\b(?:(?:left|right|both|bilateral) )?(?:(?:upper|lower|mid(?:dle)?)[ -](?:and (?:upper|lower|mid(?:dle)?)[ -])?"
    r"(?:lobes?|lungs?|zones?|lung (?:zones?|fields?))|(?:lung )?(?:bases?|apex|apices)|lingula"
    r"|(?:peri)?hilar regions?|costophrenic (?:angles?|sulcus))\b"
)


def words_of(text: str, group: str) -> list[tuple[int, int, str]]:
    """(start, end, value) of the words of a group ("sides", "degrees", ...) in a lower-case text."""
    values, found = list(GROUPS[group]), _PATTERNS[group].finditer(text)
    return [
        (m.start(), m.end(), values[int(str(m.lastgroup)[1:])])
        for m in found
        if group != "spots" or not _ON_THE_WAY.search(text[: m.start()])
    ]


def without_words(text: str, group: str, values: Container[str] | None = None) -> str:
    """A lower-case text without the words of a group, or those of some of its values."""
    for start, end, value in reversed(words_of(text, group)):
        if values is None or value in values:
            text = f"{text[:start]} {text[end:]}"
    return " ".join(text.split())


def one_sided(text: str) -> bool:
    """Whether a lower-case text says of something that it is on one side, whichever."""
    return bool(_ONE_SIDED.search(text))


def both_sides(sides: set[str]) -> frozenset[str]:
    """ "both" as the two sides that it means."""
    return frozenset(sides - {"both"}) | (frozenset({"left", "right"}) if "both" in sides else frozenset())


def sizes_of(text: str) -> set[float]:
    """Measures in a lower-case text, in millimetres."""
    return {
        round(float(number) * (10 if unit.startswith("c") else 1), 1)
        for *sides, unit in SIZE.findall(text)
        for number in sides
        if number
    }


def qualifiers_of(text: str) -> dict[str, frozenset[object]]:
    """All that a lower-case text has of each group, whatever it is said of; what it has nothing of is left out."""
    words = {group: {value for _, _, value in words_of(text, group)} for group in GROUPS if group != "kinds"}
    found: dict[str, frozenset[object]] = {group: frozenset(values) for group, values in words.items()}
    found |= {
        "sides": both_sides(words["sides"]),
        "counts": numbers(words["counts"]),
        "sizes": frozenset(sizes_of(text)),
    }
    return {group: values for group, values in found.items() if values}


def numbers(words: Iterable[str]) -> frozenset[int]:
    """What words of the group "counts" may mean."""
    return frozenset(number for word in words for number in (MANY if word == "many" else {COUNTS[word]}))


def opposed(wanted: frozenset[object], there: frozenset[object]) -> bool:
    """Whether of some axis one side has values, the other has values too, and none is shared."""
    for axis in {AXIS_OF[str(value)] for value in wanted}:
        own, other = (values & AXES[axis].keys() for values in (wanted, there))
        if other and not own & other:
            return True
    return False


def differ(wanted: Mapping[str, frozenset[object]], there: Mapping[str, frozenset[object]]) -> bool:
    """Whether what is claimed is not what is there, in any group that both tell of."""
    for group, values in wanted.items():
        if other := there.get(group):
            whole = values <= other if group == "sides" else values & other
            if opposed(values, other) if group == "traits" else not whole:
                return True
    return False
