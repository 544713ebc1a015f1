"""What do questions from reports buy a model that is tuned on radiographs and reports?

    python benchmarks/vqa_ablation.py                            # without, by rules; seeds 0 and 1: hours on two cores
    python benchmarks/vqa_ablation.py --parallel 4               # arms side by side, on a GPU
    python benchmarks/vqa_ablation.py --prepare                  # only what comes before tuning
    python benchmarks/vqa_ablation.py --table                    # the table of what was measured
    python benchmarks/vqa_ablation.py chat.base_url=http://localhost:8000/v1 chat.model=Qwen/Qwen3-8B --arms llm
    python benchmarks/vqa_ablation.py --small --seeds 0          # does it run? numbers mean nothing

As in the paper's ablation: tuning without questions, with those that rules read from reports, with those that a
chat LLM wrote. Patients are the phantom's, their reports real texts. All arms share patients and image tokenizer, the
shipped model's (which has learned from labels); tuning itself sees no ground truth: no alignment, no findings named
first, no image rows that begin where labels put them. A seed draws the order and the wording of what is learned, the
starts of the weights, and the judge; its arms learn from as many tokens and are asked the same ground-truth questions.
An arm and seed that are in the results are not run again; one that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from llmcxr.foundation.artifacts import atomic_path, read_json, write_json
from llmcxr.foundation.assets import SHIPPED_MODELS
from llmcxr.foundation.settings import load_settings
from llmcxr.instructions.mixture import Mixture
from llmcxr.instructions.rendering import fit
from llmcxr.pipeline import Run
from llmcxr.recipe import Recipe
from llmcxr.recipes import find_recipe
from llmcxr.stages.tuning import task_items
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_text_tokenizer

REPORTS = {"language": 0.15, "report_to_cxr": 0.25, "cxr_to_report": 0.6}
QUESTIONS = {"language": 0.15, "report_to_cxr": 0.15, "cxr_to_report": 0.35, "cxr_vqa": 0.35}
ARMS: dict[str, tuple[dict[str, float], str]] = {  # mixture, origin of the questions
    "none": (REPORTS, "rules"),
    "rules": (QUESTIONS, "rules"),
    "llm": (QUESTIONS, "llm"),
}
CONVERSATIONS = {"list": 0.45, "presence": 0.35, "detail": 0.1, "normal": 0.05, "open": 0.05}
COMMON = [
    "source.phantom={train: 2000, validate: 100, test: 300}",
    "clinical_features.training={steps: 1, batch_size: 2}",  # of no use: the image tokenizer has its own
    "tuning.row_start=codebook",
    "tuning.alignment.steps=0",
    "tuning.findings_first=[]",
    "tuning.decoding={}",
    "tuning.tokens_per_batch=1024",
    "evaluation.judge_steps=900",
    "evaluation.cases={reconstructions: 20, reports: 300, questions: 600, probabilities: 150, drawings: 150}",
]
SMALL = [
    "source.phantom={train: 60, validate: 12, test: 16}",
    "evaluation.judge_steps=5",
    "evaluation.cases={reconstructions: 4, reports: 4, questions: 16, probabilities: 4, drawings: 4}",
]
TOKENS = 650_000  # that each arm learns from
SCORES = ("report.micro_f1", "image.auroc", "vqa.accuracy", "vqa.balanced_accuracy", "vqa.auroc")
# Nats a token of unseen patients' reports, and a code of their images.
LOSSES = {"report.loss": "cxr_to_report", "image.loss": "report_to_cxr"}
COLUMNS = (*SCORES, *LOSSES)
SHORTEST = 16  # tokens of an example, on average, at least
LEFT = ("images", "masks", "lock", "owner.json")  # of a run that others begin with


def folder_of(options: argparse.Namespace, *parts: object) -> str:
    """Name of a run: of the patients, of what all arms of a seed begin with, or of an arm."""
    return "-".join(map(str, ["vqa-ablation", *["small"] * options.small, *parts]))


def recipe_of(arm: str, seed: int, examples: int, options: argparse.Namespace, name: str | None = None) -> Recipe:
    """The quickstart with the shipped image tokenizer and one stage of the arm's mixture; `name`: not the arm's own."""
    mixture, origin = ARMS[arm]
    stage: dict[str, Any] = {"name": "stage1", "examples": examples, "mixture": mixture, "conversations": CONVERSATIONS}
    stage |= {"learning_rate": 7e-4, "rows_learning_rate": 2e-3, "cohort": {"sections": "findings_and_impression"}}
    stage["task_loss_weights"] = {"report_to_cxr": 0.7, "language": 2.0}
    own = [
        f"name={name or folder_of(options, seed, arm)}",
        f"seed={seed}",
        f"image_tokenizer.pretrained={SHIPPED_MODELS / 'phantom' / 'image_tokenizer'}",
        f"vqa.origins=[{origin}]",
        f"vqa.synthesize={str(arm == 'llm').lower()}",
        f"tuning.stages={json.dumps([stage])}",
    ]
    settings = [*own, *COMMON, *SMALL * options.small, *options.overrides]
    return load_settings(Recipe, find_recipe("quickstart"), settings)


def do(run: Run, stage: str) -> None:
    """Run a stage, unless it is done: then the folder is not held, and arms side by side can share it."""
    if not run.workflow.has(stage):
        run.run(stage)


def before_tuning(recipe: Recipe, other: str) -> Run:
    """Do all that comes before tuning, and the judge; what the run `other` has done already is taken from there."""
    run = Run(recipe)
    if not run.context.folder.exists():
        with atomic_path(run.context.folder) as temporary:
            shutil.copytree(recipe.runs / other, temporary, ignore=shutil.ignore_patterns(*LEFT))
    for stage in run.workflow.stages:
        if stage.name not in ("stage1", "model", "evaluation"):
            do(run, stage.name)
    return run


def prepare(seed: int, options: argparse.Namespace) -> None:
    """Patients, which all seeds share, and what all arms of a seed begin with."""
    patients = folder_of(options)
    do(Run(recipe_of("rules", 0, 1, options, patients)), "studies")
    before_tuning(recipe_of("rules", seed, 1, options, folder_of(options, seed)), patients)


def examples_for(run: Run, tokens: int) -> int:
    """How many examples have about as many `tokens` together, no padding counted: reports are longer than answers.

    Which examples come does not depend on how many are asked for.
    """
    context, tuning = run.context, run.recipe.tuning
    (stage,) = tuning.stages
    items, _ = task_items(context, stage, "train")
    vocabulary = ImageVocabulary.grow(load_text_tokenizer(run.recipe.llm), len(context.image_tokenizer.codebook))
    template, weights = context.template(vocabulary), {name: stage.mixture[name] for name in items}
    mixture = Mixture(items, weights, tokens // SHORTEST, tuning.seed_of(stage, run.recipe.seed))
    for number in range(len(mixture)):
        rendered = fit(mixture[number], template, vocabulary, tuning.max_tokens)
        own = 0 if rendered is None else len(rendered.ids)
        if tokens <= own:
            return number + int(2 * tokens > own or not number)
        tokens -= own
    raise SystemExit(f"examples have less than {SHORTEST} tokens on average: lower SHORTEST in {__file__}")


def measure(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Tune and evaluate one arm; its scores, with what they are read against."""
    examples = examples_for(before_tuning(recipe_of(arm, seed, 1, options), folder_of(options, seed)), options.tokens)
    run = Run(recipe_of(arm, seed, examples, options))
    run.run()
    summary = read_json(run.context.folder / "evaluation" / "summary.json")
    stage = read_json(run.context.folder / "stage1" / "summary.json")
    result: dict[str, Any] = {"examples": examples, "tokens": stage["tokens"], "seconds": round(stage["seconds"])}
    result |= {"by_task": stage["examples"], "device": run.context.device.type}
    unseen = read_json(run.context.folder / "stage1" / "curves.json")[-1]["unseen"]
    result |= {name: unseen[task] for name, task in LOSSES.items()}
    for name in SCORES:
        group, key = name.split(".")
        result[name] = summary.get(group, {}).get(key)
    for group in ("report", "image", "vqa", "language"):
        result[group] = {k: v for k, v in summary.get(group, {}).items() if isinstance(v, int | float)}
    return result | {"by_type": summary.get("vqa", {}).get("by_type")}


