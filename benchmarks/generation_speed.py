"""How fast is decoding, beside `model.generate` of the same model and beside what the machine allows?

    python benchmarks/generation_speed.py            # about 20 minutes of two idle cores
    python benchmarks/generation_speed.py --short    # 2 minutes: does it run, and roughly how fast?

All in one process, by turns, the least time of `--repeats` rounds each, after one to warm up, prompts read anew each time. The
script starts itself again with threads that spin while they wait (`--wait PASSIVE`: that sleep, as `llmcxr` sets it), for ours
and the baseline alike. Ours runs as it is loaded by default, and with `precision="int8"`. The baseline is `model.generate` in
float32 and in bfloat16, and the faster of both counts for each number of images; it samples from the whole vocabulary without
any grammar, which is less work than ours. Images of 64 tokens are the shipped model's own; for 256 its decoding goes on, whose
codes mean nothing, and whose speed is the same. Ten questions and best of four are through the public functions.

Limits: of one stream, the bytes of the layers' weights over the speed at which this machine reads memory; of many,
operations of all linear layers over the rate of its products, each measured with the fastest kernel that torch has.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmcxr import LlmCxr
from llmcxr.foundation.assets import DEFAULT_MODEL
from llmcxr.foundation.devices import core_count
from llmcxr.inference.backend import Request, Sampling
from llmcxr.tasks import cxr_vqa, report_to_cxr

OURS = {"ours": "auto", "int8": "int8"}
BASELINE = ("float32", "bfloat16")
TEXTS = (
    "Large left pleural effusion.",
    "The heart is enlarged.",
    "No acute disease.",
    "Nodule in the right upper lobe.",
)


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def best_of(repeats: int, works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each work, done by turns, the best of all turns; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            took = seconds(work)
            if turn:
                times[name].append(took)
    return {name: min(own) for name, own in times.items()}


def machine(dtype: torch.dtype) -> tuple[float, float]:
    """(bytes read a second, operations a second) of products in `dtype`: a vector by a large matrix, and 64 rows by one of a layer's size."""

    def fastest(rows: int, inputs: int, outputs: int) -> float:
        weight, x = torch.ones(outputs, inputs, dtype=dtype), torch.ones(rows, inputs, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
        works: dict[str, Callable[[], object]] = {
            "plain": lambda: torch.nn.functional.linear(x, weight),
            "packed": lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""),
        }
        return min(best_of(20, works).values())

    return 8192**2 * dtype.itemsize / fastest(1, 8192, 8192), 2 * 64 * 576 * 1536 / fastest(64, 576, 1536)


def drawing_speed(
    ours: dict[str, LlmCxr], stock: dict[str, Any], count: int, length: int, repeats: int
) -> dict[str, float]:
    """Tokens a second of `count` images of `length` tokens each, and ratios to the faster baseline."""
    first = next(iter(ours.values()))
    prompts = (
        first.asker.prompts([report_to_cxr.TASK.prompt(TEXTS[0])]) * count
    )  # of one length: no padding for the baseline
    requests = [Request(p, "image", Sampling(temperature=1.0, seed=i)) for i, p in enumerate(prompts)]
    ids = torch.tensor(prompts)

    def generate(model: Any) -> None:
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                min_new_tokens=length, max_new_tokens=length, pad_token_id=0,
            )  # fmt: skip

    works: dict[str, Callable[[], object]] = {}
    for name, model in ours.items():
        backend: Any = model.asker.backend
        backend.image_length = length
        works[name] = lambda backend=backend: backend.generate(requests)
    works |= {name: lambda model=model: generate(model) for name, model in stock.items()}  # type: ignore[misc]
    rates = {k: count * length / v for k, v in best_of(repeats, works).items()}
    for model in ours.values():
        model.asker.backend.image_length = model.info.grid**2  # type: ignore[attr-defined]
    most = max(rates[name] for name in stock)
    return rates | {f"{name} ratio": rates[name] / most for name in ours}


