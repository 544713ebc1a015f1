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
    "make a folder that llmcxr reads from files of other programs. Nothing in them is run",
    argument(
        "kind",
        choices=sorted(IMPORTS),
        help="tokenizer: an image tokenizer, a VQ-GAN of taming-transformers (the paper's own, UniXGen's, TorchXRayVision's); llm-cxr: "
        "the whole model that the paper's authors publish",
    ),
    argument(
        "file", type=path, help="of a tokenizer its weights, a .ckpt; of llm-cxr the folder of the language model"
    ),
    argument(
        "beside",
        type=path,
        nargs="?",
        help="of a tokenizer its configuration, a .yaml (default: the one beside the weights); of llm-cxr its image tokenizer: a .ckpt, "
        "or a folder that `import tokenizer` made (needed)",
    ),
    argument("output", type=path, help="folder to write, which should not be there yet"),
    example="tokenizer vqgan.ckpt vqgan.yaml imported",
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
    "write a model, or an image tokenizer, in the form of other programs",
    argument(
        "model",
        help="the model: a shipped one by name, or a folder, as --model of other commands takes it; for taming the folder of an image "
        "tokenizer, e.g. runs/quickstart/image_tokenizer",
    ),
    argument("output", type=path, help="for hf the folder to write, for gguf a file .gguf, for taming a file .ckpt"),
    argument(
        "--to",
        choices=sorted(EXPORTS),
        required=True,
        help="the form. hf: a folder for transformers, vLLM and the like, whose card says how to ask it; gguf: the language model as "
        "one file for llama.cpp, without the image tokenizer; taming: an image tokenizer as taming-transformers' .ckpt, with its "
        ".yaml beside it",
    ),
    argument(
        "--weights",
        choices=("f16", "q8_0"),
        default="f16",
        help="of a GGUF file, how its numbers are kept: f16 in 16 bits, q8_0 in 8, which halves the file and loses a little (default: "
        "%(default)s)",
    ),
    example="phantom phantom.gguf --to gguf",
)
def _export(arguments: argparse.Namespace) -> None:
    if arguments.to != "gguf" and arguments.weights != "f16":
        raise UserError("--weights is of GGUF files only. Leave it out.")
    EXPORTS[arguments.to](arguments.model, arguments.output, arguments.weights)
