"""Task: image from report (paper, section 2.4, "Report-to-CXR")."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmcxr.instructions.example import Grammar, InstructionExample, Turn
from llmcxr.instructions.questions import listed_findings
from llmcxr.metrics import scores
from llmcxr.studies.report_sections import report_text
from llmcxr.tasks.base import Items, Task, TaskData
from llmcxr.tasks.findings_first import ImageReport, image_reports, stated_list
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
    read_picture,
    to_show,
)

# Ten phrasings, drawn at random for each example (paper, section 2.4). The first is used for inference.
PHRASINGS = (
    "Draw a chest radiograph that fits this report.",
    "Generate a chest X-ray for the following report.",
    "Create the chest image that this report describes.",
    "Produce a frontal chest film with these findings.",
    "Make a chest radiograph that shows what is written here.",
    "Which chest X-ray belongs to this report? Draw it.",
    "Turn this radiology report into a chest radiograph.",
    "Synthesise a chest X-ray that matches the text.",
    "Render a chest radiograph from this description.",
    "Show a chest X-ray for which this would be the report.",
)
STATED_QUESTION = "Which abnormal findings does this report state?"


def repeats(pairs: Sequence[ImageReport], rare: float) -> list[int]:
    """How often each report should occur so that rare findings are learned, too, at least once.

    Repeat factor sampling (Gupta et al. 2019, LVIS): the largest sqrt(rare / share of the reports that state it) over the
    findings a report states. A factor of 2.3 is 2 for some and 3 for others, by their order.
    """
    stated = [{f.name for f in listed_findings(pair.named)} if pair.named else set() for pair in pairs]
    counts = Counter(name for names in stated for name in names)
    factors = np.array(
        [max([1.0, *(math.sqrt(rare * len(pairs) / counts[name]) for name in names)]) for names in stated]
    )
    return np.diff(np.floor(np.cumsum(factors) + 1e-9), prepend=0).astype(int).tolist()


class ReportToCxrItems(Items):
    """One item an image with a report, or several where the report states a rare finding."""

    def __init__(
        self, pairs: Sequence[ImageReport], unguided_share: float = 0.0, rare: float = 0.0, note: str = ""
    ) -> None:
        """`unguided_share` of the examples ask for any radiograph, without a report: what guidance starts from.

        Reports are repeated as their rarest stated finding asks for (`repeats`, with findings rarer than `rare`).
        """
        self.findings_first, self.note = any(pair.named is not None for pair in pairs), note
        self._pairs = [pair for pair, times in zip(pairs, repeats(pairs, rare), strict=True) for _ in range(times)]
        self._unguided_share = unguided_share

    def __len__(self) -> int:
        return len(self._pairs)

    def example(self, item: int, rng: np.random.Generator) -> InstructionExample:
        """The item under one of the phrasings."""
        pair = self._pairs[item]
        phrasing = PHRASINGS[rng.integers(len(PHRASINGS))]
        turns = TASK.prompt(pair.report, pair.named, phrasing, pair.codes)
        if self._unguided_share and rng.random() < self._unguided_share:
            turns = TASK.prompt("", None, phrasing, pair.codes)
        return InstructionExample(TASK.name, turns, pair.image_id, may_cut="input")


class ReportToCxr(Task):
    """A report in, an image as codes out."""

    name = "report_to_cxr"
    about = "draws a radiograph for a report"
    place = 1
    grammar: Grammar = "image"
    can_name_findings = True

    def items(self, data: TaskData) -> ReportToCxrItems:
        """One item an image with a report, or several."""
        pairs, note = image_reports(data, self.name, stated_list)
        return ReportToCxrItems(pairs, data.options["unguided_share"], data.options["rare_findings"], note)

    def list_prompt(self, report: str) -> tuple[Turn, ...]:
        """Asks for the findings that are named first: those that the report states."""
        return (Turn(STATED_QUESTION, report),)

    def prompt(
        self, report: str, named: str | None = None, instruction: str = PHRASINGS[0], codes: np.ndarray | None = None
    ) -> tuple[Turn, ...]:
        """Turns that end in an image (None: to be drawn) for a report, after the list `named`, or without one."""
        if named is None:
            return (Turn(instruction, report, codes),)
        return Turn(STATED_QUESTION, report, named), Turn(instruction, "", codes)


TASK = ReportToCxr()


# ----------------------------------------------------------------------------------------------------- how it is measured

DRAWN_AGAIN = 64  # reports that are drawn a second time, for how much drawings of one vary
SHOWN, MORE = 8, 3  # reports whose drawings the page shows, and how many more it shows of each


class DrawingMeasurement(Measurement):
    """What the judge sees in radiographs drawn from unseen reports, beside the real images of those reports."""

    name, group, place = "report_to_cxr", "image", 3
    scores = (
        Score(
            "Drawn images, AUROC",
            "image.auroc",
            "image.auroc_shuffled",
            "images drawn for other reports",
            "image.auroc_real",
            "the same classifier on real test images",
            "Whether a classifier finds in a drawn image what the patient has whose report it was drawn from.",
            interval=("image.auroc_low", "image.auroc_high"),
            count="image.n",
            scale=(0.4, 1.0),
            needs=TOO_FEW,
        ),
        Score(
            "Drawn images, AUROC for what was asked",
            "image.auroc_asked",
            "image.auroc_asked_shuffled",
            "images drawn for other reports",
            "image.auroc_asked_real",
            "the same classifier on real test images",
            "The same for the findings that the report states, whatever else the patient has: what the drawing was asked for.",
            interval=("image.auroc_asked_low", "image.auroc_asked_high"),
            count="image.n",
            scale=(0.4, 1.0),
            needs="no finding is stated by at least 5 reports and left out by 5",
        ),
        Score(
            "Drawn images, MS-SSIM between two of one report",
            "image.ms_ssim_between_draws",
            "image.ms_ssim_own_shifted",
            "a patient's own image against itself, moved by 2 % of its width and with noise",
            None,
            "",
            "How alike two drawings of one report are: below the baseline they are different patients, not one copied.",
            interval=("image.ms_ssim_between_draws_low", "image.ms_ssim_between_draws_high"),
            count="image.ms_ssim_n",
            lower_is_better=True,
        ),
    )

    def asks(self, cases: Cases) -> list[list[Ask]]:
        """Reports of test images."""
        told = [(s, text) for s in cases.shuffled if (text := report_text(s, cases.part))][: cases.counts["drawings"]]
        shown = to_show([study for study, _ in told], SHOWN)
        asks = [
            Ask(s, cases.part, text, shown=k in shown, repeated=k < DRAWN_AGAIN) for k, (s, text) in enumerate(told)
        ]
        return in_groups(asks)

    def answer(self, model: Examinee, group: Sequence[Ask], seed: int) -> list[Prediction]:
        """A drawing of each report, and another by the next seed where it is repeated; three more where the page shows it."""
        from llmcxr.metrics.images import ms_ssim

        texts, ids = [ask.question for ask in group], [ask.study.image_id for ask in group]
        codes, own_codes = model.draw(texts, seed), model.codes(ids)
        drawn, real = model.decode(codes), model.images(ids)
        judged, judged_real = model.judged(drawn), model.judged(real)
        repeated = [k for k, ask in enumerate(group) if ask.repeated]
        again = model.decode(model.draw([texts[k] for k in repeated], seed + 1)) if repeated else drawn[:0]
        likeness = {k: ms_ssim(drawn[k] / 255, image / 255) for k, image in zip(repeated, again, strict=True)}
        predictions = []
        for k, ask in enumerate(group):
            extra: dict[str, Any] = {"shown": ask.shown, "codes": codes[k].tolist(), "drawn": [picture_text(drawn[k])]}
            extra |= {"valid": len(codes[k]) == len(own_codes[k]), "judge": judged[k], "judge_real": judged_real[k]}
            if k in likeness:
                extra["ms_ssim_again"] = likeness[k]
            if ask.shown:
                extra["drawn"] += map(picture_text, model.decode(model.draw([texts[k]] * MORE, seed + 1)))
                extra["kept"] = picture_text(model.decode(own_codes[k : k + 1])[0])
            predictions.append(self.prediction(ask, **extra))
        return predictions

    def score(self, predictions: Sequence[Prediction], cases: Cases) -> dict[str, Any] | NotMeasured:
        """AUROC by the patient's findings and by those asked for, and variety: of all drawings, and of two of one report."""
        from llmcxr.metrics.images import mean_pairwise_ssim, ms_ssim, shifted_with_noise

        if not predictions:
            return NotMeasured("no test image has a report text")
        studies, patients = cases.of(predictions), [p.patient_id for p in predictions]
        seen, seen_in_real = (cases.matrix([p.extra[key] for p in predictions]) for key in ("judge", "judge_real"))
        others = scores.shuffled(len(seen), cases.seed)
        # A report leaves out some of what its patient has: a drawing of it is held to both, apart.
        wanted = {"auroc": cases.labels(studies)}
        result: dict[str, Any] = {"n": len(predictions)}
        if why := cases.unreadable():
            result["auroc_asked"] = why
        else:
            asked = cases.stated([p.question for p in predictions]).astype(np.float32)
            asked[:, [i for i in range(asked.shape[1]) if i not in cases.readable]] = np.nan
            wanted["auroc_asked"] = asked
        for key, labels in wanted.items():
            found = scores.mean_auroc(labels, seen)
            low, high = cases.auroc_interval(labels, seen, patients)
            if key == "auroc":
                result["per_finding"] = {"drawn": cases.named(found.per_finding)}
            result |= {
                key: found.mean,
                f"{key}_low": low,
                f"{key}_high": high,
                f"{key}_real": scores.mean_auroc(labels, seen_in_real).mean,
                f"{key}_shuffled": scores.mean_auroc(labels, seen[others]).mean,
            }
        real = cases.images([p.image_id for p in predictions]) / 255
        drawn = np.stack([read_picture(p.extra["drawn"][0]) for p in predictions]) / 255
        result |= {
            "valid": float(np.mean([p.extra["valid"] for p in predictions])),
            "ssim_between_drawn": mean_pairwise_ssim(drawn, seed=cases.seed),
            "ssim_between_real": mean_pairwise_ssim(real, seed=cases.seed),
        }
        rows = [k for k, p in enumerate(predictions) if "ms_ssim_again" in p.extra]
        between = np.array([predictions[k].extra["ms_ssim_again"] for k in rows])
        shifted = [ms_ssim(real[k], shifted_with_noise(real[k], cases.seed + k)) for k in rows]
        low, high = cases.interval(lambda r: float(between[r].mean()), [patients[k] for k in rows])
        return result | {
            "ms_ssim_between_draws": scores.mean(between),
            "ms_ssim_between_draws_low": low,
            "ms_ssim_between_draws_high": high,
            "ms_ssim_own_shifted": scores.mean(shifted),
            "ms_ssim_n": len(rows),
        }

    def notes(self, values: Mapping[str, Any]) -> list[str]:
        """Drawings that are too much alike."""
        drawn, real = values.get("ssim_between_drawn"), values.get("ssim_between_real")
        return ["Drawn images vary less than real ones."] if drawn and real and drawn > real + 0.1 else []


MEASUREMENT = DrawingMeasurement()
