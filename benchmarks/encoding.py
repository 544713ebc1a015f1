"""Images a second from files to codes: `llmcxr encode`'s loop against the straightforward one, with the same weights.

    python benchmarks/encoding.py --images 64 --size 128                # small: a toy width
    python benchmarks/encoding.py RADIOGRAPHS --layout paper            # the paper's layout at 256 px
    python benchmarks/encoding.py RADIOGRAPHS --tokenizer FOLDER
    python benchmarks/encoding.py RADIOGRAPHS --memory returned         # what does keeping freed memory buy on a CPU?

The straightforward loop is that of the paper's code: PIL, RGB, shorter side by Lanczos, centre crop, float32, batches of 16, in one process.
Without RADIOGRAPHS, noise of 1,024 x 1,200 pixels is written as PNG first. Each loop runs once to warm up on a few images, then once on all; the
loops alternate `--rounds` times. Equal codes are counted on the same squares of pixels (exact: precision float32), and from the
files, where ours crops before it resizes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llmcxr.foundation.devices import precision, set_precision
from llmcxr.foundation.processes import Processes
from llmcxr.image_tokens import encoding
from llmcxr.image_tokens.classifier import batch_of
from llmcxr.image_tokens.codes import read_codes
from llmcxr.image_tokens.encoding import encode_files
from llmcxr.image_tokens.settings import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.studies.image_files import image_files, read_squares

LAYOUTS = {
    "toy": {"channels": [32, 32, 64, 64], "z_channels": 64, "code_dim": 64, "blocks": 1},
    "paper": {},
}


def straightforward(tokenizer: ImageTokenizer, paths: list[Path], device: torch.device) -> np.ndarray:
    """Codes [N, L] by the paper's loop, in float32."""
    S, parts = tokenizer.image_size, []
    for first in range(0, len(paths), 16):
        batch = []
        for path in paths[first : first + 16]:
            image = Image.open(path).convert("RGB")
            scale = S / min(image.size)
            image = image.resize([round(scale * side) for side in image.size], Image.Resampling.LANCZOS)
            left, top = ((side - S) // 2 for side in image.size)
            batch.append(np.asarray(image.crop((left, top, left + S, top + S)))[..., 0])
        x = torch.from_numpy(np.stack(batch)).to(device)[:, None].float() / 127.5 - 1
        with torch.inference_mode():
            z = tokenizer.encoder(x).permute(0, 2, 3, 1)
            parts.append(tokenizer._nearest(z.reshape(-1, z.shape[-1])).reshape(len(batch), -1).cpu())
    return torch.cat(parts).numpy()


def random_tokenizer(layout: str, size: int) -> ImageTokenizer:
    """Random weights, with code vectors as far apart as what is encoded."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ArchitectureSettings(size, codebook="euclidean", **LAYOUTS[layout])).eval()
    tokenizer.requires_grad_(False)
    z = tokenizer.encoder(torch.rand(2, 1, size, size) * 2 - 1).movedim(1, -1).flatten(0, 2)
    tokenizer.codebook.copy_(z.mean(0) + z.std(0) * torch.randn_like(tokenizer.codebook))
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("radiographs", type=Path, nargs="*")
    parser.add_argument("--images", type=int, default=128, help="at most so many")
    parser.add_argument("--tokenizer", help="a folder; else random weights of --layout")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="toy")
    parser.add_argument("--size", type=int, default=256, help="of random weights, in pixels")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help="of ours")
    parser.add_argument("--memory", choices=["kept", "returned"], default="kept", help="by ours, between batches")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("encoding.json"))
    arguments = parser.parse_args()
    if arguments.memory == "returned":
        encoding.freed_memory_kept = nullcontext
    processes = Processes("auto")
    device = processes.device
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        if not arguments.radiographs:
            drawn = np.random.default_rng(0)
            for k in range(arguments.images):
                noise = Image.fromarray(drawn.integers(0, 256, (40, 34), dtype=np.uint8))
                noise.resize((1024, 1200), Image.Resampling.BICUBIC).save(place / f"{k:05d}.png")
        paths = image_files(arguments.radiographs or [place])[: arguments.images]
        if arguments.tokenizer:
            tokenizer = ImageTokenizer.from_pretrained(arguments.tokenizer)
        else:
            random_tokenizer(arguments.layout, arguments.size).save_pretrained(place / "tokenizer")
            tokenizer = ImageTokenizer.from_pretrained(place / "tokenizer")
        tokenizer = tokenizer.to(device)
        processes.agree_on_precision(arguments.precision)
        ids = [str(p) for p in paths]
        seconds: dict[str, list[float]] = {"straightforward": [], "ours": []}
        for k in range(arguments.rounds + 1):
            some = slice(0, 16 if k == 0 else None)
            begin = time.monotonic()
            theirs = straightforward(tokenizer, paths[some], device)
            middle = time.monotonic()
            encode_files(tokenizer, ids[some], paths[some], place / f"round{k}", processes)
            end = time.monotonic()
            if k:
                seconds["straightforward"].append(middle - begin)
                seconds["ours"].append(end - middle)
        ours = np.stack(list(read_codes(place / f"round{k}" / "codes.parquet", tokenizer.fingerprint).values()))
        begin = time.monotonic()
        squares = np.stack([s for s in read_squares(paths, tokenizer.image_size) if not isinstance(s, str)])
        reading = time.monotonic() - begin
        own = str(precision(device, "training")).removeprefix("torch.")
        begin = time.monotonic()
        batches = [
            batch_of(squares, np.arange(i, min(i + 16, len(squares))), device) for i in range(0, len(squares), 16)
        ]
        same = [tokenizer.encode(x).flatten(1).cpu().numpy() for x in batches]
        network = time.monotonic() - begin
        set_precision(device, {"training": torch.float32, "generating": torch.float32})
        exact = [tokenizer.encode(x).flatten(1).cpu().numpy() for x in batches]
    N = len(paths)
    result = {
        "device": str(device),
        "precision": own,
        "memory": arguments.memory,
        "images": N,
        "images_a_second": {name: N / float(np.median(values)) for name, values in seconds.items()},
        "times_as_fast": float(np.median(seconds["straightforward"]) / np.median(seconds["ours"])),
        "reading_alone_s": reading,
        "network_alone_s": network,
        "neither_share": max(0.0, 1 - (reading + network) / float(np.median(seconds["ours"]))),
        "equal_codes": {
            "to exact, same pixels": float((np.concatenate(same) == np.concatenate(exact)).mean()),
            "to theirs, from files": float((ours == theirs).mean()) if ours.shape == theirs.shape else None,
        },
    }
    arguments.json.write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
