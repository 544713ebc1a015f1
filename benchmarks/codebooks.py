"""Which way of quantising keeps most of radiographs, at equal bits, equal images seen and equal time?

    python benchmarks/codebooks.py runs/phantom --json codebooks.json                    # all arms, one after the other
    python benchmarks/codebooks.py runs/phantom --json codebooks.json --parallel 8       # on a GPU: eight arms at a time
    python benchmarks/codebooks.py runs/tokenizer-256 --recipe tokenizer-256 --arms "cosine 1024" "fsq 8x5x5x5"
    python benchmarks/codebooks.py --json codebooks.json --table                         # the table again; trains nothing

All arms train the same encoder and decoder (the recipe's, without its clinical network) from the same weights on the same
images by L1 alone, and are measured on validation images. An arm is a kind and its sizes:

    cosine 1024        codes compared by angle: moving averages and restarts (the default)
    euclidean 1024     the same by distance
    gradient 1024      by distance, learned by gradient without restarts: taming-transformers' VectorQuantizer2
    fsq 8x5x5x5        finite scalar quantization of so many levels (Mentzer et al., 2023)
    residual 2x32      codebook after codebook for what is left over, euclidean: as many tokens a place
    multiscale 256     two codebooks, one on the grid of half the side and one for what is left over (as VAR)

Bits of an image are the sum over its tokens of log2 of the codes that each can be. Images a second are measured alone, before
anything runs in parallel; an arm that is over 5 % slower or faster than the first is also trained for the time that the first
takes. What is in --json is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from vector_quantize_pytorch import FSQ

from llmcxr.evaluation.tokenizer_text import table as markdown
from llmcxr.foundation import loop
from llmcxr.foundation.artifacts import read_json, write_json
from llmcxr.foundation.devices import autocast, core_count, pick_device, place_network
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import load_settings
from llmcxr.image_tokens.codebook_health import CodebookHealth, restart_dead_codes
from llmcxr.image_tokens.settings import ArchitectureSettings, ImageTokenizerSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.image_tokens.training import trainable_quantizer
from llmcxr.metrics.images import ms_ssim
from llmcxr.metrics.reconstruction import perplexity, power_by_octave, psnr
from llmcxr.recipe import Recipe
from llmcxr.recipes import find_recipe
from llmcxr.studies.study import read_manifest

ARMS = [
    *(f"cosine {K}" for K in (1024, 256, 4096, 16384)),
    *(f"euclidean {K}" for K in (1024, 4096, 16384)),
    *(f"gradient {K}" for K in (1024, 16384)),
    *(f"fsq {levels}" for levels in ("8x6x5", "8x5x5x5", "7x5x5x5x5", "8x8x8x6x5")),  # the paper's for 2^8, ... 2^14
    *(f"residual 2x{K}" for K in (32, 64, 128)),
    *(f"multiscale {K}" for K in (256, 1024)),
]
_SAME_TIME = 0.05


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way of quantising: codebook i has `codes[i]` codes on a grid of `sides[i]`; `levels` of FSQ make up its codes."""

    kind: str
    codes: tuple[int, ...]
    sides: tuple[int, ...]
    levels: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Of an image."""
        return sum(side**2 for side in self.sides)

    @property
    def bits(self) -> float:
        """Of an image."""
        return sum(side**2 * math.log2(K) for side, K in zip(self.sides, self.codes, strict=True))


def read_arm(text: str, grid: int) -> Arm:
    """An arm by its name, on codes of `grid` x `grid` places. `UserError` where there is no such arm."""
    kind, _, sizes = text.partition(" ")
    try:
        numbers = tuple(int(n) for n in sizes.split("x"))
    except ValueError:
        numbers = ()
    if numbers and min(numbers) >= 2:
        if kind in ("cosine", "euclidean", "gradient") and len(numbers) == 1:
            return Arm(kind, numbers, (grid,))
        if kind == "fsq" and min(numbers) >= 3:
            return Arm(kind, (math.prod(numbers),), (grid,), numbers)
        if kind == "residual" and len(numbers) == 2:
            return Arm(kind, (numbers[1],) * numbers[0], (grid,) * numbers[0])
        if kind == "multiscale" and len(numbers) == 1 and grid % 2 == 0:
            return Arm(kind, numbers * 2, (grid // 2, grid))
    raise UserError(f"--arms: {text!r} is no arm on a grid of {grid} x {grid} codes. They are named as {ARMS}.")


# --- the quantisers: z [B, D, g, g] -> vectors [B, D, g, g], codes [B, ...] of each codebook, loss


class Averaged(nn.Module):
    """Codebooks of moving averages as llmcxr trains them; each but the first quantises what is left over, on its own grid."""

    def __init__(self, arm: Arm, s: ImageTokenizerSettings) -> None:
        super().__init__()
        self.sides, self.layers, self.health = arm.sides, nn.ModuleList(), nn.ModuleList()
        for K, side in zip(arm.codes, arm.sides, strict=True):
            kind: Any = "cosine" if arm.kind == "cosine" else "euclidean"
            place = ImageTokenizer(dataclasses.replace(s.architecture, codebook=kind, codebook_size=K))
            layer = trainable_quantizer(place, s.codebook_decay, s.commitment_weight)
            restart_dead_codes(layer, s.batch_size * side**2)
            self.layers.append(layer)
            self.health.append(CodebookHealth(layer, K))

    def forward(self, z: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        if len(self.layers) == 1:
            vectors, codes, loss = self.layers[0](z)
            return vectors, [codes], loss.sum()
        left, losses, found = z, [], []
        for side, layer in zip(self.sides, self.layers, strict=True):
            vectors, codes, loss = layer(F.adaptive_avg_pool2d(left, side))
            left = left - F.interpolate(vectors.detach(), size=z.shape[2:], mode="bilinear", align_corners=False)
            losses.append(loss.sum())
            found.append(codes)
        return z - left.detach(), found, torch.stack(losses).sum()  # gradients go straight through, once

    @property
    def restarts(self) -> float:
        """Codes restarted so far."""
        return sum(health.restarts.item() for health in self.health)


class Gradient(nn.Module):
    """taming-transformers' VectorQuantizer2 as VQ-GAN uses it: `legacy`, beta 0.25 at the codebook's half of the loss."""

    restarts = 0.0

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, code_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    def forward(self, z: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        flat = z.movedim(1, -1).reshape(-1, z.shape[1])
        with torch.no_grad():
            codes = torch.cdist(flat, self.embedding.weight).argmin(1).reshape(len(z), *z.shape[2:])
        vectors = self.embedding(codes).movedim(-1, 1)
        loss = F.mse_loss(z, vectors.detach()) + 0.25 * F.mse_loss(vectors, z.detach())
        return z + (vectors - z).detach(), [codes], loss


class Scalars(nn.Module):
    """FSQ between two linear maps. No code is learned, and none can die."""

    restarts = 0.0

    def __init__(self, levels: tuple[int, ...], code_dim: int) -> None:
        super().__init__()
        self.fsq = FSQ(list(levels), dim=code_dim)

    def forward(self, z: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        vectors, codes = self.fsq(z)
        return vectors, [codes.long()], z.new_zeros(())


class Coder(nn.Module):
    """Encoder, quantiser and decoder; of one seed all arms begin with the same encoder and decoder."""

    def __init__(self, arm: Arm, s: ImageTokenizerSettings, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        tokenizer = ImageTokenizer(s.architecture)
        self.encoder, self.decoder = tokenizer.encoder, tokenizer.decoder
        if arm.kind == "gradient":
            self.quantiser: nn.Module = Gradient(arm.codes[0], s.architecture.code_dim)
        elif arm.kind == "fsq":
            self.quantiser = Scalars(arm.levels, s.architecture.code_dim)
        else:
            self.quantiser = Averaged(arm, s)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Images [B, 1, S, S] in [-1, 1] -> as they are painted again, codes of each codebook, the quantiser's loss."""
        vectors, codes, loss = self.quantiser(self.encoder(images).float())
        return self.decoder(vectors).float(), codes, loss


