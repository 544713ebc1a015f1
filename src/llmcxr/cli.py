"""Command word -> one function. `llmcxr --help` lists them."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path

from llmcxr.foundation.artifacts import check_output
from llmcxr.foundation.assets import DEFAULT_MODEL
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.stopping import ends_like_interrupts, exit_code

NOTICE = "For research only: not a medical device, not for diagnosis."


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


def _run(arguments: argparse.Namespace) -> None:
    from llmcxr.pipeline import Run

    run = Run(_recipe(arguments))
    run.run(arguments.stage)
    if arguments.stage in (None, "evaluation"):
        _show_results(run)
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


def _finished_run(arguments: argparse.Namespace):
    """The run of a folder that `llmcxr run` made."""
    from llmcxr.foundation.settings import load_settings
    from llmcxr.pipeline import Run
    from llmcxr.recipe import Recipe

    folder = arguments.folder.resolve()
    if not (folder / "recipe.yaml").exists():
        raise UserError(
            f"{arguments.folder} is no folder of a run (it has no recipe.yaml). Give one, e.g. runs/quickstart."
        )
    place = [f"{key}={json.dumps(str(value))}" for key, value in (("runs", folder.parent), ("name", folder.name))]
    return Run(load_settings(Recipe, folder / "recipe.yaml", [*place, *arguments.overrides]))


def _evaluate(arguments: argparse.Namespace) -> None:
    run = _finished_run(arguments)
    if arguments.rescore:
        run.rescore()
    else:
        run.run("evaluation")
    _show_results(run)
    run.context.processes.close()


def _choose_decoding(arguments: argparse.Namespace) -> None:
    from llmcxr.evaluation.choose_decoding import choose_decoding
    from llmcxr.stages.evaluation import cases_of, under_test

    run = _finished_run(arguments)
    context = run.context
    with run.workflow.alone():
        cases = cases_of(context, "validate")
        print(choose_decoding(context.folder / "decoding.json", cases, under_test(context, cases), arguments.images))


def _pack(arguments: argparse.Namespace) -> None:
    from llmcxr.packing import pack_run
    from llmcxr.pipeline import Run

    check_output(arguments.output, folder=True)
    pack_run(Run(_recipe(arguments)), arguments.output)
    size = sum(p.stat().st_size for p in arguments.output.rglob("*") if p.is_file())
    print(f"{arguments.output}: {size / 1e6:.0f} MB")


def _own_name() -> str:
    """How to call this command line from here: by name where it is on the PATH, else by its place in the environment."""
    script = Path(sys.executable).parent / "llmcxr"
    if shutil.which("llmcxr") or not script.exists():
        return "llmcxr"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def _recipes(arguments: argparse.Namespace) -> None:
    from llmcxr.recipes import FOLDER, SHIPPED, about

    for name in SHIPPED:
        print(f"{name}: {about(name)}")
    print(f"They lie in {FOLDER}; a copy of one, changed, is a recipe of your own.")


def _settings(arguments: argparse.Namespace) -> None:
    from llmcxr.foundation.settings import describe_settings
    from llmcxr.recipe import Recipe

    for key, default, about in describe_settings(Recipe):
        if arguments.prefix in key:
            print(f"{key}: {default}\n    {about}")


def _plan(arguments: argparse.Namespace) -> None:
    from llmcxr.plan import PlanOptions, plan, plan_text

    names = ("devices", "rate", "measure", "tflops", "utilisation", "images")
    options = {name: getattr(arguments, name) for name in names}
    words = tuple(arguments.words) if arguments.words else None
    print(plan_text(plan(_recipe(arguments), PlanOptions(**options, words=words))))


def _preview(arguments: argparse.Namespace) -> None:
    from llmcxr.sources.phantom.contact_sheet import contact_sheet, finding_sheet

    check_output(arguments.output, folder=True)
    for name, make in (("normal.png", contact_sheet), ("findings.png", finding_sheet)):
        make(arguments.output / name, arguments.size, arguments.seed)
        print(arguments.output / name)


def _load(arguments: argparse.Namespace):
    from llmcxr.inference.llm_cxr import LlmCxr

    return LlmCxr.from_pretrained(arguments.model, arguments.device)


def _sampling(arguments: argparse.Namespace):
    from llmcxr.inference.backend import Sampling

    guidance = getattr(arguments, "guidance", None)
    return Sampling(arguments.temperature, arguments.top_p, 0, arguments.max_new_tokens, arguments.seed, guidance)


def _report(arguments: argparse.Namespace) -> None:
    print(_load(arguments).report(arguments.image, _sampling(arguments), arguments.candidates))


def _ask(arguments: argparse.Namespace) -> None:
    print(_load(arguments).ask(arguments.image, arguments.question, _sampling(arguments)))


def _findings(arguments: argparse.Namespace) -> None:
    for name, p in sorted(_load(arguments).finding_probabilities(arguments.image).items(), key=lambda item: -item[1]):
        print(f"{p:5.2f}  {name}")


def _draw(arguments: argparse.Namespace) -> None:
    from llmcxr.inference.provenance import save_synthetic

    check_output(arguments.output)
    pixels = _load(arguments).draw(arguments.text, _sampling(arguments), arguments.candidates)
    save_synthetic(arguments.output, pixels, arguments.text, visible=not arguments.no_mark)
    print(arguments.output)


def _chat(arguments: argparse.Namespace) -> None:
    model, sampling = _load(arguments), _sampling(arguments)
    messages: list[dict[str, str]] = []
    print("Plain chat; an empty line ends it.", file=sys.stderr)
    while True:
        try:
            said = arguments.message if arguments.message and not messages else input("> ").strip()
        except EOFError:
            return
        if not said:
            return
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": model.chat(messages, sampling)})
        print(messages[-1]["content"], flush=True)
        if arguments.message:
            return


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 1")
    return value


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} should be above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmcxr", description=f"Teach a text-only LLM to read and write chest radiographs. {NOTICE}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, function, about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(function=function)
        return command

    def take_recipe(command: argparse.ArgumentParser) -> None:
        command.add_argument("recipe", help="a shipped recipe by name (`llmcxr recipes` lists them), or a YAML file")

    def take_overrides(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="KEY.SUB=VALUE",
            help="settings that replace the file's; `llmcxr settings` lists them",
        )

    fetch = add("fetch", _fetch, "download embedded data into the cache, once; afterwards everything works offline")
    fetch.add_argument("names", nargs="*", metavar="NAME", help="assets to fetch (all where none is named)")

    run = add(
        "run", _run, "run a recipe from data to results page; what is done is skipped, what was interrupted goes on"
    )
    take_recipe(run)
    take_overrides(run)
    run.add_argument("--stage", help="run only this stage, e.g. image_tokenizer")

    def take_run(command: argparse.ArgumentParser) -> None:
        command.add_argument("folder", type=Path, metavar="RUN", help="folder of a run, e.g. runs/quickstart")
        take_overrides(command)

    evaluate = add("evaluate", _evaluate, "measure a run's model on its test patients, and write the results page")
    take_run(evaluate)
    evaluate.add_argument(
        "--rescore",
        action="store_true",
        help="scores and page anew from the predictions that are there, without the model",
    )

    choose = add(
        "choose-decoding",
        _choose_decoding,
        "try guidance, candidates and asking for sides on a run's validation patients, and say what to set",
    )
    take_run(choose)
    choose.add_argument("--images", type=_positive, default=64, help="validation images (default: %(default)s)")

    pack = add(
        "pack",
        _pack,
        "what a finished run trained as a small folder (adapters, image tokenizer, judge), without the base LLM; every "
        "command takes it as --model",
    )
    take_recipe(pack)
    pack.add_argument("output", type=Path, help="folder to write")
    take_overrides(pack)

    plan = add(
        "plan",
        _plan,
        "tokens, steps, memory, disk and hours that tuning by a recipe takes, without running it or loading weights. What is "
        "not on disk (data, the LLM's tokenizer) is replaced by assumptions, which are printed",
    )
    take_recipe(plan)
    take_overrides(plan)
    plan.add_argument("--devices", type=_positive, default=1, help="data-parallel devices (default: 1)")
    speed = plan.add_mutually_exclusive_group()
    speed.add_argument(
        "--rate", type=_above_zero, metavar="TOKENS_PER_SECOND", help="speed of one device, no padding counted"
    )
    speed.add_argument(
        "--measure",
        action="store_true",
        help="time the real step (forward, backward, optimiser) on this device for about 20 seconds, with random weights of "
        "the LLM's shape",
    )
    speed.add_argument(
        "--tflops", type=_above_zero, help="bfloat16 matrix rate of one device, e.g. about 700 as measured on an H100"
    )
    plan.add_argument(
        "--utilisation", type=_above_zero, default=0.45, help="share of --tflops that is reached (default: %(default)s)"
    )
    plan.add_argument(
        "--images",
        type=_positive,
        default=377_110,
        help="images of a source that is not on disk (default: MIMIC-CXR-JPG's)",
    )
    plan.add_argument(
        "--words",
        type=_positive,
        nargs=2,
        metavar=("FINDINGS", "IMPRESSION"),
        help="words of reports that are not on disk (default: 32 11 for the phantom, 50 20 for a table)",
    )

    add("recipes", _recipes, "list the recipes that come with the package")

    settings = add("settings", _settings, "list every setting of a recipe with its default and meaning")
    settings.add_argument("prefix", nargs="?", default="", help="only those whose key contains this")

    preview = add("preview", _preview, "contact sheets of phantom radiographs: normal variation, and each finding")
    preview.add_argument("-o", "--output", type=Path, default=Path("preview"), help="folder for the sheets")
    preview.add_argument("--size", type=int, default=256, help="pixels a side of each radiograph")
    preview.add_argument("--seed", type=int, default=0)

    def use(name: str, function, about: str, temperature: float | None, top_p: float = 1.0) -> argparse.ArgumentParser:
        command = add(name, function, f"{about}. {NOTICE}")
        command.add_argument(
            "--model",
            default=DEFAULT_MODEL,
            help="a shipped model by name, the folder of a run, of a model, or of a packed one, or the id of a Hugging Face "
            "repository (default: %(default)s)",
        )
        command.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
        if temperature is None:
            return command
        command.add_argument(
            "--temperature", type=float, default=temperature, help="0: the most likely token (default: %(default)s)"
        )
        command.add_argument("--top-p", type=float, default=top_p)
        command.add_argument("--max-new-tokens", type=int, default=256, help="most tokens of a text response")
        command.add_argument("--seed", type=int, default=0)
        return command

    report = use("report", _report, "report of a radiograph (PNG, JPEG or DICOM)", 0.0)
    report.add_argument("image", type=Path)
    report.add_argument(
        "--guidance",
        type=_above_zero,
        help="how strongly the report follows the findings that the model named first: 1 as the model says, more to leave fewer out "
        "(default: the model's own)",
    )
    report.add_argument(
        "--candidates",
        type=_positive,
        help="write so many and keep the one that states best what the model named on the image (default: the model's own)",
    )
    ask = use("ask", _ask, "answer a question about a radiograph", 0.0)
    ask.add_argument("image", type=Path)
    ask.add_argument("question")
    findings = use("findings", _findings, "probability of each finding on a radiograph", None)  # nothing is drawn
    findings.add_argument("image", type=Path)
    draw = use("draw", _draw, "draw a radiograph for a report", 1.0)
    draw.add_argument("text")
    draw.add_argument("-o", "--output", type=Path, default=Path("drawn.png"))
    draw.add_argument(
        "--guidance",
        type=_above_zero,
        help="how strongly the image follows the text: 1 as the model says, more for clearer findings and less variety "
        "(default: the model's own)",
    )
    draw.add_argument(
        "--candidates",
        type=_positive,
        help="draw so many and keep the one on which the model's clinical network best sees what the text states (default: the model's own)",
    )
    draw.add_argument(
        "--no-mark", action="store_true", help="leave out the visible mark (the metadata always say synthetic)"
    )
    chat = use("chat", _chat, "plain chat with the language model", 0.0)
    chat.add_argument("message", nargs="?", help="one message instead of a conversation")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 on success, 2 for a mistake that the user can mend, 130 or 143 when interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizer is used before worker processes start
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)  # other libraries' notes to their own developers
    logging.basicConfig(format="%(message)s")
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and hasattr(arguments, "overrides") and not any(word.startswith("-") for word in rest):
        arguments.overrides += rest  # argparse itself takes them only before --stage
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with ends_like_interrupts():
            arguments.function(arguments)
    except UserError as error:
        print(f"llmcxr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("\nllmcxr: interrupted; run the same command again to go on.", file=sys.stderr)
        return exit_code(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
