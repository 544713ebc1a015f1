"""The stages of data: studies with their pixels, and questions about them."""

from __future__ import annotations

from collections import Counter

from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.workflow import Stage
from llmcxr.instructions.questions import questions_of, write_questions
from llmcxr.labelling.registry import label_studies
from llmcxr.stages.context import Context
from llmcxr.studies.cohort import check_splits
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.study import SPLITS, write_manifest


def studies_stage(context: Context) -> Stage:
    """Source -> manifest.parquet, pixels.npy, studies.json."""
    source, folder = context.source, context.folder

    def run() -> None:
        found = label_studies(list(source.studies(folder, context.image_size)), context.labeller)
        left_out = Counter(source.left_out)
        if not found:
            raise UserError(f"the source holds no usable study; left out: {dict(left_out)}.")
        check_splits(found)
        kept, unreadable = PixelStore.write(folder / "pixels.npy", found, folder, context.image_size)
        left_out.update(unreadable)
        write_manifest(folder / "manifest.parquet", kept)
        counts = {split: sum(s.split == split for s in kept) for split in SPLITS}
        write_json(folder / "studies.json", {"studies": counts, "left_out": dict(left_out)})
        print(f"    {counts['train']} training, {counts['validate']} validation and {counts['test']} test images")
        for reason, count in left_out.most_common(8):
            print(f"    left out {count}: {reason}")
        for note in notes(context):
            print(f"    note: {note}")

    return Stage(
        "studies",
        "radiographs and their reports: the data that everything else learns from",
        run,
        settings=(source.fingerprint(), context.image_size, context.recipe.labeller),
        reads=context.labeller_files,
        outputs=("manifest.parquet", "pixels.npy", "studies.json"),
        check=source.check,
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
