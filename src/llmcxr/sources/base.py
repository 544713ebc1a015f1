"""What every source of data offers. One file a data set; nothing else asks which one it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from llmcxr.studies.study import Study


class Source(Protocol):
    """A data set as it lies on disk (or is simulated), read to studies.

    A new one is a file like `table.py` with a settings class, whose `build` makes the source, and one line in `registry.py`.
    """

    about: str  # a sentence or two for the model card: what it is, and its licence
    simulated: bool  # whether its radiographs are of no patient
    left_out: Counter[str]  # reason -> how many rows or files `studies` passed over; filled while it is read

    def check(self) -> None:
        """`UserError` for files of the user's that are not there, before anything runs."""

    def fingerprint(self) -> Any:
        """JSON-able: all that its studies depend on, contents of index files included (not of images)."""

    def studies(self, folder: Path, image_size: int) -> Sequence[Study]:
        """All usable studies, each with its split. What has to be made (simulated images) goes into the run's `folder`."""

    # What `plan` reckons with before the data are read.

    @property
    def on_disk(self) -> bool:
        """Whether `studies` only reads what is there: nothing is made or fetched."""

    @property
    def assumed_images(self) -> int | None:
        """How many images there will be, where that is known."""

    @property
    def assumed_words(self) -> tuple[int, int]:
        """Words of the findings and of the impression of a report."""

    @property
    def assumed_reports(self) -> Sequence[str]:
        """All texts that its reports can have, where they are given (one line a class)."""

    @property
    def findings(self) -> Sequence[str]:
        """Names of the labels that its studies will have, where they are known before the data are read."""
