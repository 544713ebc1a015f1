"""One command over many images: in batches, in order, each with its result or the reason why there is none."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcxr.commands.table import argument, path
from llmcxr.foundation.errors import OutsideWarning, UserError

if TYPE_CHECKING:
    import numpy as np

    from llmcxr.inference.llm_cxr import LlmCxr
    from llmcxr.inference.outside import Outside

AT_ONCE = 16  # images: their candidates and guided twins fill the engine; what is done is printed after each
SOME_FAILED = 1  # exit status

IMAGES = (
    argument("images", type=path, nargs="+", metavar="IMAGE", help="PNG, JPEG or DICOM files, one or many"),
    argument(
        "--json",
        action="store_true",
        help="print a line of JSON for each image, with its file and what was asked for, or an error",
    ),
)
STATUS = (
    "Of many images, or with --json, one that cannot be read does not stop the others: the exit status is 1 where any could "
    "not be, 2 for a mistake that stops all."
)


Fields = dict[str, Any]  # of an image's line of JSON


def for_images(
    arguments: argparse.Namespace,
    answer: Callable[[LlmCxr, Sequence[np.ndarray]], Sequence[Fields]],
    shown: Callable[[Fields], str],
) -> int:
    """Print what `answer` makes of a model and the codes of images [L], for every image of the command; the exit status.

    With --json as an object that begins with the file (and says whether it is outside the model's data, where it knows), else as
    `shown`. `UserError` where the only image of a plain command cannot be read, before the model is loaded.
    """
    from tqdm import tqdm

    files: list[Path] = arguments.images
    plain, failed = not arguments.json, 0
    # Where results appear on a terminal, they are the progress.
    bar = tqdm(total=len(files), unit="image", disable=len(files) == 1 or sys.stdout is None or sys.stdout.isatty())
    with bar:
        for number, (file, found) in enumerate(_answered(arguments, answer)):
            bar.update()
            failed += isinstance(found, UserError)
            if not plain:
                fields = {"error": str(found)} if isinstance(found, UserError) else found
                print(json.dumps({"file": str(file)} | fields), flush=True)
            elif len(files) == 1:
                if isinstance(found, UserError):
                    raise found
                print(shown(found))
            elif isinstance(found, UserError):
                bar.clear()
                print(f"llmcxr: {found}", file=sys.stderr, flush=True)
            else:
                print(f"{'' if number == failed else chr(10)}{file}\n{shown(found)}", flush=True)
    return SOME_FAILED if failed else 0


def _answered(
    arguments: argparse.Namespace, answer: Callable[[LlmCxr, Sequence[np.ndarray]], Sequence[Fields]]
) -> Iterator[tuple[Path, Fields | UserError]]:
    """(file, fields or `UserError`), in order. The model is loaded for the first image that can be read."""
    from llmcxr.studies.radiographs import read_radiograph

    model: LlmCxr | None = None
    files = arguments.images
    for first in range(0, len(files), AT_ONCE):
        part = files[first : first + AT_ONCE]
        if model is None:
            errors = list(takewhile(bool, (_error(read_radiograph, file) for file in part)))
            if len(errors) == len(part):
                yield from zip(part, errors, strict=True)
                continue
            model = load(arguments)
        read = model.read_each(part)
        answers = iter(answer(model, [one.codes for one in read if not isinstance(one, UserError)]))
        for file, one in zip(part, read, strict=True):
            yield file, one if isinstance(one, UserError) else next(answers) | _unlike(file, one.outside)


def _unlike(file: Path, look: Outside | None) -> Fields:
    """What a line of JSON says of how unlike the model's data an image is; where answers mean little, it is said at once."""
    if look is None:
        return {}
    if look.warned:
        warnings.warn(f"{file}: {look.told()}", OutsideWarning, stacklevel=2)
    return {"outside": look.warned, "more_unlike_than": look.more_unlike_than}


def _error(read: Callable[[Path], object], file: Path) -> UserError | None:
    try:
        read(file)
    except UserError as error:
        return error
    return None


def load(arguments: argparse.Namespace) -> LlmCxr:
    """The model that was named."""
    from llmcxr.inference.llm_cxr import LlmCxr

    return LlmCxr.from_pretrained(arguments.model, arguments.device, arguments.precision)


@functools.cache
def warn_once(text: str) -> None:
    """A line for people, once however many images there are."""
    print(text, file=sys.stderr)
