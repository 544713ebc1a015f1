"""What a chat LLM does in a run: questions and answers from reports, and sentences without comparison."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.workflow import Stage
from llmcxr.stages.context import Context
from llmcxr.synthesis.client import ChatClient
from llmcxr.synthesis.estimate import Estimate
from llmcxr.synthesis.generate import KEPT, reports_to_ask, requests_of, write_all
from llmcxr.synthesis.pairs import QaPair, read_pairs
from llmcxr.synthesis.prompts import vqa_prompt
from llmcxr.synthesis.rewriting import Rewriter
from llmcxr.synthesis.store import AnswerStore

FOLDER = "synthesis"
ANSWERS = "chat"  # folder of all that the LLM has said: no stage's output, so that nothing that was paid for is removed


def chat_client(context: Context) -> ChatClient:
    """The chat LLM of the recipe."""
    return ChatClient(context.recipe.chat, str(context.device))


def rewriter(context: Context) -> Rewriter | None:
    """What rewrites references to earlier studies, where the recipe asks for it."""
    if context.recipe.prior_references != "rewrite":
        return None
    return Rewriter(chat_client(context), context.labeller, _answers(context, "rewriting"))


def synthesis_stage(context: Context) -> list[Stage]:
    """Reports -> chat/vqa.jsonl (answers as they came), synthesis/ (pairs with verdicts)."""
    recipe, settings = context.recipe, context.recipe.vqa
    if not settings.synthesize:
        return []

    def check() -> None:
        vqa_prompt(settings.prompt)
        chat_client(context).check()

    def run() -> str | None:
        prompt, model = vqa_prompt(settings.prompt), recipe.chat.model
        reports = reports_to_ask(context.studies, settings.only_positive)
        if not reports:
            return "there is no report" + " of an image with a finding" * settings.only_positive
        with AnswerStore(_answers(context, "vqa")) as store:
            if store.broken:
                print(
                    f"    note: {store.broken} lines of {store.path} cannot be read; what they answered is asked anew"
                )
            progress = chat_client(context).answer_all(requests_of(prompt, reports), store, len(reports), "reports")
            counts = write_all(context.folder / FOLDER, reports, prompt, model, store)
        for line in counts.told():
            print(f"    {line}")
        if progress.stopped:
            raise UserError(
                f"the budget is used up after {progress.before + progress.answered:,} of {len(reports):,} reports: "
                f"{progress.stopped}. What there is lies in {context.folder / FOLDER}. Set the budget higher and run "
                "again: nothing is asked twice."
            )
        return None

    prompt = () if settings.prompt is None else (settings.prompt,)
    return [
        Stage(
            FOLDER,
            "a chat LLM writes questions and answers from reports",
            run,
            settings=(recipe.chat.model, settings.only_positive, recipe.labeller, vqa_version(settings.prompt)),
            after=("studies",),
            outputs=(FOLDER,),
            reads=(*prompt, *context.labeller_files),
            check=check,
        )
    ]


def synthetic_pairs(context: Context) -> list[QaPair]:
    """The kept pairs; none where the recipe asks for none."""
    folder = context.folder / FOLDER / KEPT
    if not context.recipe.vqa.synthesize or not folder.exists():
        return []
    return list(read_pairs(folder))


def dry_run(context: Context) -> str:
    """The prompt of three reports, and what all would take; nothing is asked."""
    recipe = context.recipe
    prompt = vqa_prompt(recipe.vqa.prompt)
    chat_client(context).check()
    reports = reports_to_ask(context.studies, recipe.vqa.only_positive)
    parts = []
    for number, request in enumerate(islice(requests_of(prompt, reports), 3), 1):
        parts.append(f"--- report {number} of {len(reports):,}, prompt {prompt.name}")
        parts += [f"[{message['role']}]\n{message['content']}\n" for message in request.messages]
    path = _answers(context, "vqa")
    if path.exists():
        with AnswerStore(path) as store:
            estimate = Estimate.of(requests_of(prompt, reports), recipe.chat, store)
    else:
        estimate = Estimate.of(requests_of(prompt, reports), recipe.chat, None)
    return "\n".join([*parts, *estimate.told()])


def vqa_version(path: Path | None) -> str:
    """Identifies the shipped prompt; a prompt of the user's is a file that the stage reads."""
    return vqa_prompt().version if path is None else ""


def _answers(context: Context, name: str) -> Path:
    return context.folder / ANSWERS / f"{name}.jsonl"
