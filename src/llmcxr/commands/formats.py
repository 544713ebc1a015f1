"""Commands about files of other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmcxr.commands.table import argument, command, path
from llmcxr.foundation.artifacts import check_output


def _import_tokenizer(file: Path, config: Path | None, output: Path) -> None:
    from llmcxr.image_tokens.taming import import_taming

    check_output(output, folder=True)
    tokenizer = import_taming(file, config)
    tokenizer.save_pretrained(output)
    a = tokenizer.architecture
    print(f"{output}: {a.image_size} px, {a.grid} x {a.grid} codes of {a.codebook_size:,}")
    print(f"Use it in a recipe: image_tokenizer.pretrained={output} (or image_tokenizer.start, to train it on)")


def _export_tokenizer(folder: Path, output: Path) -> None:
    from llmcxr.image_tokens.taming import export_taming
    from llmcxr.image_tokens.tokenizer import ImageTokenizer

    check_output(output)
    export_taming(ImageTokenizer.from_pretrained(folder), output)
    print(f"{output}, {output.with_suffix('.yaml')}")


IMPORTS = {"tokenizer": _import_tokenizer}
EXPORTS = {"tokenizer": _export_tokenizer}


@command(
    "import",
    "make a folder of ours from files of other programs. tokenizer: a VQ-GAN of taming-transformers (the paper's own, UniXGen's, "
    "TorchXRayVision's), which is a .ckpt and its .yaml",
    argument("kind", choices=sorted(IMPORTS)),
    argument("file", type=path, help="the weights"),
    argument("config", type=path, nargs="?", help="their configuration (default: the one beside them)"),
    argument("output", type=path, help="folder to write"),
)
def _import(arguments: argparse.Namespace) -> None:
    IMPORTS[arguments.kind](arguments.file, arguments.config, arguments.output)


@command(
    "export",
    "write what is ours for other programs. tokenizer: an image tokenizer's folder as taming-transformers' .ckpt, and .yaml beside it",
    argument("kind", choices=sorted(EXPORTS)),
    argument("folder", type=path, help="what to write"),
    argument("output", type=path, help="file to write"),
)
def _export(arguments: argparse.Namespace) -> None:
    EXPORTS[arguments.kind](arguments.folder, arguments.output)
