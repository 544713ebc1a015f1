"""Where the model looked: how much less it believes a finding, or a sentence, where a part of the image is another one.

Patches of neighbouring codes are replaced by codes that the model itself, asked to draw a radiograph, finds likely at their
place after the codes before them; never by nothing, which no radiograph shows (Fong and Vedaldi, 2017, with a generative
infill as in Chang et al., 2019). A code's value is the mean fall over the patches that hold it.

Letters: L = g * g codes of an image, N texts, R readings, P patches, K codes in the codebook.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from llmcxr.foundation.randomness import stream
from llmcxr.inference.backend import GREEDY
from llmcxr.inference.policies import Asker, Conversation, presence_answers
from llmcxr.instructions.questions import NOTHING
from llmcxr.studies.findings import LabelSet
from llmcxr.tasks import cxr_to_report, report_to_cxr

# On a few validation patients no worse than smaller ones, of which three times as many are read (benchmarks/explain.py).
PATCHES_ALONG = 2  # a patch is so many times smaller than the image along each side


@dataclass(frozen=True)
class Explanation:
    """What part of the image speaks for a text, in nats.

    `value` is the log-odds of yes for a finding, else the log-likelihood of the sentence. `falls` float32 [g, g] is by how
    much it falls on average where a code is replaced: above 0 the place speaks for the text, below 0 against it.
    """

    text: str
    finding: str | None  # as the model spells it, where the text is one that it knows
    value: float
    falls: np.ndarray

    def heat_map(self, size: int) -> np.ndarray:
        """`falls` over the radiograph: float32 [size, size], bilinear between the middles of the codes."""
        return stretched(self.falls, size)


def stretched(values: np.ndarray, size: int) -> np.ndarray:
    """[g, g] at the middles of codes -> float32 [size, size]."""
    given = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    return F.interpolate(given, size=(size, size), mode="bilinear", align_corners=False)[0, 0].numpy()


def patches(g: int, side: int) -> np.ndarray:
    """Bool [P, L]: squares of `side` codes that overlap by half.

    They reach over the edges, so that every code has patches on all its sides: else one at the edge would have the value of its neighbour.
    """
    step = max(1, side // 2)
    starts = range(step - side, g, step)
    found = np.zeros((len(starts), len(starts), g, g), dtype=bool)
    for i, top in enumerate(starts):
        for j, left in enumerate(starts):
            found[i, j, max(0, top) : top + side, max(0, left) : left + side] = True
    return np.unique(found.reshape(-1, g * g), axis=0)


def likely_alternatives(
    asker: Asker, codes: np.ndarray, count: int, seed: int = 0, drawing: Conversation | None = None
) -> np.ndarray:
    """Codes uint16 [count, L], each another one than in `codes` [L], as likely as the model draws them after those before.

    `drawing` is what it is asked to draw; None: any radiograph.
    """
    prompt = asker.prompts([drawing or asker.drawing("")], "image")
    chances = np.exp(asker.backend.code_log_probabilities(prompt, codes[None])[0].astype(np.float64))  # [L, K]
    chances[np.arange(len(codes)), codes] = 0
    summed = chances.cumsum(1)
    numbers = stream(seed, "alternatives").random((count, len(codes))) * summed[:, -1]
    return np.stack([(summed <= row[:, None]).sum(1) for row in numbers]).astype(np.uint16)


def replaced(codes: np.ndarray, alternatives: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Codes [L] with each of masks [P, L] filled from an alternative of its own [P, L]: [P, L]."""
    return np.where(masks, alternatives, codes)


def beliefs(asker: Asker, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """How much the model believes each text of each image [R, L], in nats: float64 [N, R].

    Of a finding the log-odds of yes. Of a sentence its log-likelihood as a report; of a model with findings first, with the
    list of what it states, without which a report says little about the image.
    """
    known = LabelSet(asker.info.findings)
    result = np.zeros((len(texts), len(images)))
    questions = [i for i, text in enumerate(texts) if text in known]
    if questions:
        p = presence_answers(asker, images, [texts[i] for i in questions])
        log_p = np.log(np.maximum(p.astype(np.float64), np.finfo(np.float32).tiny))
        result[questions] = (log_p[..., 0] - log_p[..., 1]).T
    first = {cxr_to_report.TASK.name, report_to_cxr.TASK.name} <= {*asker.info.findings_first}
    for i in sorted(set(range(len(texts))) - {*questions}):
        named = asker.texts([report_to_cxr.TASK.list_prompt(texts[i])], GREEDY)[0] if first else None
        reports = [asker.report(image, named) for image in images]
        result[i] = asker.log_likelihoods(reports, [texts[i]] * len(images))
        if named is not None:
            lists = [cxr_to_report.TASK.list_prompt(image) for image in images]
            result[i] += asker.log_likelihoods(lists, [named or NOTHING] * len(images))
    return result


def mean_falls(before: np.ndarray, after: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Beliefs [N] in an image and [N, P] with patches [P, L] replaced -> mean fall where a code is: float32 [N, L]."""
    return (((before[:, None] - after) @ masks) / masks.sum(0)).astype(np.float32)


def explanations(asker: Asker, codes: np.ndarray, texts: Sequence[str]) -> Iterator[Explanation]:
    """Of one image with codes [L], for each text: a finding that the model was asked about in tuning, or a sentence."""
    g, known = asker.info.grid, LabelSet(asker.info.findings)
    masks = patches(g, max(1, g // PATCHES_ALONG))
    others = replaced(codes, likely_alternatives(asker, codes, len(masks)), masks)
    values = beliefs(asker, np.concatenate([codes[None], others]), texts)
    falls = mean_falls(values[:, 0], values[:, 1:], masks)
    for text, value, own in zip(texts, values[:, 0], falls, strict=True):
        yield Explanation(text, known.spelling(text) if text in known else None, float(value), own.reshape(g, g))
