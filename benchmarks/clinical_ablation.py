"""What do clinical terms in the image tokenizer's training buy? The paper's ablation: the same training with and without, same steps.

    llmcxr run tokenizer-256 name=ablation start=phantom image_tokenizer.architecture.image_size=128 --until clinical_features
    ...                                                                                              --until judge
    python benchmarks/clinical_ablation.py runs/ablation --judge phantom runs/ablation --seconds 120 --parallel 9    # a GPU
    python benchmarks/clinical_ablation.py runs/ablation --judge phantom runs/ablation --steps 8 --seeds 0           # does it run?
    python benchmarks/clinical_ablation.py --table clinical_ablation.json

A run folder gives pixels, studies, the clinical network, and `image_tokenizer` of its recipe; every arm and seed trains on its training
split and is measured on its test split, simulated and real radiographs apart: L1, PSNR, power by octave, and the loss of mean AUROC by
judges that have no part in any loss. Arms of a seed see the same images in the same order.

An arm and seed that are in the results are not run again. Small networks leave a GPU idle between their steps, so `--parallel` puts several
on one device.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from llmcxr.evaluation.onlookers import Onlookers, find_onlooker
from llmcxr.evaluation.tokenizer_data import Radiographs
from llmcxr.evaluation.tokenizer_table import BLOCKS, Evaluators, Measured, Painted, measure
from llmcxr.evaluation.tokenizer_text import table, with_interval
from llmcxr.foundation.artifacts import atomic_path, check_output, read_json, write_json
from llmcxr.foundation.devices import core_count, precision
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import build_settings
from llmcxr.foundation.yaml_text import read_yaml
from llmcxr.image_tokens.clinical_features import ClinicalFeatures
from llmcxr.image_tokens.settings import ImageTokenizerSettings, without_clinical
from llmcxr.image_tokens.training import train_image_tokenizer
from llmcxr.metrics.auroc_loss import auroc_draws, patient_draws
from llmcxr.metrics.scores import percentiles
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.study import Study, read_manifest

# What an arm's training takes from the clinical network, beside pixels, codebook and adversary. Its feature maps are also the perceptual
# term (LPIPS's weights ship with no package), so that term stays until nothing clinical is left.
ARMS = {
    "all": "clinical loss, maps, findings read from the codes, features as input",
    "all but the loss": "maps, findings read from the codes, features as input",
    "paper": "clinical loss, maps",
    "paper but the loss": "maps",
    "none": "nothing",
}
DEFAULT_ARMS = ("paper", "paper but the loss", "none")  # the paper's ablation, and what nothing clinical gives
REFERENCES = {
    "all but the loss": ["all"],
    "paper but the loss": ["paper"],
    "none": ["paper", "all"],
}  # what an arm is set against
_TIMED = 40  # steps


def settings_of(arm: str, recipe: dict[str, Any], steps: int) -> ImageTokenizerSettings:
    """The recipe's training with the terms of an arm."""
    own = build_settings(ImageTokenizerSettings, recipe["image_tokenizer"], "image_tokenizer of the run's recipe")
    own = dataclasses.replace(own, steps=steps, pictures_every=0)
    if arm in ("all", "all but the loss") and not (own.architecture.clinical_input and own.reading_weight):
        raise UserError(
            f"the arm {arm!r} needs a recipe with architecture.clinical_input and reading_weight. Set --arms."
        )
    if not own.clinical_weight:
        raise UserError("the run's recipe has clinical_weight 0, so there is no clinical loss to take away.")
    if arm == "none":
        return without_clinical(own)
    if arm.startswith("paper"):
        bare = dataclasses.replace(own.architecture, clinical_input=False)
        own = dataclasses.replace(own, architecture=bare, reading_weight=0.0)
    return dataclasses.replace(own, clinical_weight=0.0) if arm.endswith("but the loss") else own


# --- one arm and seed, in a process of its own


def rounded(values: Any, digits: int = 4) -> Any:
    """Nested lists of numbers as short as JSON needs them."""
    return np.round(np.asarray(values, float), digits).tolist()


