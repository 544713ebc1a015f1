"""What pip installs: all files, the versions that are tested, and clear words where an optional package is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.optional import EXTRAS, require
from llmcxr.foundation.settings import build_settings
from llmcxr.pipeline import Run
from llmcxr.recipe import Recipe

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = [Requirement(r) for r in PROJECT["dependencies"]]
OPTIONAL = {name: [Requirement(r) for r in own] for name, own in PROJECT["optional-dependencies"].items()}

ELSEWHERE = """
import llmcxr
from llmcxr.cli import main
from llmcxr.foundation.settings import load_settings
from llmcxr.model.find import find_start
from llmcxr.recipe import Recipe
from llmcxr.recipes import find_recipe
from llmcxr.tasks.language import SHIPPED, load_instructions
print(llmcxr.__file__)
print(load_settings(Recipe, find_recipe("quickstart")).name)
print(find_start("phantom").weights.is_file(), len(load_instructions(SHIPPED)) > 0)
main(["recipes"])
"""


def test_a_wheel_has_all_that_is_needed(tmp_path):
    """Built and installed without a connection, and used from a folder that is not the repository."""
    source, target = tmp_path / "source", tmp_path / "target"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wanted = {p.relative_to(source / "src").as_posix() for p in (source / "src").rglob("*") if p.is_file()}

    def python(*arguments: str, **environment: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
    python(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(source))
    (wheel,) = tmp_path.glob("*.whl")
    python(*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    missing = {name for name in wanted if not (target / name).is_file()}
    assert not missing
    file, recipe, found, *shipped = python("-c", ELSEWHERE, PYTHONPATH=str(target)).splitlines()
    assert Path(file).is_relative_to(target) and recipe == "quickstart" and found == "True True"
    assert any(line.startswith("quickstart: ") for line in shipped) and str(target) in shipped[-1]


def test_the_lock_holds_every_requirement():
    """A pin for each requirement, of the extra `dev` too, in its bounds, without an address."""
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pins = dict(re.fullmatch(r"([\w.-]+)==(\S+)(?: ; .*)?", line).groups() for line in lines)  # type: ignore[union-attr]
    pins = {canonicalize_name(name): pin for name, pin in pins.items()}
    developing = [
        r for r in OPTIONAL["dev"] if r.name not in (PROJECT["name"], "setuptools")
    ]  # torch brings setuptools
    (own,) = (r for r in OPTIONAL["dev"] if r.name == PROJECT["name"])
    extras = [r for extra in own.extras for r in OPTIONAL[extra]]
    for requirement in [*REQUIRED, *developing, *extras]:
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


@pytest.mark.parametrize("name", ["peft", "transformers"])
def test_packages_whose_inside_is_relied_on_are_bounded_by_what_is_tested(name):
    (requirement,) = (r for r in REQUIRED if r.name == name)
    tested = Version(version(name))
    assert tested in requirement.specifier
    assert f"{tested.major}.{tested.minor + 1}" not in requirement.specifier


def test_optional_packages_belong_to_their_extra():
    for package, extra in EXTRAS.items():
        assert package in [r.name for r in OPTIONAL[extra]]
        assert package not in [r.name for r in REQUIRED]


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    message = r'perceptual: x needs the package lpips, .*pip install "llmcxr\[paper\]"`, or set perceptual=clinical\.'
    with pytest.raises(UserError, match=message):
        require("lpips", "perceptual: x", "perceptual=clinical")


@pytest.mark.parametrize(
    ("package", "block", "instead"),
    [
        (
            "torchxrayvision",
            {"clinical_features": {"weights": "densenet121-res224-all"}},
            "clinical_features.weights=train",
        ),
        ("lpips", {"image_tokenizer": {"perceptual": "download"}}, "image_tokenizer.perceptual=clinical"),
    ],
)
def test_what_a_recipe_lacks_is_said_before_anything_runs(tmp_path, monkeypatch, package, block, instead):
    for name in {package, *(m for m in sys.modules if m.startswith(f"{package}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    recipe = build_settings(Recipe, {"runs": tmp_path, "name": "lacking"} | block)
    with pytest.raises(UserError, match=f"needs the package {package}, .*or set {instead}"):
        Run(recipe).run()
    assert not (tmp_path / "lacking" / "recipe.yaml").exists()
