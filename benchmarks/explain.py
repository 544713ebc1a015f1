"""Where the model looks, beside the phantom's own masks: pointing game and IoU of `LlmCxr.explain`.

    llmcxr prepare demo name=unseen source.phantom.train=200 source.phantom.validate=300 source.phantom.test=200 source.phantom.seed=5
    python benchmarks/explain.py runs/unseen                        # 50 pairs of image and finding a split
    python benchmarks/explain.py runs/unseen --pairs 10 --variants "any 4"    # a small one
    python benchmarks/explain.py runs/unseen --minutes 4            # as far as it comes; the same again goes on

Every pair is a finding that the image shows. Variants (what replaces a patch, codes along its side) and, for every map, how much of
the image counts as its region are chosen on validation patients; then the choice, gradients (Captum), the centre prior (mean mask of the
finding in training patients, of which the phantom's positions are drawn) and chance are measured on test patients. A map points right
where its maximum is within half a code of the mask. Maps are kept in OUT, and not made again.

Needs `pip install "llmcxr[benchmarks]"`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
from PIL import Image
from scipy import ndimage

from llmcxr.foundation.artifacts import write_json
from llmcxr.inference.backend import first_tokens
from llmcxr.inference.explanation import beliefs, likely_alternatives, mean_falls, patches, replaced, stretched
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.instructions.questions import NOTHING, PRESENCE_ANSWERS, presence_question
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.radiographs import from_uint8
from llmcxr.studies.study import Study, read_manifest
from llmcxr.tasks import cxr_vqa, report_to_cxr
from llmcxr.vocabulary.head import project

VARIANTS = ("any 4", "normal 4", "place 4", "any 3", "any 2")  # what a patch is replaced by, codes along its side
GRADIENTS = ("gradient", "integrated gradients")
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4)  # of the image that can count as a map's region
CHANCE = 50  # random maps a pair


@dataclass(frozen=True)
class Pair:
    """A finding that an image shows, and where: bool [S, S]."""

    image_id: str
    finding: str
    mask: np.ndarray


def masks_of(folder: Path, study: Study) -> dict[str, np.ndarray]:
    """Finding -> bool [S, S], of findings that lie somewhere."""
    bits = np.asarray(Image.open(folder / study.mask_path))
    found: dict[str, np.ndarray] = {}
    for i, finding in enumerate(study.truth):
        found[finding.name] = found.get(finding.name, False) | ((bits >> i) & 1).astype(bool)
    return {name: mask for name, mask in found.items() if mask.any()}


class Data:
    """A run whose studies are done: images and masks of its splits."""

    def __init__(self, folder: Path, model: LlmCxr) -> None:
        self.folder, self.model = folder, model
        self.studies = read_manifest(folder / "manifest.parquet")
        self._pixels = PixelStore.open(folder / "pixels.npy")
        self._rows = {study.image_id: i for i, study in enumerate(self.studies)}

    def split(self, name: str) -> list[Study]:
        return [study for study in self.studies if study.split == name]

    def codes(self, ids: Sequence[str]) -> np.ndarray:
        return self.model.encode([from_uint8(self._pixels[self._rows[i]]) for i in ids])

    def pairs(self, split: str, count: int) -> list[Pair]:
        """About `count` pairs: all of an image or none, so that its readings are shared."""
        result: list[Pair] = []
        for study in self.split(split):
            if len(result) >= count:
                break
            own = masks_of(self.folder, study)
            result += [Pair(study.image_id, name, mask) for name, mask in own.items()]
        return result

    def prior(self) -> dict[str, np.ndarray]:
        """Finding -> mean mask over training patients who have it, float [S, S]."""
        found: dict[str, list[np.ndarray]] = {}
        for study in self.split("train"):
            for name, mask in masks_of(self.folder, study).items():
                found.setdefault(name, []).append(mask)
        return {name: np.mean(own, axis=0) for name, own in found.items()}


def alternatives(data: Data, kind: str, codes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """What patches of an image with codes [L] are replaced by: [count, L]."""
    asker = data.model.asker
    if kind == "any":
        return likely_alternatives(asker, codes, count, seed)
    if kind == "normal":  # as likely in a drawing of a report without a finding
        clear = report_to_cxr.TASK.prompt("The heart is normal in size. The lungs are clear.", NOTHING)
        return likely_alternatives(asker, codes, count, seed, clear)
    train = data.codes([study.image_id for study in data.split("train")[:100]])
    rows = np.random.default_rng(seed).integers(0, len(train), (count, len(codes)))
    return train[rows, np.arange(len(codes))]


def perturbed(data: Data, variant: str, codes: np.ndarray, findings: Sequence[str], seed: int) -> np.ndarray:
    """Maps [N, L] of the findings of an image, and in front of each p(yes) as log-odds: [N, 1 + L]."""
    kind, side = variant.split()
    masks = patches(data.model.info.grid, int(side))
    others = replaced(codes, alternatives(data, kind, codes, len(masks), seed), masks)
    values = beliefs(data.model.asker, np.concatenate([codes[None], others]), findings)
    falls = mean_falls(values[:, 0], values[:, 1:], masks)
    return np.concatenate([values[:, :1], falls], axis=1)


def gradients(data: Data, method: str, codes: np.ndarray, findings: Sequence[str]) -> np.ndarray:
    """The same by Captum, of the embeddings of the image's codes: log-odds of yes, attributed."""
    asker = data.model.asker
    model, vocabulary = asker.backend.model, asker.vocabulary
    ids = first_tokens(PRESENCE_ANSWERS, vocabulary)

    def odds(tokens: torch.Tensor) -> torch.Tensor:
        last = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[:, -1]
        yes, no = (project(model, last, i, i + 1, precise=True)[:, 0] for i in ids)
        return yes - no

    train = data.codes([study.image_id for study in data.split("train")[:100]]).astype(np.int64)
    usual = np.array([np.bincount(column).argmax() for column in train.T])  # at each place the commonest code
    rows = []
    for finding in findings:
        turns = [cxr_vqa.TASK.prompt(own, presence_question(finding)) for own in (codes, usual)]
        tokens, baseline = (torch.tensor([prompt]) for prompt in asker.prompts(turns))
        if method == "gradient":
            values = LayerGradientXActivation(odds, model.get_input_embeddings()).attribute(tokens)
        else:
            layer = LayerIntegratedGradients(odds, model.get_input_embeddings())
            values = layer.attribute(tokens, baselines=baseline, n_steps=12, internal_batch_size=6)
        image = (tokens[0] >= vocabulary.first_id) & (tokens[0] < vocabulary.first_id + vocabulary.size)
        with torch.no_grad():
            value = odds(tokens).item()
        rows.append([value, *values[0].float().sum(-1)[image].tolist()])
    return np.array(rows)


