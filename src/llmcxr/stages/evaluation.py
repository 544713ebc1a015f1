"""The stages that measure: the judge, and what the model makes of patients it has never seen."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from llmcxr import __version__
from llmcxr.evaluation.judge import Judge, judge_findings
from llmcxr.evaluation.predict import ModelUnderTest, predict
from llmcxr.evaluation.predictions import read_predictions
from llmcxr.evaluation.scoring import next_steps, summarise
from llmcxr.foundation.artifacts import atomic_path, read_json, write_json
from llmcxr.foundation.devices import core_count, precision
from llmcxr.foundation.workflow import RECORDS, Stage
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.inference.provenance import save_marked_png
from llmcxr.model.calibration import CALIBRATION, load_calibration
from llmcxr.pages.content import cards
from llmcxr.pages.results import PageContent, glance, write_page
from llmcxr.stages.context import Context
from llmcxr.stages.data import remarks
from llmcxr.stages.image_tokens import codebook_in_training
from llmcxr.studies.cohort import CohortSettings, select_cohort
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.study import Split, label_matrix
from llmcxr.tasks.measurement import Cases


def judge_stage(context: Context) -> Stage:
    """An independent classifier: the given model's own where it knows the findings, else one trained on the training split."""
    settings, folder, own = context.recipe.evaluation.judge, context.folder / "judge", context.given_judge

    def run() -> str | None:
        findings, main = context.findings, context.processes.on_main
        if not findings:
            return "no finding is known both present and absent"
        if own is not None and not LabelSet(judge_findings(own)).missing(findings):

            def copy() -> None:
                with atomic_path(folder) as temporary:
                    shutil.copytree(own, temporary)

            main(copy)
            return None
        studies, images = context.of_split("train")
        if not studies:
            return f"the data has no training split from which a judge could learn {', '.join(findings)}"
        labels = label_matrix(studies, findings)
        seed = context.recipe.seed
        Judge.train_on(images, labels, tuple(findings), settings, seed, folder, context.processes)
        return None

    return Stage(
        "judge",
        "an independent classifier that measures what images show",
        run,
        settings=(settings, context.recipe.seed),
        after=("studies",),
        outputs=("judge",),
        reads=() if own is None else (own,),
        everywhere=True,
    )


def cases_of(context: Context, split: Split) -> Cases:
    """What the model is measured on: the patients of a split that are of the evaluation's cohort."""
    settings, info = context.recipe.evaluation, context.info
    views = list(info.views) if settings.views is None else settings.views
    cohort = CohortSettings(views=views, earliest_only=info.earliest_only)
    held_out = select_cohort([s for s in context.studies if s.split == split], cohort)
    if not held_out.studies:
        raise context.processes.fault(
            f"the data has no patients of the evaluation's cohort in the split {split}, so nothing can be measured. Give some "
            f"patients the split {split}, or set evaluation.views."
        )
    rows = {study.image_id: i for i, study in enumerate(context.studies)}
    return Cases(
        held_out.studies,
        [s for s in context.studies if s.split == "train"],
        context.findings,
        context.labeller,
        info.report,
        lambda ids: context.pixels[[rows[i] for i in ids]],
        context.questions,
        settings.counts,
        seed=context.recipe.seed,
        unknown_labels=settings.unknown_labels,
        uncertain_labels=settings.uncertain_labels,
        left_out=held_out.dropped,
    )


def under_test(context: Context, cases: Cases, model: LlmCxr | None = None) -> ModelUnderTest:
    """The finished `model` (None: it is loaded) with the judge, where there is one."""
    if model is None:
        model = LlmCxr.from_pretrained(context.model, str(context.device))
    folder = context.folder / "judge"
    judge = Judge.load(folder, cases.findings).to(context.device) if (folder / "model.safetensors").exists() else None
    codes = {s.image_id: context.codes[s.image_id] for s in (*cases.train, *cases.test)}
    return ModelUnderTest(model, judge, cases.findings, codes, cases.images)


def evaluation_stage(context: Context) -> Stage:
    """Predictions, scores and the results page."""
    given = context.given

    def run() -> None:
        cases = cases_of(context, "test")
        for reason, count in cases.left_out.items() if context.processes.main else ():
            print(f"    left out of what is measured, {count}: {reason}")
        predict(cases, lambda: under_test(context, cases), context.folder / "evaluation", context.processes)
        context.processes.on_main(lambda: rescore(context))

    return Stage(
        "evaluation",
        "how well the model reads and draws patients it has never seen",
        run,
        settings=(context.recipe.evaluation, context.recipe.seed, context.recipe.labeller),
        after=("judge", "vqa", "codes") if given is not None else ("judge", "vqa", "model"),
        outputs=("evaluation",),
        reads_last=(context.model / CALIBRATION,),  # scores are made by it, predictions without
        everywhere=True,
    )


