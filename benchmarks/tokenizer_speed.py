"""Images a second of the image tokenizer's training step, by layout, before and after the adversary begins.

    python benchmarks/tokenizer_speed.py                         # the layouts of the recipes, on the first GPU, else the CPU
    python benchmarks/tokenizer_speed.py --layouts tiny --steps 2    # does it run?

The step is the whole one: reconstruction, clinical network on images and reconstructions, codebook, adversary with its adaptive weight.
Images are noise, networks untrained: the time is the same. TFLOP/s counts products of tokenizer, clinical network and discriminator.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.processes import Processes
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.image_tokens.settings import ArchitectureSettings, ImageTokenizerSettings
from llmcxr.image_tokens.training import ImageTokenizerTraining

LAYOUTS: dict[str, dict[str, Any]] = {
    "tiny": {"image_size": 64, "channels": [32, 32, 32], "blocks": 1, "z_channels": 32, "code_dim": 32},
    "paper": {"channels": [128, 128, 256, 256, 512]},
    "half": {"channels": [64, 64, 128, 128, 256]},
    "slim": {"channels": [32, 64, 128, 256, 256]},
    "mixer": {"kind": "mixer", "patch": 16, "code_dim": 64},
}


def measure(layout: str, batch_size: int, steps: int, adversary: bool) -> dict[str, float]:
    """Seconds of the first step, images a second of the rest, TFLOP/s, and memory of the GPU in GB."""
    processes = Processes()
    settings = ImageTokenizerSettings(
        architecture=ArchitectureSettings(**LAYOUTS[layout], clinical_input=True),
        steps=1000,
        batch_size=batch_size,
        adversarial_weight=0.2 if adversary else 0.0,
        adversarial_start=0.0,
        reading_weight=0.01,
        varied_share=0.5,
    )
    side = settings.architecture.image_size
    images = np.random.default_rng(0).integers(0, 256, (2 * batch_size, side, side), dtype=np.uint8)
    features = ClinicalFeatures(("a", "b"), 128).eval().requires_grad_(False)
    cuda = processes.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        training = ImageTokenizerTraining(settings, features, images, 0, Path(folder), processes)
        begin = time.perf_counter()
        training.step()
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        for _ in range(steps):
            training.step()
        seconds = time.perf_counter() - begin
        with FlopCounterMode(display=False) as counter:
            training.step()
    found = {"first_step_s": first, "images_per_s": steps * batch_size / seconds}
    found["tflops"] = counter.get_total_flops() * steps / seconds / 1e12
    if cuda:
        found["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=["paper", "half", "slim", "mixer"])
    parser.add_argument("--batch-size", type=int, default=16, help="images of a step (default 16)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default 20)")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for layout in options.layouts:
        for name in ("before the adversary", "with it"):
            found = measure(layout, options.batch_size, options.steps, name == "with it")
            results[f"{layout}, {name}"] = found
            print(f"{layout}, {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()), flush=True)
            if options.json:
                write_json(options.json, results)


if __name__ == "__main__":
    main()
