"""How long it takes until a model can be used: imports, and a whole `llmcxr report IMAGE`, each in processes of their own.

    python benchmarks/startup.py IMAGE [--model NAME] [--runs 3]

Prints seconds (the best of the runs, so that reading from disk the first time does not count), and which heavy packages
the report has loaded beyond those that transformers loads itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

IMPORTS = {
    "import torch, transformers' causal LMs": "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer, "
    "DynamicCache, PreTrainedModel",
    "import llmcxr": "import llmcxr",
    "llmcxr settings": "from llmcxr.cli import main; main(['settings'])",
    "from llmcxr import LlmCxr": "from llmcxr import LlmCxr",
}
_OWN = {
    "diffusers",
    "lpips",
    "matplotlib",
    "pandas",
    "peft",
    "skimage",
    "sklearn",
    "torchxrayvision",
    "vector_quantize_pytorch",
}
_REPORT = "import sys\nfrom llmcxr.cli import main\nmain(sys.argv[1:])\nprint(*sys.modules, file=sys.stderr)"


def run(code: str, arguments: Sequence[str] = ()) -> tuple[float, str]:
    """Seconds of a new process, and what it wrote to stderr."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stderr


def measure(image: str, model: str, runs: int) -> dict[str, float]:
    """Seconds by what was done, and whether the report loaded what it should not (printed)."""
    seconds = {name: min(run(code)[0] for _ in range(runs)) for name, code in IMPORTS.items()}
    reports = [run(_REPORT, ["report", image, "--model", model]) for _ in range(runs)]
    seconds["llmcxr report IMAGE"] = min(took for took, _ in reports)
    print("loaded:", *sorted(_OWN.intersection(reports[0][1].split())) or ["nothing heavy"])
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--model", default="phantom")
    parser.add_argument("--runs", type=int, default=3)
    for what, took in measure(**vars(parser.parse_args())).items():
        print(f"{took:6.2f} s  {what}")
