"""How much of a radiograph the image tokenizer keeps: reconstruction error, codebook use, and what the judge still sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmcxr.metrics import scores
from llmcxr.tasks.measurement import (
    TOO_FEW,
    Ask,
    Cases,
    Examinee,
    Measurement,
    NotMeasured,
    Prediction,
    Score,
    in_groups,
    picture_text,
)

_CODEBOOK = "codebook"  # kind of the one prediction on all codes
_SHOWN = 12


class ImageTokenizerMeasurement(Measurement):
    """Test images through the image tokenizer and back."""

    name, group, place = "image_tokenizer", "image_tokenizer", 4
    scores = (
        Score(
            "Image tokens, AUROC after reconstruction",
            "image_tokenizer.auroc_reconstruction",
            0.5,
            "chance",
            "image_tokenizer.auroc_original",
            "the same classifier on the original images",
            "How much of what a classifier needs survives the way through image tokens and back.",
            count="image_tokenizer.n",
            scale=(0.4, 1.0),
            needs=TOO_FEW,
        ),
        Score(
            "Image tokens, L1 error",
            "image_tokenizer.l1",
            None,
            "",
            0.0,
            "no difference",
            "Mean difference of a pixel between original and reconstruction, where black is 0 and white is 1.",
            scale=None,
            lower_is_better=True,
        ),
        Score(
            "Image tokens, codebook in use",
            "image_tokenizer.codebook_use",
            None,
            "",
            1.0,
            "every code",
            "Share of the codebook that occurs in encoded images.",
        ),
    )

    def asks(self, cases: Cases) -> list[list[Ask]]:
        """Test images, and one question for all codes."""
        studies = cases.shuffled[: cases.counts["reconstructions"]]
        images = [Ask(study, "reconstruction", shown=k < _SHOWN) for k, study in enumerate(studies)]
        return [[Ask(study, _CODEBOOK)] for study in studies[:1]] + in_groups(images, 64)

    def answer(self, model: Examinee, group: Sequence[Ask], seed: int) -> list[Prediction]:
        """Error and logits of each image."""
        if group[0].kind == _CODEBOOK:
            return [self.prediction(group[0], use=model.codebook_use(), perplexity=model.codebook_perplexity())]
        original = model.images([ask.study.image_id for ask in group])
        again = model.reconstructed(original)
        error = np.abs(original.astype(np.float32) - again.astype(np.float32)).mean(axis=(1, 2)) / 255
        judged, judged_original = model.judged(again), model.judged(original)
        return [
            self.prediction(
                ask,
                l1=float(error[k]),
                judge=judged[k],
                judge_original=judged_original[k],
                **({"reconstruction": picture_text(again[k])} if ask.shown else {}),
            )
            for k, ask in enumerate(group)
        ]

    def score(self, predictions: Sequence[Prediction], cases: Cases) -> dict[str, Any] | NotMeasured:
        """Means over images, and the judge's AUROC before and after."""
        own = [p for p in predictions if p.kind != _CODEBOOK]
        if not own:
            return NotMeasured("there is no test image")
        labels = cases.labels(cases.of(own))
        original, again = (
            scores.mean_auroc(labels, cases.matrix([p.extra[key] for p in own])) for key in ("judge_original", "judge")
        )
        codebook = next(p.extra for p in predictions if p.kind == _CODEBOOK)
        return {
            "codebook_use": codebook["use"],
            "perplexity": codebook.get("perplexity"),  # none in predictions of earlier versions
            "l1": float(np.mean([p.extra["l1"] for p in own])),
            "auroc_original": original.mean,
            "auroc_reconstruction": again.mean if cases.findings else cases.unreadable(),
            "per_finding": {
                "original": cases.named(original.per_finding),
                "reconstruction": cases.named(again.per_finding),
            },
            "n": len(own),
        }


MEASUREMENT = ImageTokenizerMeasurement()
