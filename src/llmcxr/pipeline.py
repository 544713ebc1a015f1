"""What a run does, in order. Each line is a stage; its room is in `stages/`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from llmcxr.evaluation.calibration import told
from llmcxr.foundation.workflow import Stage, Workflow
from llmcxr.model.calibration import CALIBRATION, save_calibration
from llmcxr.recipe import Recipe
from llmcxr.stages import data, evaluation, image_tokens, synthesis, tuning
from llmcxr.stages.calibration import IMAGES, READINGS, fitted_calibration, folder_to_calibrate
from llmcxr.stages.context import Context


def stages(context: Context) -> list[Stage]:
    """All stages of a recipe, in order: from data to a results page."""
    if context.given is not None:  # a finished model is measured
        return [
            data.studies_stage(context),
            image_tokens.codes_stage(context),
            *synthesis.synthesis_stage(context),
            data.vqa_stage(context),
            evaluation.judge_stage(context),
            evaluation.evaluation_stage(context),
        ]
    return [
        data.studies_stage(context),
        image_tokens.clinical_features_stage(context),
        image_tokens.image_tokenizer_stage(context),
        image_tokens.codes_stage(context),
        *synthesis.synthesis_stage(context),
        data.vqa_stage(context),
        *tuning.alignment_stage(context),
        *tuning.replay_stage(context),
        *tuning.tuning_stages(context),
        tuning.model_stage(context),
        evaluation.judge_stage(context),
        evaluation.evaluation_stage(context),
    ]


class Run:
    """A recipe, what its stages share, and the workflow that runs them."""

    def __init__(self, recipe: Recipe) -> None:
        self.context = Context(recipe)
        self.recipe = self.context.recipe
        self.workflow = Workflow(self.context.folder, stages(self.context), self.context.processes)

    def run(self, only: str | None = None, until: str | None = None) -> None:
        """Run all stages, `only` the named one (the stages before it must be done), or the one `until` which to go and what it needs."""
        self.workflow.run(only, before=self.context.write_recipe, until=until)

    def rescore(self) -> None:
        """Scores and page anew from the predictions that are there, without the model."""
        with self.workflow.alone():
            self.context.processes.on_main(self._rescore)

    def inspect(self) -> Path:
        """Where the data page lies, made anew from what the `studies` stage has written."""
        with self.workflow.alone():
            self.context.processes.on_main(self._inspect)
        return self.context.folder / data.PAGE

    def _inspect(self) -> None:
        self.workflow.adds("studies", data.PAGE)
        data.write_page(self.context)

    def _rescore(self) -> None:
        with self.workflow.renewing("evaluation"):
            evaluation.rescore(self.context)

    def calibrate(self, into: Path | None, images: int = IMAGES) -> str:
        """Calibrate the run's model and keep that in its folder or `into` another that holds it. What to say.

        An evaluation that is done is scored anew: how far probabilities can be taken at their word is part of it.
        `UserError` as `folder_to_calibrate` and `fitted_calibration` raise.
        """
        with self.workflow.alone():
            folder = folder_to_calibrate(self.context, into)
            kept = self.context.folder / READINGS.format("validate")
            calibration = fitted_calibration(self.context, images, kept)
            own = folder.resolve() == self.context.model.resolve()
            scored = own and self.workflow.has("evaluation")
            with self.workflow.renewing("evaluation") if scored else nullcontext():
                if own:
                    self.workflow.adds("model", f"model/{CALIBRATION}")
                save_calibration(folder, calibration)
                if scored:
                    evaluation.rescore(self.context)
        return f"{told(calibration)}\n{folder / CALIBRATION}"
