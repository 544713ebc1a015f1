"""Measure a model on unseen patients: reports, questions, drawings, the image tokenizer, and forgetting.

Shapes: N cases, F findings, S side in pixels, L codes an image. Images are uint8 [N, S, S].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from llmcxr.evaluation.extraction import build_extractor
from llmcxr.evaluation.judge import Judge
from llmcxr.evaluation.page import DrawingCard, FindingRow, QuestionRow, Reconstruction, ReportCard
from llmcxr.evaluation.predictions import Prediction, predictions_frame, write_predictions
from llmcxr.evaluation.settings import EvaluationSettings
from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.randomness import stream
from llmcxr.image_tokens.classifier import in_batches
from llmcxr.image_tokens.training import codebook_use, reconstruct
from llmcxr.inference.backend import DRAWING, Sampling
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.questions import QuestionAnswer, presence_question
from llmcxr.labelling.registry import build_labeller
from llmcxr.metrics import scores
from llmcxr.studies.pixel_store import Images
from llmcxr.studies.radiographs import to_uint8
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study, label_matrix
from llmcxr.tuning.keep_language import general_texts, perplexity
from llmcxr.vocabulary.language_model import load_language_model


@dataclass
class Cases:
    """Test and training cases with all that is known of them; row i of each array belongs to study i."""

    test: list[Study]
    images: Images  # uint8 [N, S, S] of test
    codes: Mapping[str, np.ndarray]  # of all images
    train: list[Study]
    questions: list[QuestionAnswer]  # of train and test
    findings: tuple[str, ...]


@dataclass
class Results:
    """What was measured, and what the page shows of it."""

    summary: dict[str, Any] = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list)
    reconstructions: list[Reconstruction] = field(default_factory=list)
    reports: list[ReportCard] = field(default_factory=list)
    drawings: list[DrawingCard] = field(default_factory=list)
    questions: list[QuestionRow] = field(default_factory=list)
    findings: list[FindingRow] = field(default_factory=list)


def _shown(study: Study, findings: Sequence[str]) -> str:
    """The findings that a study is known to have, for people; "" where nothing is known to be there, but not all is denied."""
    present = [name for name, state in study.labels.items() if state == 1]
    if not present and findings and all(study.labels.get(name) == 0 for name in findings):
        return "no finding"
    return ", ".join(present)


def _to_show(studies: Sequence[Study], count: int) -> list[int]:
    """Which studies the page shows: the first with findings, then for a quarter of the places the first without.

    Chosen by what is in the images, never by what the model made of them.
    """
    positive = [any(state == 1 for state in study.labels.values()) for study in studies]
    order = sorted(range(len(studies)), key=lambda k: not positive[k])
    quiet = [k for k in order if not positive[k]][: count // 4]
    return [k for k in order if k not in quiet][: count - len(quiet)] + quiet


def _side_of(study: Study, name: str) -> str:
    """The side of a finding in the image: "left", "right", "both" or "" (none, or not known)."""
    own = {side for finding in study.truth if finding.name == name and (side := finding.side)}
    return "both" if len(own) > 1 else next(iter(own), "")


def _side_pairs(
    studies: Sequence[Study], findings: Sequence[str], right: np.ndarray, texts: Sequence[str]
) -> list[tuple[str, str, str, str]]:
    """(patient, finding, side in the image, side in the text or "") of the findings that texts state rightly (bool [N, F]).

    Only findings whose side the labeller can read, and whose side in the image is known.
    """
    pairs, labeller = [], build_labeller("rules")
    for k, study in enumerate(studies):
        told = labeller.read(texts[k]).sides()
        for f in np.flatnonzero(right[k]).tolist():
            name = findings[f]
            if name in labeller.sided and (side := _side_of(study, name)):
                pairs.append((study.patient_id, name, side, told.get(labeller.sided.spelling(name), "")))
    return pairs


def _chunks(count: int, size: int, label: str) -> Sequence[range]:
    starts = range(0, count, size)
    return tqdm([range(s, min(s + size, count)) for s in starts], desc=label, unit="batch")  # type: ignore[return-value]


class Evaluation:
    """All measurements of one model over the same cases."""

    def __init__(self, model: LlmCxr, judge: Judge, cases: Cases, base: str, settings: EvaluationSettings) -> None:
        self.model, self.judge, self.cases, self.base, self.settings = model, judge, cases, base, settings
        self.device = model.image_tokenizer.codebook.device
        self.results = Results()
        self.per_finding: dict[str, dict[str, float]] = {}
        order = stream(settings.seed, "evaluation").permutation(len(cases.test))
        self.order = order  # a random order, of which each measurement takes the first so many

    def run(self) -> Results:
        """Measure everything."""
        self.language()  # first: a base model that is not there should be missed before an hour of the rest
        self.image_tokenizer()
        self.report()
        self.vqa()
        self.draw()
        labels = label_matrix(self.cases.test, self.cases.findings)
        for i, name in enumerate(self.cases.findings):
            row = {key: values.get(name) for key, values in self.per_finding.items()}
            self.results.findings.append(FindingRow(name, **row, positives=int((labels[:, i] == 1).sum())))
        return self.results

    def _interval(self, truth: np.ndarray, score: np.ndarray, patients: Sequence[str]) -> tuple[float, float]:
        return scores.bootstrap_interval(
            lambda rows: scores.mean_auroc(truth[rows], score[rows]).mean,
            patients,
            n=self.settings.bootstrap,
            seed=self.settings.seed,
        )

    def image_tokenizer(self) -> None:
        """Reconstruction error, codebook use, and what the judge still sees."""
        rows = self.order[: self.settings.reconstructions]
        images = self.cases.images[rows]
        tokenizer = self.model.image_tokenizer
        again = to_uint8(in_batches(lambda x: reconstruct(tokenizer, x), images, self.device)[:, 0])
        difference = np.abs(images.astype(np.float32) - again.astype(np.float32)).mean(axis=(1, 2)) / 255
        labels = label_matrix([self.cases.test[i] for i in rows], self.cases.findings)
        original = scores.mean_auroc(labels, self.judge.scores(images, self.device))
        reconstruction = scores.mean_auroc(labels, self.judge.scores(again, self.device))
        self.per_finding["original"] = self._named(original.per_finding)
        self.per_finding["reconstruction"] = self._named(reconstruction.per_finding)
        codes = np.stack([self.cases.codes[s.image_id] for s in (*self.cases.train, *self.cases.test)])
        self.results.summary["image_tokenizer"] = {
            "codebook_use": codebook_use(codes, self.model.info.codebook_size),
            "l1": float(difference.mean()),
            "auroc_original": original.mean,
            "auroc_reconstruction": reconstruction.mean,
            "n": len(rows),
        }
        for k in range(min(12, len(rows))):
            name = _shown(self.cases.test[rows[k]], self.cases.findings)
            self.results.reconstructions.append(Reconstruction(images[k], again[k], name, float(difference[k])))

    def _named(self, values: np.ndarray) -> dict[str, float]:
        return {name: float(v) for name, v in zip(self.cases.findings, values, strict=True) if not math.isnan(v)}

    def report(self) -> None:
        """Findings stated in generated reports against what is in the image, with trivial baselines and the ceiling."""
        part = self.model.info.report
        rows = [i for i in self.order if report_text(self.cases.test[i], part)][: self.settings.reports]
        studies = [self.cases.test[i] for i in rows]
        if not studies:
            return
        codes = np.stack([self.cases.codes[s.image_id] for s in studies])
        sampling = Sampling(max_new_tokens=self.settings.report_tokens)
        generated: list[str] = []
        for chunk in _chunks(len(rows), self.settings.batch_size, "reports"):
            generated += self.model.reports(codes[list(chunk)], sampling)
        extract = build_extractor(self.cases.findings, self.cases.train, part)
        train = [s for s in self.cases.train if report_text(s, part)]
        truth = label_matrix(studies, self.cases.findings) == 1
        predicted = np.stack([extract(text) for text in generated])
        references = [report_text(s, part) for s in studies]
        stated = np.stack([extract(text) for text in references])
        f1, reference_f1 = scores.micro_macro_f1(truth, predicted), scores.micro_macro_f1(truth, stated)
        low, high = scores.bootstrap_interval(
            lambda r: scores.micro_macro_f1(truth[r], predicted[r]).micro,
            [s.patient_id for s in studies],
            n=self.settings.bootstrap,
            seed=self.settings.seed,
        )
        rows_of_others = scores.shuffled(len(predicted), self.settings.seed)
        baselines = {"shuffled": scores.micro_macro_f1(truth, predicted[rows_of_others]).micro}
        if train:
            constant = scores.best_constant_prediction(label_matrix(train, self.cases.findings) == 1, truth)
            common = extract(scores.most_common_report([report_text(s, part) for s in train]))
            baselines["constant"] = constant.test_micro_f1
            baselines["most_common_report"] = scores.micro_macro_f1(truth, np.tile(common, (len(truth), 1))).micro
        self.results.summary["report"] = {
            "micro_f1": f1.micro,
            "micro_f1_low": low,
            "micro_f1_high": high,
            "macro_f1": f1.macro,
            # Every finding said of every image: of all fixed sets it has the best macro-F1.
            "baseline_macro_f1": scores.micro_macro_f1(truth, np.ones_like(truth)).macro,
            "baseline_micro_f1": float(np.nanmax(list(baselines.values()))),
            "baselines": baselines,
            "reference_micro_f1": reference_f1.micro,
            "reference_macro_f1": reference_f1.macro,
            "distinct": len(set(generated)) / len(generated),
            "n": len(studies),
        }
        self.results.summary["report"] |= self._sides(studies, truth & predicted, generated, truth & stated, references)
        names = np.array(self.cases.findings)
        shown = _to_show(studies, 12)
        for k, study in enumerate(studies):
            stated_names = names[predicted[k]].tolist()
            self.results.predictions.append(
                Prediction(
                    "report",
                    study.image_id,
                    study.patient_id,
                    part,
                    "",
                    references[k],
                    generated[k],
                    extra={"findings": stated_names},
                )
            )
            if k in shown:
                card = ReportCard(
                    self.cases.images[rows[k]],
                    references[k],
                    generated[k],
                    names[truth[k] & predicted[k]].tolist(),
                    names[truth[k] & ~predicted[k]].tolist(),
                    names[~truth[k] & predicted[k]].tolist(),
                )
                self.results.reports.append(card)

    def _sides(
        self,
        studies: Sequence[Study],
        right: np.ndarray,
        generated: Sequence[str],
        reference_right: np.ndarray,
        references: Sequence[str],
    ) -> dict[str, float]:
        """Where a finding is stated rightly: whether its side is, against the commonest side in training and real reports."""
        findings = self.cases.findings
        pairs = _side_pairs(studies, findings, right, generated)
        stated = [pair for pair in pairs if pair[3]]
        agrees = np.array([side == told for _, _, side, told in stated], dtype=float)
        low, high = scores.bootstrap_interval(
            lambda r: float(agrees[r].mean()),
            [patient for patient, *_ in stated],
            n=self.settings.bootstrap,
            seed=self.settings.seed,
        )
        common = {}
        for name in findings:
            sides = Counter(side for study in self.cases.train if (side := _side_of(study, name)))
            common[name] = min(sides, key=lambda side: (-sides[side], side), default="")
        real = [p for p in _side_pairs(studies, findings, reference_right, references) if p[3]]
        return {
            "side_accuracy": float(agrees.mean()) if stated else math.nan,
            "side_low": low,
            "side_high": high,
            "side_baseline": float(np.mean([side == common[name] for _, name, side, _ in stated]))
            if stated
            else math.nan,
            "side_reference": float(np.mean([side == told for _, _, side, told in real])) if real else math.nan,
            "side_stated": len(stated) / len(pairs) if pairs else math.nan,
            "side_n": len(stated),
        }

    def vqa(self) -> None:
        """Answers to balanced questions, and p(yes) of every finding on every image."""
        place = {s.image_id: k for k, s in enumerate(self.cases.test)}
        asked = [q for q in self.cases.questions if q.image_id in place]
        chosen = [
            asked[i] for i in stream(self.settings.seed, "questions").permutation(len(asked))[: self.settings.questions]
        ]
        responses: list[str] = []
        chosen.sort(key=lambda q: len(q.question))  # prompts of like length need little padding
        for chunk in _chunks(len(chosen), self.settings.batch_size, "questions"):
            part = [chosen[i] for i in chunk]
            codes = np.stack([self.cases.codes[q.image_id] for q in part])
            responses += self.model.answers(codes, [q.question for q in part], Sampling(max_new_tokens=32))
        answered = []
        for question, response in zip(chosen, responses, strict=True):
            patient = self.cases.test[place[question.image_id]].patient_id
            extra = {"finding": question.finding}
            answered.append(
                Prediction(
                    "vqa",
                    question.image_id,
                    patient,
                    question.kind,
                    question.question,
                    question.answer,
                    response,
                    extra=extra,
                )
            )
        train_ids = {s.image_id for s in self.cases.train}
        training = predictions_frame(
            [
                Prediction("vqa", q.image_id, "", q.kind, q.question, q.answer, "")
                for q in self.cases.questions
                if q.image_id in train_ids
            ]
        )
        frame = predictions_frame(answered)
        result = scores.vqa_scores(frame, training)
        reference = frame["reference"].map(scores.normalize_answer).to_numpy(str)
        is_right = scores.vqa_right(frame)
        yes_no = np.flatnonzero(np.isin(reference, ("yes", "no")))
        balanced_low, balanced_high = scores.bootstrap_interval(
            lambda r: scores.balanced_accuracy(reference[yes_no[r]], is_right[yes_no[r]]),
            frame["patient_id"].to_numpy(str)[yes_no].tolist(),
            n=self.settings.bootstrap,
            seed=self.settings.seed,
        )
        accuracy_low, accuracy_high = scores.bootstrap_interval(
            lambda r: float(is_right[r].mean()),
            frame["patient_id"].to_list(),
            n=self.settings.bootstrap,
            seed=self.settings.seed,
        )
        rows = self.order[: self.settings.probabilities]
        studies = [self.cases.test[i] for i in rows]
        texts = [presence_question(name) for name in self.cases.findings]
        p_yes = np.stack(
            [
                self.model.yes_probabilities(self.cases.codes[s.image_id], texts)
                for s in tqdm(studies, desc="p(yes)", unit="image")
            ]
        )
        labels = label_matrix(studies, self.cases.findings)
        reading = scores.mean_auroc(labels, p_yes)
        low, high = self._interval(labels, p_yes, [s.patient_id for s in studies])
        self.per_finding["reading"] = self._named(reading.per_finding)
        for k, study in enumerate(studies):
            for f, name in enumerate(self.cases.findings):
                known = None if np.isnan(labels[k, f]) else int(labels[k, f])
                answered.append(
                    Prediction(
                        "p_yes",
                        study.image_id,
                        study.patient_id,
                        "presence",
                        texts[f],
                        {1: "Yes.", 0: "No.", None: ""}[known],
                        "",
                        float(p_yes[k, f]),
                        known,
                        {"finding": name},
                    )  # fmt: skip
                )
        self.results.predictions += answered
        judged = scores.mean_auroc(labels, self.judge.scores(self.cases.images[rows], self.device))
        self.results.summary["vqa"] = {
            "accuracy": result.accuracy,
            "accuracy_low": accuracy_low,
            "accuracy_high": accuracy_high,
            "balanced_accuracy": result.balanced_accuracy,
            "balanced_accuracy_low": balanced_low,
            "balanced_accuracy_high": balanced_high,
            "balanced_n": len(yes_no),
            "majority_accuracy": result.majority_accuracy,
            "by_kind": result.by_kind,
            "count_by_kind": result.count_by_kind,
            "auroc": reading.mean,
            "auroc_low": low,
            "auroc_high": high,
            "auroc_shuffled": scores.mean_auroc(labels, p_yes[scores.shuffled(len(p_yes), self.settings.seed)]).mean,
            "auroc_classifier": judged.mean,
            "auroc_n": len(studies),
            "n": result.n,
        }
        for k in stream(self.settings.seed, "shown").permutation(len(chosen))[:16]:
            q = chosen[k]
            right = bool(scores.vqa_right(predictions_frame([answered[k]]))[0])
            image = self.cases.images[place[q.image_id]]
            self.results.questions.append(QuestionRow(q.question, q.answer, responses[k], right, image))

    def draw(self) -> None:
        """What the judge sees in radiographs drawn from unseen reports, beside the real images of those reports."""
        part = self.model.info.report
        rows = np.array(
            [i for i in self.order if report_text(self.cases.test[i], part)][: self.settings.drawings], dtype=int
        )
        studies = [self.cases.test[i] for i in rows]
        if not studies:
            return
        texts, patients = [report_text(s, part) for s in studies], [s.patient_id for s in studies]
        codes, drawn = self._drawings(texts, "drawings", self.settings.seed)
        real = self.cases.images[rows]
        extract = build_extractor(self.cases.findings, self.cases.train, part)
        seen, seen_in_real = self.judge.scores(drawn, self.device), self.judge.scores(real, self.device)
        others = scores.shuffled(len(seen), self.settings.seed)
        self.results.summary["image"] = {}
        # A report leaves out some of what its patient has: a drawing of it is held to both, apart.
        for key, labels in (
            ("auroc", label_matrix(studies, self.cases.findings)),
            ("auroc_asked", np.stack([extract(text) for text in texts]).astype(np.float32)),
        ):
            result = scores.mean_auroc(labels, seen)
            low, high = self._interval(labels, seen, patients)
            if key == "auroc":
                self.per_finding["drawn"] = self._named(result.per_finding)
            self.results.summary["image"] |= {
                key: result.mean,
                f"{key}_low": low,
                f"{key}_high": high,
                f"{key}_real": scores.mean_auroc(labels, seen_in_real).mean,
                f"{key}_shuffled": scores.mean_auroc(labels, seen[others]).mean,
            }
        self.results.summary["image"] |= {
            "valid": float(np.mean([len(row) == self.model.info.grid**2 for row in codes])),
            "ssim_between_drawn": scores.mean_pairwise_ssim(drawn / 255.0, seed=self.settings.seed),
            "ssim_between_real": scores.mean_pairwise_ssim(real / 255.0, seed=self.settings.seed),
            "n": len(studies),
        }
        for k, study in enumerate(studies):
            self.results.predictions.append(
                Prediction(
                    "draw", study.image_id, study.patient_id, part, texts[k], "", "", extra={"codes": codes[k].tolist()}
                )
            )
        for k in _to_show(studies, 8):
            again = self.model.draw_codes(
                [texts[k]] * 3, Sampling(DRAWING.temperature, DRAWING.top_p, seed=self.settings.seed + 1)
            )
            pictures = [drawn[k], *to_uint8(self.model.decode(again))]
            kept = to_uint8(self.model.decode(self.cases.codes[studies[k].image_id][None]))[0]
            card = DrawingCard(texts[k], real[k], pictures, _shown(studies[k], self.cases.findings), kept)
            self.results.drawings.append(card)
        self.results.summary["image"] |= self._variety(texts, drawn, real, patients)

    def _drawings(self, texts: Sequence[str], what: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes int [N, L] and pixels uint8 [N, S, S] drawn from reports."""
        parts = []
        for chunk in _chunks(len(texts), self.settings.batch_size, what):
            sampling = Sampling(DRAWING.temperature, DRAWING.top_p, seed=seed + chunk.start)
            parts.append(self.model.draw_codes([texts[i] for i in chunk], sampling))
        codes = np.concatenate(parts)
        pixels = np.concatenate([self.model.decode(codes[i : i + 64]) for i in range(0, len(codes), 64)])
        return codes, to_uint8(pixels)

    def _variety(
        self, texts: Sequence[str], drawn: np.ndarray, real: np.ndarray, patients: Sequence[str]
    ) -> dict[str, float]:
        """How alike two drawings of one report are, by MS-SSIM, for the first `drawn_again` of the `texts`.

        They should be less alike than a patient's own image is to itself, moved by 2 % of its width and with noise.
        `drawn` and `real` are uint8 [N, S, S] of these texts, `patients` [N] whose they are.
        """
        n = min(self.settings.drawn_again, len(texts))
        if not n:
            return {}
        _, again = self._drawings(texts[:n], "drawings again", self.settings.seed + 1)
        own = real[:n] / 255.0
        between = [scores.ms_ssim(a / 255.0, b / 255.0) for a, b in zip(drawn[:n], again, strict=True)]
        shifted = [scores.ms_ssim(x, scores.shifted_with_noise(x, self.settings.seed + k)) for k, x in enumerate(own)]
        low, high = scores.bootstrap_interval(
            lambda rows: float(np.mean(np.array(between)[rows])),
            patients[:n],
            n=self.settings.bootstrap,
            seed=self.settings.seed,
        )
        return {
            "ms_ssim_between_draws": float(np.mean(between)),
            "ms_ssim_between_draws_low": low,
            "ms_ssim_between_draws_high": high,
            "ms_ssim_own_shifted": float(np.mean(shifted)),
            "ms_ssim_n": n,
        }

    def language(self) -> None:
        """Perplexity on general text against the base model, in the same precision."""
        texts = general_texts()
        backend = self.model.asker.backend
        vocabulary = self.model.asker.vocabulary
        tuned = perplexity(cast(TransformersBackend, backend).model, vocabulary, texts)
        base_model = load_language_model(self.base, torch.bfloat16).to(self.device)  # type: ignore[arg-type]
        base = perplexity(base_model, vocabulary, texts)
        self.results.summary["language"] = {
            "perplexity_ratio": tuned / base,
            "perplexity": tuned,
            "perplexity_base": base,
            "n": len(texts),
        }


