"""What a model says of real radiographs, a lateral film, a text card and noise, and whether it warns: `report`, `ask`, `findings`, `look`.

    python benchmarks/real_images.py DATA/real-notes                  # ten frontal images and a lateral one of a folder; 3 minutes
    python benchmarks/real_images.py --images 0                       # the card and the noise alone

The folder has a metadata.csv (columns filename and view) and images/. Prints a Markdown table, a row an image, without names and texts of
the data; OUT gets what `llmcxr look` paints of each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from outside import card, real
from PIL import Image

from llmcxr.foundation.errors import OutsideWarning
from llmcxr.inference.heat_maps import save_reconstruction
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.studies.radiographs import to_uint8

QUESTION = "Is there a pleural effusion?"
SHOWN = (
    "pleural effusion",
    "cardiomegaly",
    "support device",
)  # whose p is in the table, as far as the model knows them
WORDS = 9  # of a report


def images(folder: Path | None, frontal: int, scratch: Path, size: int = 448) -> dict[str, Path]:
    """What each image is -> its file: `frontal` of a folder and one lateral film; a card of text and noise, made here."""
    found: dict[str, Path] = {}
    for kind, files in real(folder, 10_000, np.random.default_rng(0)).items() if folder is not None else ():
        side = "lateral" if kind.endswith("lateral") else "frontal"
        places = np.linspace(0, len(files) - 1, min(len(files), 1 if side == "lateral" else frontal)).astype(int)
        found |= {f"{side} {number}": files[place] for number, place in enumerate(dict.fromkeys(places.tolist()), 1)}
    rng = np.random.default_rng(0)
    for name, pixels in {"text card": card(size, rng), "noise": rng.uniform(-1, 1, (size, size))}.items():
        found[name] = scratch / f"{name}.png"
        Image.fromarray(to_uint8(pixels)).save(found[name])
    return found


def row(model: LlmCxr, name: str, file: Path, out: Path) -> str:
    """Cells of one image."""
    look = model.outside(file)
    save_reconstruction(out / f"{name}.png", *model.reconstruction(file))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        report, answer = model.report(file), model.ask(file, QUESTION)
        p = model.finding_probabilities(file)
    warned = sum(issubclass(w.category, OutsideWarning) for w in said)
    numbers = [f"{p[finding]:.2f}" for finding in SHOWN if finding in p]
    words = report.split()
    text = " ".join(words[:WORDS]) + " ..." * (len(words) > WORDS)
    cells = [name, "yes" if warned else "no", f"{look.l1:.3f}", text.replace("|", "/"), answer, *numbers]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="real radiographs: metadata.csv and images/")
    parser.add_argument("--images", type=int, default=10, help="frontal ones (default: 10)")
    parser.add_argument("--model", default="phantom")
    parser.add_argument(
        "--out", type=Path, default=Path("real_images"), help="folder for what image tokens keep of each"
    )
    arguments = parser.parse_args()
    if arguments.folder is not None and not (arguments.folder / "metadata.csv").is_file():
        raise SystemExit(f"{arguments.folder} has no metadata.csv. Give a folder that has one, and images/ beside it.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    model, begun = LlmCxr.from_pretrained(arguments.model), time.perf_counter()
    head = ["image", "warned", "L1", "report", QUESTION, *(f"p {own}" for own in SHOWN if own in model.info.findings)]
    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, file in images(arguments.folder, arguments.images, Path(scratch)).items():
            print(row(model, name, file, arguments.out), flush=True)
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
