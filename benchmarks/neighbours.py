"""What a busy neighbour costs: a report of the shipped model, alone and beside processes that never rest, by how
threads wait.

    python benchmarks/neighbours.py IMAGE [--neighbours 1] [--repeats 3] [--out neighbours.json]

Threads that spin while they wait for one another take the cores from the thread that has work as soon as there are more
busy threads than cores. Every way runs in a process of its own, by turns, and what is timed is the report alone, once
warm; the least of the repeats counts. The machine should be idle otherwise: its load beforehand is said.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

WAYS: dict[str, dict[str, str]] = {
    "as llmcxr sets it": {},
    "spinning (the library's default)": {"GOMP_SPINCOUNT": "300000"},
    "spinning for a moment, then sleeping": {"GOMP_SPINCOUNT": "1000"},
    "spinning for ten times as long": {"GOMP_SPINCOUNT": "10000"},
    "sleeping at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
_REPORT = """
import sys, time
from llmcxr import LlmCxr
from llmcxr.inference.backend import Sampling
model = LlmCxr.from_pretrained(precision="float32")
codes = model.encode([sys.argv[1]])
short = Sampling(max_new_tokens=48)
model.reports(codes, Sampling(max_new_tokens=2), 1)
begin = time.monotonic()
model.reports(codes, short, 1)
print(time.monotonic() - begin)
"""
_BUSY = "while True: pass"
_OWN = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def seconds(image: str, way: dict[str, str], neighbours: int) -> float:
    """Of one report in a new process, beside so many busy ones."""
    environment = {k: v for k, v in os.environ.items() if k not in _OWN} | way
    busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(neighbours)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _REPORT, image], env=environment, check=True, capture_output=True, text=True
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return float(done.stdout)


def main() -> None:
    """Measures all ways by turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--neighbours", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    print(f"{cores} cores, load of the last minute {load:.1f}")
    found: dict[str, list[list[float]]] = {name: [[], []] for name in WAYS}
    for _ in range(arguments.repeats):
        for name, way in WAYS.items():
            for beside, times in enumerate(found[name]):
                times.append(seconds(arguments.image, way, beside * arguments.neighbours))
                print(f"{times[-1]:7.1f} s  {name}{', beside' * beside}", flush=True)
    print("\n| threads | alone, s | beside, s | ratio |\n| --- | --- | --- | --- |")
    for name, (alone, beside) in found.items():
        print(f"| {name} | {min(alone):.1f} | {min(beside):.1f} | {min(beside) / min(alone):.1f} |")
    if arguments.out:
        arguments.out.write_text(json.dumps({"load": load, "cores": cores, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
