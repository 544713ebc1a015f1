"""The command line: `llmcxr --help` lists the commands (commands/)."""

from __future__ import annotations

import argparse
import io
import logging
import os
import shlex
import sys
import warnings

from llmcxr import __version__
from llmcxr.commands import COMMANDS, NOTICE
from llmcxr.foundation.errors import OutsideWarning, UserError
from llmcxr.foundation.stopping import ends_like_interrupts, exit_code

CLOSED_PIPE = 141  # what a shell gives for a command that wrote to a pipe which nobody reads: 128 + SIGPIPE


class _Help(argparse.HelpFormatter):
    """As wide as the terminal, but examples on one line, so that they can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return indent + text if text.startswith("e.g. ") else super()._fill_text(text, width, indent)


def _parser() -> argparse.ArgumentParser:
    about = f"Teach a text-only LLM to read and write chest radiographs. {NOTICE}"
    parser = argparse.ArgumentParser(prog="llmcxr", description=about)
    parser.add_argument("--version", action="version", version=f"llmcxr {__version__}")
    words = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, own in COMMANDS.items():
        about, example = (
            own.about.removesuffix(f" {NOTICE}").split(". ")[0].removesuffix("."),
            f"e.g. llmcxr {own.example}",
        )
        added = words.add_parser(name, help=about, description=own.about, epilog=example, formatter_class=_Help)
        added.set_defaults(function=own.function)
        for add in own.arguments:
            add(added)
    return parser


_shown_by_python = warnings.showwarning


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Our own warnings are one line; those of other libraries say where they come from."""
    if issubclass(category, OutsideWarning) and file is None:
        print(f"llmcxr: {message}", file=sys.stderr)
    else:
        _shown_by_python(message, category, filename, lineno, file, line)


def _prepare() -> None:
    """Other libraries keep quiet, unless the user's environment says otherwise, and nothing that is printed can
    fail."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizer is used before worker processes start
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars, too; we say what is fetched
    warnings.filterwarnings("ignore", category=FutureWarning)  # other libraries' notes to their own developers
    warnings.simplefilter("always", OutsideWarning)
    warnings.showwarning = _show_warning
    logging.basicConfig(format="%(message)s")
    logging.getLogger("llmcxr").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name that is not UTF-8


def _output_is_lost() -> bool:
    """Whether what is printed reaches nobody (`| head`, a full disk); then nothing more is tried there."""
    try:
        print(flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 on success, 1 where some of many images could not be read, 2 for a mistake that the user can mend,
    130 or 143 when interrupted, 141 when nobody reads on."""
    _prepare()
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and hasattr(arguments, "overrides") and not any(word.startswith("-") for word in rest):
        arguments.overrides += rest  # argparse itself takes them only before --stage
    elif rest:
        parser.error(f"unrecognized arguments: {shlex.join(rest)}")
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        with ends_like_interrupts():
            status = arguments.function(arguments)
        if sys.stdout is not None:  # closed from the start
            sys.stdout.flush()
    except UserError as error:
        print(f"llmcxr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("\nllmcxr: interrupted; run the same command again to go on.", file=sys.stderr)
        return exit_code(stop)
    except OSError as error:
        if sys.stdout is None or not _output_is_lost():
            raise
        if isinstance(error, BrokenPipeError):
            return CLOSED_PIPE
        print(f"llmcxr: what is printed cannot be written: {error}", file=sys.stderr)
        return 2
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
