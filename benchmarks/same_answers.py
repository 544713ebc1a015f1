"""Whether two versions of the code make the same of one model: codes, reports, answers, p(yes), drawings.

    python benchmarks/same_answers.py write OUT.json IMAGES [--model NAME]     in each version (PYTHONPATH=OTHER/src)
    python benchmarks/same_answers.py compare ONE.json OTHER.json

IMAGES is a folder, of which the first 16 PNG files are read. On one thread, for the same order of sums.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

QUESTION = "Which abnormal findings does this chest radiograph show?"
DRAWN = "Large right pleural effusion."
# Where the classes live: here, and up to b248fca.
PLACES = [
    ("llmcxr.inference.llm_cxr", "llmcxr.inference.backend"),
    ("llmcxr.generation.llm_cxr", "llmcxr.generation.engine"),
]


def classes() -> tuple[Any, Any]:
    """`LlmCxr` and `Sampling` of the version that is imported."""
    for model, sampling in PLACES:
        if importlib.util.find_spec(model.rsplit(".", 1)[0]):
            return importlib.import_module(model).LlmCxr, importlib.import_module(sampling).Sampling
    raise SystemExit("llmcxr has moved its classes again: add the place to PLACES")


def answers(folder: Path, name: str) -> dict[str, Any]:
    """What the model makes of the images; images also as the mean magnitude of what their codes decode to."""
    LlmCxr, Sampling = classes()
    torch.set_num_threads(1)
    model = LlmCxr.from_pretrained(name, "cpu")
    images = sorted(folder.glob("*.png"))[:16]
    if not images:
        raise SystemExit(f"{folder} holds no PNG file")
    codes = model.encode(images)
    return {
        "codes": codes.astype(int).tolist(),
        "decoded": float(np.abs(model.decode(codes)).mean()),
        "greedy reports": model.reports(codes[:8], Sampling(max_new_tokens=96), 1),
        "reports": [model.report(image) for image in images[:2]],
        "answers": [model.ask(image, QUESTION) for image in images[:6]],
        "p(yes)": [list(model.finding_probabilities(image).values()) for image in images[:8]],
        "drawn codes": model.draw_codes([DRAWN], Sampling(temperature=1.0, seed=3)).astype(int).tolist(),
    }


def compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Print, by part, that it is the same or how far apart it is."""
    for part in one:
        if one[part] == other[part]:
            print(f"{part}: identical")
        elif isinstance(one[part], float) or part == "p(yes)":
            print(f"{part}: at most {np.abs(np.subtract(one[part], other[part])).max():.3g} apart")
        else:
            different = sum(a != b for a, b in zip(one[part], other[part], strict=True))
            print(f"{part}: {different} of {len(one[part])} differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("out", type=Path)
    write.add_argument("images", type=Path)
    write.add_argument("--model", default="phantom")
    both = commands.add_parser("compare")
    both.add_argument("one", type=Path)
    both.add_argument("other", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "write":
        arguments.out.write_text(json.dumps(answers(arguments.images, arguments.model)))
    else:
        compare(json.loads(arguments.one.read_text()), json.loads(arguments.other.read_text()))


if __name__ == "__main__":
    main()
