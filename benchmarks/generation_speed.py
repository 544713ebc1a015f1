"""How fast is decoding, beside `model.generate` of the same model and beside what the machine allows?

All in one run, by turns, the best of `--repeats` each. The baseline takes the faster of float32 and bfloat16 for each number of images; it
samples from the whole vocabulary without any grammar, which is less work than ours. Limits: of one stream, the bytes of the weights
over the speed at which this machine reads memory; of many, operations of all linear layers over the rate of its products.
"""

from __future__ import annotations

import argparse
import json
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
    wide, x = torch.ones(8192, 8192, dtype=dtype), torch.ones(1, 8192, dtype=dtype)
    read = wide.nbytes / best_of(5, {"": lambda: torch.nn.functional.linear(x, wide)})[""]
    layer, rows = torch.ones(1536, 576, dtype=dtype), torch.ones(64, 576, dtype=dtype)
    took = best_of(20, {"": lambda: torch.nn.functional.linear(rows, layer)})[""]
    return read, 2 * rows.numel() * len(layer) / took


def measure(name: str, counts: Sequence[int], repeats: int) -> dict[str, Any]:
    """Tokens a second of images, and how long questions and chosen drawings take."""
    models = {p: LlmCxr.from_pretrained(name, "cpu", p) for p in ("float32", "bfloat16")}  # type: ignore[arg-type]
    ours = LlmCxr.from_pretrained(name, "cpu")
    backend, length = ours.asker.backend, ours.info.grid**2
    prompt = ours.asker.prompts([report_to_cxr.TASK.prompt(text) for text in TEXTS])
    result: dict[str, Any] = {"precision": str(backend.model.dtype).removeprefix("torch."), "images": {}}  # type: ignore[attr-defined]
    for count in counts:
        prompts = [prompt[0]] * count  # of one length, so that the baseline has no padding

        def generate(model: Any, prompts: Sequence[Sequence[int]] = prompts) -> None:
            ids = torch.tensor(prompts)
            with torch.inference_mode():
                model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                    min_new_tokens=length, max_new_tokens=length, pad_token_id=0,
                )  # fmt: skip

        requests = [Request(p, "image", Sampling(temperature=1.0, seed=i)) for i, p in enumerate(prompts)]
        works: dict[str, Callable[[], object]] = {"ours": lambda r=requests: backend.generate(r)}
        works |= {p: lambda m=m: generate(m.asker.backend.model) for p, m in models.items()}  # type: ignore[attr-defined]
        rates = {k: count * length / v for k, v in best_of(repeats, works).items()}
        result["images"][count] = rates | {"ratio": rates["ours"] / max(rates["float32"], rates["bfloat16"])}
        print(json.dumps({count: result["images"][count]}), flush=True)
    codes = np.random.default_rng(0).integers(0, ours.info.codebook_size, length).astype(np.uint16)
    asked = [f"Is there a {name}?" for name in ours.info.findings[:10]]
    turns = [cxr_vqa.TASK.prompt(codes, question) for question in asked]
    took = best_of(
        repeats,
        {
            "ten questions": lambda: ours.asker.texts(turns, Sampling(max_new_tokens=4)),
            "ten calls": lambda: [ours.asker.texts([turn], Sampling(max_new_tokens=4)) for turn in turns],
            "ten p(yes)": lambda: ours.yes_probabilities(codes, asked),
            "one drawing": lambda: ours.draw_codes(TEXTS[:1], Sampling(temperature=1.0, guidance=1.0), 1),
            "best of four guided": lambda: ours.draw_codes(TEXTS[:1], Sampling(temperature=1.0, guidance=2.0), 4),
        },
    )
    result["seconds"] = took
    body = backend.model.base_model  # type: ignore[attr-defined]
    weights = sum(p.numel() for n, p in body.named_parameters() if p.ndim == 2 and "embed" not in n)
    dtype = backend.model.dtype  # type: ignore[attr-defined]
    read, products = machine(dtype)
    result["limits"] = {
        "one stream": read / (weights * dtype.itemsize),
        "many streams": products / (2 * weights),
    }
    return result


def table(result: dict[str, Any]) -> str:
    """For people."""
    rows = [
        "| images at once | tokens/s | model.generate, float32 | bfloat16 | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for count, own in result["images"].items():
        rows.append(
            f"| {count} | {own['ours']:.0f} | {own['float32']:.0f} | {own['bfloat16']:.0f} | {own['ratio']:.2f} |"
        )
    took, limits = result["seconds"], result["limits"]
    few, many = (list(result["images"].values())[i]["ours"] for i in (0, -1))
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
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("generation_speed.json"))
    o = parser.parse_args()
    result = measure(o.model, o.counts, o.repeats)
    o.json.write_text(json.dumps(result, indent=1))
    print(table(result))


if __name__ == "__main__":
    main()
