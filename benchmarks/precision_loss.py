"""What does a precision lose? The shipped model in float32, bfloat16 and int8, on simulated patients of a validation split.

    python benchmarks/precision_loss.py [--patients 40] [--model phantom] [--out precision_loss.json]

Images are drawn with a seed of their own and lie in a folder for the time of the run; the same codes are asked about in each
precision. AUROC: p(yes) of every finding against what was drawn, pooled. Perplexity: of the real reports of these patients
given the image, and of general text, a token. What is done is kept in --out, and not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from llmcxr import LlmCxr
from llmcxr.foundation.assets import DEFAULT_MODEL
from llmcxr.instructions.rendering import encode_responses
from llmcxr.metrics.scores import auroc
from llmcxr.sources.phantom.settings import PhantomSettings
from llmcxr.sources.phantom.source import PhantomSource
from llmcxr.tasks import cxr_to_report, language
from llmcxr.tuning.keep_language import general_texts

PRECISIONS = ("float32", "bfloat16", "int8")
TEXTS = 16  # of general text


def measured(model: LlmCxr, codes: np.ndarray, reports: list[str], truth: np.ndarray) -> dict[str, Any]:
    """Scores of one precision; `truth` bool [N, findings]."""
    backend, asker = model.asker.backend, model.asker

    def perplexity(turns: list[Any], texts: list[str]) -> float:
        # Each text with its end token, which counts.
        tokens = sum(map(len, encode_responses(texts, asker.template, asker.vocabulary)))
        return float(np.exp(-backend.log_likelihoods(asker.prompts(turns), texts).sum() / tokens))

    begin = time.perf_counter()
    yes = np.stack([model.presence_probabilities(row, model.info.findings) for row in codes])
    general = general_texts()[:TEXTS]
    empty = language.TASK.prompt([{"role": "user", "content": "Write a text."}])
    return {
        "auroc": auroc(truth.ravel(), yes.ravel()),
        "report perplexity": perplexity([cxr_to_report.TASK.prompt(row, None) for row in codes], reports),
        "text perplexity": perplexity([empty] * len(general), general),
        "seconds": time.perf_counter() - begin,
        "yes": yes.tolist(),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, default=Path("precision_loss.json"))
    o = parser.parse_args()
    done: dict[str, Any] = json.loads(o.out.read_text()) if o.out.exists() else {}
    if set(done) < set(PRECISIONS):
        exact = LlmCxr.from_pretrained(o.model, "cpu", "float32")
        with tempfile.TemporaryDirectory() as name:
            source = PhantomSource(PhantomSettings(train=0, validate=o.patients, test=0, seed=5))
            studies = source.studies(Path(name), exact.info.image_size)
            codes = exact.encode([Path(name) / s.image_path for s in studies])
        present = [{f.name for f in s.truth} for s in studies]
        truth = np.array([[name in own for name in exact.info.findings] for own in present])
        reports = [s.findings_text or s.impression_text for s in studies]
        for precision in (p for p in PRECISIONS if p not in done):
            model = LlmCxr.from_pretrained(o.model, "cpu", precision)  # type: ignore[arg-type]
            done[precision] = measured(model, codes, reports, truth)
            o.out.write_text(json.dumps(done))
    print("| precision | AUROC of p(yes) | largest and mean change of p(yes) | perplexity of reports | of text | s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for precision, own in done.items():
        change = np.abs(np.array(own["yes"]) - done["float32"]["yes"])
        print(
            f"| {precision} | {own['auroc']:.4f} | {change.max():.3f}, {change.mean():.4f} | {own['report perplexity']:.3f} | "
            f"{own['text perplexity']:.3f} | {own['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
