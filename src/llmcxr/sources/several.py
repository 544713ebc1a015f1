"""Several data sets as one: what an image tokenizer learns from, or a model that should know more than one hospital."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmcxr.foundation.errors import UserError
from llmcxr.sources.base import Source, Tally
from llmcxr.studies.study import Study


class SeveralSources(Source):
    """The studies of several sources, one after another, each with the splits of its own.

    Identities stay what they are (a model that was trained on several knows its patients in each alone), so none may occur in two.
    A finding that only some of them label is unknown in the others.
    """

    def __init__(self, parts: Mapping[str, Source]) -> None:
        self.parts, self.tally = parts, Tally()
        self.about = " ".join(part.about for part in parts.values())
        self.simulated = all(part.simulated for part in parts.values())

    def check(self) -> None:
        """See `Source`."""
        for part in self.parts.values():
            part.check()

    def fingerprint(self) -> Any:
        """See `Source`."""
        return {kind: part.fingerprint() for kind, part in self.parts.items()}

    def studies(self, folder: Path, image_size: int) -> list[Study]:
        """See `Source`. `UserError` where two sources have an image or a patient of the same name."""
        self.tally.clear()
        found: list[Study] = []
        images: dict[str, str] = {}
        patients: dict[str, str] = {}
        for kind, part in self.parts.items():
            own = part.studies(folder, image_size)
            for what, known, ids in (
                ("image", images, [study.image_id for study in own]),
                ("patient", patients, [study.patient_id for study in own]),
            ):
                if shared := next((name for name in ids if known.setdefault(name, kind) != kind), None):
                    raise UserError(
                        f"source.kind: the {what} {shared} is in {known[shared]} and in {kind}. Name it otherwise in one of them (a table: by another column)."
                    )
            found += own
            for reason, count in part.tally.left_out.items():
                self.tally.left_out[f"{kind}: {reason}"] = count
            for reason, count in part.tally.noted.items():
                self.tally.noted[f"{kind}: {reason}"] = count
            self.tally.examples |= {f"{kind}: {reason}": own for reason, own in part.tally.examples.items()}
        return found

    @property
    def on_disk(self) -> bool:
        """See `Source`."""
        return all(part.on_disk for part in self.parts.values())

    @property
    def assumed_images(self) -> int | None:
        """See `Source`."""
        counts = [part.assumed_images for part in self.parts.values()]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def assumed_words(self) -> tuple[int, int]:
        """See `Source`: the most of any."""
        words = [part.assumed_words for part in self.parts.values()]
        return max(findings for findings, _ in words), max(impression for _, impression in words)

    @property
    def assumed_reports(self) -> Sequence[str]:
        """See `Source`."""
        return [text for part in self.parts.values() for text in part.assumed_reports]

    @property
    def findings(self) -> Sequence[str]:
        """See `Source`."""
        return list(dict.fromkeys(name for part in self.parts.values() for name in part.findings))
