"""Whether a model knows what it was not trained on: warnings and AUROC by kind of image, beside false alarms on unseen phantoms.

    llmcxr prepare demo name=unseen source.phantom.train=200 source.phantom.validate=300 source.phantom.test=200 source.phantom.seed=5
    python benchmarks/outside.py runs/unseen DATA/real-cxr/images DATA/real-notes        # folders of real radiographs
    python benchmarks/outside.py runs/unseen --images 10                                 # a small one, without them

A folder with a metadata.csv (columns filename and view) is taken apart into frontal (PA, AP, AP Supine, ...) and lateral (L) images. Unseen
phantoms are the test images of the run; what is usual was measured on its validation images (`llmcxr measure-outside`). Statistics are
kept in OUT, and not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.errors import UserError
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.metrics.scores import auroc
from llmcxr.model.outside import WARNED
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.radiographs import from_uint8, load_square
from llmcxr.studies.study import read_manifest

UNSEEN = "unseen phantoms"
_AT_ONCE = 16

# Phantoms [N, S, S] in [-1, 1] that were changed, and pictures that are none.
CHANGED: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "inverted": lambda x, rng: -x,
    "rotated by 90 degrees": lambda x, rng: np.rot90(x, 1, (1, 2)),
    "upside down": lambda x, rng: x[:, ::-1],
    "left and right exchanged": lambda x, rng: x[:, :, ::-1],
    "moved by a fifth": lambda x, rng: np.roll(x, x.shape[2] // 5, 2),
    "at half contrast": lambda x, rng: x / 2,
    "blurred": lambda x, rng: np.stack([ndimage.gaussian_filter(own, x.shape[1] / 64) for own in x]),
    "grainy": lambda x, rng: np.clip(x + rng.normal(0, 0.2, x.shape), -1, 1),
    "noise": lambda x, rng: rng.uniform(-1, 1, x.shape),
    "text cards": lambda x, rng: np.stack([card(x.shape[1], rng) for _ in x]),
    "made scenes": lambda x, rng: np.stack([scene(x.shape[1], rng) for _ in x]),
}


def _as_pixels(image: Image.Image) -> np.ndarray:
    return from_uint8(np.asarray(image.convert("L")))


def card(size: int, rng: np.random.Generator) -> np.ndarray:
    """Lines of dark letters on a light card: float [size, size] in [-1, 1]."""
    image = Image.new("L", (size, size), int(rng.integers(200, 256)))
    pen, height = ImageDraw.Draw(image), int(rng.integers(size // 12, size // 6))
    for y in range(4, size - height, height + 4):
        words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(8)]
        pen.text((4, y), " ".join(words), fill=int(rng.integers(0, 80)), font_size=height)
    return _as_pixels(image)


def scene(size: int, rng: np.random.Generator) -> np.ndarray:
    """What a photograph has: a sky and a ground, things with edges, soft light, grain. Float [size, size] in [-1, 1]."""
    sky, ground = rng.integers(60, 220, 2)
    image = Image.new("L", (size, size), int(sky))
    pen, horizon = ImageDraw.Draw(image), int(rng.uniform(0.4, 0.7) * size)
    pen.rectangle((0, horizon, size, size), fill=int(ground))
    for _ in range(rng.integers(4, 12)):
        x, y, w, h = rng.uniform(0, size), rng.uniform(0.2, 1) * size, *rng.uniform(0.05, 0.3, 2) * size
        draw = (pen.rectangle, pen.ellipse)[rng.integers(2)]
        draw((x - w, y - h, x + w, y + h), fill=int(rng.integers(0, 256)))
    pixels = ndimage.gaussian_filter(_as_pixels(image).astype(float), 0.7)
    light = np.add.outer(*rng.uniform(-0.3, 0.3, 2)[:, None] * np.linspace(-1, 1, size))
    return np.clip(pixels + light + rng.normal(0, 0.03, pixels.shape), -1, 1)


def real(folder: Path, most: int, rng: np.random.Generator) -> dict[str, list[Path]]:
    """Kind -> files of a folder of real radiographs."""
    if not folder.is_dir():
        print(f"{folder} is not there: skipped")
        return {}
    name = folder.parent.name if folder.name == "images" else folder.name
    kinds = {f"real, {name}": sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))}
    if (table := folder / "metadata.csv").exists():
        rows = list(csv.DictReader(table.open(encoding="utf-8")))
        kinds = {
            f"real, {name}, {kind}": [
                folder / "images" / row["filename"] for row in rows if (row["view"] == "L") == side
            ]
            for kind, side in (("frontal", False), ("lateral", True))
        }
    return {kind: [files[i] for i in sorted(rng.permutation(len(files))[:most])] for kind, files in kinds.items()}


def read(files: list[Path], model: LlmCxr) -> np.ndarray:
    """Squares [N, S, S] of the files that can be read; the others are said."""
    squares = []
    for file in files:
        try:
            squares.append(load_square(file, model.info.image_size, model.info.geometry))
        except UserError as error:
            print(f"skipped: {error}")
    return np.stack(squares)


def cost(model: LlmCxr, pixels: np.ndarray) -> None:
    """Print what it takes beside a report."""
    model.report(pixels[0])
    begun = time.perf_counter()
    for own in pixels[1:4]:
        model.outside(own)
    looked = time.perf_counter()
    for own in pixels[1:4]:
        model.report(own)
    looks, reports = (looked - begun) / 3, (time.perf_counter() - looked) / 3
    print(f"a look takes {looks:.2f} s, a report {reports:.2f} s: {looks / reports:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of the phantom whose studies are done")
    parser.add_argument("real", type=Path, nargs="*", help="folders of real radiographs")
    parser.add_argument("--model", default="phantom")
    parser.add_argument("--images", type=int, default=100, help="of each kind (default: 100)")
    parser.add_argument("--out", type=Path, default=Path("outside.json"), help="where statistics are kept")
    arguments = parser.parse_args()
    model, rng = LlmCxr.from_pretrained(arguments.model), np.random.default_rng(0)
    if model.images.limits is None:
        raise SystemExit("this model does not know what is usual: `llmcxr measure-outside RUN --into MODEL` first")
    studies, store = read_manifest(arguments.run / "manifest.parquet"), PixelStore.open(arguments.run / "pixels.npy")
    rows = [i for i, study in enumerate(studies) if study.split == "test"]
    unseen = from_uint8(store[rows])
    some = unseen[: arguments.images]
    kinds: dict[str, Callable[[], np.ndarray]] = {UNSEEN: lambda: unseen}
    for folder in arguments.real:
        kinds |= {k: lambda files=files: read(files, model) for k, files in real(folder, arguments.images, rng).items()}
    kinds |= {kind: lambda change=change: change(some, np.random.default_rng(1)) for kind, change in CHANGED.items()}

    kept: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for kind, images in kinds.items():
        if kind in kept:
            continue
        pixels = images().astype(np.float32)
        parts = [model.statistics(list(pixels[i : i + _AT_ONCE])) for i in range(0, len(pixels), _AT_ONCE)]
        kept[kind] = np.concatenate(parts).tolist()
        write_json(arguments.out, kept)

    limits, known = model.images.limits, np.array(kept[UNSEEN])
    print("| kind | n | warned | AUROC | of L1 alone | of the codes' likelihood alone | L1 | nats a code |")
    print("| --- " * 8 + "|")
    for kind in kinds:
        found = np.array(kept[kind])
        warned = np.mean([limits.share_below(score) >= WARNED for score in limits.score(found)])
        labels = np.repeat([0, 1], [len(known), len(found)])
        both = np.concatenate([known, found])
        cells = ["", "", ""]
        if kind != UNSEEN:
            cells = [f"{auroc(labels, values):.3f}" for values in (limits.score(both), both[:, 0], both[:, 1])]
        l1, nats = np.exp(np.median(found[:, 0])), np.median(found[:, 1])
        print(f"| {kind} | {len(found)} | {warned:.3f} | {' | '.join(cells)} | {l1:.3f} | {nats:.2f} |")
    cost(model, unseen)


if __name__ == "__main__":
    main()
