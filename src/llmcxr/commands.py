"""Command word -> one function, with its arguments above it. Heavy libraries are imported where they are used."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmcxr.foundation.artifacts import check_output
from llmcxr.foundation.assets import DEFAULT_MODEL
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.texts import check_text, path_of

NOTICE = "For research only: not a medical device, not for diagnosis."

Adding = Callable[[argparse._ActionsContainer], object]  # puts an argument, or several, into a parser


@dataclass(frozen=True)
class Command:
    """What a command word does, and what it takes."""

    function: Callable[[argparse.Namespace], None]
    about: str
    arguments: tuple[Adding, ...]


COMMANDS: dict[str, Command] = {}


def command(name: str, about: str, *arguments: Adding) -> Callable[[Callable[[argparse.Namespace], None]], None]:
    """Makes the function below a command."""

    def enter(function: Callable[[argparse.Namespace], None]) -> None:
        COMMANDS[name] = Command(function, about, arguments)

    return enter


def argument(*names: str, **options) -> Adding:
    """As for `ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(*names, **options)


def either(*arguments: Adding) -> Adding:
    """Arguments of which at most one can be given."""

    def add(parser: argparse._ActionsContainer) -> None:
        group = parser.add_mutually_exclusive_group()
        for each in arguments:
            each(group)

    return add


# --- values


def count(text: str) -> int:
    """A whole number from 1."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number, at least 1")
    return int(text)


def rate(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} should be a number above 0")
    return value


def path(text: str) -> Path:
    """A file or folder; ~ is home here too, since no shell sees it in `-o~/drawn.png` and `--output=~/drawn.png`."""
    try:
        return path_of(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def png(text: str) -> Path:
    """The file of a picture that says in its metadata where it is from."""
    if Path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(
            f"{text!r} should end in .png: only as a PNG the drawing says that it is synthetic"
        )
    return path(text)


# --- arguments that several commands take

RECIPE = argument("recipe", help="a shipped recipe by name (`llmcxr recipes` lists them), or a YAML file")
OVERRIDES = argument(
    "overrides",
    nargs="*",
    metavar="KEY.SUB=VALUE",
    help="settings that replace the file's; `llmcxr settings` lists them",
)
RUN = argument("folder", type=path, metavar="RUN", help="folder of a run, e.g. runs/quickstart")
IMAGE = argument("image", type=path, help="PNG, JPEG or DICOM")
SEED = argument("--seed", type=int, default=0, help="of what is drawn by chance (default: %(default)s)")
MODEL = (
    argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a shipped model by name, the folder of a run, of a model, or of a packed one, or "
        "the id of a Hugging Face repository (default: %(default)s)",
    ),
    argument("--device", default="auto", help="auto, cpu, cuda, ..."),
)


def sampling(temperature: float) -> tuple[Adding, ...]:
    """How a response is drawn; `Sampling` says what these can be."""
    about = "0: the most likely token (default: %(default)s)"
    return (
        argument("--temperature", type=float, default=temperature, help=about),
        argument(
            "--top-p", type=float, default=1.0, help="likeliest tokens of which to draw, as a share of probability"
        ),
        argument(
            "--max-new-tokens", type=int, default=256, help="most tokens of a text response (default: %(default)s)"
        ),
        SEED,
    )


def chosen(guidance: str, candidates: str) -> tuple[Adding, ...]:
    """What leads a response, and of how many it is the best."""
    own = " (default: the model's own)"
    return (
        argument("--guidance", type=rate, help=guidance + own),
        argument("--candidates", type=count, help=candidates + own),
    )


# --- data and runs


@command(
    "fetch",
    "download embedded data into the cache, once; afterwards everything works offline",
    argument("names", nargs="*", metavar="NAME", help="assets to fetch (all where none is named)"),
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
    argument("--stage", help="run only this stage, e.g. image_tokenizer"),
)
def _run(arguments: argparse.Namespace) -> None:
    run = _run_of(_recipe(arguments))
    run.run(arguments.stage)
    if arguments.stage in (None, "evaluation"):
        _show_results(run)
    run.context.processes.close()


@command(
    "prepare",
    "only the data of a recipe: which studies a run would use and why, as a page of counts, labels, texts and pictures",
    RECIPE,
    OVERRIDES,
)
def _prepare(arguments: argparse.Namespace) -> None:
    run = _run_of(_recipe(arguments))
    run.run("studies")

    from llmcxr.stages.data import PAGE

    if run.context.processes.main:
        print(f"\nData page: {(run.context.folder / PAGE).resolve()}")
    run.context.processes.close()


@command("inspect", "make the page of a run's data anew, and say where it lies", RUN, OVERRIDES)
def _inspect(arguments: argparse.Namespace) -> None:
    run = _finished_run(arguments)
    print(f"Data page: {run.inspect().resolve()}")
    run.context.processes.close()


def _show_results(run) -> None:
    """The scores of a finished run, and what to try next."""
    from llmcxr.evaluation.scoring import next_steps, score_table
    from llmcxr.foundation.artifacts import read_json

    context = run.context
    if not context.processes.main:
        return
    folder = context.folder
    summary = read_json(folder / "evaluation" / "summary.json")
    print("\n" + score_table(summary))
    print(f"\nResults page: {(folder / 'evaluation' / 'report.html').resolve()}")
    image = folder / next(s.image_path for s in context.studies if s.split == "test")  # an absolute path stays as it is
    model = run.recipe.model or str(folder)
    if steps := next_steps(summary, context.findings, str(image), model, _own_name()):
        print("\nTry next:\n  " + "\n  ".join(steps))


def _own_name() -> str:
    """How to call this command line from here: by name where it is on the PATH, else by its place in the
    environment."""
    script = Path(sys.executable).parent / "llmcxr"
    if shutil.which("llmcxr") or not script.exists():
        return "llmcxr"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def _finished_run(arguments: argparse.Namespace):
    """The run of a folder that `llmcxr run` made."""
    from llmcxr.foundation.settings import load_settings
    from llmcxr.recipe import Recipe

    folder = arguments.folder.resolve()
    if not os.path.isfile(folder / "recipe.yaml"):  # False for what the system refuses as a name
        raise UserError(
            f"{arguments.folder} is no folder of a run (it has no recipe.yaml). Give one, e.g. runs/quickstart."
        )
    place = [f"{key}={json.dumps(str(value))}" for key, value in (("runs", folder.parent), ("name", folder.name))]
    return _run_of(load_settings(Recipe, folder / "recipe.yaml", [*place, *arguments.overrides]))


@command(
    "evaluate",
    "measure a run's model on its test patients, and write the results page",
    RUN,
    OVERRIDES,
    argument(
        "--rescore",
        action="store_true",
        help="scores and page anew from the predictions that are there, without the model",
    ),
)
def _evaluate(arguments: argparse.Namespace) -> None:
    run = _finished_run(arguments)
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
    argument("--images", type=count, default=64, help="validation images (default: %(default)s)"),
)
def _choose_decoding(arguments: argparse.Namespace) -> None:
    run = _finished_run(arguments)

    from llmcxr.evaluation.choose_decoding import choose_decoding
    from llmcxr.stages.evaluation import cases_of, under_test

    context = run.context
    with run.workflow.alone():
        cases = cases_of(context, "validate")
        print(choose_decoding(context.folder / "decoding.json", cases, under_test(context, cases), arguments.images))


@command(
    "pack",
    "what a finished run trained as a small folder (adapters, image tokenizer, judge), without the base LLM; every "
    "command takes it as --model",
    RECIPE,
    argument("output", type=path, help="folder to write"),
    OVERRIDES,
)
def _pack(arguments: argparse.Namespace) -> None:
    check_output(arguments.output, folder=True)
    run = _run_of(_recipe(arguments))

    from llmcxr.packing import pack_run

    pack_run(run, arguments.output)
    size = sum(p.stat().st_size for p in arguments.output.rglob("*") if p.is_file())
    print(f"{arguments.output}: {size / 1e6:.0f} MB")


@command(
    "plan",
    "tokens, steps, memory and disk that tuning by a recipe takes, and with --measure, --rate or --tflops its hours, "
    "without running it or loading weights. What is not on disk (data, the LLM's tokenizer, the run to start from) is "
    "replaced by assumptions, which are printed",
    RECIPE,
    OVERRIDES,
    argument("--devices", type=count, default=1, help="data-parallel devices (default: 1)"),
    either(
        argument("--rate", type=rate, metavar="TOKENS_PER_SECOND", help="speed of one device, no padding counted"),
        argument(
            "--measure",
            action="store_true",
            help="time the real step (forward, backward, optimiser) on this device for about 20 seconds, "
            "with random weights of the LLM's shape",
        ),
        argument(
            "--tflops", type=rate, help="bfloat16 matrix rate of one device, e.g. about 700 as measured on an H100"
        ),
    ),
    argument("--utilisation", type=rate, default=0.45, help="share of --tflops that is reached (default: %(default)s)"),
    argument(
        "--images",
        type=count,
        default=377_110,
        help="images of a source that is not on disk (default: MIMIC-CXR-JPG's)",
    ),
    argument(
        "--words",
        type=count,
        nargs=2,
        metavar=("FINDINGS", "IMPRESSION"),
        help="words of reports that are not on disk (default: 32 11 for the phantom, 50 20 for a table)",
    ),
)
def _plan(arguments: argparse.Namespace) -> None:
    recipe = _recipe(arguments)

    from llmcxr.plan import PlanOptions, plan, plan_text

    names = ("devices", "rate", "measure", "tflops", "utilisation", "images")
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
    argument("part", nargs="?", default="", help="only those whose key contains this"),
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
    "contact sheets of phantom radiographs: normal variation, and each finding",
    argument("-o", "--output", type=path, default=Path("preview"), help="folder for the sheets"),
    argument("--size", type=count, default=256, help="pixels a side of each radiograph (default: %(default)s)"),
    SEED,
)
def _preview(arguments: argparse.Namespace) -> None:
    from llmcxr.sources.phantom.contact_sheet import contact_sheet, finding_sheet

    check_output(arguments.output, folder=True)
    for name, make in (("normal.png", contact_sheet), ("findings.png", finding_sheet)):
        make(arguments.output / name, arguments.size, arguments.seed)
        print(arguments.output / name)


# --- a model


def _load(arguments: argparse.Namespace):
    """The model. `UserError` for an image that cannot be read: before the model is loaded."""
    if image := getattr(arguments, "image", None):
        from llmcxr.studies.radiographs import read_radiograph

        read_radiograph(image)
    from llmcxr.inference.llm_cxr import LlmCxr

    return LlmCxr.from_pretrained(arguments.model, arguments.device)


def _sampling(arguments: argparse.Namespace):
    """`UserError` for what cannot be: before the model is loaded."""
    from llmcxr.inference.backend import Sampling

    guidance = getattr(arguments, "guidance", None)
    return Sampling(arguments.temperature, arguments.top_p, 0, arguments.max_new_tokens, arguments.seed, guidance)


@command(
    "report",
    f"report of a radiograph (PNG, JPEG or DICOM). {NOTICE}",
    *MODEL,
    *sampling(0.0),
    *chosen(
        "how strongly the report follows the findings that the model named first: 1 as the model says, more to leave "
        "fewer out",
        "write so many and keep the one that states best what the model named on the image",
    ),
    IMAGE,
)
def _report(arguments: argparse.Namespace) -> None:
    drawn = _sampling(arguments)
    print(_load(arguments).report(arguments.image, drawn, arguments.candidates))


@command("ask", f"answer a question about a radiograph. {NOTICE}", *MODEL, *sampling(0.0), IMAGE, argument("question"))
def _ask(arguments: argparse.Namespace) -> None:
    drawn = _sampling(arguments)
    check_text(arguments.question, "the question")
    print(_load(arguments).ask(arguments.image, arguments.question, drawn))


@command("findings", f"probability of each finding on a radiograph. {NOTICE}", *MODEL, IMAGE)
def _findings(arguments: argparse.Namespace) -> None:
    for name, p in sorted(_load(arguments).finding_probabilities(arguments.image).items(), key=lambda item: -item[1]):
        print(f"{p:5.2f}  {name}")


@command(
    "draw",
    f"draw a radiograph for a report. {NOTICE}",
    *MODEL,
    *sampling(1.0),
    *chosen(
        "how strongly the image follows the text: 1 as the model says, more for clearer findings and less variety",
        "draw so many and keep the one on which the model's clinical network best sees what the text states",
    ),
    argument("text", help="the report"),
    argument("-o", "--output", type=png, default=Path("drawn.png"), help="PNG to write (default: %(default)s)"),
    argument("--no-mark", action="store_true", help="leave out the visible mark (the metadata always say synthetic)"),
)
def _draw(arguments: argparse.Namespace) -> None:
    from llmcxr.inference.provenance import save_synthetic

    drawn = _sampling(arguments)
    check_text(arguments.text, "the report")
    check_output(arguments.output)
    pixels = _load(arguments).draw(arguments.text, drawn, arguments.candidates)
    save_synthetic(arguments.output, pixels, arguments.text, visible=not arguments.no_mark)
    print(arguments.output)


@command(
    "chat",
    f"plain chat with the language model. {NOTICE}",
    *MODEL,
    *sampling(0.0),
    argument("message", nargs="?", help="one message instead of a conversation"),
)
def _chat(arguments: argparse.Namespace) -> None:
    drawn = _sampling(arguments)
    if arguments.message is not None:
        check_text(arguments.message, "the message")
        print(_load(arguments).chat([{"role": "user", "content": arguments.message}], drawn))
        return
    model = _load(arguments)
    messages: list[dict[str, str]] = []
    at_hand = sys.stdin is not None and sys.stdin.isatty()  # else what is said comes from a file or another program
    if at_hand:
        print("Plain chat; an empty line ends it.", file=sys.stderr)
    while said := _line("> " if at_hand and sys.stdout.isatty() else ""):
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": model.chat(messages, drawn)})
        print(messages[-1]["content"], flush=True)


def _line(prompt: str) -> str:
    """What is typed next, or the next line of what is piped in; "" at its end."""
    try:
        return input(prompt).strip() if sys.stdin is not None else ""
    except EOFError:
        return ""
    except UnicodeDecodeError as error:
        raise UserError(f"what comes in is not UTF-8 ({error}). Convert it first.") from error