def shortfalls(summary: Mapping[str, Any]) -> list[str]:
    """Sentences on every score that is not clearly better than doing nothing, for the page."""
    notes = []
    report, vqa, image = (summary.get(key, {}) for key in ("report", "vqa", "image"))
    if report and not report["micro_f1_low"] > report["baseline_micro_f1"]:
        notes.append("Generated reports state findings no better than the best trivial baseline (95 % interval).")
    if vqa and not vqa["accuracy"] > vqa["majority_accuracy"]:
        notes.append("Questions are answered no better than by always giving the commonest training answer.")
    for part, name in ((vqa, "p(yes)"), (image, "drawn images")):
        if part and part["auroc_low"] <= 0.5:  # NaN: too few images to say
            notes.append(f"The AUROC of {name} is not above 0.5 (95 % interval).")
    if image and image["ssim_between_drawn"] > image["ssim_between_real"] + 0.1:
        notes.append("Drawn images vary less than real ones.")
    return notes


def save_results(folder: Path, results: Results) -> None:
    """Write predictions.parquet and summary.json; NaN becomes null, which means not measured."""
    write_predictions(folder / "predictions.parquet", results.predictions)
    write_json(folder / "summary.json", _plain(results.summary))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else round(float(value), 6)
    return int(value) if isinstance(value, np.integer) else value
