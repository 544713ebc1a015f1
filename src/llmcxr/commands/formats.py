"""Commands about files of other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmcxr.commands.table import argument, command, path
from llmcxr.foundation.artifacts import check_output
from llmcxr.foundation.errors import UserError


def _to_hf(model: str, output: Path, weights: str) -> None:
    from llmcxr.formats.hf import export_hf
    from llmcxr.inference.llm_cxr import LlmCxr
    from llmcxr.model.find import find_model

    check_output(output, folder=True)
    export_hf(LlmCxr.from_pretrained(model, precision="float32"), find_model(model), output)
    print(f"{output}: README.md says how other programs ask it")


def _to_gguf(model: str, output: Path, weights: str) -> None:
    from llmcxr.formats.gguf import export_gguf

    check_output(output)
    export_gguf(model, output, weights)
    print(
        f"{output}: {output.stat().st_size / 1e6:,.0f} MB. Its image tokenizer is not in it: keep the model's folder beside it"
    )


EXPORTS = {"hf": _to_hf, "gguf": _to_gguf}


@command(
    "export",
    "write a model for other programs. hf: a folder for transformers, vLLM and the like, with a card that says how to ask it; "
    "gguf: its language model as one file for llama.cpp",
    argument("model", help="what --model of other commands takes"),
    argument("output", type=path, help="folder (hf) or file (gguf) to write"),
    argument("--to", choices=sorted(EXPORTS), required=True, help="the form"),
    argument("--weights", choices=("f16", "q8_0"), default="f16", help="of a GGUF file (default: %(default)s)"),
)
def _export(arguments: argparse.Namespace) -> None:
    if arguments.to != "gguf" and arguments.weights != "f16":
        raise UserError("--weights is of GGUF files only. Leave it out.")
    EXPORTS[arguments.to](arguments.model, arguments.output, arguments.weights)
