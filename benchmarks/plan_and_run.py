"""Whether `plan` foretells how long a run takes: its estimate of every stage beside the minutes that the stage then took.

    python benchmarks/plan_and_run.py real-notes source.table.path=DATA/metadata.csv source.table.images=DATA/images

Plans by timing this machine (as `llmcxr plan --measure` does), runs the recipe to its results page, and prints a table. A run that is
finished is not run again: its stages keep their seconds. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse

from llmcxr.foundation.artifacts import read_json
from llmcxr.foundation.settings import load_settings
from llmcxr.pipeline import Run
from llmcxr.plan import Plan, PlanOptions, plan
from llmcxr.recipe import Recipe
from llmcxr.recipes import find_recipe

MEASURING = "measuring while tuning, at most"  # as the plan calls it


def took(run: Run) -> dict[str, float]:
    """Minutes of every stage that had something to do. What a tuning stage spends on anything but its steps is `MEASURING`."""
    records = {stage.name: run.workflow.record(stage.name) for stage in run.workflow.stages}
    seconds = {name: record["seconds"] for name, record in records.items() if "left_out" not in record}
    for stage in run.recipe.tuning.stages:
        whole, seconds[stage.name] = (
            seconds[stage.name],
            read_json(run.context.folder / stage.name / "summary.json")["seconds"],
        )
        seconds[MEASURING] = seconds.get(MEASURING, 0.0) + whole - seconds[stage.name]
    return {name: value / 60 for name, value in seconds.items()}


def table(planned: Plan, minutes: dict[str, float]) -> str:
    """Rows of stage, minutes planned, minutes taken, and how many times as long; Markdown. The last is of all together."""
    foretold = {name: 60 * hours for name, hours in planned.others.items()}
    foretold |= {stage.name: 60 * (stage.hours or 0.0) for stage in planned.stages}
    rows = [(name, foretold.get(name), value) for name, value in minutes.items()]
    rows += [(name, value, None) for name, value in foretold.items() if name not in minutes]
    rows.append(("**all**", sum(foretold.values()), sum(minutes.values())))
    lines = ["| stage | planned, minutes | took, minutes | times |", "| --- | --- | --- | --- |"]
    for name, before, after in rows:
        times = f"{after / before:.2f}" if before and after is not None else ""
        cells = ["-" if value is None else f"{value:.1f}" for value in (before, after)]
        lines.append(f"| {name} | {' | '.join(cells)} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    recipe = load_settings(Recipe, find_recipe(arguments.recipe), arguments.overrides)
    planned = plan(recipe, PlanOptions(measure=True))
    print(f"Planned, {planned.speed}", flush=True)
    run = Run(recipe)
    run.run()
    print(f"\n{table(planned, took(run))}")
    print(f"\nResults page: {(run.context.folder / 'evaluation' / 'report.html').resolve()}")
    run.context.processes.close()


if __name__ == "__main__":
    main()
