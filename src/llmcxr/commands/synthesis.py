"""Commands that let a chat LLM write."""

from __future__ import annotations

import argparse

from llmcxr.commands.table import OVERRIDES, RECIPE, argument, command


@command(
    "synthesize-vqa",
    "let a chat LLM write questions and answers from the reports of a recipe's data (chat.*, vqa.*), and check them; what "
    "is answered is never asked again",
    RECIPE,
    OVERRIDES,
    argument(
        "--dry-run",
        action="store_true",
        help="ask nothing: print the prompts of three reports, and how many requests and tokens all would take",
    ),
    example="ours.yaml chat.base_url=http://localhost:8000/v1 --dry-run",
)
def _synthesize_vqa(arguments: argparse.Namespace) -> None:
    from llmcxr.foundation.settings import load_settings
    from llmcxr.recipe import Recipe
    from llmcxr.recipes import find_recipe

    path = find_recipe(arguments.recipe)
    asked = load_settings(Recipe, path, arguments.overrides)
    recipe = load_settings(Recipe, path, [*arguments.overrides, "vqa.synthesize=true"])

    from llmcxr.pipeline import Run
    from llmcxr.stages.data import unedited_studies
    from llmcxr.stages.synthesis import FOLDER, dry_run

    run = Run(recipe)
    main = run.context.processes.main
    if arguments.dry_run:
        rewritten = recipe.prior_references != "rewrite" or run.workflow.has("studies")
        if rewritten:
            run.run("studies")
        else:  # whose reports a chat LLM would rewrite
            run.context.studies = unedited_studies(run.context)
        if main:
            print(f"\n{dry_run(run.context, rewritten)}")
    else:
        run.run("studies")
        run.run(FOLDER)
        if main:
            print(f"\nPairs: {(run.context.folder / FOLDER).resolve()}")
            if not asked.vqa.synthesize:
                print("`llmcxr run` uses them with vqa.synthesize=true.")
    run.context.processes.close()
