"""Commands about how a model sees an image: where it looked, and whether the image is one of those that it knows."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from llmcxr.commands.many import load
from llmcxr.commands.runs import finished_run
from llmcxr.commands.table import DEVICE, IMAGE, MODEL, NOTICE, RUN, argument, command, path, png
from llmcxr.foundation.artifacts import check_output
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.texts import check_text

_SHOWN = 3  # findings that are explained where none is named


def _load(arguments: argparse.Namespace):
    """The model. `UserError` for an image that cannot be read, and an output that cannot be written: before the model is loaded."""
    from llmcxr.studies.radiographs import read_radiograph

    read_radiograph(arguments.image)
    check_output(arguments.output)
    return load(arguments)


@command(
    "explain",
    "show where on a radiograph the model sees a finding, or what speaks for a sentence, as a heat map. It has not yet been shown to "
    f"be right more often than chance (docs/generation.md). {NOTICE}",
    *MODEL,
    IMAGE,
    argument(
        "texts",
        nargs="*",
        metavar="TEXT",
        help=f"a finding that the model knows, or a sentence of a report (default: the {_SHOWN} likeliest findings)",
    ),
    argument("-o", "--output", type=png, default=Path("map.png"), help="PNG to write (default: %(default)s)"),
    example='image.dcm "pleural effusion" -o map.png',
)
def _explain(arguments: argparse.Namespace) -> None:
    from llmcxr.inference.heat_maps import save_heat_maps

    for text in arguments.texts:
        check_text(text, "the finding or sentence")
    model = _load(arguments)
    texts = arguments.texts
    if not texts:
        seen = model.finding_probabilities(arguments.image)
        texts = sorted(seen, key=lambda name: -seen[name])[:_SHOWN]
    found = model.explain_all(arguments.image, texts)
    for one in found:
        if one.finding is None and not one.text.rstrip().endswith((".", "!", "?")):
            print(
                f"note: {one.text!r} is no finding that this model knows, so it is read as a sentence", file=sys.stderr
            )
    save_heat_maps(arguments.output, model.reconstruction(arguments.image)[0], found)
    for one in found:
        print(f"{one.value:7.2f} nats  {one.text}")
    print(arguments.output)


@command(
    "look",
    f"show what the model's image tokens keep of a radiograph, and say how unlike its training it is. {NOTICE}",
    *MODEL,
    IMAGE,
    argument("-o", "--output", type=png, default=Path("seen.png"), help="PNG to write (default: %(default)s)"),
    example="image.dcm -o seen.png",
)
def _look(arguments: argparse.Namespace) -> None:
    from llmcxr.inference.heat_maps import save_reconstruction

    model = _load(arguments)
    found = model.outside(arguments.image)
    save_reconstruction(arguments.output, *model.reconstruction(arguments.image))
    print(f"{found.l1:.3f} of the range of greys is lost; {found.code_nats:.2f} nats a code")
    print(found.told())
    print(arguments.output)


@command(
    "measure-outside",
    "measure on a run's validation images how unlike its training radiographs an image may be before the model warns, and keep it in "
    "the model's folder (a run that trains does so by itself)",
    RUN,
    argument(
        "--into",
        type=path,
        metavar="MODEL",
        help="folder of the model, packed or not, that should hold it (default: the run's own model/)",
    ),
    DEVICE,
    example="runs/quickstart",
)
def _measure_outside(arguments: argparse.Namespace) -> None:
    from llmcxr.inference.llm_cxr import LlmCxr
    from llmcxr.model.outside import NAME, write_limits
    from llmcxr.stages.outside import limits_of
    from llmcxr.studies.pixel_store import PixelStore
    from llmcxr.studies.study import read_manifest

    folder, own = arguments.folder, arguments.folder / "model"
    target = arguments.into or own
    if not os.path.isfile(folder / "manifest.parquet"):
        raise UserError(f"{folder} holds no studies. Give the folder of a run (llmcxr prepare makes one).")
    model = LlmCxr.from_pretrained(target, arguments.device)
    studies = read_manifest(folder / "manifest.parquet")
    rows = [i for i, study in enumerate(studies) if study.split == "validate"]
    limits = limits_of(model, PixelStore.open(folder / "pixels.npy").select(rows))
    if limits is None:
        raise UserError(f"{folder} has {len(rows)} validation images, of which a 99th percentile cannot be said.")
    if target.resolve() != own.resolve():
        write_limits(target, limits)
    else:
        workflow = finished_run(folder).workflow
        with workflow.alone():
            workflow.adds("model", f"{own.name}/{NAME}")
            write_limits(target, limits)
    print(f"{target / NAME}, of {limits.images} validation images")
