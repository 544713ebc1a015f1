"""How a radiograph was taken: the many spellings of views, and what is a radiograph at all."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

# View -> how data sets and devices write it, in the normal form of `_words`. `docs/data.md` shows this table.
VIEWS: dict[str, tuple[str, ...]] = {
    "PA": ("pa", "posteroanterior", "postero anterior", "posterior anterior"),
    "AP": ("ap", "anteroposterior", "antero posterior", "anterior posterior"),
    "FRONTAL": ("frontal", "f", "pa ap", "ap pa", "pa or ap", "ap or pa"),
    "LATERAL": ("lateral", "lat", "l", "ll", "rl", "left lateral", "right lateral", "l lat", "r lat", "lateral left",
                "lateral right", "llat", "rlat", "xtable lateral", "cross table lateral", "lateral decubitus xtable"),
    "DECUBITUS": ("decubitus", "lateral decubitus", "left lateral decubitus", "right lateral decubitus", "ap lld", "ap rld",
                  "pa lld", "pa rld", "lld", "rld", "left decubitus", "right decubitus"),
    "OBLIQUE": ("oblique", "lao", "rao", "lpo", "rpo", "left oblique", "right oblique"),
    "LORDOTIC": ("lordotic", "ap lordotic", "ap axial", "apical lordotic"),
}  # fmt: skip
FRONTAL = ("PA", "AP", "FRONTAL")
# Words that say how the patient was placed, not from where the film was taken.
_PLACED = {
    "supine", "erect", "upright", "standing", "sitting", "seated", "semi", "semierect", "semiupright", "recumbent", "horizontal",
    "vertical", "portable", "mobile", "bedside", "wheelchair", "stretcher", "view", "views", "projection", "chest", "thorax",
    "cxr", "xr", "x", "ray", "xray", "radiograph", "film", "image", "single", "1", "one",
}  # fmt: skip
_IN_BED = {
    "supine",
    "portable",
    "mobile",
    "bedside",
    "horizontal",
    "recumbent",
}  # of which nobody takes another film than AP
_NONE = {"", "nan", "none", "n a", "na", "null", "unknown", "unk", "other", "<na>", "not available"}
_VIEW_OF = {spelling: view for view, spellings in VIEWS.items() for spelling in spellings}

# Modality -> spellings: DICOM's (0008,0060), and those of tables.
_RADIOGRAPHY = {
    "cr",
    "dx",
    "dr",
    "rg",
    "xr",
    "x ray",
    "xray",
    "radiograph",
    "radiography",
    "cxr",
    "chest x ray",
    "plain film",
}


def _words(text: str) -> str:
    return re.sub(r"[\s_/,.;()\-]+", " ", text).strip().casefold()


@functools.lru_cache(4096)
def normal_view(text: str) -> str:
    """A view by its name in `VIEWS`; "" where the text says none, and in capitals as it stands where nobody knows it.

    "AP Supine", "AP_horizontal" and "Portable" are AP; "Frontal" is PA or AP.
    """
    words = _words(text)
    if words in _NONE:
        return ""
    if words in _VIEW_OF:
        return _VIEW_OF[words]
    rest = " ".join(word for word in words.split() if word not in _PLACED)
    if rest in _VIEW_OF:
        return _VIEW_OF[rest]
    if not rest:
        return "AP" if _IN_BED & set(words.split()) else ""
    return " ".join(text.split()).upper()


def view_in(text: str) -> str:
    """The one view that a description names ("CHEST PA PORTABLE"); "" where it names none, or more ("PA AND LAT")."""
    found = {view for word in _words(text).split() if (view := _VIEW_OF.get(word)) and len(word) > 1}
    return found.pop() if len(found) == 1 else ""


def wanted_views(views: Iterable[str]) -> frozenset[str]:
    """The views that settings ask for, in any spelling. A frontal film of unknown direction is among them where both
    are."""
    wanted = {normal_view(view) for view in views}
    if "FRONTAL" in wanted:
        wanted |= set(FRONTAL)
    return frozenset(wanted | {"FRONTAL"} if {"PA", "AP"} <= wanted else wanted)


def is_radiography(modality: str) -> bool:
    """Whether a modality is that of plain radiographs (CR, DX, DR, RG, "X-ray"); not CT, MR, SEG or a dose report."""
    return _words(modality) in _RADIOGRAPHY
