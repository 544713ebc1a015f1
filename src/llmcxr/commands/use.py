"""Commands that use a model."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcxr.commands.many import IMAGES, STATUS, for_images, load, warn_once
from llmcxr.commands.table import (
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

if TYPE_CHECKING:
    import numpy as np

    from llmcxr.inference.consistency import CheckedSentence
    from llmcxr.inference.llm_cxr import LlmCxr


def _sampling(arguments: argparse.Namespace):
    """`UserError` for what cannot be: before the model is loaded."""
    from llmcxr.inference.backend import Sampling

    guidance = getattr(arguments, "guidance", None)
    return Sampling(arguments.temperature, arguments.top_p, 0, arguments.max_new_tokens, arguments.seed, guidance)


@command(
    "report",
    f"write the report of a radiograph, or of each of many. {STATUS} {NOTICE}",
    *MODEL,
    *sampling(0.0),
    *chosen(
        "how strongly the report follows the findings that the model named first: 1 as it would by itself, 2 leaves fewer out",
        "write so many reports and keep the one that states best what the model named on the image; takes so many times as long",
    ),
    argument(
        "--check",
        action="store_true",
        help="a sentence a line, each marked ? that the model does not believe when it is asked for the finding alone",
    ),
    *IMAGES,
    example="image.dcm --check",
)
def _report(arguments: argparse.Namespace) -> int:
    drawn = _sampling(arguments)

    def answer(model: LlmCxr, codes: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        if not arguments.check:
            return [{"report": text} for text in model.reports(codes, drawn, arguments.candidates)]
        return [_checked(model.report(row, drawn, arguments.candidates, check=True)) for row in codes]

    def shown(found: dict[str, Any]) -> str:
        if "sentences" not in found:
            return found["report"]
        marked = (
            [f"{'?' if s['doubts'] else ' '} {s['text']}", *(f"    {d}" for d in s["doubts"])]
            for s in found["sentences"]
        )
        return "\n".join(line for lines in marked for line in lines)

    return for_images(arguments, answer, shown)


def _checked(found: Sequence[CheckedSentence]) -> dict[str, Any]:
    sentences = [{"text": one.text, "doubts": [str(doubt) for doubt in one.doubts]} for one in found]
    return {"report": " ".join(one.text for one in found), "sentences": sentences}


@command(
    "ask",
    f"answer a question about a radiograph, or about each of many. {STATUS} {NOTICE}",
    *MODEL,
    *sampling(0.0),
    *IMAGES,
    argument("question", help="in quotation marks; comes last, after the images"),
    example='image.dcm "Is there a pleural effusion?"',
)
def _ask(arguments: argparse.Namespace) -> int:
    drawn, question = _sampling(arguments), check_text(arguments.question, "the question")
    if os.path.exists(question):  # False for what the system refuses as a name
        raise UserError(f"the question is {question!r}, which is a file. A question comes last, after all images.")

    def answer(model: LlmCxr, codes: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        return [{"answer": text} for text in model.answers(codes, [question] * len(codes), drawn)]

    return for_images(arguments, answer, lambda found: found["answer"])


@command(
    "findings",
    f"say how probable each finding is on a radiograph, or on each of many. Probabilities (0 to 1) are calibrated where the model "
    f"has a calibration. {STATUS} {NOTICE}",
    *MODEL,
    *IMAGES,
    example="image.dcm",
)
def _findings(arguments: argparse.Namespace) -> int:
    def answer(model: LlmCxr, codes: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        if model.calibration is None:
            warn_once("note: this model has no calibration; p is as it answers, and need not be a frequency")
        return [{"findings": model.finding_probabilities(row), "sides": model.finding_sides(row)} for row in codes]

    def shown(found: dict[str, Any]) -> str:
        lines = []
        for name, p in sorted(found["findings"].items(), key=lambda item: -item[1]):
            told = ", ".join(f"{side} {share:.2f}" for side, share in found["sides"].get(name, {}).items())
            lines.append(f"{p:5.2f}  {name}" + (f"  ({told}, if it is there)" if told and p >= 0.5 else ""))
        return "\n".join(lines)

    return for_images(arguments, answer, shown)


@command(
    "draw",
    f"draw a radiograph of a report. It is synthetic, and says so. {NOTICE}",
    *MODEL,
    *sampling(1.0),
    *chosen(
        "how strongly the image follows the text: 1 as the model would by itself, 2 shows findings more clearly and varies less",
        "draw so many images and keep the one on which the model's clinical network best sees what the text states; takes so many "
        "times as long",
    ),
    argument("text", help="the report, in quotation marks"),
    argument("-o", "--output", type=png, default=Path("drawn.png"), help="PNG to write (default: %(default)s)"),
    argument("--no-mark", action="store_true", help="leave out the visible mark (the metadata always say synthetic)"),
    example='"Large right pleural effusion." -o drawn.png',
)
def _draw(arguments: argparse.Namespace) -> None:
    from llmcxr.inference.provenance import save_synthetic

    drawn = _sampling(arguments)
    check_text(arguments.text, "the report")
    check_output(arguments.output)
    pixels = load(arguments).draw(arguments.text, drawn, arguments.candidates)
    save_synthetic(arguments.output, pixels, arguments.text, visible=not arguments.no_mark)
    print(arguments.output)


@command(
    "chat",
    f"chat with the language model, without an image. {NOTICE}",
    *MODEL,
    *sampling(0.0),
    argument(
        "message", nargs="?", help="one message, in quotation marks (default: a conversation, which an empty line ends)"
    ),
    example='"What is a pneumothorax?"',
)
def _chat(arguments: argparse.Namespace) -> None:
    drawn = _sampling(arguments)
    if arguments.message is not None:
        check_text(arguments.message, "the message")
        _say(load(arguments).stream_chat([{"role": "user", "content": arguments.message}], drawn))
        return
    model = load(arguments)
    messages: list[dict[str, str]] = []
    at_hand = sys.stdin is not None and sys.stdin.isatty()  # else what is said comes from a file or another program
    if at_hand:
        print("Plain chat; an empty line ends it.", file=sys.stderr)
    while said := _line("> " if at_hand and sys.stdout.isatty() else ""):
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": _say(model.stream_chat(messages, drawn))})


def _say(pieces: Iterable[str]) -> str:
    """Print pieces of a text as they come; the text."""
    said = []
    for piece in pieces:
        print(piece, end="", flush=True)
        said.append(piece)
    print(flush=True)
    return "".join(said)


def _line(prompt: str) -> str:
    """What is typed next, or the next line of what is piped in; "" at its end."""
    try:
        return input(prompt).strip() if sys.stdin is not None else ""
    except EOFError:
        return ""
    except UnicodeDecodeError as error:
        raise UserError(f"what comes in is not UTF-8 ({error}). Convert it first.") from error
