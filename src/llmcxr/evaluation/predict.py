"""The model answers, and every answer is kept: the one part of evaluation that needs the model.

What is asked comes from the tasks. Groups of questions are shared out over the processes of a launcher. A group has a seed of
its own, its place among the questions of its task, and what is drawn depends on the request alone, so that neither the number
of processes nor an interruption changes an answer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmcxr.evaluation.judge import Judge
from llmcxr.evaluation.predictions import Journal, read_predictions, write_predictions
from llmcxr.evaluation.scoring import MEASUREMENTS
from llmcxr.foundation.processes import Processes
from llmcxr.image_tokens.classifier import in_batches
from llmcxr.image_tokens.training import codebook_use, reconstruct
from llmcxr.inference import policies
from llmcxr.inference.backend import DRAWING, Sampling
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.example import Turn
from llmcxr.metrics import reconstruction
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.radiographs import to_uint8
from llmcxr.tasks.measurement import Ask, Cases, Measurement, Prediction
from llmcxr.tuning.keep_language import general_texts, perplexity
from llmcxr.vocabulary.language_model import load_language_model


class ModelUnderTest:
    """`Examinee` of a loaded model, the codes of the data, and the judge (None: no label is known)."""

    def __init__(
        self,
        model: LlmCxr,
        judge: Judge | None,
        findings: LabelSet,
        codes: Mapping[str, np.ndarray],
        images: Callable[[Sequence[str]], np.ndarray],
    ) -> None:
        self.model, self.judge, self.findings, self._codes, self.images = model, judge, findings, codes, images
        self.device = model.image_tokenizer.codebook.device

    def generate(
        self, conversations: Sequence[tuple[Turn, ...]], most_tokens: int, seed: int = 0, temperature: float = 0.0
    ) -> list[str]:
        """Text responses to the last turns."""
        sampling = Sampling(temperature, max_new_tokens=most_tokens, seed=seed)
        return self.model.asker.texts(conversations, sampling)

    def reports(self, image_ids: Sequence[str], most_tokens: int) -> list[str]:
        """Reports, written as the model writes by default."""
        return policies.reports(self.model.asker, self.codes(image_ids), Sampling(max_new_tokens=most_tokens))

    def answers(self, image_ids: Sequence[str], questions: Sequence[str], most_tokens: int) -> list[str]:
        """Answer i to question i about image i."""
        sampling = Sampling(max_new_tokens=most_tokens)
        return policies.answers(self.model.asker, self.codes(image_ids), questions, sampling)

    def finding_probabilities(self, image_id: str, findings: Sequence[str]) -> list[float]:
        """p(yes) of each finding."""
        return self.model.presence_probabilities(self._codes[image_id], findings).astype(float).tolist()

    def draw(self, texts: Sequence[str], seed: int) -> np.ndarray:
        """Codes uint16 [N, L] drawn from reports."""
        return self.model.draw_codes(texts, Sampling(DRAWING.temperature, DRAWING.top_p, seed=seed))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [N, L] to images uint8 [N, S, S]."""
        return to_uint8(self.model.decode(codes))

    def codes(self, image_ids: Sequence[str]) -> np.ndarray:
        """Codes [N, L] of real images."""
        return np.stack([self._codes[image_id] for image_id in image_ids])

    def reconstructed(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 [N, S, S] through the image tokenizer and back."""
        tokenizer = self.model.image_tokenizer
        return to_uint8(in_batches(lambda x: reconstruct(tokenizer, x), images, self.device)[:, 0])

    def codebook_use(self) -> float:
        """Share of the codebook that occurs in the images of training and test."""
        return codebook_use(np.stack(list(self._codes.values())), self.model.info.codebook_size)

    def codebook_perplexity(self) -> float:
        """Of the codes of these images."""
        return reconstruction.perplexity(np.bincount(np.concatenate(list(self._codes.values()))))

    def judged(self, images: np.ndarray) -> list[dict[str, float]]:
        """The judge's logit of each finding on each image; empty where there is no judge."""
        if self.judge is None:
            return [{} for _ in images]
        rows = self.judge.scores(images, self.device).astype(float).tolist()
        return [dict(zip(self.judge.findings, row, strict=True)) for row in rows]

    def perplexities(self) -> dict[str, float]:
        """Of general text: of the model ("tuned") and of its base ("base"), in the same precision, and the number of texts."""
        texts, backend = general_texts(), self.model.asker.backend
        assert isinstance(backend, TransformersBackend)  # others do not give the likelihood of every token
        tuned = perplexity(backend.model, backend.vocabulary, texts)
        base = load_language_model(self.model.info.base, backend.model.dtype).to(self.device)  # type: ignore[arg-type]
        return {"tuned": tuned, "base": perplexity(base, backend.vocabulary, texts), "n": len(texts)}


def _planned(cases: Cases) -> list[tuple[str, Measurement, list[Ask], int]]:
    """(key, measurement, group, seed) of all that is asked, in the order in which it is answered.

    The last of the score table comes first: that a base model is not there should be seen before an hour of the rest.
    """
    plan = []
    for measurement in reversed(MEASUREMENTS):
        place = 0
        for group in measurement.asks(cases):
            plan.append((f"{measurement.name}/{place}", measurement, group, cases.seed + place))
            place += len(group)
    return plan


def predict(
    cases: Cases, load: Callable[[], ModelUnderTest], folder: Path, processes: Processes
) -> list[Prediction] | None:
    """Answer all that is asked, or what is left of it, and write `folder`/predictions.parquet. None but on the main process.

    `load` is called where something is left to be answered. Every process must call this.
    """
    table = folder / "predictions.parquet"
    if processes.from_main(processes.main and table.exists()):  # killed or failed only after all was answered
        if not processes.main:
            return None
        shutil.rmtree(folder / "predictions", ignore_errors=True)
        return read_predictions(table)
    plan, journal = _planned(cases), Journal(folder / "predictions", processes.rank)
    done = journal.read()
    processes.wait()  # until all have read: then each mends and goes on with its own file
    journal.mend()
    own = [
        step
        for i, step in enumerate(step for step in plan if step[0] not in done)
        if i % processes.count == processes.rank
    ]
    if own:
        model = load()
        bar = tqdm(total=sum(len(group) for _, _, group, _ in own), unit="answer", disable=not processes.main)
        for key, measurement, group, seed in own:
            bar.set_description(measurement.name)
            journal.append(key, measurement.answer(model, group, seed))
            bar.update(len(group))
        bar.close()
    processes.wait()
    if not processes.main:
        return None
    found = journal.read()
    predictions = [prediction for key, *_ in plan for prediction in found[key]]
    write_predictions(table, predictions)
    shutil.rmtree(journal.folder, ignore_errors=True)
    return predictions
