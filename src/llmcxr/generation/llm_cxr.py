"""LlmCxr: load a model folder and use it.

Pixels: images go in as a path, PIL image or array and come out as float32 [S, S] in [-1, 1], bone white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmcxr.foundation.assets import DEFAULT_MODEL
from llmcxr.foundation.devices import pick_device
from llmcxr.foundation.errors import UserError
from llmcxr.generation.engine import CANDIDATE, DRAWING, GREEDY, Engine, Sampling
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.instructions.cxr_to_report import report_turns
from llmcxr.instructions.example import Turn
from llmcxr.instructions.rendering import render_prompt
from llmcxr.instructions.report_to_cxr import STATED_QUESTION, drawing_turns
from llmcxr.instructions.templates import build_template
from llmcxr.instructions.vqa import LIST_QUESTION, presence_question
from llmcxr.studies.radiographs import load_square, to_square
from llmcxr.tuning.model_folder import ModelInfo, load_info
from llmcxr.tuning.packed import find_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

ImageLike = str | Path | Image.Image | np.ndarray


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
            return to_square(np.asarray(image.convert("L"), dtype=np.float32) / 255, size)
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

    def report(self, image: ImageLike, sampling: Sampling = GREEDY, candidates: int = 1) -> str:
        """Report of one image; see `reports`."""
        return self.reports(self.encode([image]), sampling, candidates)[0]

    def reports(self, codes: np.ndarray, sampling: Sampling = GREEDY, candidates: int = 1) -> list[str]:
        """Reports of images given as codes [N, L].

        Of several `candidates` (the first as `sampling` says, the others drawn more freely) that one is kept from which the
        model itself would most likely read the findings that it named on the image: ours, docs/measurements.md. `UserError`
        for candidates of a model that names no findings first.
        """
        if candidates > 1 and not self.info.findings_first:
            raise UserError(
                "this model names no findings first (tuning.findings_first), by which candidates could be told apart. Leave "
                "candidates at 1."
            )
        found: Sequence[str | None] = [None] * len(codes)
        if self.info.findings_first:
            found = self.answers(codes, [LIST_QUESTION] * len(codes), sampling)
        prompts = [self.prompt(*report_turns(row, named)) for row, named in zip(codes, found, strict=True)]
        written = [[r.text for r in self.engine.generate(prompts, "text", sampling)]]
        for index in range(1, candidates):
            freely = replace(CANDIDATE, max_new_tokens=sampling.max_new_tokens, seed=sampling.seed + index)
            written.append([r.text for r in self.engine.generate(prompts, "text", freely)])
        if candidates == 1:
            return written[0]
        likely = [
            self.engine.log_likelihoods(
                [self.prompt(Turn(STATED_QUESTION, text)) for text in texts], [str(f) for f in found]
            )
            for texts in written
        ]
        return [written[best][k] for k, best in enumerate(np.argmax(likely, axis=0))]

    def draw(self, text: str, sampling: Sampling = DRAWING) -> np.ndarray:
        """A radiograph for a report: float32 [S, S] in [-1, 1]."""
        return self.decode(self.draw_codes([text], sampling))[0]

    def draw_codes(self, texts: Sequence[str], sampling: Sampling = DRAWING) -> np.ndarray:
        """Codes uint16 [N, L] of one drawing for each text. `UserError` for guidance that the model has not learned."""
        stated: Sequence[str | None] = [None] * len(texts)
        if self.info.findings_first:
            prompts = [self.prompt(Turn(STATED_QUESTION, text)) for text in texts]
            stated = [r.text for r in self.engine.generate(prompts, "text", GREEDY)]
        prompts = [self.prompt(*drawing_turns(text, named)) for text, named in zip(texts, stated, strict=True)]
        guidance = self.info.guidance if sampling.guidance is None else sampling.guidance
        if guidance != 1 and not self.info.unguided_share:
            raise UserError(
                "this model cannot be guided: it has learned no drawing without a report (tuning.unguided_share). Leave guidance out."
            )
        unguided = None if guidance == 1 else [self.prompt(*drawing_turns("", None))] * len(texts)
        responses = self.engine.generate(prompts, "image", replace(sampling, guidance=guidance), unguided)
        return np.stack([r.codes for r in responses if r.codes is not None])

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
