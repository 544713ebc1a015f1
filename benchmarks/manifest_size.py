"""What a manifest of many studies costs: a tree in MIMIC-CXR-JPG's layout is made, of empty image files and invented
reports, and read to manifest.parquet in a process of its own, whose time and peak memory are printed.

    python benchmarks/manifest_size.py --images 400000             # 15 GB are not needed: image files are empty
    python benchmarks/manifest_size.py --images 40000 --label      # reports are labelled too, on all cores

The manifest opens no image, so that empty files cost what full ones do.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from tqdm import tqdm

from llmcxr.sources.chexpert import OBSERVATIONS

SENTENCES = [
    "The heart is normal in size.", "The cardiomediastinal silhouette is mildly enlarged.", "There is no pneumothorax.",
    "A small left pleural effusion is present.", "No focal consolidation.", "Lung volumes are low.", "The lungs are clear.",
    "Bibasilar opacities likely reflect atelectasis.", "Moderate pulmonary edema has improved.", "The endotracheal tube ends 4 cm above the carina.",
    "There is a right internal jugular line.", "No acute osseous abnormality.", "Degenerative changes of the spine.",
]  # fmt: skip
PER_STUDY, STUDIES_PER_PATIENT = 377_110 / 227_827, 227_827 / 65_379  # as in MIMIC-CXR


def report(rng: random.Random) -> str:
    """A report of about MIMIC-CXR's length, with its blank lines."""
    said = [" ".join(rng.choices(SENTENCES, k=rng.randint(2, n))) for n in (9, 4)]
    return (
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PORTABLE AP)\n \n INDICATION:  ___F with "
        "cough.\n \n"
        f" COMPARISON:  ___.\n \n FINDINGS: \n \n {said[0]}\n \n IMPRESSION: \n \n {said[1]} {rng.randint(1, 10**6)} "
        f"mm.\n"
    )


def make_tree(root: Path, images: int) -> None:
    """A tree of about that many images; `root` must be new."""
    rng, count, study, patient = random.Random(0), 0, 50_000_000, 10_000_000
    head = {"split": "dicom_id,study_id,subject_id,split", "chexpert": "subject_id,study_id," + ",".join(OBSERVATIONS)}
    head["metadata"] = (
        "dicom_id,subject_id,study_id,ViewPosition,Rows,Columns,StudyDate,StudyTime,ViewCodeSequence_CodeMeaning"
    )
    root.mkdir(parents=True)
    files = {name: gzip.open(root / f"mimic-cxr-2.0.0-{name}.csv.gz", "wt", compresslevel=1) for name in head}  # noqa: SIM115
    writers = {name: csv.writer(file) for name, file in files.items()}
    for name, writer in writers.items():
        writer.writerow(head[name].split(","))
    with (
        zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        tqdm(total=images, desc="making the tree", unit="image") as bar,
    ):
        while count < images:
            patient += rng.randint(1, 100)
            split = rng.choices(["train", "validate", "test"], [0.97, 0.01, 0.02])[0]
            for _ in range(max(1, round(rng.expovariate(1 / STUDIES_PER_PATIENT)))):
                study += rng.randint(1, 40)
                place = f"files/p{str(patient)[:2]}/p{patient}/s{study}"
                (root / place).mkdir(parents=True)
                archive.writestr(f"{place}.txt", report(rng))
                writers["chexpert"].writerow(
                    [patient, study, *rng.choices(["", "1.0", "0.0", "-1.0"], [8, 2, 1, 1], k=14)]
                )
                day, clock = 21_500_101 + rng.randint(0, 20) * 10_000, f"{rng.randint(0, 235959) // 100 * 100}.25"
                for k in range(1 + (rng.random() < PER_STUDY - 1)):
                    image = f"{rng.getrandbits(160):040x}"
                    os.close(os.open(root / place / f"{image}.jpg", os.O_CREAT | os.O_WRONLY))
                    writers["split"].writerow([image, study, patient, split])
                    view = ["AP", "PA", "LATERAL"][(study + k) % 3]
                    writers["metadata"].writerow([image, patient, study, view, 3056, 2544, day, clock, ""])
                    count += 1
                    bar.update()
    for file in files.values():
        file.close()


def read_tree(root: Path, label: bool) -> None:
    """The tree to manifest.parquet, as the `studies` stage does without the pixels; what it took."""
    from llmcxr.labelling.registry import build_labeller, label_studies
    from llmcxr.sources.mimic_cxr import MimicCxrSettings
    from llmcxr.sources.registry import SourceSettings, build_source, read_studies
    from llmcxr.studies.cohort import CohortSettings, select_cohort
    from llmcxr.studies.study import read_manifest, write_manifest

    block = MimicCxrSettings(folder=root, labels="none" if label else "chexpert")
    settings, took = SourceSettings(kind="mimic_cxr", mimic_cxr=block), dict[str, float]()
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        took[name] = time.perf_counter() - clock
        clock = time.perf_counter()

    source = build_source(settings, 0)
    studies = read_studies(source, settings, root, 256).studies
    lap("tables, reports and files to studies")
    if label:
        studies = label_studies(studies, build_labeller("rules"), root / "labels.partial.jsonl")
        lap("labels from reports")
    write_manifest(root / "manifest.parquet", studies)
    lap("manifest written")
    studies = read_manifest(root / "manifest.parquet")
    lap("manifest read")
    cohort = select_cohort(studies, CohortSettings(views=["frontal"], earliest_only=True, sections="impression"))
    lap("cohort of stage 2")
    print(f"{len(studies):,} images, {len({s.study_id for s in studies}):,} reports; cohort {len(cohort.studies):,}")
    for name, seconds in took.items():
        print(f"    {name:40} {seconds:7.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"    {'together':40} {sum(took.values()):7.1f} s, peak {peak:.2f} GiB, load {os.getloadavg()[0]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=400_000)
    parser.add_argument(
        "--label", action="store_true", help="no published labels: read them from the reports, on all cores"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the tree is made; it is removed at the end (default: a temporary folder)"
    )
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.read:
        read_tree(o.read, o.label)
        return
    with tempfile.TemporaryDirectory(dir=o.folder) as folder:
        root = Path(folder) / "tree"
        make_tree(root, o.images)
        subprocess.run([sys.executable, __file__, "--read", str(root), *["--label"] * o.label], check=True)
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
