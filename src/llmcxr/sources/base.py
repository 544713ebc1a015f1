"""What every source of data offers. One file a data set; nothing else asks which one it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from llmcxr.studies.study import Study


class Source(Protocol):
    """A data set as it lies on disk (or is simulated), read to studies."""

    about: str  # a sentence or two for the model card: what it is, and its licence
    simulated: bool  # whether its radiographs are of no patient
    left_out: Counter[str]  # reason -> how many rows or files `studies` passed over; filled while it is read

    def check(self) -> None:
        """`UserError` for files of the user's that are not there, before anything runs."""

    def fingerprint(self) -> Any:
        """JSON-able: all that its studies depend on, contents of index files included (not of images)."""

    def studies(self, folder: Path, image_size: int) -> Iterable[Study]:
        """All usable studies, each with its split. What has to be made (simulated images) goes into the run's `folder`."""