# --- training and measuring


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all arms share."""

    run: Path
    settings: ImageTokenizerSettings
    device: str


def images_of(plan: Plan, split: str) -> Tensor:
    """The split's images uint8 [N, S, S] on the device, at the architecture's size by means of pixel blocks."""
    return _images(plan.run, split, plan.settings.architecture.image_size, plan.device)


@cache
def _images(run: Path, split: str, S: int, device: str) -> Tensor:
    rows = [k for k, study in enumerate(read_manifest(run / "manifest.parquet")) if study.split == split]
    images = torch.from_numpy(np.load(run / "pixels.npy", mmap_mode="r")[rows])
    size = images.shape[-1]
    if not rows or size % S:
        raise UserError(
            f"{run}: {len(rows)} images of the split {split}, of {size} px; {S} px are wanted. Name another run."
        )
    if size > S:
        images = torch.cat([F.avg_pool2d(part.float(), size // S).round().byte() for part in images.split(256)])
    return images.to(device)


def as_batch(images: Tensor) -> Tensor:
    """uint8 [B, S, S] -> float [B, 1, S, S] in [-1, 1]."""
    return (images.float() / 127.5 - 1)[:, None].contiguous(memory_format=torch.channels_last)


def training_steps(coder: Coder, plan: Plan, seed: int, steps: int) -> Iterator[Tensor]:
    """Train for so many steps, and yield after each."""
    s, train = plan.settings, images_of(plan, "train")
    device, B = train.device, min(s.batch_size, len(train))
    optimizer = torch.optim.AdamW(
        coder.parameters(), lr=s.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4, fused=device.type == "cuda"
    )
    coder.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = s.learning_rate * loop.cosine(step, steps)
        rows = stream(seed, "codebooks", step).choice(len(train), B, replace=False)
        x = as_batch(train[torch.from_numpy(rows).to(device)])
        with autocast(device):
            y, _, commitment = coder(x)
            loss = F.l1_loss(y, x) + commitment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        yield loss.detach()


def placed(arm: Arm, plan: Plan, seed: int) -> Coder:
    """A new coder on the plan's device."""
    coder = Coder(arm, plan.settings, seed)
    place_network(coder, torch.device(plan.device))
    return coder


