"""Commands about image tokenizers."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from llmcxr.commands.table import OVERRIDES, RECIPE, argument, command, count, path
from llmcxr.foundation.artifacts import check_output, write_json
from llmcxr.foundation.errors import UserError


@command(
    "evaluate-tokenizer",
    "what an image tokenizer keeps of radiographs: errors, power by octave, use of its codebook, beside plain averages of pixel "
    "blocks; and a grid of pictures",
    argument("tokenizer", help="folder of an image tokenizer, or the id of a Hugging Face repository"),
    argument("images", type=path, nargs="+", help="radiographs (PNG, JPEG, DICOM), or folders of them"),
    argument(
        "-o", "--output", type=path, default=Path("tokenizer-evaluation"), help="folder to write (default: %(default)s)"
    ),
    argument(
        "--clinical",
        metavar="NETWORK",
        help="also the Fréchet distance on this network's features: the folder of a clinical network (a run's clinical_features/), or "
        "a TorchXRayVision name or file, or a Dinov2 such as microsoft/rad-dino",
    ),
    argument("--shown", type=count, default=8, help="images in the grid (default: %(default)s)"),
    argument("--device", default="auto", help="auto, cpu, cuda, ..."),
)
def _evaluate_tokenizer(arguments: argparse.Namespace) -> None:
    from llmcxr.studies.image_files import image_files, read_squares

    check_output(arguments.output, folder=True)
    files = image_files(arguments.images)

    import numpy as np

    from llmcxr.evaluation.tokenizer_table import measure_tokenizer, table_text, write_grid
    from llmcxr.foundation.devices import pick_device
    from llmcxr.image_tokens.clinical_features import published_features
    from llmcxr.image_tokens.tokenizer import ImageTokenizer

    device = pick_device(arguments.device)
    codec = ImageTokenizer.from_pretrained(arguments.tokenizer).to(device)
    clinical = None
    if arguments.clinical:
        clinical = published_features(arguments.clinical).to(device)
    unread: list[str] = []
    shown: list[np.ndarray] = []

    def readable():
        for square in read_squares(files, codec.image_size):
            if isinstance(square, str):
                unread.append(square)
                continue
            if len(shown) < arguments.shown:
                shown.append(square)
            yield square

    images = readable()
    if (first := next(images, None)) is None:
        raise UserError(f"none of {len(files):,} files could be read. The first: {unread[0]}")
    measured = measure_tokenizer(codec, itertools.chain([first], images), device, clinical)
    measured |= {"fingerprint": codec.fingerprint, "evaluator": arguments.clinical, "unreadable": unread}
    write_grid(arguments.output / "grid.png", codec, np.stack(shown), device)
    write_json(arguments.output / "tokenizer.json", measured)
    print(table_text(measured, arguments.clinical or ""))
    if unread:
        print(
            f"{len(unread):,} of {len(files):,} files could not be read (listed in tokenizer.json), e.g.: {unread[0]}"
        )
    print(arguments.output / "grid.png")


@command(
    "encode",
    "write every radiograph of a recipe's source as codes, straight from the files, by the recipe's image tokenizer "
    "(image_tokenizer.pretrained, or the one that its run has trained). Killed, it goes on; several processes share the work",
    RECIPE,
    OVERRIDES,
)
def _encode(arguments: argparse.Namespace) -> None:
    from llmcxr.foundation.settings import load_settings
    from llmcxr.foundation.workflow import Workflow
    from llmcxr.recipe import Recipe
    from llmcxr.recipes import find_recipe
    from llmcxr.stages.context import Context
    from llmcxr.stages.image_tokens import encode_stage

    context = Context(load_settings(Recipe, find_recipe(arguments.recipe), arguments.overrides))
    Workflow(context.folder, [encode_stage(context)], context.processes).run()
    if context.processes.main:
        print(context.folder / "encoded" / "codes.parquet")
    context.processes.close()
