"""What image tokenizers keep of radiographs: numbers for any of them on any data, beside plain averages of pixel blocks.

Block averages are as many numbers as there are tokens, painted by bilinear interpolation (each a number, where a token is one of K).
A tokenizer of smaller images than the largest is measured at its own size, and again with what it paints shown at the largest: only
numbers at one size can be compared.

Shapes: N images, B images of a batch, S side in pixels, g side of the code grid, K codes, F findings. Pixels: uint8, 0 black; or [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcxr.evaluation.onlookers import Onlookers, resized
from llmcxr.evaluation.tokenizer_data import Radiographs
from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.classifier import batch_of
from llmcxr.image_tokens.clinical_features import FeatureNetwork
from llmcxr.image_tokens.codec import ImageCodec
from llmcxr.metrics.auroc_loss import AurocLoss, auroc_loss
from llmcxr.metrics.images import ms_ssim
from llmcxr.metrics.reconstruction import frechet_distance, perplexity, power_by_octave, psnr
from llmcxr.studies.radiographs import to_uint8
from llmcxr.studies.study import known_findings, label_matrix

_BATCH = 16
BLOCKS = "averages of pixel blocks"


@dataclass(frozen=True)
class Evaluators:
    """Networks that look at the images: each may be missing, and its numbers with it."""

    clinical: FeatureNetwork | None = None  # of whose features the Fréchet distance is
    onlookers: Onlookers | None = None
    lpips: nn.Module | None = None


NOBODY = Evaluators()


@dataclass
class Painted:
    """One way of painting a data set's images again, shown at one size; what is known of each image, in order."""

    name: str
    grid: int
    size: int  # at which it is shown and measured
    own_size: int  # at which it is painted
    l1: list[float] = field(default_factory=list)  # shares of the range
    psnr: list[float] = field(default_factory=list)  # dB
    ms_ssim: list[float] = field(default_factory=list)
    lpips: list[float] = field(default_factory=list)
    power: list[np.ndarray] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    shown: list[np.ndarray] = field(default_factory=list)  # uint8 [S, S] of the first images
    counts: np.ndarray | None = None  # [K], how often each code occurs; None for block averages

    def see(self, y: Tensor, evaluators: Evaluators, shown: int) -> np.ndarray:
        """Keep what networks and spectrum see of images [B, 1, S, S]; they come back as [B, S, S] in [0, 1]."""
        pixels = y[:, 0].float().cpu().numpy().clip(-1, 1)
        self.shown += list(to_uint8(pixels[: max(0, shown - len(self.shown))]))
        self.power.append(power_by_octave((pixels + 1) / 2))
        if evaluators.clinical is not None:
            self.features.append(evaluators.clinical.feature_maps(y)[1].float().cpu().numpy())
        if evaluators.onlookers is not None:
            self.logits.append(evaluators.onlookers.logits(y))
        return (pixels + 1) / 2

    def compare(self, x: Tensor, original: np.ndarray, y: Tensor, evaluators: Evaluators, shown: int) -> None:
        """Add images painted again, y [B, 1, S, S], of x, which is `original` [B, S, S] in [0, 1], too."""
        again = self.see(y, evaluators, shown)
        self.l1 += np.abs(original - again).mean((1, 2)).tolist()
        self.psnr += [psnr(a, b) for a, b in zip(original, again, strict=True)]
        self.ms_ssim += [ms_ssim(a, b) for a, b in zip(original, again, strict=True)]
        if evaluators.lpips is not None:
            self.lpips += evaluators.lpips(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)).flatten().tolist()


@dataclass(frozen=True)
class Measured:
    """A data set through several tokenizers and back: `painted` ways, and by size the originals that they were compared with."""

    data: str
    n: int
    unreadable: list[str]
    painted: list[Painted]
    originals: dict[int, Painted]
    findings: tuple[str, ...]  # those that are labelled here and that the onlookers know
    labels: np.ndarray  # [N, F]
    columns: list[int]  # of the onlookers' logits, for `findings`
    patients: list[str]

    def octaves(self, way: Painted) -> list[float]:
        """Power of all that was painted over that of all originals, from the finest octave on: below 1 blur, above speckle."""
        with np.errstate(divide="ignore", invalid="ignore"):  # originals without any
            return (np.sum(way.power, 0) / np.sum(self.originals[way.size].power, 0)).tolist()

    def auroc(self, way: Painted) -> AurocLoss | None:
        """What the onlookers lose; None where none knows a finding that is labelled here."""
        if not self.findings:
            return None
        before, after = (np.concatenate(p.logits)[:, self.columns] for p in (self.originals[way.size], way))
        return auroc_loss(self.labels, before, after, self.patients)

    def distance(self, way: Painted) -> float | None:
        """Fréchet distance of the clinical network's features."""
        if not way.features:
            return None
        return frechet_distance(np.concatenate(self.originals[way.size].features), np.concatenate(way.features))


def block_averages(images: Tensor, grid: int) -> Tensor:
    """[B, 1, S, S] -> the same, of which only the means of grid x grid blocks are known."""
    small = F.adaptive_avg_pool2d(images, grid)
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)


