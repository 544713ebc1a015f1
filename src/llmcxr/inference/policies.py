"""How a model is used beyond asking it once: findings first, sides one by one, guidance, candidates.

Letters: N images or reports, L codes of an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import checked
from llmcxr.image_tokens.codec import ImageCodec
from llmcxr.inference.backend import CANDIDATE, GREEDY, Backend, Request, Response, Sampling
from llmcxr.instructions.example import Grammar, Turn
from llmcxr.instructions.questions import (
    NOTHING,
    PRESENCE_ANSWERS,
    SIDE_ANSWERS,
    finding_list,
    listed_findings,
    presence_question,
    side_question,
)
from llmcxr.instructions.rendering import render_prompt
from llmcxr.instructions.templates import Template
from llmcxr.model.decoding import Candidates
from llmcxr.model.folder import ModelInfo
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.study import shown_labels
from llmcxr.tasks import cxr_to_report, cxr_vqa, report_to_cxr
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

_AT_ONCE = 32  # images decoded together
Candidate = TypeVar("Candidate")
Conversation = tuple[Turn, ...]  # that ends in a response to be generated


@dataclass(frozen=True)
class Asker:
    """Conversations with a model: written in the template of training, answered by a backend."""

    backend: Backend
    template: Template
    vocabulary: ImageVocabulary
    info: ModelInfo

    def prompts(self, conversations: Sequence[Conversation], grammar: Grammar = "text") -> list[list[int]]:
        """Token ids of each, up to where the response begins, which is of this `grammar`."""
        return [render_prompt(turns, self.template, self.vocabulary, grammar) for turns in conversations]

    def report(self, codes: np.ndarray, named: str | None = None) -> Conversation:
        """What asks for a report of an image with codes [L], in the words that the model learned; as `CxrToReport.prompt`."""
        return cxr_to_report.TASK.prompt(codes, named, **self.info.asked(cxr_to_report.TASK.name))

    def drawing(self, text: str, named: str | None = None) -> Conversation:
        """What asks for a drawing of a report ("": of any radiograph), likewise; as `ReportToCxr.prompt`."""
        return report_to_cxr.TASK.prompt(text, named, **self.info.asked(report_to_cxr.TASK.name))

    def check(self, conversation: Conversation, grammar: Grammar = "text") -> None:
        """`UserError` where a conversation with a response of this grammar, an image or a first token of text, is longer
        than the examples of tuning."""
        response = self.info.grid**2 if grammar == "image" else 1
        self.backend.check_room(len(self.prompts([conversation], grammar)[0]), response, self.info.max_tokens)

    def responses(
        self,
        conversations: Sequence[Conversation],
        grammar: Grammar,
        sampling: Sampling,
        negative: Sequence[Conversation] | None = None,
    ) -> list[Response]:
        """A response to each; `negative` as in `Request`. Of the same conversation given k times, k responses of their own."""
        return self.backend.generate(self.requests(conversations, grammar, sampling, negative))

    def stream(
        self, conversation: Conversation, grammar: Grammar, sampling: Sampling, negative: Conversation | None = None
    ) -> Generator[int, None, None]:
        """Token ids of the response that `responses` gives, as they are decided. Whoever closes it stops the work."""
        less = None if negative is None else [negative]
        with closing(self.backend.stream(self.requests([conversation], grammar, sampling, less))) as tokens:
            for _, token in tokens:
                yield token

    def requests(
        self,
        conversations: Sequence[Conversation],
        grammar: Grammar,
        sampling: Sampling,
        negative: Sequence[Conversation] | None = None,
    ) -> list[Request]:
        """What `responses` asks the backend for."""
        prompts = self.prompts(conversations, grammar)
        less = [None] * len(prompts) if negative is None else self.prompts(negative, grammar)
        times: Counter[tuple[int, ...]] = Counter()
        requests = []
        for prompt, other in zip(prompts, less, strict=True):
            k = times[tuple(prompt)]
            times[tuple(prompt)] += 1
            # Named, not counted on: seed 1 should have none of the responses of seed 0.
            seed = int(stream(sampling.seed, "responses", k).integers(2**62)) if k else sampling.seed
            requests.append(Request(prompt, grammar, replace(sampling, seed=seed), other))
        return requests

    def texts(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        negative: Sequence[Conversation] | None = None,
    ) -> list[str]:
        """The text of each response."""
        return [response.text for response in self.responses(conversations, "text", sampling, negative)]

    def log_likelihoods(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> np.ndarray:
        """log p(answer, its end included) to each, in nats: float64 [N]."""
        return self.backend.log_likelihoods(self.prompts(conversations), answers)


def best(candidates: Sequence[Candidate], values: np.ndarray, each: int) -> list[Candidate]:
    """The candidate of highest value for each of N; candidate k of number i is number k * N + i, of `each` * N."""
    N = len(candidates) // each
    return [candidates[k * N + i] for i, k in enumerate(values.reshape(each, N).argmax(0))]


def _check_candidates(candidates: int, needed: Sequence[str], info: ModelInfo) -> None:
    checked(Candidates, candidates, "candidates")
    if candidates > 1 and (lacking := [name for name in needed if name not in info.findings_first]):
        raise UserError(
            f"this model names no findings first in {' and '.join(lacking)} (tuning.findings_first), by which candidates could be "
            "told apart. Leave candidates at 1."
        )


def presence_answers(asker: Asker, images: np.ndarray, findings: Sequence[str]) -> np.ndarray:
    """p of each of `PRESENCE_ANSWERS` to whether there are the `findings`, asked for as in training, on each of
    images with codes [R, L]: float32 [R, len(findings), 2]."""
    known = LabelSet(asker.info.findings)
    asked = [presence_question(known.spelling(name) if name in known else name) for name in findings]
    turns = [cxr_vqa.TASK.prompt(codes, question) for codes in images for question in asked]
    p = asker.backend.answer_probabilities(asker.prompts(turns), PRESENCE_ANSWERS)
    return p.reshape(len(images), len(asked), len(PRESENCE_ANSWERS))


def with_sides_asked(asker: Asker, codes: np.ndarray, lists: Sequence[str]) -> list[str]:
    """`lists` of findings whose sides are the likeliest answers to a question about each finding alone.

    A list says many things in a row, and a side in one word before its finding; alone it is answered better.
    """
    known = LabelSet(asker.info.findings)
    found = [list(listed_findings(text)) for text in lists]
    asked = [(k, i) for k, own in enumerate(found) for i, finding in enumerate(own) if finding.side]
    names = [found[k][i].name for k, i in asked]  # in small letters; asked for as in training
    names = [known.spelling(name) if name in known else name for name in names]
    turns = [cxr_vqa.TASK.prompt(codes[k], side_question(name)) for (k, _), name in zip(asked, names, strict=True)]
    answers = [answer for answer in SIDE_ANSWERS.values() for _ in asked]
    values = asker.log_likelihoods(turns * len(SIDE_ANSWERS), answers).reshape(len(SIDE_ANSWERS), len(asked))
    for (k, i), side in zip(asked, values.argmax(0), strict=True):
        found[k][i] = replace(found[k][i], side=list(SIDE_ANSWERS)[side])
    changed = {k for k, _ in asked}
    return [finding_list(own) if k in changed else lists[k] for k, own in enumerate(found)]


@dataclass(frozen=True)
class Asked:
    """The conversations that a response is asked for by, after all that comes before it."""

    named: Sequence[str | None]  # lists of findings that they name
    turns: list[Conversation]
    negative: list[Conversation] | None
    sampling: Sampling


def ask_for_reports(asker: Asker, codes: np.ndarray, sampling: Sampling) -> Asked:
    """Names the findings of images with codes [N, L], and their sides, where the model does; see `reports`."""
    task, info = cxr_to_report.TASK, asker.info
    guidance = info.decoding.report_guidance if sampling.guidance is None else sampling.guidance
    if guidance != 1 and task.name not in info.findings_first:
        raise UserError(
            "this model's reports cannot be guided: it names no findings first (tuning.findings_first). Leave guidance at 1."
        )
    sampling = replace(sampling, guidance=guidance)
    named: Sequence[str | None] = [None] * len(codes)
    if len(codes) and task.name in info.findings_first:
        named = lists = asker.texts([task.list_prompt(row) for row in codes], sampling)
        if info.decoding.ask_sides:
            named = with_sides_asked(asker, codes, lists)
    turns = [asker.report(row, own) for row, own in zip(codes, named, strict=True)]
    negative = None if guidance == 1 else [asker.report(row, NOTHING) for row in codes]
    return Asked(named, turns, negative, sampling)


def ask_for_drawings(asker: Asker, texts: Sequence[str], sampling: Sampling) -> Asked:
    """Names the findings that texts state, where the model does; see `drawings`."""
    task, info = report_to_cxr.TASK, asker.info
    guidance = info.decoding.drawing_guidance if sampling.guidance is None else sampling.guidance
    if guidance != 1 and not info.unguided_share:
        raise UserError(
            "this model cannot be guided: it has learned no drawing without a report (tuning.unguided_share). Leave guidance out."
        )
    named: Sequence[str | None] = [None] * len(texts)
    if len(texts) and task.name in info.findings_first:
        named = asker.texts([task.list_prompt(text) for text in texts], GREEDY)
    turns = [asker.drawing(text, own) for text, own in zip(texts, named, strict=True)]
    negative = None if guidance == 1 else [asker.drawing("")] * len(texts)
    return Asked(named, turns, negative, replace(sampling, guidance=guidance))


def reports(asker: Asker, codes: np.ndarray, sampling: Sampling, candidates: int | None = None) -> list[str]:
    """Reports of images given as codes [N, L].

    A model with findings first names them, is asked for the side of each by itself (`info.decoding.ask_sides`), then writes.
    Guidance (`sampling.guidance`, None: the model's own) leads the report away from the one that it would write had it named
    none. Of several `candidates` (None: the model's own number; the first as `sampling` says, the others drawn more freely)
    that one is kept from which the model itself would most likely read the findings that it named. Both ours. `UserError`
    for either with a model that names no findings first.
    """
    info = asker.info
    candidates = info.decoding.report_candidates if candidates is None else candidates
    _check_candidates(candidates, (cxr_to_report.TASK.name, report_to_cxr.TASK.name), info)
    asked = ask_for_reports(asker, codes, sampling)
    if not asked.turns:
        return []
    texts = asker.texts(asked.turns, asked.sampling, asked.negative)
    if candidates == 1:
        return texts
    sampling, more = asked.sampling, candidates - 1
    freely = replace(
        CANDIDATE, max_new_tokens=sampling.max_new_tokens, seed=sampling.seed + 1, guidance=sampling.guidance
    )
    texts += asker.texts(asked.turns * more, freely, asked.negative and asked.negative * more)
    questions = [report_to_cxr.TASK.list_prompt(text) for text in texts]
    answers = [str(own) for own in asked.named] * candidates
    return best(texts, asker.log_likelihoods(questions, answers), candidates)


def answers(asker: Asker, codes: np.ndarray, questions: Sequence[str], sampling: Sampling) -> list[str]:
    """Answer to question i about the image with codes [N, L] row i."""
    turns = [cxr_vqa.TASK.prompt(row, question) for row, question in zip(codes, questions, strict=True)]
    return asker.texts(turns, sampling)


def drawings(
    asker: Asker, codec: ImageCodec, texts: Sequence[str], sampling: Sampling, candidates: int | None = None
) -> np.ndarray:
    """Codes uint16 [N, L] of one drawing for each text.

    Guidance (`sampling.guidance`, None: the model's own) leads drawings away from any radiograph. Of several `candidates`
    (None: the model's own number) that one is kept on which the clinical network, which is part of the image tokenizer,
    most likely sees the findings that the text states, and no others. `UserError` for guidance that the model has not
    learned, and for candidates of a model that names no findings first, or whose image tokenizer has no such network.
    """
    info = asker.info
    candidates = info.decoding.drawing_candidates if candidates is None else candidates
    _check_candidates(candidates, (report_to_cxr.TASK.name,), info)
    asked = ask_for_drawings(asker, texts, sampling)
    if not asked.turns:
        return np.zeros((0, info.grid**2), dtype=np.uint16)
    negative = asked.negative and asked.negative * candidates
    drawn = asker.responses(asked.turns * candidates, report_to_cxr.TASK.grammar, asked.sampling, negative)
    codes = [response.codes for response in drawn if response.codes is not None]
    if candidates > 1:
        stated = [str(own) for own in asked.named] * candidates
        codes = best(codes, clinical_likelihoods(codec, codes, stated), candidates)
    return np.stack(codes)


def clinical_likelihoods(codec: ImageCodec, codes: Sequence[np.ndarray], stated: Sequence[str]) -> np.ndarray:
    """How likely the clinical network finds on each drawing what its list `stated`, and nothing else: [N] in nats.

    `UserError` where the image tokenizer has no clinical network.
    """
    clinical = getattr(codec, "clinical", None)
    if clinical is None:
        raise UserError(
            "this model's image tokenizer has no clinical network (image_tokenizer.architecture.clinical_input) by which "
            "drawings could be told apart. Leave candidates at 1."
        )
    device = codec.codebook.device
    values = []
    for first in range(0, len(codes), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        labels = np.stack([shown_labels(listed_findings(text), clinical.findings) for text in stated[part]])
        grid = torch.from_numpy(np.stack(codes[part]).astype(np.int64)).reshape(-1, codec.grid, codec.grid)
        images = codec.decode(grid.to(device))
        values.append(clinical.log_likelihoods(images, torch.from_numpy(labels).to(device)).cpu())
    return torch.cat(values).numpy()
