"""Where the curves of a stage are shown while it runs: TensorBoard, or another tracker that Accelerate knows, by name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from llmcxr.foundation.artifacts import writing
from llmcxr.foundation.errors import UserError
from llmcxr.tuning.settings import TrackerName


def check_tracker(name: TrackerName) -> None:
    """`UserError` where the package of tracker `name` is not installed."""
    if name != "none" and find_spec(name) is None:
        raise UserError(
            f"tuning.logging: {name} is not installed. Install it (pip install {name}), or set tuning.logging to "
            "tensorboard or none."
        )


class Tracker:
    """Values by name over the steps of one stage."""

    def __init__(self, name: TrackerName, folder: Path, step: int) -> None:
        """`folder` is the stage's, `runs/RUN/STAGE`; what an interrupted process logged after `step` is superseded."""
        check_tracker(name)
        self._folder = folder
        self._tracker: Any = None
        if name == "none":
            return
        title = f"{folder.resolve().parent.name}/{folder.name}"
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": "logs", "logging_dir": str(folder), "purge_step": step + 1},
            "wandb": {"run_name": "llmcxr", "name": title, "dir": str(folder)},
            "mlflow": {"experiment_name": "llmcxr", "run_name": title},
            "trackio": {"run_name": "llmcxr", "name": title},
        }
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._tracker = LOGGER_TYPE_TO_CLASS[name](**options[name])
            self._tracker.start()

    def log(self, values: dict[str, float], step: int) -> None:
        """Show `values` at `step`. `UserError` where the disk is full."""
        if self._tracker is not None:
            with writing(self._folder):
                self._tracker.log(values, step=step)

    def close(self) -> None:
        """Write what is left."""
        if self._tracker is not None:
            with writing(self._folder):
                self._tracker.finish()
