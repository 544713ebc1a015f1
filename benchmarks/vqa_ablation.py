"""What do questions from reports buy a model that is tuned on radiographs and reports?

    python benchmarks/vqa_ablation.py                            # without, by rules; seeds 0 and 1: hours on two cores
    python benchmarks/vqa_ablation.py chat.base_url=http://localhost:8000/v1 chat.model=Qwen/Qwen3-8B --arms llm
    python benchmarks/vqa_ablation.py --small --seeds 0          # does it run? numbers mean nothing

As in the paper's ablation: tuning without questions, with those that rules read from reports, with those that a chat LLM
wrote. Patients are the phantom's, their reports real texts; tuning sees no ground truth (alignment and findings named
first are off). All arms of a seed share data, image tokenizer and codes (whose network has learned from labels), and learn
from as many tokens; evaluation asks the ground-truth questions. An arm and seed that are in the results are not run again;
one that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from llmcxr.foundation.artifacts import read_json, write_json
from llmcxr.foundation.settings import load_settings
from llmcxr.pipeline import Run
from llmcxr.plan import plan
from llmcxr.recipe import Recipe
from llmcxr.recipes import find_recipe

REPORTS = {"language": 0.15, "report_to_cxr": 0.25, "cxr_to_report": 0.6}
QUESTIONS = {"language": 0.15, "report_to_cxr": 0.15, "cxr_to_report": 0.35, "cxr_vqa": 0.35}
ARMS: dict[str, tuple[dict[str, float], str]] = {  # mixture, origin of the questions
    "none": (REPORTS, "rules"),
    "rules": (QUESTIONS, "rules"),
    "llm": (QUESTIONS, "llm"),
}
CONVERSATIONS = {"presence": 0.6, "detail": 0.25, "normal": 0.05, "open": 0.1}
SMALL = [
    "source.phantom={train: 60, validate: 12, test: 16}",
    "clinical_features.training.steps=5",
    "image_tokenizer.steps=10",
    "evaluation.judge_steps=5",
    "evaluation.cases={reports: 4, questions: 16, probabilities: 4, drawings: 4}",
]
SCORES = ("report.micro_f1", "image.auroc", "vqa.accuracy", "vqa.balanced_accuracy", "vqa.auroc")


def recipe_of(arm: str, seed: int, examples: int, options: argparse.Namespace) -> Recipe:
    """The quickstart with one stage of the arm's mixture; all arms of a seed have one folder."""
    mixture, origin = ARMS[arm]
    stage: dict[str, Any] = {"name": "stage1", "examples": examples, "mixture": mixture, "conversations": CONVERSATIONS}
    stage |= {"learning_rate": 7e-4, "rows_learning_rate": 7e-4, "cohort": {"sections": "findings_and_impression"}}
    stage["task_loss_weights"] = {"report_to_cxr": 0.7, "language": 2.0}
    own = [
        f"name=vqa-ablation-{seed}{'-small' * options.small}",
        f"seed={seed}",
        f"vqa.origins=[{origin}]",
        f"vqa.synthesize={str(arm == 'llm').lower()}",
        f"tuning.stages={json.dumps([stage])}",
        "tuning.alignment.steps=0",
        "tuning.findings_first=[]",
        "tuning.decoding={}",
    ]
    return load_settings(Recipe, find_recipe("quickstart"), own + SMALL * options.small + options.overrides)


def examples_for(arm: str, seed: int, options: argparse.Namespace) -> int:
    """Examples that take the wanted tokens: reports are longer than answers."""
    (stage,) = plan(recipe_of(arm, seed, 1000, options), sample=256).stages
    return max(1, round(options.tokens * stage.counts.examples / stage.counts.tokens))


def measure(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one arm; its scores."""
    draft = Run(recipe_of(arm, seed, 1000, options))
    for stage in draft.workflow.stages:
        if stage.name == "vqa":
            break
        draft.run(stage.name)
    draft.run("vqa")
    examples = examples_for(arm, seed, options)
    run = Run(recipe_of(arm, seed, examples, options))
    run.run()
    summary = read_json(run.context.folder / "evaluation" / "summary.json")
    found = {name: summary.get(name.split(".")[0], {}).get(name.split(".")[1]) for name in SCORES}
    tokens = read_json(run.context.folder / "stage1" / "summary.json").get("tokens")
    return {**found, "by_type": summary.get("vqa", {}).get("by_type"), "examples": examples, "tokens": tokens}


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["none", "rules"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--tokens", type=int, help="that each arm learns from")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument(
        "--json", type=Path, help="the results (default: vqa_ablation.json, small: vqa_ablation_small.json)"
    )
    parser.add_argument("overrides", nargs="*", help="settings of the recipe, key=value")
    options = parser.parse_intermixed_args()
    options.tokens = options.tokens or (4_000 if options.small else 600_000)
    path = options.json or Path(f"vqa_ablation{'_small' * options.small}.json")
    results = read_json(path) if path.exists() else {}
    for seed in options.seeds:
        for arm in options.arms:
            key = f"{arm}/{seed}"
            if key not in results:
                results[key] = measure(arm, seed, options)
                write_json(path, results)
    print(f"| arm/seed | tokens | {' | '.join(SCORES)} |\n| --- | --- |{' --- |' * len(SCORES)}")
    for key, found in results.items():
        cells = [f"{value:.3f}" if isinstance(value := found[name], float) else "-" for name in SCORES]
        print(f"| {key} | {found['tokens']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