def speed(arm: Arm, plan: Plan, seconds: float) -> float:
    """Images a second in training, after three steps; alone on the device for about so long."""
    steps = training_steps(placed(arm, plan, 0), plan, 0, 10**6)
    for _ in range(3):
        float(next(steps))
    begin, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - begin < seconds:
        last = next(steps)
        count += 1
    float(last)  # waits for the device
    return count * min(plan.settings.batch_size, len(images_of(plan, "train"))) / (time.perf_counter() - begin)


@torch.inference_mode()
def measure(coder: Coder, arm: Arm, plan: Plan) -> dict[str, Any]:
    """Scores on validation images; use of the codebooks over all images."""
    coder.eval()
    counts = [np.zeros(K, int) for K in arm.codes]
    scores: dict[str, list[float]] = {"l1": [], "psnr": [], "ms_ssim": []}
    power: list[np.ndarray] = []
    for split in ("train", "validate"):
        for part in images_of(plan, split).split(64):
            with autocast(part.device):
                y, codes, _ = coder(as_batch(part))
            for count, found in zip(counts, codes, strict=True):
                count += np.bincount(found.flatten().cpu().numpy(), minlength=len(count))
            if split == "train":
                continue
            original = part.cpu().numpy().astype(np.float64) / 255
            again = (y[:, 0].clamp(-1, 1).double().cpu().numpy() + 1) / 2
            scores["l1"] += np.abs(original - again).mean((1, 2)).tolist()
            scores["psnr"] += [psnr(a, b) for a, b in zip(original, again, strict=True)]
            scores["ms_ssim"] += [ms_ssim(a, b) for a, b in zip(original, again, strict=True)]
            power.append(np.stack([power_by_octave(original), power_by_octave(again)]))
    originals, painted = np.sum(power, 0)
    return {name: float(np.mean(values)) for name, values in scores.items()} | {
        "octaves": (painted / originals).tolist(),
        "codebook_use": float(np.concatenate(counts).astype(bool).mean()),
        "perplexity": [perplexity(count) for count in counts],
    }


