"""What an example of the mixture costs at the size of a real collection, beside a permutation for every example.

    python benchmarks/mixture_cost.py                 # 370,000 items, as many as MIMIC-CXR has images
    python benchmarks/mixture_cost.py --items 20000

An item is a report of one word, so that nothing but the choice of the item is measured.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from llmcxr.foundation.randomness import stream
from llmcxr.instructions.example import InstructionExample
from llmcxr.instructions.mixture import Mixture
from llmcxr.tasks.cxr_to_report import CxrToReportItems, ImageReport


class PermutationEach(Mixture):
    """The baseline: the order of the epoch is drawn anew for every example."""

    def __getitem__(self, index: int) -> InstructionExample:
        task = self.task(index)
        epoch, place = divmod(int(self._turn[index]), len(self._tasks[task]))
        item = self._draw_order(task, epoch)[place]
        return self._tasks[task].example(int(item), stream(self._seed, task, "wording", epoch, place))


def seconds_each(mixture: Mixture, count: int) -> float:
    """Mean over the first `count` examples; the one permutation of the epoch is among them."""
    begin = time.perf_counter()
    count = min(count, len(mixture))
    for index in range(count):
        mixture[index]
    return (time.perf_counter() - begin) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=370_000)
    parser.add_argument("--examples", type=int, default=1_850_000, help="of the stage (the paper's: 5 epochs)")
    arguments = parser.parse_args()
    codes = np.zeros(256, np.uint16)
    task = CxrToReportItems([ImageReport(f"i{k}", codes, "Clear.") for k in range(arguments.items)])
    print(f"{arguments.items:,} items, a stage of {arguments.examples:,} examples")
    for name, kind, count in (("a permutation each", PermutationEach, 100), ("one an epoch", Mixture, 20_000)):
        each = seconds_each(kind({"cxr_to_report": task}, {"cxr_to_report": 1.0}, arguments.examples, 0), count)
        print(f"{name:20} {each * 1e6:10.1f} us an example, {each * arguments.examples / 3600:6.2f} h a stage")


if __name__ == "__main__":
    main()
