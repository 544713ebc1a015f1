"""Memory of taking a split of a large pixels.npy and drawing batches from it.

    python benchmarks/pixel_store_memory.py                        # 400,000 images of 256 pixels, a sparse file
    python benchmarks/pixel_store_memory.py --images 20000 --all   # also `pixels[rows]` on the mapped array, measured

The file is sparse, so it takes no disk. Private memory is what the process itself holds; mapped pages are the system's to take back.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from llmcxr.studies.pixel_store import PixelStore


def memory() -> dict[str, float]:
    """Private and mapped resident memory of this process in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"private": found["RssAnon"], "mapped": found["RssFile"] + found["RssShmem"]}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--all", action="store_true", help="also copy the split, as `pixels[rows]` does")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.npy"
        shape = (o.images, o.size, o.size)
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)  # type: ignore[no-untyped-call]
        rng = np.random.default_rng(0)
        rows = np.flatnonzero(rng.random(o.images) < 0.8)
        copied = len(rows) * o.size**2 / 2**20
        print(f"{o.images:,} images of {o.size} x {o.size}; a split of {len(rows):,}")
        start = memory()
        print(f"pixels[rows], reckoned: {copied:,.0f} MiB private")
        if o.all:
            images = np.load(path, mmap_mode="r")[rows]
            print(f"pixels[rows], measured: {memory()['private'] - start['private']:,.0f} MiB private")
            del images
        start = memory()
        clock = time.perf_counter()
        split = PixelStore.open(path).select(rows)
        took, peak = time.perf_counter() - clock, memory()
        clock = time.perf_counter()
        for _ in range(o.batches):
            split[rng.choice(len(split), o.batch_size, replace=False)]
            now = memory()
            peak = {kind: max(peak[kind], now[kind]) for kind in peak}
        each = (time.perf_counter() - clock) / o.batches * 1000
        own, mapped = (peak[kind] - start[kind] for kind in ("private", "mapped"))
        print(
            f"PixelStore.select: {took * 1000:.0f} ms; peak over {o.batches} batches of {o.batch_size} ({each:.1f} ms each): "
        )
        print(f"    {own:,.0f} MiB private, {mapped:,.0f} MiB mapped")


if __name__ == "__main__":
    main()
