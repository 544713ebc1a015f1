"""LlmCxr: load a model folder and use it.

Pixels: images go in as a path, PIL image or array and come out as float32 [S, S] in [-1, 1], bone white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmcxr.foundation.assets import DEFAULT_MODEL
from llmcxr.foundation.devices import pick_device
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.inference.backend import Response, Sampling
from llmcxr.inference.engine import CANDIDATE, DRAWING, GREEDY, Engine, Modality
from llmcxr.instructions.example import Turn
from llmcxr.instructions.questions import (
    LIST_QUESTION,
    NOTHING,
    SIDE_ANSWERS,
    finding_list,
    listed_findings,
    presence_question,
    side_question,
)
from llmcxr.instructions.rendering import render_prompt
from llmcxr.instructions.templates import build_template
from llmcxr.model.folder import ModelInfo, load_info
from llmcxr.model.packed import find_model
from llmcxr.studies.radiographs import load_square, pixels_of_picture, to_square
from llmcxr.studies.study import shown_labels
from llmcxr.tasks.cxr_to_report import report_turns
from llmcxr.tasks.report_to_cxr import STATED_QUESTION, drawing_turns
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

_CANDIDATES_AT_ONCE = 32  # responses generated together, where one prompt has several
Candidate = TypeVar("Candidate")
ImageLike = str | Path | Image.Image | np.ndarray


def _best(candidates: Sequence[Candidate], values: np.ndarray, each: int) -> list[Candidate]:
    """The candidate of highest value for each of B prompts; candidate k of prompt i is number k * B + i, of `each` * B."""
    B = len(candidates) // each
    return [candidates[k * B + i] for i, k in enumerate(values.reshape(each, B).argmax(0))]


class LlmCxr:
    """One model that reads and writes chest radiographs. For research only."""

    def __init__(self, engine: Engine, image_tokenizer: ImageTokenizer, info: ModelInfo) -> None:
        self.engine, self.image_tokenizer, self.info = engine, image_tokenizer, info

    @classmethod
    def from_pretrained(cls, name: str | Path = DEFAULT_MODEL, device: str = "auto") -> LlmCxr:
        """Load a model: a shipped one by name, a run's folder, its model/ folder, or a packed model.

        Raises `UserError` where it is no model, or where image tokenizer and model do not belong together.
        """
        folder = find_model(name)
        info = load_info(folder)
        place = pick_device(device)
        image_tokenizer = ImageTokenizer.from_pretrained(folder / "image_tokenizer").to(place)
        if image_tokenizer.fingerprint != info.image_tokenizer:
            raise UserError(
                f"{folder}: the model was tuned on codes of image tokenizer {info.image_tokenizer}, but image_tokenizer/ is "
                f"{image_tokenizer.fingerprint}. Put the right one back; codes of two tokenizers mean different things."
            )
        try:
            text_tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval().to(place)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder} holds no readable language model: {error}") from error
        vocabulary = ImageVocabulary(text_tokenizer, info.codebook_size)
        template = build_template(info.template, text_tokenizer, info.system_prompt)
        return cls(Engine(model, vocabulary, template, info.grid**2), image_tokenizer, info)

    # --- images and codes

    def _pixels(self, image: ImageLike) -> np.ndarray:
        size = self.info.image_size
        if isinstance(image, str | Path):
            return load_square(Path(image), size)
        if isinstance(image, Image.Image):
            return to_square(pixels_of_picture(image), size)
        pixels = np.asarray(image, dtype=np.float32)
        if pixels.shape != (size, size) or pixels.min() < -1 or pixels.max() > 1:
            raise ValueError(
                f"an array should be [{size}, {size}] in [-1, 1], is {list(pixels.shape)} in [{pixels.min()}, {pixels.max()}]"
            )
        return pixels

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        """Codes uint16 [N, g * g]."""
        pixels = torch.from_numpy(np.stack([self._pixels(image) for image in images])).unsqueeze(1)
        codes = self.image_tokenizer.encode(pixels.to(self.engine.device))
        return codes.flatten(1).cpu().numpy().astype(np.uint16)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [N, g * g] -> images float32 [N, S, S] in [-1, 1]."""
        g = self.info.grid
        grid = torch.from_numpy(np.asarray(codes).astype(np.int64)).reshape(-1, g, g)
        return self.image_tokenizer.decode(grid.to(self.engine.device)).squeeze(1).cpu().numpy()

    def prompt(self, *turns: Turn) -> list[int]:
        """Token ids of a conversation up to the response of its last turn."""
        return render_prompt(turns, self.engine.template, self.engine.vocabulary)

    # --- the four tasks

    def report(self, image: ImageLike, sampling: Sampling = GREEDY, candidates: int | None = None) -> str:
        """Report of one image; see `reports`."""
        return self.reports(self.encode([image]), sampling, candidates)[0]

    def reports(self, codes: np.ndarray, sampling: Sampling = GREEDY, candidates: int | None = None) -> list[str]:
        """Reports of images given as codes [N, L].

        A model with findings first names them, is asked for the side of each by itself (`info.decoding.ask_sides`), then writes. Guidance (`sampling.guidance`, None: the model's own) leads the
        report away from the one that it would write had it named none. Of several `candidates` (None: the model's own
        number; the first as `sampling` says, the others drawn more freely) that one is kept from which the model itself
        would most likely read the findings that it named. Both ours: docs/measurements.md. `UserError` for either with a
        model that names no findings first.
        """
        guidance = self.info.decoding.report_guidance if sampling.guidance is None else sampling.guidance
        candidates = self.info.decoding.report_candidates if candidates is None else candidates
        self._check_candidates(candidates)
        if guidance != 1 and not self.info.findings_first:
            raise UserError(
                "this model's reports cannot be guided: it names no findings first (tuning.findings_first). Leave guidance at 1."
            )
        sampling = replace(sampling, guidance=guidance)
        found: Sequence[str | None] = [None] * len(codes)
        if self.info.findings_first:
            found = named = self.answers(codes, [LIST_QUESTION] * len(codes), sampling)
            if self.info.decoding.ask_sides:
                found = self._with_sides_asked(codes, named)
        prompts = [self.prompt(*report_turns(row, named)) for row, named in zip(codes, found, strict=True)]
        negative = None if guidance == 1 else [self.prompt(*report_turns(row, NOTHING)) for row in codes]
        texts = [r.text for r in self.engine.generate(prompts, "text", sampling, negative)]
        if candidates == 1:
            return texts
        freely = replace(CANDIDATE, max_new_tokens=sampling.max_new_tokens, seed=sampling.seed + 1, guidance=guidance)
        texts += [r.text for r in self._several(candidates - 1, prompts, "text", freely, negative)]
        questions = [self.prompt(Turn(STATED_QUESTION, text)) for text in texts]
        answers = [str(named) for named in found] * candidates
        B = len(codes)
        values = [
            self.engine.log_likelihoods(questions[k : k + B], answers[k : k + B]) for k in range(0, len(texts), B)
        ]
        return _best(texts, np.concatenate(values), candidates)

    def _with_sides_asked(self, codes: np.ndarray, lists: Sequence[str]) -> list[str]:
        """`lists` of findings whose sides are the likeliest answers to a question about each finding alone.

        A list says many things in a row, and a side in one word before its finding; alone it is answered better
        (docs/measurements.md).
        """
        found = [list(listed_findings(text, self.info.findings)) for text in lists]
        asked = [(k, i) for k, own in enumerate(found) for i, finding in enumerate(own) if finding.side]
        for first in range(0, len(asked), _CANDIDATES_AT_ONCE):
            part = asked[first : first + _CANDIDATES_AT_ONCE]
            prompts = [self.prompt(Turn(side_question(found[k][i].name), codes[k])) for k, i in part]
            values = [self.engine.log_likelihoods(prompts, [answer] * len(part)) for answer in SIDE_ANSWERS.values()]
            for (k, i), best in zip(part, np.stack(values).argmax(0), strict=True):
                found[k][i] = replace(found[k][i], side=list(SIDE_ANSWERS)[best])
        changed = {k for k, _ in asked}
        return [finding_list(own) if k in changed else lists[k] for k, own in enumerate(found)]

    def _check_candidates(self, candidates: int) -> None:
        if candidates < 1:
            raise UserError(f"candidates: {candidates} should be at least 1.")
        if candidates > 1 and not self.info.findings_first:
            raise UserError(
                "this model names no findings first (tuning.findings_first), by which candidates could be told apart. Leave "
                "candidates at 1."
            )

    def _several(
        self,
        count: int,
        prompts: Sequence[list[int]],
        modality: Modality,
        sampling: Sampling,
        negative: Sequence[list[int]] | None,
    ) -> list[Response]:
        """`count` responses to each of B prompts; number k * B + i is the k-th to prompt i. Few prompts have theirs at once."""
        responses: list[Response] = []
        at_once = max(1, _CANDIDATES_AT_ONCE // len(prompts))
        for first in range(0, count, at_once):
            n = min(at_once, count - first)
            # Named, not counted on: seed 1 should have none of the responses of seed 0.
            seed = int(stream(sampling.seed, "responses", first).integers(2**62)) if first else sampling.seed
            own = replace(sampling, seed=seed)
            responses += self.engine.generate([*prompts] * n, modality, own, negative and [*negative] * n)
        return responses

    def draw(self, text: str, sampling: Sampling = DRAWING, candidates: int | None = None) -> np.ndarray:
        """A radiograph for a report: float32 [S, S] in [-1, 1]."""
        return self.decode(self.draw_codes([text], sampling, candidates))[0]

    def draw_codes(
        self, texts: Sequence[str], sampling: Sampling = DRAWING, candidates: int | None = None
    ) -> np.ndarray:
        """Codes uint16 [N, L] of one drawing for each text.

        Guidance (`sampling.guidance`, None: the model's own) leads drawings away from any radiograph. Of several `candidates`
        (None: the model's own number) that one is kept on which the clinical network, which is part of the image tokenizer,
        most likely sees the findings that the text states, and no others. `UserError` for guidance that the model has not
        learned, and for candidates of a model that names no findings first, or whose image tokenizer has no such network.
        """
        guidance = self.info.decoding.drawing_guidance if sampling.guidance is None else sampling.guidance
        candidates = self.info.decoding.drawing_candidates if candidates is None else candidates
        self._check_candidates(candidates)
        if guidance != 1 and not self.info.unguided_share:
            raise UserError(
                "this model cannot be guided: it has learned no drawing without a report (tuning.unguided_share). Leave guidance out."
            )
        stated: Sequence[str | None] = [None] * len(texts)
        if self.info.findings_first:
            prompts = [self.prompt(Turn(STATED_QUESTION, text)) for text in texts]
            stated = [r.text for r in self.engine.generate(prompts, "text", GREEDY)]
        prompts = [self.prompt(*drawing_turns(text, named)) for text, named in zip(texts, stated, strict=True)]
        negative = None if guidance == 1 else [self.prompt(*drawing_turns("", None))] * len(texts)
        drawn = self._several(candidates, prompts, "image", replace(sampling, guidance=guidance), negative)
        codes = [response.codes for response in drawn if response.codes is not None]
        if candidates > 1:
            codes = _best(codes, self._clinical_likelihoods(codes, [str(s) for s in stated] * candidates), candidates)
        return np.stack(codes)

    def _clinical_likelihoods(self, codes: Sequence[np.ndarray], stated: Sequence[str]) -> np.ndarray:
        """How likely the clinical network finds on each drawing what its list `stated`, and nothing else: [N] in nats."""
        clinical = self.image_tokenizer.clinical
        if clinical is None:
            raise UserError(
                "this model's image tokenizer has no clinical network (image_tokenizer.architecture.clinical_input) by which "
                "drawings could be told apart. Leave candidates at 1."
            )
        values = []
        for first in range(0, len(codes), _CANDIDATES_AT_ONCE):
            part = slice(first, first + _CANDIDATES_AT_ONCE)
            labels = np.stack([shown_labels(listed_findings(text), clinical.findings) for text in stated[part]])
            images = torch.from_numpy(self.decode(np.stack(codes[part])))[:, None]
            device = self.engine.device
            values.append(clinical.log_likelihoods(images.to(device), torch.from_numpy(labels).to(device)).cpu())
        return torch.cat(values).numpy()

    def ask(self, image: ImageLike, question: str, sampling: Sampling = GREEDY) -> str:
        """Answer to a question about one image."""
        return self.answers(self.encode([image]), [question], sampling)[0]

    def answers(self, codes: np.ndarray, questions: Sequence[str], sampling: Sampling = GREEDY) -> list[str]:
        """Answer to question i about the image with codes [N, L] row i."""
        prompts = [self.prompt(Turn(question, row)) for row, question in zip(codes, questions, strict=True)]
        return [r.text for r in self.engine.generate(prompts, "text", sampling)]

    def chat(self, messages: Sequence[Mapping[str, str]], sampling: Sampling = GREEDY) -> str:
        """Plain chat. `messages` alternate {"role": "user"} and {"role": "assistant"}, beginning and ending with user."""
        roles = [m["role"] for m in messages]
        if roles != [("user", "assistant")[i % 2] for i in range(len(roles))] or len(roles) % 2 == 0:
            raise ValueError(f"roles should alternate user, assistant and end with user; are {roles}")
        said = [m["content"] for m in messages]
        turns = [Turn(said[i], "", said[i + 1] if i + 1 < len(said) else None) for i in range(0, len(said), 2)]
        return self.engine.generate([self.prompt(*turns)], "text", sampling)[0].text

    def yes_probabilities(self, codes: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        """p(yes) of yes/no questions about one image with codes [L]: float32 [len(questions)]."""
        prompts = [self.prompt(Turn(question, codes)) for question in questions]
        return self.engine.answer_probabilities(prompts, ("Yes.", "No."))[:, 0]

    def finding_probabilities(self, image: ImageLike) -> dict[str, float]:
        """p(yes) of "Is there ...?" for every finding the model was asked about in tuning."""
        questions = [presence_question(finding) for finding in self.info.findings]
        return dict(
            zip(self.info.findings, self.yes_probabilities(self.encode([image])[0], questions).tolist(), strict=True)
        )
