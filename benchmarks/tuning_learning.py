"""How much a language model learns of radiographs in a fixed time, by how it is tuned: curves over time and tokens.

    python benchmarks/tuning_learning.py runs/quickstart --minutes 60 --seeds 0 1

Every variant starts from the base model, on the codes of a run whose `codes` and `vqa` stages are done, and is measured on unseen
patients at equal times: AUROC of p(yes) over the findings, micro-F1 of the generated list of findings and of the findings in
generated reports, and the loss of each task. Only training counts as time (alignment, where a variant has it, is a part of it;
measuring is not). Each variant and seed is an entry of the results file; those already there are not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmcxr.foundation.artifacts import atomic_path, write_json
from llmcxr.foundation.settings import load_settings
from llmcxr.inference.backend import Request, Sampling
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.example import Turn
from llmcxr.instructions.questions import LIST_QUESTION, PRESENCE_ANSWERS, presence_question
from llmcxr.instructions.rendering import render_prompt
from llmcxr.labelling.rules import RuleLabeller
from llmcxr.metrics.scores import best_constant_prediction, mean_auroc, micro_macro_f1
from llmcxr.recipe import Recipe
from llmcxr.recipes import SHIPPED
from llmcxr.stages.context import Context
from llmcxr.stages.tuning import align_model, task_items, tunable_model
from llmcxr.studies.study import label_matrix
from llmcxr.tasks import cxr_to_report
from llmcxr.tuning.batches import Batch
from llmcxr.tuning.settings import LanguageSettings
from llmcxr.tuning.trainer import Stage, load_stage

_ENOUGH = 200_000  # examples: more than any time allows

# What a variant changes in the quickstart's tuning and its first stage.
VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "reports at once": {"findings_first": []},
    "responses only": {"read_image_weight": 0.0},
    "no alignment": {"alignment": 0},
    "rows from the codebook": {"row_start": "codebook", "alignment": 0},
    "rows at random": {"row_start": "random", "alignment": 0},
    "LoRA 8": {"lora_rank": 8},
    "LoRA 128": {"lora_rank": 128},
    "rate 3e-4": {"learning_rate": 3e-4, "rows_learning_rate": 3e-4},
    "rate 1.5e-3": {"learning_rate": 1.5e-3, "rows_learning_rate": 1.5e-3},
    "full, rate 1e-4": {"method": "full", "language": LanguageSettings(), "learning_rate": 1e-4},
    "full, rate 4e-4": {"method": "full", "language": LanguageSettings(), "learning_rate": 4e-4},
    "3,072 tokens a step": {"batches_per_step": 4},
    "all rows": {"image_softmax": "all_rows"},
    "one question an image": {"questions_per_image": 1},
    "reports only": {"mixture": {"language": 0.15, "report_to_cxr": 0.08, "cxr_to_report": 0.77}},
    # Section 2.4.2: its rate, about its batch of 16 examples, one question an image, random rows, softmax over all rows.
    "the paper": {
        "method": "full", "row_start": "random", "alignment": 0, "language": LanguageSettings(), "image_softmax": "all_rows",
        "questions_per_image": 1, "findings_first": [], "read_image_weight": 0.0, "task_loss_weights": {}, "template": "paper", "tokens_per_batch": 3072,
        "learning_rate": 5e-6, "rows_learning_rate": 5e-6,
        "mixture": {"language": 0.2, "report_to_cxr": 0.25, "cxr_to_report": 0.25, "cxr_vqa": 0.3},
    },
}  # fmt: skip
_STAGE_KEYS = ("learning_rate", "rows_learning_rate", "mixture", "task_loss_weights")


def changed(recipe: Recipe, change: dict[str, Any], seed: int) -> Recipe:
    """`recipe` with one stage, as `change` says."""
    stage = dataclasses.replace(
        recipe.tuning.stages[0], name="learning", examples=_ENOUGH, **{k: change[k] for k in _STAGE_KEYS if k in change}
    )
    own = {k: v for k, v in change.items() if k not in _STAGE_KEYS}
    if "alignment" in own:
        own["alignment"] = dataclasses.replace(recipe.tuning.alignment, steps=own["alignment"])
    if not stage.mixture.get("language") and "language" not in own:  # no stage would take the texts
        own["language"] = dataclasses.replace(recipe.tuning.language, replay_texts=0)
    tuning = dataclasses.replace(recipe.tuning, stages=[stage], measure_share=0.0, **own)
    return dataclasses.replace(recipe, tuning=tuning, seed=seed)


class TimedStage(Stage):
    """A stage that ends when its time is up, whose rates follow the time, and which is measured at equal times."""

    def prepare(self, context: Context, seconds: float, used: float, points: int, images: int) -> None:
        """Measure `points` times within `seconds`, of which `used` are over, on `images` unseen images."""
        self.seconds, self.used, self.points = seconds, used, points
        self._all_steps, self.feed.steps = self.feed.steps, self._steps  # type: ignore[method-assign]
        self.measured: list[dict[str, Any]] = []
        self.cases = [s for s in context.studies if s.split == "test"][:images]
        self.codes = [context.codes[s.image_id] for s in self.cases]
        self.findings, self.part = context.findings, self.stage.cohort.sections
        train = [s for s in context.studies if s.split == "train"]
        self.truth = label_matrix(self.cases, context.findings)
        self.constant = best_constant_prediction(label_matrix(train, context.findings), self.truth).test_micro_f1

    def _rates(self, progress: float) -> dict[str, float]:
        return super()._rates(min(1.0, self.used / self.seconds))

    def _steps(self, window: int, done: int) -> Iterator[tuple[int, int, list[Batch]]]:
        tokens = examples = 0
        self.measure(tokens, examples)
        for place in self._all_steps(window, done):
            start = time.perf_counter()
            yield place
            self.used += time.perf_counter() - start
            tokens += sum(b.tokens for b in place[2])
            examples += sum(len(b.tasks) for b in place[2])
            if self.used >= self.seconds * len(self.measured) / self.points:
                self.measure(tokens, examples)
            if self.used >= self.seconds:
                return

    def _write(self, conversations: list[tuple[Turn, ...]], limit: int) -> list[str]:
        prompts = [render_prompt(turns, self.template, self.tunable.vocabulary) for turns in conversations]
        sampling = Sampling(max_new_tokens=limit)
        return [r.text for r in self.backend.generate([Request(prompt, "text", sampling) for prompt in prompts])]

    def _f1(self, texts: list[str]) -> float:
        """Micro-F1 of the findings in what was generated."""
        states = [RuleLabeller().read(text).states for text in texts]
        stated = [[state.get(name) == 1 for name in self.findings] for state in states]
        return micro_macro_f1(self.truth, stated).micro

    def measure(self, tokens: int, examples: int) -> None:
        """Add a point to the curve."""
        losses = self.evaluate()
        self.losses.eval()
        model, vocabulary = self.tunable.model, self.tunable.vocabulary
        self.backend = TransformersBackend(model, vocabulary, self.template, len(self.codes[0]))
        p_yes = np.zeros(self.truth.shape)
        for row, codes in enumerate(self.codes):
            turns = [Turn(presence_question(name), codes) for name in self.findings]
            prompts = [render_prompt((turn,), self.template, self.tunable.vocabulary) for turn in turns]
            p_yes[row] = self.backend.answer_probabilities(prompts, PRESENCE_ANSWERS)[:, 0]
        lists = self._write([(Turn(LIST_QUESTION, codes),) for codes in self.codes], 40)
        named: list[str | None] = [*lists] if self.settings.findings_first else [None] * len(lists)
        reports = self._write([cxr_to_report.TASK.prompt(c, n) for c, n in zip(self.codes, named, strict=True)], 90)
        point = {
            "minutes": self.used / 60,
            "tokens": tokens,
            "examples": examples,
            "auroc": mean_auroc(self.truth, p_yes).mean,
            "list_f1": self._f1(lists),
            "report_f1": self._f1(reports),
            "loss": losses,
        }
        self.losses.train()
        self.measured.append(point)
        print("    " + json.dumps(point), flush=True)


def learn(base: Recipe, change: dict[str, Any], seed: int, seconds: float, points: int, images: int) -> dict[str, Any]:
    """Curve of one variant of `base`, whose run has codes and questions."""
    recipe = changed(base, change, seed)
    context = Context(recipe)
    stage = recipe.tuning.stages[0]
    with tempfile.TemporaryDirectory() as scratch:
        tunable, used = tunable_model(context), 0.0
        template = context.template(tunable.vocabulary)
        if recipe.tuning.alignment.steps:
            start = time.perf_counter()
            align_model(context, tunable, Path(scratch))
            used = time.perf_counter() - start
            load_stage(tunable, Path(scratch))
        own = Path(scratch) / "learning"
        own.mkdir()
        train, unseen = (task_items(context, stage, split)[0] for split in ("train", "validate"))
        timed = TimedStage(
            tunable, template, recipe.tuning, stage, train, unseen, own, context.processes, recipe.seed
        )  # fmt: skip
        timed.prepare(context, seconds, used, points, images)
        timed.run()
    return {"curve": timed.measured, "constant_f1": timed.constant, "images": len(timed.cases), "minutes": seconds / 60}


def show(results: dict[str, Any]) -> None:
    """The last point of every curve."""
    print(f"\n{'variant, seed':36}{'minutes':>8}{'tokens':>11}{'p(yes)':>8}{'list':>7}{'report':>8}")
    for name, result in results.items():
        last = result["curve"][-1]
        print(
            f"{name:36}{last['minutes']:>8.1f}{last['tokens']:>11,}{last['auroc']:>8.3f}{last['list_f1']:>7.3f}"
            f"{last['report_f1']:>8.3f}"
        )


def plot(results: dict[str, Any], path: Path) -> None:
    """Curves over minutes (left) and tokens (right): one colour a variant, one line a seed."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    scores = {"auroc": "AUROC of p(yes)", "list_f1": "list of findings, micro-F1", "report_f1": "report, micro-F1"}
    figure = Figure(figsize=(10, 11), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(len(scores), 2, sharey="row")
    variants = list(dict.fromkeys(name.rpartition(", ")[0] for name in results))
    for row, (score, label) in zip(axes, scores.items(), strict=True):
        for ax, key, unit in zip(row, ("minutes", "tokens"), (1, 1e6), strict=True):
            for name, result in results.items():
                variant = name.rpartition(", ")[0]
                points = [(p[key] / unit, p[score]) for p in result["curve"]]
                colour = colormaps["tab20"](variants.index(variant) % 20)
                (line,) = ax.plot(*zip(*points, strict=True), color=colour, marker=".", label=variant)
                line.set_gid(f"{score} over {key}: {name}")
            ax.set_xlabel("minutes" if key == "minutes" else "million tokens")
            ax.grid(alpha=0.3)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    figure.legend([first[v] for v in variants], variants, loc="outside lower center", ncols=4, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of the quickstart's recipe whose `codes` and `vqa` are done")
    parser.add_argument("--minutes", type=float, default=60, help="training time of each (default 60)")
    parser.add_argument("--points", type=int, default=6, help="measurements after the start (default 6)")
    parser.add_argument("--images", type=int, default=200, help="unseen images measured (default 200)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(VARIANTS),
        choices=list(VARIANTS),
        metavar="NAME",
        help=", ".join(VARIANTS),
    )
    parser.add_argument("--plot", type=Path, help="SVG of all curves in the results file")
    parser.add_argument("--json", type=Path, default=Path("tuning_learning.json"), help="results, kept between calls")
    o = parser.parse_args()
    base = load_settings(
        Recipe, SHIPPED["quickstart"], [f"runs={o.run.parent}", f"name={o.run.name}", "tuning.logging=none"]
    )
    results: dict[str, Any] = json.loads(o.json.read_text()) if o.json.exists() else {}
    for name in o.variants:
        for seed in o.seeds:
            key = f"{name}, {seed}"
            if key in results:
                continue
            print(f"{key}:", flush=True)
            torch.manual_seed(seed)
            results[key] = learn(base, VARIANTS[name], seed, o.minutes * 60, o.points, o.images)
            write_json(o.json, results)
    show(results)
    if o.plot:
        plot(results, o.plot)


if __name__ == "__main__":
    main()
