"""Which patients a model was trained on, as hashes in its folder, so that it is not measured on them unnoticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError
from llmcxr.studies.study import Study

_NAME = "patients.txt"


def patient_hash(patient_id: str) -> str:
    """First 16 hex digits of the SHA-256 of an id: enough to know a patient again, not made to hide who it is."""
    return hashlib.sha256(patient_id.encode()).hexdigest()[:16]


def write_patients(folder: Path, hashes: Iterable[str]) -> None:
    """Write `patients.txt`: one hash a line, sorted."""
    with atomic_path(folder / _NAME) as temporary:
        temporary.write_text("".join(f"{value}\n" for value in sorted(set(hashes))), encoding="ascii")


def seen_patients(folder: Path) -> frozenset[str] | None:
    """Hashes of the patients that the model in `folder` (packed or not) was trained on; None where it does not say.

    `UserError` where the file cannot be read.
    """
    path = folder / _NAME
    if not path.exists():
        return None
    try:
        return frozenset(path.read_text(encoding="ascii").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}). Fetch or make the model again.") from error


def check_unseen(studies: Sequence[Study], folder: Path, allow: bool) -> str | None:
    """Whether the model in `folder` was trained on patients that `studies` has for validation or test: what to say, if anything.

    `UserError` where it was, unless `allow`.
    """
    seen = seen_patients(folder)
    if seen is None:
        return (
            f"{folder.name} does not say which patients it was trained on: some of the test patients may be among them"
        )
    held_out = dict.fromkeys(study.patient_id for study in studies if study.split != "train")
    known = [patient for patient in held_out if patient_hash(patient) in seen]
    if not known:
        return None
    said = (
        f"{len(known):,} of the {len(held_out):,} validation and test patients, e.g. {known[0]}, are among those that the model "
        f"{folder.name} was trained on"
    )
    if allow:
        return said
    raise UserError(
        f"{said}: scores on them say nothing of new patients. Give them the split train, leave them out, or set "
        "allow_seen_patients=true."
    )
