"""The stages that measure: the judge, and what the model makes of patients it has never seen."""

from __future__ import annotations

import shutil

from llmcxr.evaluation.judge import Judge, judge_findings
from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.workflow import Stage
from llmcxr.stages.context import Context
from llmcxr.studies.study import label_matrix


def judge_stage(context: Context) -> Stage:
    """An independent classifier: the given model's own where it knows the findings, else one trained on the training split."""
    settings, folder, own = context.recipe.evaluation.judge, context.folder / "judge", context.given_judge

    def run() -> str | None:
        findings, main = context.findings, context.processes.on_main
        if not findings:
            return "no finding is known both present and absent"
        if own is not None and not judge_findings(own).missing(findings):

            def copy() -> None:
                with atomic_path(folder) as temporary:
                    shutil.copytree(own, temporary)

            main(copy)
            return None
        studies, images = context.of_split("train")
        if not studies:
            return f"the data has no training split from which a judge could learn {', '.join(findings)}"
        labels = label_matrix(studies, findings)
        seed = context.recipe.seed + 1000  # another start than the clinical network's
        Judge.train_on(images, labels, findings, settings, seed, folder, context.processes, context.image_dtype)
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
