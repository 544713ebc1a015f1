"""Bring a packed model of format 2 to format 3: the patients that it was trained on, and what its last stage was for.

    python scripts/add_patients.py src/llmcxr/models/phantom src/llmcxr/recipes/phantom-continued.yaml

Format 2 did not say them. They are taken from the recipe by which the model was made: those of the phantom's training
split (a run on other data is packed again instead). Weights stay as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import load_settings
from llmcxr.model.folder import load_info
from llmcxr.model.patients import patient_hash, write_patients
from llmcxr.model.sums import check_sums, write_sums
from llmcxr.recipe import Recipe


def add_patients(folder: Path, recipe: Recipe) -> int:
    """Write patients.txt, llmcxr.json and SHA256SUMS of a packed model anew; number of patients."""
    if recipe.source.kind != "phantom":
        raise UserError("the recipe's data is not the phantom's. Pack the run again.")
    check_sums(folder)
    phantom, cohort = recipe.source.phantom, recipe.tuning.stages[-1].cohort
    patients = [f"phantom-{phantom.seed}-train-{i:06d}" for i in range(phantom.train)]
    info = dataclasses.replace(load_info(folder), views=tuple(cohort.views), earliest_only=cohort.earliest_only)
    write_patients(folder, map(patient_hash, patients))
    write_json(folder / "llmcxr.json", dataclasses.asdict(info))
    write_sums(folder)
    return len(patients)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipe", type=Path)
    arguments = parser.parse_args()
    print(f"{add_patients(arguments.folder, load_settings(Recipe, arguments.recipe))} patients")
