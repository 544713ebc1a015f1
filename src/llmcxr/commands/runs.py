"""Commands about data and runs."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from llmcxr.commands.table import (
    OVERRIDES,
    RECIPE,
    RUN,
    SEED,
    argument,
    command,
    count,
    either,
    path,
    rate,
)
from llmcxr.foundation.artifacts import check_new_folder, check_output
from llmcxr.foundation.errors import UserError


@command(
    "fetch",
    "download embedded data into the cache, once; afterwards everything works offline",
    argument("names", nargs="*", metavar="NAME", help="what to fetch, e.g. smollm2-135m-instruct (default: all)"),
)
def _fetch(arguments: argparse.Namespace) -> None:
    from llmcxr.foundation.assets import ASSETS, fetch

    for name in arguments.names or ASSETS:
        print(f"{name}: {ASSETS[name].about if name in ASSETS else ''}", flush=True)
        print(f"    {fetch(name)} (licence: {ASSETS[name].license})")


def _recipe(arguments: argparse.Namespace):
    """The recipe that was named, with the settings that were given beside it."""
    from llmcxr.foundation.settings import load_settings
    from llmcxr.recipe import Recipe
    from llmcxr.recipes import find_recipe

    return load_settings(Recipe, find_recipe(arguments.recipe), arguments.overrides)


def _run_of(recipe):
    """The run of a recipe, which is read before: a slip in it is said at once, not after all that a run loads."""
    from llmcxr.pipeline import Run

    return Run(recipe)


@command(
    "run",
    "run a recipe from data to results page; what is done is skipped, what was interrupted goes on",
    RECIPE,
    OVERRIDES,
    argument("--stage", help="run this stage alone, e.g. image_tokenizer; those before it must be done (default: all)"),
    argument("--until", metavar="STAGE", help="run this stage and those that it needs, and no more (default: all)"),
    example="quickstart name=wide tuning.lora_rank=64",
)
def _run(arguments: argparse.Namespace) -> None:
    run = _run_of(_recipe(arguments))
    if arguments.stage and arguments.until:
        raise UserError("--stage runs one stage and --until what leads to one; give one of the two.")
    run.run(arguments.stage, arguments.until)
    if (arguments.stage or arguments.until or "evaluation") == "evaluation":
        _show_results(run)
    run.context.processes.close()


@command(
    "prepare",
    "prepare only the data of a recipe, and write a page of what a run would use, what is left out and why",
    RECIPE,
    OVERRIDES,
    example="quickstart",
)
def _prepare(arguments: argparse.Namespace) -> None:
    run = _run_of(_recipe(arguments))
    run.run("studies")

    from llmcxr.stages.data import PAGE

    if run.context.processes.main:
        print(f"\nData page: {(run.context.folder / PAGE).resolve()}")
    run.context.processes.close()


@command(
    "inspect", "write the page of a run's data anew, and say where it lies", RUN, OVERRIDES, example="runs/quickstart"
)
def _inspect(arguments: argparse.Namespace) -> None:
    run = finished_run(arguments.folder, arguments.overrides)
    print(f"Data page: {run.inspect().resolve()}")
    run.context.processes.close()


def _show_results(run) -> None:
    """The scores of a finished run, and what to try next."""
    from llmcxr.evaluation.scoring import score_table
    from llmcxr.foundation.artifacts import read_json
    from llmcxr.stages.evaluation import steps_to_try

    context = run.context
    if not context.processes.main:
        return
    folder = context.folder
    summary = read_json(folder / "evaluation" / "summary.json")
    print("\n" + score_table(summary))
    print(f"\nResults page: {(folder / 'evaluation' / 'report.html').resolve()}")
    if steps := steps_to_try(context, summary, _own_name()):
        print("\nTry next:\n  " + "\n  ".join(steps))


def _own_name() -> str:
    """How to call this command line from here: by name where it is on the PATH, else by its place in the
    environment."""
    script = Path(sys.executable).parent / "llmcxr"
    if shutil.which("llmcxr") or not script.exists():
        return "llmcxr"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def finished_run(given: Path, overrides: Sequence[str] = ()):
    """The run of a folder that `llmcxr run` made."""
    from llmcxr.foundation.settings import load_settings
    from llmcxr.recipe import Recipe

    folder = given.resolve()
    if not os.path.isfile(folder / "recipe.yaml"):  # False for what the system refuses as a name
        raise UserError(f"{given} is no folder of a run (it has no recipe.yaml). Give one, e.g. runs/quickstart.")
    place = [f"{key}={json.dumps(str(value))}" for key, value in (("runs", folder.parent), ("name", folder.name))]
    return _run_of(load_settings(Recipe, folder / "recipe.yaml", [*place, *overrides]))


@command(
    "evaluate",
    "measure a run's model on its test patients, and write the results page",
    RUN,
    OVERRIDES,
    argument(
        "--rescore",
        action="store_true",
        help="only make scores and page anew, from the predictions that are there, without the model",
    ),
    example="runs/quickstart --rescore",
)
def _evaluate(arguments: argparse.Namespace) -> None:
    run = finished_run(arguments.folder, arguments.overrides)
    if arguments.rescore:
        run.rescore()
    else:
        run.run("evaluation")
    _show_results(run)
    run.context.processes.close()


@command(
    "choose-decoding",
    "try guidance, candidates and asking for sides on a run's validation patients, and say what to set",
    RUN,
    OVERRIDES,
    argument(
        "--images",
        type=count,
        default=64,
        metavar="N",
        help="validation images to try on, at most (default: %(default)s)",
    ),
    example="runs/quickstart",
)
def _choose_decoding(arguments: argparse.Namespace) -> None:
    run = finished_run(arguments.folder, arguments.overrides)

    from llmcxr.evaluation.choose_decoding import choose_decoding
    from llmcxr.stages.evaluation import cases_of, under_test

    context = run.context
    with run.workflow.alone():
        cases = cases_of(context, "validate")
        print(choose_decoding(context.folder / "decoding.json", cases, under_test(context, cases), arguments.images))


@command(
    "calibrate",
    "fit the probabilities of findings to a run's validation patients, and when to doubt a report, and keep both in the model's "
    "folder (a run that trains does so by itself)",
    RUN,
    OVERRIDES,
    argument(
        "--images",
        type=count,
        metavar="N",
        help="validation images to fit to, at most (default: as many as a run takes by itself, 150)",
    ),
    argument(
        "--into",
        type=path,
        metavar="MODEL",
        help="folder of the model, packed or not, that should hold it (default: the run's own model/; needed where the run "
        "measures a model that it did not make; its next `llmcxr run` then makes the scores anew)",
    ),
    example="runs/quickstart",
)
def _calibrate(arguments: argparse.Namespace) -> None:
    run = finished_run(arguments.folder, arguments.overrides)
    print(run.calibrate(arguments.into, *filter(None, [arguments.images])))


@command(
    "pack",
    "write what a finished run trained as a small folder (adapters, image tokenizer, judge), without the base LLM. Every command "
    "takes it as --model",
    RECIPE,
    argument("output", type=path, help="folder to write, which should not be there yet"),
    OVERRIDES,
    example="quickstart small",
)
def _pack(arguments: argparse.Namespace) -> None:
    check_new_folder(arguments.output)
    run = _run_of(_recipe(arguments))

    from llmcxr.packing import pack_run

    pack_run(run, arguments.output)
    size = sum(p.stat().st_size for p in arguments.output.rglob("*") if p.is_file())
    print(f"{arguments.output}: {size / 1e6:.0f} MB")


@command(
    "plan",
    "say what a recipe takes before it runs: tokens, steps, memory and disk, and with --measure, --rate or --tflops hours. No weights "
    "are loaded. What is not on disk (data, the LLM's tokenizer, the run to start from) is replaced by assumptions, which are printed",
    RECIPE,
    OVERRIDES,
    argument(
        "--until",
        metavar="STAGE",
        help="of a run that ends with this stage, e.g. image_tokenizer of a recipe for that alone (default: all)",
    ),
    argument(
        "--devices",
        type=count,
        default=1,
        metavar="N",
        help="GPUs (or CPU processes) that share the work (default: %(default)s)",
    ),
    either(
        argument(
            "--rate",
            type=rate,
            metavar="TOKENS_PER_SECOND",
            help="hours of tuning alone, at this speed on one device, no padding counted (default: no hours)",
        ),
        argument(
            "--measure",
            action="store_true",
            help="hours of every stage as timed here: of tuning the real step (forward, backward, optimiser) for about 20 seconds, with random weights of "
            "the LLM's shape",
        ),
        argument(
            "--tflops",
            type=rate,
            metavar="T",
            help="hours of tuning, the image tokenizer and encoding at this rate of matrix products of one device, in 10^12 operations a second in the precision of training, "
            "e.g. 700 as measured on an H100 in bfloat16 (default: no hours)",
        ),
    ),
    argument(
        "--utilisation",
        type=rate,
        default=0.45,
        metavar="SHARE",
        help="share of --tflops that training reaches, 0 to 1 (default: %(default)s)",
    ),
    argument(
        "--images",
        type=count,
        default=377_110,
        metavar="N",
        help="images to assume of a source that is not on disk (default: %(default)s, MIMIC-CXR-JPG's)",
    ),
    argument(
        "--words",
        type=count,
        nargs=2,
        metavar=("FINDINGS", "IMPRESSION"),
        help="words to assume of reports that are not on disk (default: as is usual of the kind of source, e.g. 50 20 for a table)",
    ),
    example="quickstart --measure",
)
def _plan(arguments: argparse.Namespace) -> None:
    recipe = _recipe(arguments)

    from llmcxr.plan import PlanOptions, plan
    from llmcxr.plan_text import plan_text

    names = ("until", "devices", "rate", "measure", "tflops", "utilisation", "images")
    options = {name: getattr(arguments, name) for name in names}
    words = tuple(arguments.words) if arguments.words else None
    print(plan_text(plan(recipe, PlanOptions(**options, words=words))))


@command("recipes", "list the recipes that come with the package")
def _recipes(arguments: argparse.Namespace) -> None:
    from llmcxr.recipes import FOLDER, SHIPPED, about

    for name in SHIPPED:
        print(f"{name}: {about(name)}")
    print(f"They lie in {FOLDER}; a copy of one, changed, is a recipe of your own.")


@command(
    "settings",
    "list every setting of a recipe with its default and meaning",
    argument("part", nargs="?", default="", help="only those whose key contains this, e.g. tuning (default: all)"),
    example="tuning.lora",
)
def _settings(arguments: argparse.Namespace) -> None:
    from llmcxr.foundation.settings import describe_settings
    from llmcxr.recipe import Recipe

    rows = [row for row in describe_settings(Recipe) if arguments.part in row[0]]
    if not rows:
        raise UserError(f"no setting's key contains {arguments.part!r}. `llmcxr settings` lists them all.")
    for key, default, about in rows:
        print(f"{key}: {default}\n    {about}")


@command(
    "preview",
    "write sheets of phantom (simulated) radiographs to look at: how normal ones vary, and each finding",
    argument("-o", "--output", type=path, default=Path("preview"), help="folder for the sheets (default: %(default)s)"),
    argument(
        "--size", type=count, default=256, metavar="PIXELS", help="of a side of each radiograph (default: %(default)s)"
    ),
    SEED,
    example="-o preview --size 128",
)
def _preview(arguments: argparse.Namespace) -> None:
    from llmcxr.sources.phantom.contact_sheet import contact_sheet, finding_sheet

    check_output(arguments.output, folder=True)
    for name, make in (("normal.png", contact_sheet), ("findings.png", finding_sheet)):
        make(arguments.output / name, arguments.size, arguments.seed)
        print(arguments.output / name)
