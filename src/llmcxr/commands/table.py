"""The table of commands: word -> one function, with its arguments above it; and the arguments that several take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmcxr.foundation.assets import DEFAULT_MODEL
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.texts import path_of

NOTICE = "For research only: not a medical device, not for diagnosis."

Adding = Callable[[argparse._ActionsContainer], object]  # puts an argument, or several, into a parser


@dataclass(frozen=True)
class Command:
    """What a command word does, and what it takes."""

    function: Callable[[argparse.Namespace], int | None]  # its exit status; None is 0
    about: str  # its first sentence stands in the list of commands
    arguments: tuple[Adding, ...]
    example: str  # what may follow `llmcxr`


COMMANDS: dict[str, Command] = {}


def command(
    name: str, about: str, *arguments: Adding, example: str = ""
) -> Callable[[Callable[[argparse.Namespace], int | None]], None]:
    """Makes the function below a command. `example` is what may follow its name."""

    def enter(function: Callable[[argparse.Namespace], int | None]) -> None:
        COMMANDS[name] = Command(function, about, arguments, f"{name} {example}".strip())

    return enter


def argument(*names: str, **options) -> Adding:
    """As for `ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(*names, **options)


def either(*arguments: Adding) -> Adding:
    """Arguments of which at most one can be given."""

    def add(parser: argparse._ActionsContainer) -> None:
        group = parser.add_mutually_exclusive_group()
        for each in arguments:
            each(group)

    return add


# --- values


def count(text: str) -> int:
    """A whole number from 1."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number, at least 1")
    return int(text)


def rate(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} should be a number above 0")
    return value


def path(text: str) -> Path:
    """A file or folder; ~ is home here too, since no shell sees it in `-o~/drawn.png` and `--output=~/drawn.png`."""
    try:
        return path_of(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def png(text: str) -> Path:
    """The file of a picture that says in its metadata what it is."""
    if Path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} should end in .png: only as a PNG it says of itself what it is")
    return path(text)


# --- arguments that several commands take

RECIPE = argument("recipe", help="a shipped recipe by name (`llmcxr recipes` lists them), or a YAML file of your own")
OVERRIDES = argument(
    "overrides",
    nargs="*",
    metavar="KEY.SUB=VALUE",
    help="settings in the place of the recipe's, e.g. tuning.lora_rank=64; `llmcxr settings` lists all, with their defaults",
)
RUN = argument("folder", type=path, metavar="RUN", help="folder that `llmcxr run` made, e.g. runs/quickstart")
IMAGE = argument("image", type=path, help="the radiograph: a PNG, JPEG or DICOM file")
SEED = argument(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help="of what is drawn by chance: the same number draws the same again, another draws anew (default: %(default)s)",
)
DEVICE = argument(
    "--device",
    default="auto",
    help="where to compute: cpu, cuda, cuda:1, ..., or auto: a GPU where there is one (default: %(default)s)",
)
MODEL = (
    argument(
        "--model",
        default=DEFAULT_MODEL,
        help="which model: a shipped one by name, the folder of a run, of a model, or of a packed one, or the id of a Hugging Face "
        "repository (default: %(default)s)",
    ),
    DEVICE,
    argument(
        "--precision",
        default="auto",
        help="of its numbers: float32, bfloat16, int8 (on CPUs: faster, loses a little), or auto: the faster of the first two here "
        "(default: %(default)s)",
    ),
)


def sampling(temperature: float) -> tuple[Adding, ...]:
    """How a response is drawn; `Sampling` says what these can be."""
    return (
        argument(
            "--temperature",
            type=float,
            default=temperature,
            metavar="T",
            help="how freely each token is drawn: 0 takes the likeliest, 1 draws as often as the model finds each likely, more "
            "also what it finds unlikely (default: %(default)s)",
        ),
        argument(
            "--top-p",
            type=float,
            default=1.0,
            metavar="P",
            help="draw only among the likeliest tokens that together have this probability, e.g. 0.9; 1: among all. Nothing "
            "changes at temperature 0 (default: %(default)s)",
        ),
        argument(
            "--max-new-tokens",
            type=int,
            default=256,
            metavar="N",
            help="where a text is cut off, in tokens: a word is one to three. Images have their own length (default: %(default)s)",
        ),
        SEED,
    )


def chosen(guidance: str, candidates: str) -> tuple[Adding, ...]:
    """What leads a response, and of how many it is the best."""
    own = " (default: the model's own, in its llmcxr.json)"
    return (
        argument("--guidance", type=rate, metavar="G", help=guidance + own),
        argument("--candidates", type=count, metavar="N", help=candidates + own),
    )
