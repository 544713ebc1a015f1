"""Commands about files of other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmcxr.commands.table import argument, command, path
from llmcxr.foundation.artifacts import check_new_folder, check_output
from llmcxr.foundation.errors import UserError


def _import_tokenizer(file: Path, config: Path | None, output: Path) -> None:
    from llmcxr.image_tokens.taming import import_taming

    tokenizer = import_taming(file, config)
    tokenizer.save_pretrained(output)
    a = tokenizer.architecture
    print(f"{output}: {a.image_size} px, {a.grid} x {a.grid} codes of {a.codebook_size:,}")
    print(f"Use it in a recipe: image_tokenizer.pretrained={output} (or image_tokenizer.start, to train it on)")


def _import_llm_cxr(folder: Path, tokenizer: Path | None, output: Path) -> None:
    if tokenizer is None:
        raise UserError(
            "import llm-cxr takes the model's folder, its image tokenizer (a VQ-GAN's .ckpt, or an imported one), and an output."
        )
    from llmcxr.formats.llm_cxr import import_llm_cxr

    import_llm_cxr(folder, tokenizer, output)
    print(f"{output}: use it as --model {output}")


IMPORTS = {"llm-cxr": _import_llm_cxr, "tokenizer": _import_tokenizer}


@command(
    "import",
    "make a folder of ours from files of other programs. tokenizer: a VQ-GAN of taming-transformers (the paper's own, UniXGen's, "
    "TorchXRayVision's), which is a .ckpt and its .yaml; llm-cxr: the model that the paper's authors publish, with its VQ-GAN",
    argument("kind", choices=sorted(IMPORTS)),
    argument("file", type=path, help="the weights; of llm-cxr the folder"),
    argument(
        "beside",
        type=path,
        nargs="?",
        help="of a tokenizer its configuration (default: the one beside it); of llm-cxr its image tokenizer: a .ckpt, or a folder that "
        "`import tokenizer` made",
    ),
    argument("output", type=path, help="folder to write"),
)
def _import(arguments: argparse.Namespace) -> None:
    check_new_folder(arguments.output)
    IMPORTS[arguments.kind](arguments.file, arguments.beside, arguments.output)


def _check_file(output: Path, suffix: str) -> None:
    """`UserError` where it cannot be written, or is called otherwise: it may be something else of the user's."""
    if output.suffix != suffix:
        raise UserError(f"cannot write {output}: its name should end in {suffix}.")
    check_output(output)


def _to_hf(model: str, output: Path, weights: str) -> None:
    from llmcxr.formats.hf import export_hf
    from llmcxr.inference.llm_cxr import LlmCxr
    from llmcxr.model.find import find_model

    check_new_folder(output)
    export_hf(LlmCxr.from_pretrained(model, precision="float32"), find_model(model), output)
    print(f"{output}: README.md says how other programs ask it")


def _to_gguf(model: str, output: Path, weights: str) -> None:
    from llmcxr.formats.gguf import export_gguf

    _check_file(output, ".gguf")
    export_gguf(model, output, weights)  # type: ignore[arg-type]
    print(
        f"{output}: {output.stat().st_size / 1e6:,.0f} MB. It holds no image tokenizer: keep the model's folder beside it"
    )


def _to_taming(folder: str, output: Path, weights: str) -> None:
    from llmcxr.image_tokens.taming import export_taming
    from llmcxr.image_tokens.tokenizer import ImageTokenizer

    _check_file(output, ".ckpt")
    export_taming(ImageTokenizer.from_pretrained(folder), output)
    print(f"{output}, {output.with_suffix('.yaml')}")


EXPORTS = {"gguf": _to_gguf, "hf": _to_hf, "taming": _to_taming}


@command(
    "export",
    "write what is ours for other programs. hf: a model as a folder for transformers, vLLM and the like, with a card that says how to "
    "ask it; gguf: its language model as one file for llama.cpp; taming: an image tokenizer as taming-transformers' .ckpt, and .yaml "
    "beside it",
    argument("model", help="what --model of other commands takes; of taming the folder of an image tokenizer"),
    argument("output", type=path, help="folder (hf) or file to write"),
    argument("--to", choices=sorted(EXPORTS), required=True, help="the form"),
    argument("--weights", choices=("f16", "q8_0"), default="f16", help="of a GGUF file (default: %(default)s)"),
)
def _export(arguments: argparse.Namespace) -> None:
    if arguments.to != "gguf" and arguments.weights != "f16":
        raise UserError("--weights is of GGUF files only. Leave it out.")
    EXPORTS[arguments.to](arguments.model, arguments.output, arguments.weights)
