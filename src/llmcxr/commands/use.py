"""Commands that use a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmcxr.commands.table import (
    IMAGE,
    MODEL,
    NOTICE,
    argument,
    chosen,
    command,
    png,
    sampling,
)
from llmcxr.foundation.artifacts import check_output
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.texts import check_text


def _load(arguments: argparse.Namespace):
    """The model. `UserError` for an image that cannot be read: before the model is loaded."""
    if image := getattr(arguments, "image", None):
        from llmcxr.studies.radiographs import read_radiograph

        read_radiograph(image)
    from llmcxr.inference.llm_cxr import LlmCxr

    return LlmCxr.from_pretrained(arguments.model, arguments.device)


def _sampling(arguments: argparse.Namespace):
    """`UserError` for what cannot be: before the model is loaded."""
    from llmcxr.inference.backend import Sampling

    guidance = getattr(arguments, "guidance", None)
    return Sampling(arguments.temperature, arguments.top_p, 0, arguments.max_new_tokens, arguments.seed, guidance)


@command(
    "report",
    f"report of a radiograph (PNG, JPEG or DICOM). {NOTICE}",
    *MODEL,
    *sampling(0.0),
    *chosen(
        "how strongly the report follows the findings that the model named first: 1 as the model says, more to leave "
        "fewer out",
        "write so many and keep the one that states best what the model named on the image",
    ),
    argument(
        "--check",
        action="store_true",
        help="a sentence a line, with those marked that the model itself does not believe",
    ),
    IMAGE,
)
def _report(arguments: argparse.Namespace) -> None:
    drawn = _sampling(arguments)
    model = _load(arguments)
    if not arguments.check:
        print(model.report(arguments.image, drawn, arguments.candidates))
        return
    for sentence in model.report(arguments.image, drawn, arguments.candidates, check=True):
        print(f"{'?' if sentence.doubts else ' '} {sentence.text}")
        for doubt in sentence.doubts:
            print(f"    {doubt}")


@command("ask", f"answer a question about a radiograph. {NOTICE}", *MODEL, *sampling(0.0), IMAGE, argument("question"))
def _ask(arguments: argparse.Namespace) -> None:
    drawn = _sampling(arguments)
    check_text(arguments.question, "the question")
    print(_load(arguments).ask(arguments.image, arguments.question, drawn))


@command("findings", f"probability of each finding on a radiograph. {NOTICE}", *MODEL, IMAGE)
def _findings(arguments: argparse.Namespace) -> None:
    model = _load(arguments)
    if model.calibration is None:
        print("note: this model has no calibration; p is as it answers, and need not be a frequency", file=sys.stderr)
    sides = model.finding_sides(arguments.image)
    for name, p in sorted(model.finding_probabilities(arguments.image).items(), key=lambda item: -item[1]):
        told = ", ".join(f"{side} {share:.2f}" for side, share in sides.get(name, {}).items())
        print(f"{p:5.2f}  {name}" + (f"  ({told}, if it is there)" if told and p >= 0.5 else ""))


@command(
    "draw",
    f"draw a radiograph for a report. {NOTICE}",
    *MODEL,
    *sampling(1.0),
    *chosen(
        "how strongly the image follows the text: 1 as the model says, more for clearer findings and less variety",
        "draw so many and keep the one on which the model's clinical network best sees what the text states",
    ),
    argument("text", help="the report"),
    argument("-o", "--output", type=png, default=Path("drawn.png"), help="PNG to write (default: %(default)s)"),
    argument("--no-mark", action="store_true", help="leave out the visible mark (the metadata always say synthetic)"),
)
def _draw(arguments: argparse.Namespace) -> None:
    from llmcxr.inference.provenance import save_synthetic

    drawn = _sampling(arguments)
    check_text(arguments.text, "the report")
    check_output(arguments.output)
    pixels = _load(arguments).draw(arguments.text, drawn, arguments.candidates)
    save_synthetic(arguments.output, pixels, arguments.text, visible=not arguments.no_mark)
    print(arguments.output)


@command(
    "chat",
    f"plain chat with the language model. {NOTICE}",
    *MODEL,
    *sampling(0.0),
    argument("message", nargs="?", help="one message instead of a conversation"),
)
def _chat(arguments: argparse.Namespace) -> None:
    drawn = _sampling(arguments)
    if arguments.message is not None:
        check_text(arguments.message, "the message")
        print(_load(arguments).chat([{"role": "user", "content": arguments.message}], drawn))
        return
    model = _load(arguments)
    messages: list[dict[str, str]] = []
    at_hand = sys.stdin is not None and sys.stdin.isatty()  # else what is said comes from a file or another program
    if at_hand:
        print("Plain chat; an empty line ends it.", file=sys.stderr)
    while said := _line("> " if at_hand and sys.stdout.isatty() else ""):
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": model.chat(messages, drawn)})
        print(messages[-1]["content"], flush=True)


def _line(prompt: str) -> str:
    """What is typed next, or the next line of what is piped in; "" at its end."""
    try:
        return input(prompt).strip() if sys.stdin is not None else ""
    except EOFError:
        return ""
    except UnicodeDecodeError as error:
        raise UserError(f"what comes in is not UTF-8 ({error}). Convert it first.") from error
