"""Commands about image tokenizers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llmcxr.commands.table import DEVICE, OVERRIDES, RECIPE, argument, command, count, path, png
from llmcxr.foundation.artifacts import check_output, write_json
from llmcxr.foundation.errors import UserError

if TYPE_CHECKING:
    import torch

    from llmcxr.evaluation.tokenizer_data import Radiographs
    from llmcxr.evaluation.tokenizer_table import Evaluators
    from llmcxr.image_tokens.tokenizer import ImageTokenizer

_SPLITS = ("train", "validate", "test", "all")  # of `studies.study`, which is not loaded for the help alone


@command(
    "evaluate-tokenizer",
    "what image tokenizers keep of radiographs: errors, power by octave, what a classifier still sees, use of the codebook, beside "
    "plain averages of pixel blocks",
    argument(
        "tokenizers",
        nargs="+",
        metavar="TOKENIZER",
        help="image tokenizers: a folder, the id of a Hugging Face repository, or a run or model that has one; without --data one of "
        "them, then radiographs (PNG, JPEG, DICOM) or folders of these",
    ),
    argument(
        "--data",
        nargs="+",
        metavar="DATA",
        help="data sets: a folder of radiographs or a file, a run (its split), or a recipe (its source's split), each with settings of "
        "its own behind it: real-notes name=lateral split=all source.cohort.views=[lateral] (default: none)",
    ),
    argument(
        "--split",
        choices=_SPLITS,
        default="test",
        help="of runs and recipes that have no split=... (default: %(default)s)",
    ),
    argument(
        "--judge",
        nargs="+",
        metavar="NETWORK",
        help="also what classifiers lose, by finding, where labels are known: a run or model (its judge), the folder of a judge or "
        "clinical network, or a TorchXRayVision name or file; a finding is told by the first that knows it. None may be the network "
        "that a tokenizer was trained to please (default: none)",
    ),
    argument(
        "--clinical",
        metavar="NETWORK",
        help="also the Fréchet distance on this network's features: the folder of a clinical network (a run's clinical_features/), or "
        "a TorchXRayVision name or file, or a Dinov2 such as microsoft/rad-dino (default: none)",
    ),
    argument(
        "--lpips",
        metavar="WEIGHTS",
        help="also LPIPS: the path of torchvision's VGG-16 weights, or download (default: none)",
    ),
    argument(
        "--blocks",
        nargs="+",
        type=count,
        default=[],
        metavar="SIDE",
        help="also averages of SIDE x SIDE blocks: how many exact numbers a tokenizer's codes are worth (default: as many as its codes)",
    ),
    argument("--json", type=path, metavar="FILE", help="write all numbers into this file (default: none)"),
    argument(
        "--pictures",
        type=png,
        metavar="FILE",
        help="write originals, and what is kept of them, as a PNG (default: none)",
    ),
    argument("--shown", type=count, default=8, metavar="N", help="images a row of the pictures (default: %(default)s)"),
    DEVICE,
    example="phantom runs/tokenizer-256 --data runs/tokenizer-256 real-cxr --judge phantom --pictures kept.png",
)
def _evaluate_tokenizer(arguments: argparse.Namespace) -> None:
    names, given = arguments.tokenizers, arguments.data
    if given is None:
        names, files = names[:1], [path(text) for text in names[1:]]
        if not files:
            raise UserError("give radiographs after the image tokenizer, or data sets with --data.")
    for output in filter(None, (arguments.json, arguments.pictures)):
        check_output(output)

    import tempfile

    from llmcxr.evaluation.tokenizer_data import of_files
    from llmcxr.evaluation.tokenizer_table import measure, numbers
    from llmcxr.evaluation.tokenizer_text import findings_table, picture_rows, tokenizer_table, write_pictures
    from llmcxr.foundation.devices import pick_device
    from llmcxr.image_tokens.tokenizer import ImageTokenizer

    device = pick_device(arguments.device)
    places = {name: _tokenizer_folder(name) for name in names}
    codecs = {name: ImageTokenizer.from_pretrained(place).to(device) for name, place in places.items()}
    evaluators = _evaluators(arguments, {places[name]: codec for name, codec in codecs.items()}, device)
    size = max(codec.image_size for codec in codecs.values())
    with tempfile.TemporaryDirectory() as drawn:  # of a source that draws its images
        data = [of_files(files)] if given is None else _data_sets(given, arguments.split, size, Path(drawn))
        shown = arguments.shown if arguments.pictures else 0
        measured = [measure(one, codecs, device, evaluators, shown, arguments.blocks) for one in data]
    rows = [numbers(one, way) for one in measured for way in one.painted]
    judge = evaluators.onlookers.name if evaluators.onlookers else ""
    if arguments.json:
        about = {"evaluator": arguments.clinical, "judge": judge or None, "lpips": arguments.lpips}
        about |= {"fingerprints": {name: codec.fingerprint for name, codec in codecs.items()}}
        unreadable = {one.data: one.unreadable for one in measured}
        write_json(arguments.json, about | {"unreadable": unreadable, "rows": rows})
    print(tokenizer_table(rows, arguments.clinical or "", judge))
    if by_finding := findings_table(rows):
        print(f"\n{by_finding}")
    for one in measured:
        if one.unreadable:
            print(f"{one.data}: {len(one.unreadable):,} files could not be read, e.g.: {one.unreadable[0]}")
        if judge and not one.findings:
            print(f"{one.data}: no finding is labelled both present and absent and known to {judge}, so none is judged")
    if arguments.pictures:
        write_pictures(arguments.pictures, measured)
        print("\n".join([f"{arguments.pictures}, from the top:", *(f"    {row}" for row in picture_rows(measured))]))


def _tokenizer_folder(name: str) -> str:
    """Where the image tokenizer of a run or model lies (a shipped one by name); else `name` as it is."""
    from llmcxr.foundation.assets import SHIPPED_MODELS

    for folder in (SHIPPED_MODELS / name, path(name)):
        if (folder / "image_tokenizer" / "config.json").is_file():
            return str(folder / "image_tokenizer")
    return name


def _evaluators(arguments: argparse.Namespace, codecs: dict[str, ImageTokenizer], device: torch.device) -> Evaluators:
    """The networks that the arguments name. `UserError` where one cannot be had, or judges one of `codecs` (by folder) that pleased it."""
    from llmcxr.evaluation.onlookers import Onlookers, clinical_network, find_onlooker
    from llmcxr.evaluation.tokenizer_table import Evaluators
    from llmcxr.foundation.optional import AskedBy
    from llmcxr.image_tokens.losses import build_lpips

    members = [find_onlooker(name) for name in arguments.judge or ()]
    for member in members:
        for name, codec in codecs.items():
            member.check_independent(codec, name)
    return Evaluators(
        clinical_network(arguments.clinical).to(device) if arguments.clinical else None,
        Onlookers(members, device) if members else None,
        build_lpips(arguments.lpips, AskedBy("--lpips", "no --lpips")).to(device) if arguments.lpips else None,
    )


def _data_sets(given: list[str], split: str, size: int, drawn: Path) -> list[Radiographs]:
    """What --data names, one after another; KEY=VALUE belongs to what stands before it."""
    groups: list[tuple[str, list[str]]] = []
    for text in given:
        key, equals, _ = text.partition("=")
        if equals and not path(text).exists() and all(part.isidentifier() for part in key.split(".")):
            if not groups:
                raise UserError(f"--data: {text} stands before any data set. Put it behind the one that it is for.")
            groups[-1][1].append(text)
        else:
            groups.append((text, []))
    sets = [_data_set(name, settings, split, size, drawn / str(k)) for k, (name, settings) in enumerate(groups)]
    if alike := [one.name for k, one in enumerate(sets) if one.name in [other.name for other in sets[:k]]]:
        raise UserError(
            f"--data: two data sets are called {alike[0]!r}. Give one another folder, or a recipe name=... behind it."
        )
    return sets


def _data_set(name: str, settings: list[str], split: str, size: int, drawn: Path) -> Radiographs:
    """One of them. `UserError` where `name` is none of what it can be."""
    from llmcxr.evaluation.tokenizer_data import of_files, of_run, of_studies

    for text in [text for text in settings if text.startswith("split=")]:
        settings, split = [other for other in settings if other != text], text.removeprefix("split=")
        if split not in _SPLITS:
            raise UserError(f"--data {name} {text}: the split should be one of {', '.join(_SPLITS)}.")
    place = path(name)
    is_run = (place / "manifest.parquet").is_file()
    if is_run or (place.exists() and place.suffix not in (".yaml", ".yml")):
        if settings:
            raise UserError(
                f"--data {name} {settings[0]}: only a recipe has settings; a run or files have none but split."
            )
        return of_run(place, split) if is_run else of_files([place])

    from llmcxr.foundation.settings import load_settings
    from llmcxr.labelling.registry import build_labeller, label_studies
    from llmcxr.recipe import Recipe
    from llmcxr.recipes import find_recipe
    from llmcxr.sources.registry import build_source, read_studies

    recipe = load_settings(Recipe, find_recipe(name), settings)
    source = build_source(recipe.source, recipe.seed)
    source.check()
    found = read_studies(source, recipe.source, drawn, size).studies
    labelled = label_studies(found, build_labeller(recipe.labeller, recipe.chexbert, "cpu"))
    told = [] if any(text.startswith("name=") for text in settings) else settings
    label = " ".join([recipe.name, *(text.removeprefix("source.") for text in told)])
    return of_studies(label, labelled, drawn, split, recipe.source.geometry)


@command(
    "encode",
    "write every radiograph of a recipe's source as codes, straight from the files, by the recipe's image tokenizer "
    "(image_tokenizer.pretrained, or the one that its run has trained). Killed, it goes on; several processes share the work",
    RECIPE,
    OVERRIDES,
    example="ours.yaml image_tokenizer.pretrained=runs/quickstart/image_tokenizer",
)
def _encode(arguments: argparse.Namespace) -> None:
    from llmcxr.foundation.settings import load_settings
    from llmcxr.foundation.workflow import Workflow
    from llmcxr.recipe import Recipe
    from llmcxr.recipes import find_recipe
    from llmcxr.stages.context import Context
    from llmcxr.stages.image_tokens import ENCODED, encode_stage

    context = Context(load_settings(Recipe, find_recipe(arguments.recipe), arguments.overrides))
    Workflow(context.folder, [encode_stage(context)], context.processes).run()
    if context.processes.main:
        print(context.folder / ENCODED / "codes.parquet")
    context.processes.close()