def job(name: str, seed: int, steps: int, plan: Plan, threads: int) -> dict[str, Any]:
    """Train and measure one arm."""
    if threads:
        torch.set_num_threads(threads)
    arm = read_arm(name, plan.settings.architecture.grid)
    coder, begin = placed(arm, plan, seed), time.perf_counter()
    last = float(deque(training_steps(coder, plan, seed, steps), maxlen=1).pop())
    if not math.isfinite(last):
        raise UserError(f"{name}: the loss is {last} at the end. Lower image_tokenizer.learning_rate and run again.")
    seconds = time.perf_counter() - begin
    scores = measure(coder, arm, plan)
    return {"steps": steps, "seconds": round(seconds, 1), "restarts": coder.quantiser.restarts, **scores}


def jobs_of(arms: list[str], seeds: list[int], steps: int, speeds: dict[str, float]) -> dict[str, tuple[str, int, int]]:
    """Name of each training: arm, seed, steps. Equal images first, then equal time where that is another number of steps."""
    equal = {f"{arm}, seed {seed}, equal images": (arm, seed, steps) for seed in seeds for arm in arms}
    for seed in seeds:
        for arm in arms:
            ratio = speeds[arm] / speeds[arms[0]]
            if abs(ratio - 1) > _SAME_TIME:
                equal[f"{arm}, seed {seed}, equal time"] = (arm, seed, max(1, round(steps * ratio)))
    return equal


