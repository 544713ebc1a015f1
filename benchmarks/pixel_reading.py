"""What reading does to real radiographs: what the crop loses of the lungs, and what plausibility flags.

    python benchmarks/pixel_reading.py DATA/real-notes DATA/real-cxr

Each folder holds `images/`, and may hold `lung-masks/` (NAME.png, white lungs of images/NAME.*, of any size). Every
image is read by the code of a run, also turned into its negative, darkened, and so on, so that both kinds of error are
seen.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from llmcxr.foundation.errors import UserError
from llmcxr.studies.geometry import inside_borders
from llmcxr.studies.grey_scale import Radiograph
from llmcxr.studies.plausibility import implausible
from llmcxr.studies.radiographs import network_square, read_radiograph, to_uint8

SIZE = 128
CHANGES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {  # what is done: the reason that should be given
    "as it is": ("", lambda x: x),
    "negative": ("inverted", lambda x: 255 - x),
    "12 bits read as 16": ("nearly black", lambda x: x // 16),
    "washed out": ("nearly white", lambda x: 225 + x // 9),
    "hardly any contrast": ("nearly constant", lambda x: 100 + x // 12),
    "black and white": ("two or three grey values", lambda x: np.where(x > np.median(x), 220, 30).astype(np.uint8)),
}


def lungs_lost(image: Radiograph, mask: Path) -> tuple[float, float]:
    """Shares of a lung mask (of any size) that the centre crop and the cut of black borders leave out."""
    H, W = image.pixels.shape
    with Image.open(mask) as picture:
        lungs = np.asarray(picture.convert("L").resize((W, H), Image.Resampling.NEAREST)) > 127
    side = min(H, W)
    top, left = (H - side) // 2, (W - side) // 2
    square = (slice(top, top + side), slice(left, left + side))
    crop, cut = (1 - float(lungs[box].sum() / lungs.sum()) for box in (square, inside_borders(image.pixels)))
    return crop, cut


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    for folder in parser.parse_args().folders:
        images, refused, scales, remarks = [], [], Counter[str](), Counter[str]()
        lost: list[tuple[float, float, str]] = []
        borders: list[float] = []  # share of the area
        cut_lungs: list[float] = []
        for path in sorted((folder / "images").iterdir()):
            try:
                found = read_radiograph(path)
                images.append((path.name, to_uint8(network_square(found, SIZE))))
            except UserError as error:
                refused.append(str(error))
                continue
            scales[found.grey_scale] += 1
            remarks.update(found.remarks)
            borders.append(1 - found.pixels[inside_borders(found.pixels)].size / found.pixels.size)
            mask = folder / "lung-masks" / f"{path.stem}.png"
            if mask.exists():
                aspect = max(found.pixels.shape) / min(found.pixels.shape)
                crop, cut = lungs_lost(found, mask)
                lost.append((crop, aspect, path.name))
                cut_lungs.append(cut)
        print(f"\n{folder.name}: {len(images)} images read, {len(refused)} refused")
        for text in (*refused[:5], *(f"{count:5} {what}" for what, count in (scales + remarks).most_common())):
            print(f"    {text}")
        areas = np.array(borders)
        print(
            f"    black borders: over 1 % of the area in {(areas > 0.01).sum()}, over 10 % in {(areas > 0.1).sum()}",
            end="",
        )
        print(f"; cutting them costs {max(cut_lungs):.1%} of the lungs at most" if cut_lungs else "")
        if lost:
            share = np.array([value for value, _, _ in lost])
            mean, worst = share.mean(), max(lost)[2]
            long = np.array([aspect >= 1.3 for _, aspect, _ in lost])
            print(f"    the centre crop loses of {len(lost)} lungs: mean {mean:.1%}, median {np.median(share):.1%}")
            print(f"        over 5 % in {(share > 0.05).sum()}, worst {share.max():.0%} ({worst})")
            if long.any():
                print(f"        of the {long.sum()} of aspect 1.3 or more: mean {share[long].mean():.1%}")
        for change, (reason, apply) in CHANGES.items():
            said = Counter(implausible(apply(pixels)) or "plausible" for _, pixels in images)
            right = said[reason or "plausible"]
            others = ", ".join(f"{count} {what}" for what, count in said.items() if what != (reason or "plausible"))
            print(f"    {change}: {right} of {len(images)} {reason or 'plausible'}{f'; {others}' if others else ''}")
        flagged = [f"{name} ({said})" for name, pixels in images if (said := implausible(pixels))]
        print(f"    flagged as they are: {', '.join(flagged) or 'none'}")


if __name__ == "__main__":
    main()
