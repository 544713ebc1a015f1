"""LlmCxr: load a model folder and use it.

Pixels: images go in as a path, PIL image or array and come out as float32 [S, S] in [-1, 1], bone white.
Letters: N images, S side in pixels, L = g * g codes of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

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
from llmcxr.inference.backend import DRAWING, GREEDY, Backend, Sampling
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.inference.vllm_backend import VllmBackend
from llmcxr.instructions.questions import presence_question
from llmcxr.instructions.templates import build_template
from llmcxr.model.find import find_model
from llmcxr.model.folder import ModelInfo, check_image_tokenizer, load_checked
from llmcxr.model.sums import remedy
from llmcxr.studies.radiographs import load_square
from llmcxr.tasks import cxr_vqa, language, report_to_cxr
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_config, load_language_model, load_text_tokenizer

BackendName = Literal["transformers", "vllm"]
ImageLike = str | Path | Image.Image | np.ndarray


class LlmCxr:
    """One model that reads and writes chest radiographs. For research only."""

    def __init__(self, asker: policies.Asker, image_tokenizer: ImageTokenizer) -> None:
        self.asker, self.image_tokenizer = asker, image_tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = DEFAULT_MODEL,
        device: str = "auto",
        precision: Precision = "auto",
        backend: BackendName = "transformers",
    ) -> LlmCxr:
        """Load a model: a shipped one by name, a run's folder, its model/ folder, a packed model, or a hub repository.

        `precision` is the language model's, auto the one that is faster here. `backend` decodes; vllm chooses its own device, and cannot
        guide (give guidance 1). Raises `UserError` where there is no model, or where image tokenizer and
        model do not belong together.
        """
        folder = find_model(name)
        info = load_checked(folder)
        place = pick_device(device)
        precision = checked(Precision, precision, "precision")
        image_tokenizer = ImageTokenizer.from_pretrained(folder / "image_tokenizer").to(place)
        check_image_tokenizer(folder, info, image_tokenizer)
        checked(BackendName, backend, "backend")
        path = folder.resolve()
        try:
            text_tokenizer, rows = load_text_tokenizer(str(path)), load_config(str(path)).vocab_size
            vocabulary = ImageVocabulary(text_tokenizer, info.codebook_size)
            if rows < vocabulary.first_id + vocabulary.size:
                raise UserError(f"its tokenizer has more tokens than its language model has rows ({rows}).")
            template, length = build_template(info.template, text_tokenizer, info.system_prompt), info.grid**2
            if backend == "transformers":
                dtype = devices.precision(place, "generating") if precision == "auto" else getattr(torch, precision)
                model = load_language_model(str(path), dtype).to(place)  # type: ignore[arg-type]
        except UserError as error:
            raise UserError(f"{folder}: {str(error).splitlines()[0]} {remedy(folder)}") from error
        engine: Backend
        if backend == "transformers":
            engine = TransformersBackend(model, vocabulary, template, length)
        else:
            engine = VllmBackend(path, vocabulary, template, length, precision)
        return cls(policies.Asker(engine, template, vocabulary, info), image_tokenizer)

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

    def report(self, image: ImageLike, sampling: Sampling = GREEDY, candidates: int | None = None) -> str:
        """Report of one image; see `policies.reports`."""
        return self.reports(self.encode([image]), sampling, candidates)[0]

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

    def finding_probabilities(self, image: ImageLike) -> dict[str, float]:
        """p(yes) of "Is there ...?" for every finding the model was asked about in tuning. `UserError` where it was about none."""
        names = self.info.findings
        if not names:
            raise UserError(
                "this model was asked about no finding in tuning: its data had no label both present and absent."
            )
        values = self.yes_probabilities(self.encode([image])[0], [presence_question(name) for name in names])
        return dict(zip(names, values.tolist(), strict=True))