def kept(one: Measured, way: Painted) -> dict[str, Any]:
    """Of a way of painting, what scores and intervals are made from."""
    result = {"l1": rounded(way.l1, 5), "psnr": rounded(way.psnr, 3), "octaves": rounded(one.octaves(way))}
    logits = np.concatenate(way.logits)[:, one.columns] if way.logits else np.zeros((one.n, 0))
    result["logits"] = rounded(logits, 3)
    if way.counts is not None:
        result["codebook_use"] = float((way.counts > 0).mean())
    return result


def test_sets(studies: list[Study], pixels: PixelStore) -> list[Radiographs]:
    """The test split, simulated radiographs (which lie in the run's folder) and real ones apart."""
    groups: dict[str, list[int]] = {"phantom": [], "real": []}
    for row, study in enumerate(studies):
        if study.split == "test":
            groups["real" if Path(study.image_path).is_absolute() else "phantom"].append(row)
    found = []
    for name, rows in groups.items():
        images = pixels.select(rows)
        if rows:
            own = [studies[i] for i in rows]
            found.append(Radiographs(name, own, lambda _, images=images: (images[i] for i in range(len(images)))))
    return found


def work(options: argparse.Namespace, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and measure one arm and seed."""
    recipe, processes = read_yaml(options.run / "recipe.yaml"), Processes(options.device)
    processes.agree_on_precision(recipe["precision"])
    studies, pixels = read_manifest(options.run / "manifest.parquet"), PixelStore.open(options.run / "pixels.npy")
    features = None if arm == "none" else ClinicalFeatures.load(options.run / "clinical_features")
    images = pixels.select([i for i, s in enumerate(studies) if s.split == "train"])
    judges = [find_onlooker(name) for name in options.judge]

    def train(settings: ImageTokenizerSettings, name: str):
        return train_image_tokenizer(settings, features, images, seed, folder / name, processes, save_minutes=1e9)

    steps = options.steps
    if not steps:  # all terms at once, beside the other arms: what a step takes at most
        costly = dataclasses.replace(settings_of(arm, recipe, _TIMED), feature_start=0.0, adversarial_start=0.0)
        train(dataclasses.replace(costly, steps=10), "warm")
        begin = time.perf_counter()
        train(costly, "timed")
        write_json(folder / "rate.json", (time.perf_counter() - begin) / _TIMED)
        while not (folder.parent / "steps.json").exists():
            time.sleep(0.2)
        steps = read_json(folder.parent / "steps.json")
    begin = time.perf_counter()
    codec = train(settings_of(arm, recipe, steps), "trained")
    seconds = time.perf_counter() - begin
    for judge in judges:
        judge.check_independent(codec, str(options.run / "image_tokenizer"))
    evaluators = Evaluators(onlookers=Onlookers(judges, processes.device))
    result: dict[str, Any] = {"steps": steps, "seconds": round(seconds, 1)}
    result["precision"] = str(precision(processes.device, "training")).removeprefix("torch.")
    result["device"] = processes.device.type
    for data in test_sets(studies, pixels):
        one = measure(data, {"tokenizer": codec}, processes.device, evaluators)
        (size,) = one.originals
        own, blocks = (next(w for w in one.painted if (w.name == BLOCKS) == flag) for flag in (False, True))
        result[data.name] = {
            "own": kept(one, own),
            "common": {
                "findings": one.findings,
                "labels": np.where(np.isnan(one.labels), -1, one.labels).astype(int).tolist(),
                "patients": one.patients,
                "original": rounded(np.concatenate(one.originals[size].logits)[:, one.columns], 3),
                "blocks": kept(one, blocks),
            },
        }
    return result


# --- all of them


def folder_of(place: Path, key: str) -> Path:
    """Where an arm and seed works."""
    return place / key.replace("/", "-").replace(" ", "_")


def run_all(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Start what is not in the results, `--parallel` at once, and write each down as it comes."""
    todo = [f"{arm}/{seed}" for seed in options.seeds for arm in options.arms if f"{arm}/{seed}" not in results["arms"]]
    place = options.json.with_suffix(".work")
    running: dict[str, tuple[subprocess.Popen, Path]] = {}
    faults: list[str] = []
    threads = str(max(1, core_count() // max(1, min(options.parallel, len(todo)))))
    first = todo[: options.parallel]
    steps_file = place / "steps.json"
    if options.steps or "steps" in results:
        write_json(steps_file, options.steps or results["steps"])
    else:
        steps_file.unlink(missing_ok=True)
    try:
        while todo or running:
            while todo and len(running) < options.parallel:
                key = todo.pop(0)
                folder = folder_of(place, key)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "rate.json").unlink(missing_ok=True)
                command = [
                    sys.executable,
                    __file__,
                    str(options.run),
                    "--judge",
                    *options.judge,
                    "--device",
                    options.device,
                ]
                command += ["--steps", str(read_json(steps_file))] if steps_file.exists() else ["--seconds", "1"]
                with open(folder / "log.txt", "w", encoding="utf-8") as log:
                    process = subprocess.Popen(
                        [*command, "--json", str(folder / "result.json"), "--only", key],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, "OMP_NUM_THREADS": threads},
                    )
                running[key] = process, folder
            rates = [f for key in first if (f := folder_of(place, key) / "rate.json").exists()]
            if not steps_file.exists() and len(rates) == len(first):
                slowest = max(map(read_json, rates))
                write_json(steps_file, max(20, int(options.seconds / slowest) // 20 * 20))
                print(f"{slowest * 1000:.0f} ms a step of the slowest: {read_json(steps_file):,} steps", flush=True)
            for key, (process, folder) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[key]
                if process.returncode:
                    last = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
                    faults.append(f"{key} failed ({folder / 'log.txt'}):\n{last}")
                    if not steps_file.exists():  # the others would wait for its rate
                        raise UserError(faults[0])
                    continue
                take(results, key, read_json(folder / "result.json"))
                with atomic_path(options.json) as temporary:  # in one line: these are many numbers
                    temporary.write_text(json.dumps(results, separators=(",", ":")), encoding="utf-8")
                print(
                    f"{key}: {results['arms'][key]['steps']:,} steps, {results['arms'][key]['seconds']} s", flush=True
                )
            time.sleep(0.2)
    finally:
        for process, _ in running.values():
            process.terminate()
    if faults:
        raise UserError("\n".join(faults))


def take(results: dict[str, Any], key: str, result: dict[str, Any]) -> None:
    """Put one result among the others: what all have in common once."""
    results["steps"] = result["steps"]
    for name in ("phantom", "real"):
        if name in result:
            results["data"].setdefault(name, result[name]["common"])
            result[name] = result[name]["own"]
    results["arms"][key] = result


# --- tables


def draws_over_seeds(by_seed: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Mean over seeds [D] of draws [S, D] of patients, the seeds of each draw drawn too: `seeds` int [D, S]."""
    return np.take_along_axis(by_seed.T, seeds, axis=1).mean(1)


def scores_of(
    common: dict[str, Any], seeds: list[dict[str, Any]], n: int = 500
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Score -> (mean over seeds, its draws [D]; by finding [F] and [D, F]) of one arm on one data set, given what each seed kept."""
    labels = np.array(common["labels"], float).reshape(len(common["patients"]), -1)
    labels[labels < 0] = np.nan
    weights = patient_draws(common["patients"], n)
    order = stream(0, "seeds").integers(len(seeds), size=(n, len(seeds)))
    shares = weights / weights.sum(1, keepdims=True)
    result: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in ("l1", "psnr"):
        values = np.array([seed[name] for seed in seeds])
        result[name] = values.mean(), draws_over_seeds(values @ shares.T, order)
    result["octaves"] = np.mean([seed["octaves"] for seed in seeds], 0), np.array([])
    if not labels.size:
        return result
    before, before_draws = auroc_draws(labels, np.array(common["original"]), weights)
    after = [auroc_draws(labels, np.array(seed["logits"]), weights) for seed in seeds]
    lost, lost_draws = before - np.array([a for a, _ in after]), before_draws - np.array([d for _, d in after])
    if not (taken := ~np.isnan(before)).any():
        return result
    by_finding = np.stack([draws_over_seeds(lost_draws[:, :, f], order) for f in range(len(before))], 1)
    result["by_finding"] = lost.mean(0), by_finding
    result["original"] = before, before_draws
    result["auroc"] = lost[:, taken].mean(), draws_over_seeds(lost_draws[:, :, taken].mean(2), order)
    return result


def difference(own: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> str:
    """Mean and interval of own minus other, the same patients and seeds drawn for both."""
    return with_interval(float(own[0] - other[0]), percentiles(own[1] - other[1]))


def tables(results: dict[str, Any]) -> str:
    """Markdown: a table a data set, and one by finding."""
    parts = []
    arms = list(dict.fromkeys(key.split("/")[0] for key in results["arms"]))
    arms.sort(key=list(ARMS).index)
    for name, common in results["data"].items():
        known = {arm: sorted(int(k.split("/")[1]) for k in results["arms"] if k.split("/")[0] == arm) for arm in arms}
        seeds = {arm: [results["arms"][f"{arm}/{seed}"][name] for seed in known[arm]] for arm in arms}
        scores = {arm: scores_of(common, own) for arm, own in seeds.items()}
        ways = {
            **{arm: (len(seeds[arm]), scores[arm]) for arm in arms},
            BLOCKS: (0, scores_of(common, [common["blocks"]])),
        }
        rows = []
        for arm, (count, own) in ways.items():
            reference = next((other for other in REFERENCES.get(arm, ()) if known.get(other) == known[arm]), None)
            cells = [
                with_interval(float(own[k][0]), percentiles(own[k][1]), digits)
                for k, digits in (("l1", 4), ("psnr", 2))
            ]
            cells.append(" ".join(f"{v:.2f}" for v in own["octaves"][0]))
            if "auroc" in own:
                cells.append(with_interval(float(own["auroc"][0]), percentiles(own["auroc"][1])))
                more = "-" if reference is None else difference(own["auroc"], scores[reference]["auroc"])
                cells.append(f"{more} than {reference}" if reference else more)
            rows.append([arm, str(count) if count else "-", *cells])
        head = [f"{name}, {len(common['patients']):,} images", "seeds", "L1 (share of the range)", "PSNR (dB)"]
        head.append("power kept by octave, from Nyquist down")
        if "auroc" in scores[arms[0]]:
            head += ["loss of mean AUROC (95 %)", "more"]
        parts.append(table(head, rows))
        if "auroc" in scores[arms[0]]:
            first, lines = scores[arms[0]], []
            for f, finding in enumerate(common["findings"]):
                if not np.isnan(first["original"][0][f]):
                    own = [(scores[arm]["by_finding"][0][f], scores[arm]["by_finding"][1][:, f]) for arm in arms]
                    cells = [with_interval(float(value), percentiles(draws)) for value, draws in own]
                    lines.append([finding, f"{first['original'][0][f]:.3f}", *cells])
            parts.append(table([f"loss of AUROC, {name}", "AUROC of originals", *arms], lines))
    some = next(iter(results["arms"].values()))
    parts.append(
        f"{results['steps']:,} steps each, {some['precision']} on {some['device']}; intervals draw patients and seeds anew."
    )
    parts.append("\n".join(f"- {arm}: {ARMS[arm]}" for arm in arms))
    return "\n\n".join(parts)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder whose studies and clinical_features are done")
    parser.add_argument("--judge", nargs="+", default=["phantom"], help="as of `llmcxr evaluate-tokenizer`")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(DEFAULT_ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=0, help="of each training")
    length.add_argument(
        "--seconds", type=float, default=120, help="instead: for each training; steps by the slowest arm's rate"
    )
    parser.add_argument("--parallel", type=int, default=1, help="processes at once on the device")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=Path("clinical_ablation.json"), help="the results")
    parser.add_argument("--table", type=Path, metavar="JSON", help="only print the tables of results that are there")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # an arm and seed, in a process of its own
    options = parser.parse_args()
    if options.table:
        print(tables(read_json(options.table)))
        return
    if options.run is None:
        parser.error("give a run folder, or --table")
    check_output(options.json)
    if options.only:
        arm, seed = options.only.split("/")
        write_json(options.json, work(options, arm, int(seed), options.json.parent))
        return
    results = read_json(options.json) if options.json.exists() else {"arms": {}, "data": {}}
    if options.steps and results.get("steps", options.steps) != options.steps:
        raise UserError(f"{options.json} holds results of {results['steps']:,} steps. Give these, or another --json.")
    run_all(options, results)
    print(tables(results))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