def in_processes(pairs: Sequence[tuple[str, int]], path: Path, options: argparse.Namespace) -> None:
    """Measure arms and seeds, `options.parallel` at a time, each in a process with a log and results of its own beside
    `path`, which takes each as it is ready."""
    results = read_json(path) if path.exists() else {}

    def alone(arm: str, seed: int) -> dict[str, Any]:
        own = path.with_name(f"{path.stem}-{arm}-{seed}.json")
        command = [sys.executable, __file__, "--arms", arm, "--seeds", str(seed), "--json", str(own)]
        command += ["--tokens", str(options.tokens), *["--small"] * options.small]
        log = own.with_suffix(".log")
        with open(log, "a", encoding="utf-8") as out:
            code = subprocess.run([*command, *options.overrides], stdout=out, stderr=subprocess.STDOUT).returncode
        if code:
            raise SystemExit(f"{arm}, seed {seed}: ended with {code}; {log} says why. What is done is kept.")
        found = read_json(own)[f"{arm}/{seed}"]
        own.unlink()
        return found

    with ThreadPoolExecutor(options.parallel) as pool:
        futures = {pool.submit(alone, arm, seed): f"{arm}/{seed}" for arm, seed in pairs}
        faults = []
        for future in as_completed(futures):
            try:
                results[futures[future]] = future.result()
            except SystemExit as error:  # the others go on
                faults.append(str(error))
                continue
            write_json(path, results)
            print(f"{futures[future]} done", flush=True)
    if faults:
        raise SystemExit("\n".join(faults))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row an arm and seed, then the mean of each arm of several seeds."""
    lines = [f"| arm, seed | tokens | {' | '.join(COLUMNS)} |", f"| --- | --- |{' --- |' * len(COLUMNS)}"]
    rows: list[tuple[str, str, list[float | None]]] = []
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for key in sorted(results, key=lambda k: (list(ARMS).index(k.split("/")[0]), int(k.split("/")[1]))):
        arm, seed = key.split("/")
        by_arm.setdefault(arm, []).append(results[key])
        rows.append((f"{arm}, {seed}", f"{results[key]['tokens']:,}", [results[key][name] for name in COLUMNS]))
    for arm, found in by_arm.items():
        if len(found) > 1:
            columns = [[one[name] for one in found if one[name] is not None] for name in COLUMNS]
            rows.append((f"{arm}, mean", "", [statistics.mean(c) if c else None for c in columns]))
    for name, tokens, values in rows:
        lines.append(f"| {name} | {tokens} | {' | '.join('-' if v is None else f'{v:.3f}' for v in values)} |")
    return "\n".join(lines)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["none", "rules"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--tokens", type=int, help=f"that each arm learns from (default: {TOKENS:,}; small: 4,000)")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="arms at a time, each in its own process")
    parser.add_argument("--prepare", action="store_true", help="stop before tuning")
    parser.add_argument("--table", action="store_true", help="print what was measured, and measure nothing")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument(
        "--json", type=Path, help="the results (default: vqa_ablation.json, small: vqa_ablation_small.json)"
    )
    parser.add_argument("overrides", nargs="*", help="settings of the recipe, key=value")
    options = parser.parse_intermixed_args()
    options.tokens = options.tokens or (4_000 if options.small else TOKENS)
    path = options.json or Path(f"vqa_ablation{'_small' * options.small}.json")
    results = read_json(path) if path.exists() else {}
    if not options.table:
        todo = [(arm, seed) for seed in options.seeds for arm in options.arms if f"{arm}/{seed}" not in results]
        for seed in dict.fromkeys(seed for _, seed in todo):
            prepare(seed, options)
        if options.prepare:
            return
        if options.parallel > 1:
            in_processes(todo, path, options)
        else:
            for arm, seed in todo:
                results[f"{arm}/{seed}"] = measure(arm, seed, options)
                write_json(path, results)
    print(table(read_json(path) if path.exists() else {}))


if __name__ == "__main__":
    main()