class Kept:
    """Maps that were made: {variant: {image id: {finding: [log-odds, *map]}}}, in a JSON file."""

    def __init__(self, path: Path, data: Data, minutes: float) -> None:
        self.path, self.data, self.end = path, data, time.monotonic() + 60 * minutes
        self.maps: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def make(self, pairs: Sequence[Pair], variants: Sequence[str]) -> bool:
        """Make what is missing; False where time is up before."""
        for number, image_id in enumerate(dict.fromkeys(pair.image_id for pair in pairs)):
            findings = [pair.finding for pair in pairs if pair.image_id == image_id]
            for variant in variants:
                own = self.maps.setdefault(variant, {})
                if image_id in own:
                    continue
                if time.monotonic() > self.end:
                    return False
                codes = self.data.codes([image_id])[0]
                if variant in GRADIENTS:
                    values = gradients(self.data, variant, codes, findings)
                else:
                    values = perturbed(self.data, variant, codes, findings, number)
                own[image_id] = {name: np.round(row, 4).tolist() for name, row in zip(findings, values, strict=True)}
                write_json(self.path, self.maps)
        return True

    def of(self, variant: str, pair: Pair) -> np.ndarray:
        """Map float [S, S]."""
        g = self.data.model.info.grid
        return stretched(np.array(self.maps[variant][pair.image_id][pair.finding][1:]).reshape(g, g), len(pair.mask))

    def believed(self, variant: str, pair: Pair) -> bool:
        return self.maps[variant][pair.image_id][pair.finding][0] > 0