def _batches(
    data: Radiographs, sizes: list[int], kept: list[int], unreadable: list[str]
) -> Iterator[dict[int, np.ndarray]]:
    """uint8 [B, S, S] of the images that can be read at every size S; their places go to `kept`, the others' reasons to `unreadable`."""
    waiting: list[tuple[np.ndarray, ...]] = []

    def batch() -> dict[int, np.ndarray]:
        result = {size: np.stack(column) for size, column in zip(sizes, zip(*waiting, strict=True), strict=True)}
        waiting.clear()
        return result

    for place, squares in enumerate(zip(*map(data.read, sizes), strict=True)):
        if reason := next((s for s in squares if isinstance(s, str)), None):
            unreadable.append(reason)
            continue
        kept.append(place)
        waiting.append(squares)  # type: ignore[arg-type]
        if len(waiting) == _BATCH:
            yield batch()
    if waiting:
        yield batch()


@torch.inference_mode()
def measure(
    data: Radiographs,
    codecs: Mapping[str, ImageCodec],
    device: torch.device,
    evaluators: Evaluators = NOBODY,
    shown: int = 0,
    blocks: Sequence[int] = (),
) -> Measured:
    """Every tokenizer, by name, on every image that can be read; of the first `shown` images the pictures are kept.

    Beside each stand averages of as many blocks as it has tokens, and of `blocks` x `blocks`.

    `UserError` where none can be read.
    """
    largest = max(codec.image_size for codec in codecs.values())
    sizes = sorted({largest} | {codec.image_size for codec in codecs.values()})
    originals = {size: Painted("original", 0, size, size) for size in sizes}
    ways: dict[tuple[str, int], Painted] = {}
    counts = {name: np.zeros(len(codec.codebook), int) for name, codec in codecs.items()}
    for name, codec in codecs.items():
        own, grid = codec.image_size, codec.grid
        for size in sorted({own, largest}):
            ways[name, size] = Painted(name, grid, size, own, counts=counts[name])
            for side in (grid, *blocks):
                ways.setdefault((f"{BLOCKS} {side}", size), Painted(BLOCKS, side, size, size))
    kept, unreadable = list[int](), list[str]()
    for batch in _batches(data, sizes, kept, unreadable):
        x = {size: batch_of(own, np.arange(len(own)), device) for size, own in batch.items()}
        seen = {size: originals[size].see(images, evaluators, shown) for size, images in x.items()}
        painted: dict[str, Tensor] = {}
        for name, codec in codecs.items():
            codes = codec.encode(x[codec.image_size])
            painted[name] = codec.decode(codes)
            counts[name] += np.bincount(codes.flatten().cpu().numpy(), minlength=len(codec.codebook))
        for (name, size), way in ways.items():
            y = block_averages(x[size], way.grid) if way.counts is None else resized(painted[name], size)
            way.compare(x[size], seen[size], y, evaluators, shown)
    if not kept:
        raise UserError(f"none of {len(data.studies):,} files of {data.name} could be read. The first: {unreadable[0]}")
    studies = [data.studies[i] for i in kept]
    told = evaluators.onlookers.findings if evaluators.onlookers is not None else ()
    findings = tuple(name for name in known_findings(studies) if name in told)
    columns = [evaluators.onlookers.findings.place(name) for name in findings] if evaluators.onlookers else []
    return Measured(
        data.name,
        len(kept),
        unreadable,
        list(ways.values()),
        originals,
        findings,
        label_matrix(studies, findings),
        columns,
        [study.patient_id for study in studies],
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def numbers(measured: Measured, way: Painted) -> dict:
    """JSON-able: what is known of one way of painting; null for what is no finite number (the PSNR of equal images, the spectrum of
    empty ones)."""
    result: dict = {
        "data": measured.data,
        "n": measured.n,
        "tokenizer": way.name,
        "numbers": way.grid**2,
        "size": way.size,
        "painted_at": way.own_size,
        "l1": float(np.mean(way.l1)),
        "psnr": _finite(float(np.mean(way.psnr))),
        "ms_ssim": float(np.mean(way.ms_ssim)),
        "lpips": float(np.mean(way.lpips)) if way.lpips else None,
        "octaves": [_finite(v) for v in measured.octaves(way)],
        "fd": _finite(measured.distance(way)),
    }
    if way.counts is not None:
        result |= {"codebook_use": float((way.counts > 0).mean()), "perplexity": perplexity(way.counts)}
    if (lost := measured.auroc(way)) is not None:
        result["auroc"] = {
            "original": _finite(lost.mean_before),
            "loss": _finite(lost.mean_loss),
            "interval": [_finite(v) for v in lost.mean_interval],
            "by_finding": {
                name: {
                    "positives": int(lost.positives[f]),
                    "original": _finite(lost.before[f]),
                    "loss": _finite(lost.loss[f]),
                    "interval": [_finite(v) for v in lost.intervals[f]],
                }
                for f, name in enumerate(measured.findings)
            },
        }
    return result
