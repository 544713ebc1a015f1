"""LlmCxr: load a model folder and use it.

Pixels: images go in as a path, PIL image or array and come out as float32 [S, S] in [-1, 1], bone white.
Letters: N images, S side in pixels, L = g * g codes of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from PIL import Image

from llmcxr.foundation import devices
from llmcxr.foundation.assets import DEFAULT_MODEL
from llmcxr.foundation.devices import pick_device
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Precision, checked
from llmcxr.foundation.texts import check_text, path_of
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.inference import policies
from llmcxr.inference.backend import DRAWING, GREEDY, Sampling
from llmcxr.inference.consistency import CheckedSentence, check_possible, check_report, labeller_for
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.questions import SIDE_ANSWERS, presence_question, side_question
from llmcxr.instructions.templates import build_template
from llmcxr.model.calibration import Calibration, load_calibration
from llmcxr.model.find import find_model
from llmcxr.model.folder import ModelInfo, check_image_tokenizer, load_checked
from llmcxr.model.sums import remedy
from llmcxr.studies.radiographs import load_square
from llmcxr.tasks import cxr_vqa, language, report_to_cxr
from llmcxr.vocabulary.growing import table_of
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_language_model, load_text_tokenizer

ImageLike = str | Path | Image.Image | np.ndarray


class LlmCxr:
    """One model that reads and writes chest radiographs. For research only."""

    def __init__(
        self, asker: policies.Asker, image_tokenizer: ImageTokenizer, calibration: Calibration | None = None
    ) -> None:
        self.asker, self.image_tokenizer, self.calibration = asker, image_tokenizer, calibration

    @classmethod
    def from_pretrained(
        cls, name: str | Path = DEFAULT_MODEL, device: str = "auto", precision: Precision = "auto"
    ) -> LlmCxr:
        """Load a model: a shipped one by name, a run's folder, its model/ folder, a packed model, or a hub repository.

        `precision` is the language model's, auto the one that is faster here. Raises `UserError` where there is no model, or where image tokenizer and
        model do not belong together.
        """
        folder = find_model(name)
        info = load_checked(folder)
        place = pick_device(device)
        precision = checked(Precision, precision, "precision")
        image_tokenizer = ImageTokenizer.from_pretrained(folder / "image_tokenizer").to(place)
        check_image_tokenizer(folder, info, image_tokenizer)
        dtype = devices.precision(place, "generating") if precision == "auto" else getattr(torch, precision)
        try:
            text_tokenizer = load_text_tokenizer(str(folder.resolve()))
            model = load_language_model(str(folder.resolve()), dtype).to(place)  # type: ignore[arg-type]
            vocabulary = ImageVocabulary(text_tokenizer, info.codebook_size)
        except UserError as error:
            raise UserError(f"{folder}: {str(error).splitlines()[0]} {remedy(folder)}") from error
        if (rows := len(table_of(model))) < vocabulary.first_id + vocabulary.size:
            raise UserError(
                f"{folder}: its tokenizer has more tokens than its language model has rows ({rows}). {remedy(folder)}"
            )
        template = build_template(info.template, text_tokenizer, info.system_prompt)
        backend = TransformersBackend(model, vocabulary, template, info.grid**2)
        return cls(policies.Asker(backend, template, vocabulary, info), image_tokenizer, load_calibration(folder))

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self.asker.info

    # --- images and codes

    def _pixels(self, image: ImageLike) -> np.ndarray:
        size = self.info.image_size
        if isinstance(image, str | Path):
            image = path_of(image)
        if isinstance(image, Path | Image.Image):
            return load_square(image, size, self.info.geometry)
        try:
            own = image.detach().float().cpu() if isinstance(image, torch.Tensor) else image
            pixels = np.asarray(own, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"an image should be a path, a PIL image or an array of numbers, is {repr(image)[:80]}."
            ) from error
        if pixels.shape != (size, size):
            raise UserError(
                f"an image given as an array should be [{size}, {size}] in [-1, 1], is {list(pixels.shape)}."
            )
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -1 and high <= 1):  # also where a value is not a number
            raise UserError(f"an image given as an array should be in [-1, 1], is in [{low:g}, {high:g}].")
        if low == high:
            raise UserError(f"an image given as an array is {low:g} everywhere: it shows nothing.")
        return pixels

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        """Codes uint16 [N, L]."""
        pixels = torch.from_numpy(np.stack([self._pixels(image) for image in images])).unsqueeze(1)
        codes = self.image_tokenizer.encode(pixels.to(self.image_tokenizer.codebook.device))
        return codes.flatten(1).cpu().numpy().astype(np.uint16)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [N, L] -> images float32 [N, S, S] in [-1, 1]."""
        g = self.info.grid
        grid = torch.from_numpy(np.asarray(codes).astype(np.int64)).reshape(-1, g, g)
        return self.image_tokenizer.decode(grid.to(self.image_tokenizer.codebook.device)).squeeze(1).cpu().numpy()

    # --- the four tasks

    @overload
    def report(
        self, image: ImageLike, sampling: Sampling = ..., candidates: int | None = ..., check: Literal[False] = ...
    ) -> str: ...
    @overload
    def report(
        self, image: ImageLike, sampling: Sampling = ..., candidates: int | None = ..., *, check: Literal[True]
    ) -> list[CheckedSentence]: ...
    def report(
        self, image: ImageLike, sampling: Sampling = GREEDY, candidates: int | None = None, check: bool = False
    ) -> str | list[CheckedSentence]:
        """Report of one image; see `policies.reports`. With `check` its sentences, each with what the model itself does not
        believe of it (`inference/consistency.py`); `UserError` where the model has no calibration."""
        calibration = check_possible(self.calibration) if check else None
        codes = self.encode([image])
        text = self.reports(codes, sampling, candidates)[0]
        if calibration is None:
            return text
        names = self.info.findings
        return check_report(text, self._finding_probabilities(codes[0]), calibration, labeller_for(names))

    def reports(self, codes: np.ndarray, sampling: Sampling = GREEDY, candidates: int | None = None) -> list[str]:
        """Reports of images given as codes [N, L]; see `policies.reports`."""
        return policies.reports(self.asker, codes, sampling, candidates)

    def draw(self, text: str, sampling: Sampling = DRAWING, candidates: int | None = None) -> np.ndarray:
        """A radiograph for a report: float32 [S, S] in [-1, 1]; see `policies.drawings`.

        `UserError` for an empty text, and for one that is longer than those of tuning.
        """
        self.asker.check(report_to_cxr.TASK.prompt(check_text(text, "the report")), self.info.grid**2)
        return self.decode(self.draw_codes([text], sampling, candidates))[0]

    def draw_codes(
        self, texts: Sequence[str], sampling: Sampling = DRAWING, candidates: int | None = None
    ) -> np.ndarray:
        """Codes uint16 [N, L] of one drawing for each text; see `policies.drawings`."""
        return policies.drawings(self.asker, self.image_tokenizer, texts, sampling, candidates)

    def ask(self, image: ImageLike, question: str, sampling: Sampling = GREEDY) -> str:
        """Answer to a question about one image. `UserError` for an empty question, and one longer than those of
        tuning."""
        check_text(question, "the question")
        self.asker.check(cxr_vqa.TASK.prompt(np.zeros(self.info.grid**2, dtype=np.uint16), question))
        return self.answers(self.encode([image]), [question], sampling)[0]

    def answers(self, codes: np.ndarray, questions: Sequence[str], sampling: Sampling = GREEDY) -> list[str]:
        """Answer to question i about the image with codes [N, L] row i."""
        turns = [cxr_vqa.TASK.prompt(row, question) for row, question in zip(codes, questions, strict=True)]
        return self.asker.texts(turns, sampling)

    def chat(self, messages: Sequence[Mapping[str, str]], sampling: Sampling = GREEDY) -> str:
        """Plain chat. `messages` alternate {"role": "user"} and {"role": "assistant"}, beginning and ending with user.

        `UserError` for other messages, an empty one, and a conversation that is longer than the model's context.
        """
        try:
            roles, said = [message["role"] for message in messages], [message["content"] for message in messages]
        except (TypeError, KeyError) as error:
            raise UserError(
                'a message should be {"role": "user" or "assistant", "content": text}; '
                f"given are {repr(messages)[:80]}."
            ) from error
        if roles != [("user", "assistant")[i % 2] for i in range(len(roles))] or len(roles) % 2 == 0:
            raise UserError(f"the roles of messages should alternate user, assistant and end with user; are {roles}.")
        for role, content in zip(roles, said, strict=True):
            if role == "user" or not isinstance(content, str):  # an answer of the model's can be empty
                check_text(content, "the message")
        return self.asker.texts([language.TASK.prompt(messages)], sampling)[0]

    def yes_probabilities(self, codes: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        """p(yes) of yes/no questions about one image with codes [L]: float32 [len(questions)]."""
        prompts = self.asker.prompts([cxr_vqa.TASK.prompt(codes, question) for question in questions])
        return self.asker.backend.answer_probabilities(prompts, ("Yes.", "No."))[:, 0]

    def side_answers(self, codes: np.ndarray, findings: Sequence[str]) -> np.ndarray:
        """p of each of `SIDE_ANSWERS` to the side question of findings on one image with codes [L]: float32 [len(findings), 3]."""
        prompts = self.asker.prompts([cxr_vqa.TASK.prompt(codes, side_question(name)) for name in findings])
        return self.asker.backend.answer_probabilities(prompts, tuple(SIDE_ANSWERS.values()))

    def finding_probabilities(self, image: ImageLike) -> dict[str, float]:
        """p of every finding the model was asked about in tuning: p(yes) of "Is there ...?", calibrated where the model has a
        calibration (`self.calibration`). `UserError` where it was asked about none."""
        if not self.info.findings:
            raise UserError(
                "this model was asked about no finding in tuning: its data had no label both present and absent."
            )
        return self._finding_probabilities(self.encode([image])[0])

    def finding_sides(self, image: ImageLike) -> dict[str, dict[str, float]]:
        """p that a finding, if it is there, is on the "left", "right", or "both" sides, for findings whose sides the
        calibration knows; none without one."""
        if self.calibration is None or not self.calibration.sides:
            return {}
        names = self.calibration.sides
        p = self.calibration.side_probabilities(self.side_answers(self.encode([image])[0], names))
        return {name: dict(zip(SIDE_ANSWERS, row, strict=True)) for name, row in zip(names, p.tolist(), strict=True)}

    def _finding_probabilities(self, codes: np.ndarray) -> dict[str, float]:
        """The same of one image with codes [L]."""
        names = self.info.findings
        values = self.yes_probabilities(codes, [presence_question(name) for name in names])
        p_yes = dict(zip(names, values.tolist(), strict=True))
        return p_yes if self.calibration is None else self.calibration.probabilities(p_yes)
