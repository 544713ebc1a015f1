"""The stages of data: studies with their pixels, and questions about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import settings_to_dict
from llmcxr.foundation.workflow import Stage
from llmcxr.instructions.questions import questions_of, write_questions
from llmcxr.labelling.registry import label_studies
from llmcxr.stages.context import Context
from llmcxr.studies import image_notes
from llmcxr.studies.cohort import check_splits
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.study import SPLITS, Study, write_manifest


def studies_stage(context: Context) -> Stage:
    """Source -> manifest.parquet, pixels.npy, images.parquet, studies.json."""
    source, folder = context.source, context.folder
    without = context.recipe.source.implausible == "leave_out"

    def run() -> None:
        found = label_studies(list(source.studies(folder, context.image_size)), context.labeller)
        left_out = Counter(source.left_out)
        if not found:
            raise UserError(f"the source holds no usable study; left out: {dict(left_out)}.")
        check_splits(found)
        kept, images = PixelStore.write(
            folder / "pixels.npy", found, folder, context.image_size, context.geometry, without
        )
        left_out.update(image_notes.left_out(images))
        image_notes.write_notes(folder / "images.parquet", images)
        write_manifest(folder / "manifest.parquet", kept)
        counts = {split: sum(s.split == split for s in kept) for split in SPLITS}
        read = image_notes.counts(images) | {"same_pixels": image_notes.same_pixels(images, kept)}
        write_json(folder / "studies.json", {"studies": counts, "left_out": dict(left_out), "images": read})
        print(f"    {counts['train']} training, {counts['validate']} validation and {counts['test']} test images")
        for reason, count in left_out.most_common(8):
            print(f"    left out {count}: {reason}")
        for note in [*_image_notes(images, kept), *notes(context)]:
            print(f"    note: {note}")

    return Stage(
        "studies",
        "radiographs and their reports: the data that everything else learns from",
        run,
        settings=(
            source.fingerprint(),
            context.image_size,
            settings_to_dict(context.geometry),
            without,
            context.recipe.labeller,
        ),
        outputs=("manifest.parquet", "pixels.npy", "images.parquet", "studies.json"),
        check=source.check,
    )


def _image_notes(images: Sequence[image_notes.ImageNote], kept: Sequence[Study]) -> list[str]:
    """What is to be known of the images before hours are spent on them."""
    result = []
    for reason in image_notes.counts(images)["implausible"]:
        odd = [note for note in images if note.implausible == reason]
        gone = " (left out)" if odd[0].left_out else " (source.implausible: leave_out leaves them out)"
        result.append(f"{len(odd)} images look {reason}, e.g. {odd[0].image_path}{gone}.")
    if (cropped := image_notes.counts(images)["images_losing_a_quarter"]) > 0:
        result.append(
            f"{cropped} images lose over a quarter of their area to the centre crop; "
            "source.geometry.square: pad keeps it."
        )
    for where, groups in image_notes.same_pixels(images, kept).items():
        if groups:
            result.append(
                f"{len(groups)} images are there twice or more, {where.replace('_', ' ')}, e.g. "
                f"{', '.join(groups[0][:2])}."
            )
    return result


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
    if not any(s.findings_text or s.impression_text for s in studies):
        result.append("there are no reports, so no report is learned, written or drawn from.")
    return result


def vqa_stage(context: Context) -> Stage:
    """Questions with known answers -> vqa.jsonl."""

    def run() -> str | None:
        if not context.findings:
            return "no finding is known both present and absent"
        parts = [[s for s in context.studies if s.split == split] for split in SPLITS]
        questions = [question for part in parts for question in questions_of(part, context.recipe.seed)]
        write_questions(context.folder / "vqa.jsonl", questions)
        print(f"    {len(questions)} questions")
        return None

    return Stage(
        "vqa",
        "questions about the images, with answers that are known to be right",
        run,
        settings=context.recipe.seed,
        after=("studies",),
        outputs=("vqa.jsonl",),
    )
