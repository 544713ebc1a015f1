"""How much an image tokenizer learns in a fixed time: convolutions against the mixer, beside principal components.

    python benchmarks/image_tokenizer_learning.py runs/quickstart --seconds 70
    python benchmarks/image_tokenizer_learning.py runs/tokenizer-256 --seconds 150 --only mixer --rate 8e-4

All train on the pixels of a finished `studies` stage, by L1 alone, in turn on the same machine, and are measured on validation
images. Principal components, unquantized, say how much of the images a linear map of so many numbers explains.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.devices import autocast, pick_device, place_network
from llmcxr.foundation.randomness import stream
from llmcxr.image_tokens.classifier import batch_of
from llmcxr.image_tokens.codebook_health import restart_dead_codes
from llmcxr.image_tokens.settings import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.image_tokens.training import codebook_use, trainable_quantizer, training_pass
from llmcxr.studies.radiographs import from_uint8
from llmcxr.studies.study import read_manifest


def architectures(size: int) -> dict[str, ArchitectureSettings]:
    """One code of 64 dimensions for 16 x 16 pixels from each."""
    common = {"image_size": size, "codebook_size": 1024, "code_dim": 64}
    return {
        "convolutional, wide": ArchitectureSettings(**common, channels=[32, 64, 128, 192, 256]),
        "convolutional, narrow": ArchitectureSettings(**common, channels=[32, 32, 64, 128, 256]),
        "mixer": ArchitectureSettings(**common, kind="mixer", patch=16),
        "mixer, wide": ArchitectureSettings(**common, kind="mixer", patch=16, width=768),
    }


def learn(
    a: ArchitectureSettings, train: np.ndarray, unseen: np.ndarray, seconds: float, rate: float, batch_size: int
) -> dict[str, float]:
    """Train for `seconds`; L1 (of pixels in [-1, 1]) on `unseen`, steps, and codebook use."""
    device = pick_device()
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(a).train()
    quantizer = trainable_quantizer(tokenizer, decay=0.95)
    restart_dead_codes(quantizer, batch_size * a.grid**2)
    place_network(tokenizer, device)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=rate, betas=(0.9, 0.95))
    start, step = time.perf_counter(), 0
    while (progress := (time.perf_counter() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * min(1.0, 0.1 + 1.8 * (1 - progress))
        rows = stream(0, "benchmark", step).choice(len(train), batch_size, replace=False)
        x = batch_of(train, rows, device)
        with autocast(device):
            y, commitment, _ = training_pass(tokenizer, x)
            loss = F.l1_loss(y.float(), x) + commitment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        step += 1
    tokenizer.eval()
    x = batch_of(unseen, np.arange(len(unseen)), device)
    codes = tokenizer.encode(x)
    error = (tokenizer.decode(codes) - x).abs().mean().item()
    return {"l1": error, "steps": step, "codebook_use": codebook_use(codes.cpu().numpy(), a.codebook_size)}


def principal_components(train: np.ndarray, unseen: np.ndarray, count: int) -> float:
    """L1 on `unseen` of the best linear map of `count` numbers, from at most 1,800 training images."""
    a, b = (from_uint8(images).reshape(len(images), -1) for images in (train[:1800], unseen))
    mean = a.mean(0)
    _, vectors = np.linalg.eigh((a - mean) @ (a - mean).T)
    basis = vectors[:, -count:].T @ (a - mean)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    return float(np.abs(b - mean - (b - mean) @ basis.T @ basis).mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder whose `studies` stage is done")
    parser.add_argument("--seconds", type=float, default=70, help="training time of each (default 70)")
    parser.add_argument("--rate", type=float, nargs="+", default=[8e-4, 1.6e-3], help="learning rates tried for each")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--only", nargs="+", help="networks whose names begin so (default: all)")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    o = parser.parse_args()
    studies, pixels = read_manifest(o.run / "manifest.parquet"), np.load(o.run / "pixels.npy", mmap_mode="r")
    train = pixels[[i for i, s in enumerate(studies) if s.split == "train"]]
    unseen = pixels[[i for i, s in enumerate(studies) if s.split == "validate"][:256]]
    results: dict[str, dict[str, float]] = {}
    for count in (16, 64, 256):
        results[f"principal components, {count}"] = {"l1": principal_components(train, unseen, count)}
    for name, a in architectures(pixels.shape[1]).items():
        if o.only and not name.startswith(tuple(o.only)):
            continue
        for rate in o.rate:
            results[f"{name}, rate {rate:g}"] = learn(a, train, unseen, o.seconds, rate, o.batch_size)
            print(name, rate, json.dumps(results[f"{name}, rate {rate:g}"]), flush=True)
    print(f"\n{'':36}{'L1':>8}{'steps':>8}{'codes':>8}")
    for name, r in results.items():
        more = f"{r['steps']:>8}{r['codebook_use']:>8.2f}" if "steps" in r else ""
        print(f"{name:36}{r['l1']:>8.4f}{more}")
    if o.json:
        write_json(o.json, results)


if __name__ == "__main__":
    main()