def points_right(heat: np.ndarray, mask: np.ndarray, reach: float) -> bool:
    """Whether the largest value lies within `reach` pixels of the mask."""
    return bool(ndimage.distance_transform_edt(~mask)[np.unravel_index(heat.argmax(), heat.shape)] <= reach)


def iou(heat: np.ndarray, mask: np.ndarray, share: float) -> float:
    """Of the mask and the `share` of the image with the largest values."""
    region = heat >= np.quantile(heat, 1 - share)
    return float((region & mask).sum() / (region | mask).sum())


def scored(heats: Iterator[np.ndarray], pairs: Sequence[Pair], reach: float) -> np.ndarray:
    """[N, 1 + shares]: whether each pair's map points right, and its IoU at each share."""
    return np.array(
        [
            [points_right(heat, pair.mask, reach), *(iou(heat, pair.mask, share) for share in SHARES)]
            for heat, pair in zip(heats, pairs, strict=True)
        ]
    )


def table(kept: Kept, pairs: Sequence[Pair], variants: Sequence[str], prior: dict[str, np.ndarray]) -> dict[str, Any]:
    """What -> [N, 1 + shares]; beside the variants the prior and chance."""
    g, S = kept.data.model.info.grid, len(pairs[0].mask)
    reach = S / g / 2
    rows = {v: scored((kept.of(v, pair) for pair in pairs), pairs, reach) for v in variants}
    flat = np.full((S, S), 1e-9)  # a finding of which training has none
    rows["centre prior"] = scored((prior.get(p.finding, flat) for p in pairs), pairs, reach)
    rng = np.random.default_rng(0)
    chance = [scored((stretched(rng.random((g, g)), S) for _ in pairs), pairs, reach) for _ in range(CHANCE)]
    return rows | {"chance": np.mean(chance, axis=0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of the phantom whose studies are done")
    parser.add_argument("--model", default="phantom")
    parser.add_argument("--pairs", type=int, default=50, help="of image and finding, a split (default: 50)")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="tried on validation patients")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--out", type=Path, default=Path("explain.json"), help="where maps are kept")
    arguments = parser.parse_args()
    data = Data(arguments.run, LlmCxr.from_pretrained(arguments.model))
    kept, prior = Kept(arguments.out, data, arguments.minutes), data.prior()
    validation = data.pairs("validate", arguments.pairs)
    if not kept.make(validation, [*arguments.variants, *GRADIENTS]):
        raise SystemExit("time is up; the same command goes on")
    rows = table(kept, validation, [*arguments.variants, *GRADIENTS], prior)
    best = {name: 1 + int(values[:, 1:].mean(0).argmax()) for name, values in rows.items()}
    print(f"validation, {len(validation)} pairs of {len({p.image_id for p in validation})} images")
    for name, values in rows.items():
        share = SHARES[best[name] - 1]
        print(f"  {name:22} points right {values[:, 0].mean():.2f}  IoU {values[:, best[name]].mean():.3f} at {share}")
    chosen = max(arguments.variants, key=lambda v: rows[v][:, 0].mean() + rows[v][:, best[v]].mean())
    print(f"chosen: {chosen}")

    pairs = data.pairs("test", arguments.pairs)
    if not kept.make(pairs, [chosen, *GRADIENTS]):
        raise SystemExit("time is up; the same command goes on")
    rows = table(kept, pairs, [chosen, *GRADIENTS], prior)
    believed = np.array([kept.believed(chosen, pair) for pair in pairs])
    groups = {"all": np.ones(len(pairs), bool), "p(yes) > 0.5": believed}
    groups |= {n: np.array([p.finding == n for p in pairs]) for n in sorted({p.finding for p in pairs})}
    print(f"\ntest, {len(pairs)} pairs of {len({p.image_id for p in pairs})} images: points right, IoU")
    print("| | n | " + " | ".join(rows) + " |")
    for name, own in groups.items():
        cells = [f"{v[own, 0].mean():.2f}, {v[own, best[k]].mean():.3f}" for k, v in rows.items()] if own.any() else []
        print(f"| {name} | {own.sum()} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