def run(arms: list[str], plan: Plan, o: argparse.Namespace) -> dict[str, Any]:
    """All that is not in the results yet; they are written after each training."""
    s = plan.settings
    described = {
        "architecture": dataclasses.asdict(s.architecture),
        **{key: getattr(s, key) for key in ("batch_size", "learning_rate", "codebook_decay", "commitment_weight")},
        "steps": o.steps,
        "images": {split: len(images_of(plan, split)) for split in ("train", "validate")},
        "reference": arms[0],
    }
    results = read_results(o.json) if o.json.exists() else {"settings": described, "speed": {}, "runs": {}}
    if results["settings"] != described:
        raise UserError(f"{o.json} holds results of other settings ({results['settings']}). Name another file.")
    name = torch.cuda.get_device_name() if plan.device.startswith("cuda") else plan.device
    for arm in tqdm([a for a in arms if a not in results["speed"]], desc="images a second"):
        results["speed"][arm] = speed(read_arm(arm, s.architecture.grid), plan, o.timing)
        results["device"] = name
        write_json(o.json, results)
    wanted = jobs_of(arms, o.seeds, o.steps, results["speed"])
    left = {key: job_ for key, job_ in wanted.items() if key not in results["runs"]}
    bar = tqdm(total=len(left), desc="trainings")

    def keep(key: str, result: dict[str, Any]) -> None:
        results["runs"][key] = result
        write_json(o.json, results)
        bar.update()
        bar.write(f"{key}: {json.dumps({k: result[k] for k in ('l1', 'codebook_use', 'steps', 'seconds')})}")

    faults: list[str] = []
    if o.parallel == 1:
        for key, (arm, seed, steps) in left.items():
            keep(key, job(arm, seed, steps, plan, 0))
    else:
        threads, context = max(1, core_count() // o.parallel), multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(o.parallel, mp_context=context) as pool:
            waiting = {pool.submit(job, *job_, plan, threads): key for key, job_ in left.items()}
            for done in as_completed(waiting):
                try:
                    keep(waiting[done], done.result())
                except (RuntimeError, UserError) as error:  # memory, or a process that was killed: the others go on
                    faults.append(f"{waiting[done]}: {error}")
    bar.close()
    if faults:
        raise UserError(
            f"{len(faults)} of {len(left)} trainings failed, e.g. {faults[0]}. The others are in {o.json}; run again for these."
        )
    return results


# --- the table


def read_results(path: Path) -> dict[str, Any]:
    """What `run` wrote. `UserError` where it is something else."""
    results = read_json(path)
    if not isinstance(results, dict) or not {"settings", "speed", "runs"} <= results.keys():
        raise UserError(f"{path} holds no results of this script. Name another file.")
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown: means over seeds; L1 is a share of the range, with the widest distance of a seed from the mean."""
    settings, speeds = results["settings"], results["speed"]
    grid = ArchitectureSettings(**settings["architecture"]).grid
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, result in results["runs"].items():
        arm, _, budget = key.split(", ")
        groups.setdefault((arm, budget), []).append(result)
    mean = {group: np.mean([r["l1"] for r in runs]) for group, runs in groups.items()}
    arms = {arm: read_arm(arm, grid) for arm, budget in groups if budget == "equal images"}
    curve = sorted((a.bits, float(mean[name, "equal images"])) for name, a in arms.items() if a.kind == "cosine")
    n = settings["images"]
    about = (
        f"{n['train']:,} training and {n['validate']:,} validation images, {settings['steps']:,} steps of "
        f"{settings['batch_size']} images on {results['device']}; equal time is that of `{settings['reference']}`."
    )
    head = ["quantiser", "tokens", "bits", "L1", "beside cosine of as many bits", "L1 at equal time", "PSNR", "MS-SSIM"]
    head += ["power kept, finest octave first", "in use", "perplexity", "restarts", "images/s"]
    rows = []
    for name, arm in sorted(arms.items(), key=lambda item: (item[1].bits, item[0])):
        runs, own = groups[name, "equal images"], mean[name, "equal images"]
        spread = max(abs(r["l1"] - own) for r in runs)
        beside = "-"
        if curve and arm.kind != "cosine" and curve[0][0] - 8 <= arm.bits <= curve[-1][0] + 8:
            beside = f"{own / np.interp(arm.bits, *zip(*curve, strict=True)) - 1:+.1%}"
        octaves = np.mean([r["octaves"] for r in runs], 0)
        codes = np.mean([r["perplexity"] for r in runs], 0)
        cells = [
            name,
            f"{arm.tokens}",
            f"{arm.bits:.0f}",
            f"{own:.4f}" + (f" ± {spread:.4f}" if len(runs) > 1 else ""),
            beside,
            f"{mean[name, 'equal time']:.4f}" if (name, "equal time") in mean else "same",
            *(f"{np.mean([r[key] for r in runs]):{form}}" for key, form in (("psnr", ".1f"), ("ms_ssim", ".3f"))),
            " ".join(f"{value:.2f}" for value in octaves[:4]),
            f"{np.mean([r['codebook_use'] for r in runs]):.3f}",
            " + ".join(f"{value:.0f}" for value in codes),
            f"{np.mean([r['restarts'] for r in runs]):,.0f}",
            f"{speeds[name]:,.0f}",
        ]
        rows.append(cells)
    return f"{about}\n\n{markdown(head, rows)}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder whose `studies` stage is done")
    parser.add_argument("overrides", nargs="*", help="settings of the recipe, e.g. image_tokenizer.batch_size=32")
    parser.add_argument("--recipe", default="phantom", help="whose image_tokenizer is trained (default %(default)s)")
    parser.add_argument("--arms", nargs="+", default=ARMS, help=f"default {ARMS}; the first is the reference of time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=2000, help="of an arm at equal images (default %(default)s)")
    parser.add_argument("--timing", type=float, default=1.0, help="seconds in which an arm's speed is measured")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at a time, in processes of their own")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--json", type=Path, required=True, help="where results are kept, and taken from")
    parser.add_argument("--table", action="store_true", help="print the table of what is in --json; nothing is trained")
    o = parser.parse_args()
    if o.table:
        print(table(read_results(o.json)))
        return
    if o.run is None:
        parser.error("a run folder is needed, unless --table is given")
    settings = load_settings(Recipe, find_recipe(o.recipe), o.overrides).image_tokenizer
    settings = dataclasses.replace(
        settings, architecture=dataclasses.replace(settings.architecture, clinical_input=False)
    )
    for arm in o.arms:
        read_arm(arm, settings.architecture.grid)
    print(table(run(o.arms, Plan(o.run, settings, str(pick_device(o.device))), o)))


if __name__ == "__main__":
    main()