def measure(name: str, sizes: Sequence[tuple[int, int]], repeats: int) -> dict[str, Any]:
    """Tokens a second of images, (how many, tokens of each), and how long questions and chosen drawings take."""
    stock: dict[str, Any] = {p: LlmCxr.from_pretrained(name, "cpu", p).asker.backend.model for p in BASELINE}  # type: ignore[arg-type, attr-defined]
    models = {own: LlmCxr.from_pretrained(name, "cpu", p) for own, p in OURS.items()}  # type: ignore[arg-type]
    ours = models["ours"]
    model: Any = ours.asker.backend.model  # type: ignore[attr-defined]
    result: dict[str, Any] = {"precision": str(model.dtype).removeprefix("torch."), "images": {}, "seconds": {}}
    for count, length in sizes:
        result["images"][f"{count} of {length}"] = own = drawing_speed(models, stock, count, length, repeats)
        print(json.dumps({f"{count} of {length}": own}), flush=True)
    codes = np.random.default_rng(0).integers(0, ours.info.codebook_size, ours.info.grid**2).astype(np.uint16)
    asked = [f"Is there a {name}?" for name in ours.info.findings[:10]]
    turns = [cxr_vqa.TASK.prompt(codes, question) for question in asked]
    result["seconds"] = best_of(
        repeats,
        {
            "ten questions": lambda: ours.asker.texts(turns, Sampling(max_new_tokens=4)),
            "ten calls": lambda: [ours.asker.texts([turn], Sampling(max_new_tokens=4)) for turn in turns],
            "ten p(yes)": lambda: ours.yes_probabilities(codes, asked),
            "one drawing": lambda: ours.draw_codes(TEXTS[:1], Sampling(temperature=1.0, guidance=1.0), 1),
            "best of four guided": lambda: ours.draw_codes(TEXTS[:1], Sampling(temperature=1.0, guidance=2.0), 4),
        },
    )
    weights = sum(p.numel() for n, p in model.base_model.named_parameters() if p.ndim == 2 and "embed" not in n)
    read, products = machine(model.dtype)
    result["limits"] = {"one stream": read / (weights * model.dtype.itemsize), "many streams": products / (2 * weights)}
    return result


def table(result: dict[str, Any]) -> str:
    """For people."""
    rows = [
        "| images | tokens/s | int8 | model.generate, float32 | bfloat16 | ratio | ratio of int8 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size, own in result["images"].items():
        rates = " | ".join(f"{own[name]:.0f}" for name in (*OURS, *BASELINE))
        rows.append(f"| {size} | {rates} | {own['ours ratio']:.2f} | {own['int8 ratio']:.2f} |")
    took, limits = result["seconds"], result["limits"]
    own = [v["ours"] for size, v in result["images"].items() if size.endswith("of 64")]
    few, many = own[0], own[-1]
    return "\n".join(
        [
            *rows,
            "",
            f"Ten questions on one image: {took['ten calls'] / took['ten questions']:.2f} times as fast as ten calls. Best of four guided "
            f"drawings: {took['best of four guided'] / took['one drawing']:.2f} times the time of one unguided.",
            f"One stream: {few / limits['one stream']:.0%} of the memory limit ({limits['one stream']:.0f} tokens/s); the most streams: "
            f"{many / limits['many streams']:.0%} of the product limit ({limits['many streams']:.0f} tokens/s). Ours in "
            f"{result['precision']}, {core_count()} cores.",
        ]
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 16, 64], help="images at once, of 64 tokens each")
    parser.add_argument("--long", type=int, nargs="*", default=[1, 16], help="images at once, of 256 tokens each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="one and 16 images of 64 tokens, one round")
    parser.add_argument("--wait", choices=("ACTIVE", "PASSIVE"), default="ACTIVE", help="of threads for one another")
    parser.add_argument("--json", type=Path, default=Path("generation_speed.json"))
    o = parser.parse_args()
    if os.environ.get("OMP_WAIT_POLICY") != o.wait or "GOMP_SPINCOUNT" in os.environ:  # read once, when torch is loaded
        rest = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
        os.execve(sys.executable, [sys.executable, *sys.argv], rest | {"OMP_WAIT_POLICY": o.wait})
    if o.short:
        o.counts, o.long, o.repeats = [1, 16], [], 1
    sizes = [(count, 64) for count in o.counts] + [(count, 256) for count in o.long]
    print(
        f"load of the last minute {os.getloadavg()[0]:.1f} on {core_count()} cores, threads wait: {o.wait}", flush=True
    )
    result = measure(o.model, sizes, o.repeats)
    o.json.write_text(json.dumps(result, indent=1))
    print(table(result))


if __name__ == "__main__":
    main()
