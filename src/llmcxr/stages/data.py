"""The stages of data: studies with their pixels, and questions about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmcxr.foundation.artifacts import read_json, write_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.workflow import Stage
from llmcxr.instructions.questions import QuestionAnswer, write_questions
from llmcxr.labelling.registry import label_studies
from llmcxr.model.outside import FEWEST
from llmcxr.pages.data import write_data_page
from llmcxr.pages.questions import sample_questions
from llmcxr.sources.base import Tally
from llmcxr.sources.registry import read_studies
from llmcxr.stages.context import Context
from llmcxr.stages.synthesis import FOLDER as SYNTHESIS
from llmcxr.stages.synthesis import chat_client, rewriter, synthesis_stage, synthetic_pairs
from llmcxr.studies import image_notes
from llmcxr.studies.cohort import check_splits, count_of, find_copies, into_one_split, select_cohort
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.prior_references import edit_prior_references
from llmcxr.studies.study import SPLITS, Collection, Study, write_manifest
from llmcxr.synthesis.gather import MEASURED, gather
from llmcxr.synthesis.prompts import rewriting_prompt

PAGE = "data.html"
_SUMMARY = {"studies", "patients", "rules", "left_out", "noted", "examples", "without_effect", "images", "copies"}
_SHOWN = 8  # reasons that are printed; all are in studies.json


def studies_stage(context: Context) -> Stage:
    """Source -> manifest.parquet, pixels.npy, images.parquet, studies.json, data.html."""
    source, folder = context.source, context.folder
    rewriting = context.recipe.prior_references == "rewrite"

    def check() -> None:
        source.check()
        if rewriting:
            chat_client(context).check()

    def run() -> None:
        settings, labels = context.recipe.source, folder / "labels.partial.jsonl"
        chosen = read_studies(source, settings, folder, context.image_size)
        found = label_studies(chosen.studies, context.labeller, labels)
        rewrite = rewriter(context)  # labels are of the whole text
        found, references = edit_prior_references(found, context.recipe.prior_references, rewrite)
        if rewrite is not None:
            references.rewriting = rewrite.counts
        check_splits(found)
        without = settings.implausible == "leave_out"
        pixels = folder / "pixels.npy"
        kept, images = PixelStore.write(pixels, found, folder, context.image_size, context.geometry, without)
        image_notes.write_notes(folder / "images.parquet", images)
        chosen.rules.append(count_of("readable image", kept))
        copies = find_copies(kept, PixelStore.open(pixels))
        counts, moved = copies.counts(), 0
        if settings.copies == "one_split":
            kept, moved = into_one_split(kept, copies)
        write_manifest(folder / "manifest.parquet", kept)
        summary = _summary(source.tally, chosen, kept, images)
        named = [[study.image_id for study in group] for group in copies.groups[:20]]
        summary["copies"] = counts | {"patients moved": moved, "examples": named}
        summary["prior_references"] = references.as_json()
        write_json(folder / "studies.json", summary)
        labels.unlink(missing_ok=True)
        write_page(context)
        _say(summary)
        if references.reports:
            print(f"    {references.said(context.recipe.prior_references)}")
        for note in [*_image_notes(images), *notes(context)]:
            print(f"    note: {note}")

    return Stage(
        "studies",
        "radiographs and their reports: the data that everything else learns from",
        run,
        settings=(
            source.fingerprint(),
            context.image_size,
            context.recipe.labeller,
            (context.recipe.prior_references, context.recipe.chat.model, rewriting_prompt().version)
            if rewriting
            else context.recipe.prior_references,
            context.recipe.source.cohort,
            context.recipe.source.copies,
            context.geometry,
            context.recipe.source.implausible,
        ),
        reads=context.labeller_files,
        outputs=("manifest.parquet", "pixels.npy", "images.parquet", "studies.json", PAGE),
        check=check,
    )


def unedited_studies(context: Context) -> list[Study]:
    """The studies as the source has them, with labels, where none may be asked to rewrite them; nothing is kept, pictures that
    the source draws among it."""
    context.source.check()
    with TemporaryDirectory() as drawn:
        chosen = read_studies(context.source, context.recipe.source, Path(drawn), context.image_size)
    return label_studies(chosen.studies, context.labeller)


def _image_notes(images: Sequence[image_notes.ImageNote]) -> list[str]:
    """What is to be known of the images before hours are spent on them."""
    result = []
    for reason in image_notes.counts(images)["implausible"]:
        odd = [note for note in images if note.implausible == reason]
        gone = " (left out)" if odd[0].left_out else " (source.implausible: leave_out leaves them out)"
        result.append(f"{len(odd)} images look {reason}, e.g. {odd[0].image_path}{gone}.")
    if (cropped := image_notes.counts(images)["images_losing_a_quarter"]) > 0:
        result.append(
            f"{cropped} images lose over a quarter of their area to the centre crop; source.geometry.square: pad keeps "
            f"it."
        )
    return result


def _summary(
    tally: Tally, chosen: Collection, kept: list[Study], images: Sequence[image_notes.ImageNote]
) -> dict[str, Any]:
    """What `studies.json` says of the data."""
    return {
        "studies": {split: sum(s.split == split for s in kept) for split in SPLITS},
        "patients": {split: len({s.patient_id for s in kept if s.split == split}) for split in SPLITS},
        "views": dict(Counter(s.view or "unknown" for s in kept).most_common()),
        **chosen.as_json(),
        "left_out": dict(tally.left_out + chosen.dropped + image_notes.left_out(images)),
        "noted": dict(tally.noted),
        "examples": {reason: examples for reason, examples in tally.examples.items() if examples},
        "images": image_notes.counts(images),
    }


def _say(summary: dict[str, Any]) -> None:
    """The short of it."""
    counts, copies, examples = summary["studies"], summary["copies"], summary["examples"]
    print(f"    {counts['train']} training, {counts['validate']} validation and {counts['test']} test images")
    for rule in summary["rules"] if len(summary["rules"]) > 2 else ():
        print(f"    {rule['rule']}: {rule['images']:,} images of {rule['patients']:,} patients")
    for what, word in (("left_out", "left out"), ("noted", "noted")):
        for reason, count in Counter(summary[what]).most_common(_SHOWN):
            example = f", e.g. {examples[reason][0][:90]}" if examples.get(reason) else ""
            print(f"    {word} {count:,}: {reason}{example}")
        if len(summary[what]) > _SHOWN:
            print(f"    {word}: {len(summary[what]) - _SHOWN} more reasons (studies.json)")
    for note in summary["without_effect"]:
        print(f"    note: {note}")
    for note in copies_said(copies):
        print(f"    note: {note}")


def copies_said(copies: dict[str, Any]) -> list[str]:
    """A sentence on images that are there several times, if there are some."""
    if not copies["groups"]:
        return []
    said = (
        f"{copies['images']:,} images are {copies['groups']:,}, pixel for pixel; {copies['across patients']:,} of these are of "
        f"several patients, {copies['across splits']:,} in several splits"
    )
    if copies["patients moved"]:
        return [f"{said}; {copies['patients moved']:,} patients were moved into one."]
    return [said + " (source.copies: one_split keeps them in one)" * bool(copies["across splits"]) + "."]


def remarks(context: Context, summary: dict[str, Any]) -> list[str]:
    """What is to be known of the data beside scores; `summary` is what `studies.json` holds."""
    references = summary["prior_references"]
    said = f"{references['sentences']:,} sentences of {references['reports']:,} reports refer to earlier studies, which one image cannot show"
    kept = [f"{said} (prior_references: {context.recipe.prior_references})."] if references["sentences"] else []
    return [*summary["without_effect"], *copies_said(summary["copies"]), *kept, *notes(context)]


def write_page(context: Context) -> None:
    """The data page, of what the stage has written. `UserError` where that is not there."""
    folder, path = context.folder, context.folder / "studies.json"
    summary = read_json(path)
    if not isinstance(summary, dict) or (missing := _SUMMARY - summary.keys()):
        lacks = f" (it lacks {', '.join(sorted(missing))})" if isinstance(summary, dict) else ""
        raise UserError(f"{path} was written by another version{lacks}. Run `llmcxr prepare` with this run's recipe.")
    write_data_page(
        folder / PAGE,
        f"Data of {context.recipe.name}",
        context.source.about,
        context.source.simulated,
        folder,
        context.studies,
        context.pixels,
        image_notes.read_notes(folder / "images.parquet"),
        summary,
        notes(context),
        sample_questions(folder / SYNTHESIS, context.studies, context.labeller),
    )


def notes(context: Context) -> list[str]:
    """What this data cannot give, said before hours are spent on it."""
    result = []
    if not context.findings:
        result.append(
            "no finding is known both present and absent, so there are no questions, no alignment, no clinical network, no "
            "judge, and none of their scores. Give label columns, or reports that the labeller can read."
        )
    elif unread := context.unread:
        result.append(
            f"the labeller does not know {', '.join(unread)}: scores of reports leave them out. Name them as it does "
            f"({', '.join(context.labeller.findings)}) where they mean the same."
            if context.labeller.findings
            else "there is no labeller (labeller: none), so findings in reports are not scored."
        )
    studies = context.studies
    for split in SPLITS:
        if not any(s.split == split for s in studies):
            result.append(f"no patient is in the split {split}.")
    unseen = sum(s.split == "validate" for s in studies)
    if context.given is None and 0 < unseen < FEWEST:
        result.append(
            f"{unseen} validation images: the model will not say which images are outside its data, for which it takes {FEWEST}."
        )
    for stage in context.recipe.tuning.stages if context.given is None else ():
        training = [s for s in studies if s.split == "train"]
        result += [f"{stage.name}: {note}" for note in select_cohort(training, stage.cohort).notes]
    if not any(s.findings_text or s.impression_text for s in studies):
        result.append("there are no reports, so no report is learned, written or drawn from.")
    return result


def vqa_stage(context: Context) -> Stage:
    """Questions with known answers -> vqa.parquet, as they come."""

    def run() -> str | None:
        if not context.findings and next(synthetic_pairs(context), None) is None:
            return "no finding is known both present and absent"
        count = write_questions(context.folder / "vqa.parquet", questions())
        print(f"    {count:,} questions")
        return None

    def questions() -> Iterator[QuestionAnswer]:
        for split in SPLITS:
            part = [s for s in context.studies if s.split == split]
            origins = context.recipe.vqa.origins if split == "train" else MEASURED
            yield from gather(part, origins, context.labeller, context.recipe.seed, lambda: synthetic_pairs(context))

    return Stage(
        "vqa",
        "questions about the images, with answers",
        run,
        settings=(context.recipe.seed, context.recipe.vqa.origins),
        after=("studies", *(stage.name for stage in synthesis_stage(context))),
        outputs=("vqa.parquet",),
    )