def rescore(context: Context) -> None:
    """Scores and page anew from the predictions and the model's calibration, without the model."""
    folder = context.folder / "evaluation"
    predictions, calibration = read_predictions(folder / "predictions.parquet"), load_calibration(context.model)
    calibrated = None if calibration is None else calibration.probabilities
    cases = dataclasses.replace(cases_of(context, "test"), calibrated=calibrated)
    summary = summarise(predictions, cases)
    if context.given is None:
        last = context.folder / context.recipe.tuning.stages[-1].name / "summary.json"
        summary["language"]["trace"] = read_json(last).get("language", [])
    write_json(folder / "summary.json", summary)
    _write_page(context, summary, cards(predictions, cases))


def _facts(context: Context, summary: Mapping[str, Any], tuning: str) -> dict[str, str]:
    recipe, info = context.recipe, context.info
    counts = read_json(context.folder / "studies.json")

    def said(split: str, name: str) -> str:
        return f"{counts['studies'][split]:,} {name} (of {counts['patients'][split]:,} patients)"

    # Of the stages before: what this one takes is known only when the page is written.
    records = [p for p in (context.folder / RECORDS).glob("*.json") if p.stem not in ("evaluation", "owner")]
    seconds = {p.stem: read_json(p).get("seconds", 0) for p in sorted(records, key=lambda p: p.stat().st_mtime)}
    facts = {
        "Recipe": recipe.name,
        "Model": "trained in this run" if recipe.model is None else recipe.model,
        "Base LLM": info.base,
        "Radiographs": f"{said('train', 'training')}, {said('validate', 'validation')}, {said('test', 'test')}",
        "Image tokens": f"{info.grid} x {info.grid} of {info.codebook_size} codes, {info.image_size} px",
        "Codebook in training": codebook_in_training(context.folder / "image_tokenizer"),
        "Tuning": tuning,
        "Questions, right by kind": ", ".join(
            f"{k} {v:.2f}" for k, v in summary.get("vqa", {}).get("by_kind", {}).items()
        ),
        "Questions, right by type (the paper's)": ", ".join(
            f"{k} {v:.2f}" for k, v in summary.get("vqa", {}).get("by_type", {}).items()
        ),
        "Minutes": ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items() if value),
        "Machine": f"{context.device.type}, {core_count()} cores, {platform.machine()}, "
        f"{str(precision(context.device, 'generating')).removeprefix('torch.')}",
        "Versions": f"llmcxr {__version__}, torch {version('torch')}, transformers {version('transformers')}",
    }
    return {name: value for name, value in facts.items() if value}


def steps_to_try(
    context: Context, summary: Mapping[str, Any], command: str = "llmcxr", within: bool = False
) -> list[str]:
    """Command lines about a test image of this run and its model, to be called anywhere or `within` the run's folder."""
    image, model = next(s.image_path for s in context.studies if s.split == "test"), "."
    if not within:
        image, model = str(context.folder / image), str(context.folder)  # an absolute path stays as it is
    return next_steps(summary, context.findings, image, context.recipe.model or model, command)


def _write_page(context: Context, summary: dict[str, Any], shown: dict[str, Any]) -> None:
    train_loss: dict[str, list[tuple[float, float, float]]] = {}
    unseen_loss: dict[str, list[tuple[float, float, float]]] = {}
    changes: list[float] = []
    step = tokens = 0.0
    cohorts: dict[str, dict[str, Any]] = {}
    for stage in context.recipe.tuning.stages if context.given is None else []:
        cohorts[stage.name] = read_json(context.folder / stage.name / "cohort.json")
        cohorts[stage.name]["too_long"] = read_json(context.folder / stage.name / "summary.json").get("too_long", {})
        curve = read_json(context.folder / stage.name / "curves.json")
        for record in curve:
            for target, key in ((train_loss, "train"), (unseen_loss, "unseen")):
                for task, loss in record[key].items():
                    target.setdefault(task, []).append((step + record["step"], tokens + record["tokens"], loss))
        step, tokens = step + curve[-1]["step"], tokens + curve[-1]["tokens"]
        changes.append(step)
    method = context.recipe.tuning.method
    tuning = f"{method}, {tokens:,.0f} tokens, {step:,.0f} steps" if context.given is None else ""
    overview, data = glance(shown["drawings"]), read_json(context.folder / "studies.json")
    page = PageContent(
        title=f"llmcxr: {context.recipe.name}",
        facts=_facts(context, summary, tuning),
        summary=summary,
        overview=overview,
        **shown,
        train_loss=train_loss,
        unseen_loss=unseen_loss,
        stage_changes=changes[:-1],
        simulated=context.source.simulated,
        data=data,
        cohorts=cohorts,
        remarks=remarks(context, data),
        next_steps=steps_to_try(context, summary, within=True),  # so a run that is moved keeps its page
    )
    folder = context.folder / "evaluation"
    write_page(folder / "report.html", page)
    if overview is not None:
        # Without the reports: a picture to show should not carry texts that may not be handed on.
        rows = "top: radiographs; middle: the same from their image tokens; bottom: drawn by a model"
        save_marked_png(folder / "glance.png", overview, Comment=rows)
