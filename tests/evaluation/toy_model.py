"""A model made of rules, for what needs answers and no network."""

from __future__ import annotations

import dataclasses

import numpy as np

from llmcxr.labelling.rules import RuleLabeller
from llmcxr.studies.findings import Finding, LabelSet
from llmcxr.studies.study import Study, known_findings
from llmcxr.synthesis.gather import MEASURED, gather
from llmcxr.tasks.measurement import Cases

SIZE, LENGTH = 192, 4
COUNTS = dict.fromkeys(("reconstructions", "reports", "questions", "probabilities", "drawings"), 100)


class ToyModel:
    """Reads nodules from bright images, and says and draws what it read; counts what it was asked."""

    def __init__(self, cases: Cases) -> None:
        self.cases, self.findings, self.images = cases, cases.findings, cases.images
        self.asked = 0

    def _bright(self, image_ids):
        self.asked += len(image_ids)
        return self.images(image_ids).mean(axis=(1, 2)) > 127

    def reports(self, image_ids, most_tokens):
        return ["There is a left nodule." if b else "The lungs are clear." for b in self._bright(image_ids)]

    def answers(self, image_ids, questions, most_tokens):
        return ["Yes." if b else "No." for b in self._bright(image_ids)]

    def finding_probabilities(self, image_id, findings):
        return [float(self._bright([image_id])[0])] * len(findings)

    def draw(self, texts, seed):
        self.asked += len(texts)
        return np.array([[int("nodule" in text)] * LENGTH for text in texts])

    def decode(self, codes):
        noise = np.random.default_rng(0).integers(0, 90, (len(codes), SIZE, SIZE))
        return (noise + 160 * codes[:, :1, None]).astype(np.uint8)

    def codes(self, image_ids):
        return np.zeros((len(image_ids), LENGTH), int)

    def reconstructed(self, images):
        return images

    def codebook_use(self):
        return 0.5

    def codebook_perplexity(self):
        return 1.5

    def judged(self, images):
        return [{name: float(image.mean() > 127) for name in self.findings} for image in images]

    def perplexities(self):
        return {"tuned": 22.0, "base": 20.0, "n": 3}


def make_cases(there, texts=None, name="nodule", train=4, **changes) -> Cases:
    """Test cases: number i has a left nodule (or `name`) where `there[i]` (None: not known), and the report `texts[i]`."""

    def study(k, label, text, split):
        truth = (Finding(name, "left"),) if label == 1 else ()
        labels = {} if label is None else {name: int(label)}
        return Study(
            f"{split}{k}", f"{split}-p{k}", "s", "i.png", split, "PA", 0, "", text, labels, truth, "m" * bool(labels)
        )

    texts = texts or ["There is a left nodule." if label else "The lungs are clear." for label in there]
    test = [study(k, label, text, "test") for k, (label, text) in enumerate(zip(there, texts, strict=True))]
    learned = [study(k, k % 2, texts[k % len(texts)], "train") for k in range(train)]
    images = {s.image_id: np.full((SIZE, SIZE), 255 * (s.labels.get(name) == 1), np.uint8) for s in test}
    studies = [*learned, *test]
    findings = changes.pop("findings", known_findings(studies))
    cases = Cases(
        test,
        learned,
        LabelSet(findings),
        RuleLabeller(),
        "impression",
        lambda ids: np.stack([images[i] for i in ids]),
        [question for part in (test, learned) for question in gather(part, MEASURED, RuleLabeller(), 0)],
        COUNTS,
        bootstrap=20,
    )
    return dataclasses.replace(cases, **changes)
