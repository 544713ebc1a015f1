"""What a chat LLM does in a run: questions and answers from reports, and sentences without comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.workflow import Stage
from llmcxr.stages.context import Context
from llmcxr.synthesis.client import ChatClient
from llmcxr.synthesis.estimate import Estimate
from llmcxr.synthesis.generate import KEPT, reports_to_ask, requests_of, write_all
from llmcxr.synthesis.pairs import QaPair, read_pairs
from llmcxr.synthesis.prompts import ChatRequest, rewriting_prompt, vqa_prompt
from llmcxr.synthesis.rewriting import Rewriter, referring
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
            return "there is no report of a training image" + " with a finding" * settings.only_positive
        with AnswerStore(_answers(context, "vqa")) as store:
            for line in [*_not_asked(context), *Estimate.of(requests_of(prompt, reports), recipe.chat, store).ahead()]:
                print(f"    {line}", flush=True)
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
            settings=(
                recipe.chat.model,
                settings.only_positive,
                recipe.labeller,
                vqa_version(settings.prompt),
            ),
            after=("studies",),
            outputs=(FOLDER,),
            reads=(*prompt, *context.labeller_files),
            check=check,
        )
    ]


def synthetic_pairs(context: Context) -> Iterator[QaPair]:
    """The kept pairs, as they are read; none where the recipe asks for none."""
    folder = context.folder / FOLDER / KEPT
    if context.recipe.vqa.synthesize and folder.exists():
        yield from read_pairs(folder)


def dry_run(context: Context, rewritten: bool) -> str:
    """The prompt of three reports, and what all would take; nothing is asked. `rewritten`: sentences that compare are gone
    from the reports, or stay."""
    recipe = context.recipe
    prompt = vqa_prompt(recipe.vqa.prompt)
    chat_client(context).check()
    reports = reports_to_ask(context.studies, recipe.vqa.only_positive)
    parts = []
    for number, request in enumerate(islice(requests_of(prompt, reports), 3), 1):
        parts.append(f"--- report {number} of {len(reports):,}, prompt {prompt.name}")
        parts += [f"[{message['role']}]\n{message['content']}\n" for message in request.messages]
    if not rewritten:
        said = referring([text for s in context.studies for text in (s.findings_text, s.impression_text)])
        first = _estimate(context, "rewriting", [rewriting_prompt().request(sentence) for sentence in said])
        parts += ["First, sentences that refer to earlier studies (prior_references: rewrite):", *first.told()]
        parts.append("Then questions, about reports of about this length:")
    parts += [*_not_asked(context), *_estimate(context, "vqa", requests_of(prompt, reports)).told()]
    return "\n".join(parts)


def _estimate(context: Context, name: str, requests: Iterable[ChatRequest]) -> Estimate:
    path = _answers(context, name)
    if not path.exists():
        return Estimate.of(requests, context.recipe.chat, None)
    with AnswerStore(path) as store:
        return Estimate.of(requests, context.recipe.chat, store)


def _not_asked(context: Context) -> list[str]:
    """Which reports are left out, since nothing uses their pairs."""
    only_positive = context.recipe.vqa.only_positive
    if count := sum(len(reports_to_ask(context.studies, only_positive, split)) for split in ("validate", "test")):
        return [f"{count:,} reports of validation and test patients are not asked about: training alone uses the pairs"]
    return []


def vqa_version(path: Path | None) -> str:
    """Identifies the shipped prompt; a prompt of the user's is a file that the stage reads."""
    return vqa_prompt().version if path is None else ""


def _answers(context: Context, name: str) -> Path:
    return context.folder / ANSWERS / f"{name}.jsonl"
