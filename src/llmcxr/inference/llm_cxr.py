"""LlmCxr: load a model folder and use it.

Pixels: images go in as a path, a PIL image, an array [S, S] in [-1, 1], or as their codes, whole numbers [L] (`encode`); they
come out as float32 [S, S] in [-1, 1], bone white.
Letters: N images, S side in pixels, L = g * g codes of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

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
from llmcxr.inference.streaming import PartialDrawing, filled, rows_of_codes, text_pieces, without_filling
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.example import Grammar, Turn
from llmcxr.instructions.questions import presence_question
from llmcxr.instructions.templates import build_template
from llmcxr.model.find import find_model
from llmcxr.model.folder import ModelInfo, check_image_tokenizer, load_checked
from llmcxr.model.sums import remedy
from llmcxr.studies.radiographs import load_square
from llmcxr.tasks import cxr_vqa, language, report_to_cxr
from llmcxr.vocabulary.growing import table_of
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_language_model, load_text_tokenizer

ImageLike = str | Path | Image.Image | np.ndarray
_AT_ONCE = 32  # images in the image tokenizer together


class LlmCxr:
    """One model that reads and writes chest radiographs. For research only.

    What takes one image or text has a form for many, which the engine answers side by side: `reports`, `answers`, `draws`.
    What answers has a form that streams: `stream_report`, `stream_ask`, `stream_draw`, `stream_chat`; it is of one candidate,
    and closing it stops the work.
    """

    def __init__(self, asker: policies.Asker, image_tokenizer: ImageTokenizer) -> None:
        self.asker, self.image_tokenizer = asker, image_tokenizer

    @classmethod
    def from_pretrained(
        cls, name: str | Path = DEFAULT_MODEL, device: str = "auto", precision: Precision = "auto"
    ) -> LlmCxr:
        """Load a model: a shipped one by name, a run's folder, its model/ folder, a packed model, or a hub repository.

        `precision` is the language model's, auto the one that is faster here. Raises `UserError` where there is no model, or where image tokenizer and
        model do not belong together.

        >>> model = LlmCxr.from_pretrained("runs/quickstart", device="cpu")
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
        return cls(policies.Asker(backend, template, vocabulary, info), image_tokenizer)

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

    def _codes(self, codes: np.ndarray) -> np.ndarray:
        L, K = self.info.grid**2, self.info.codebook_size
        if len(codes) != L or codes.min() < 0 or codes.max() >= K:
            raise UserError(f"codes of an image should be {L} whole numbers from 0 to {K - 1}, are {repr(codes)[:80]}.")
        return codes.astype(np.uint16)

    def _read(self, image: ImageLike) -> np.ndarray:
        """Pixels float32 [S, S], or codes uint16 [L] where it is given as codes."""
        if isinstance(image, np.ndarray) and image.ndim == 1 and image.size and image.dtype.kind in "iu":
            return self._codes(image)
        return self._pixels(image)

    def encode_each(self, images: Sequence[ImageLike]) -> list[np.ndarray | UserError]:
        """Codes uint16 [L] of each image, or why it cannot be read, so that one bad file does not stop the others.

        >>> [type(found).__name__ for found in model.encode_each(["chest.png", "missing.png"])]
        ['ndarray', 'UserError']
        """
        result: list[np.ndarray | UserError] = []
        for first in range(0, len(_several(images, "images")), _AT_ONCE):
            read: list[np.ndarray | UserError] = []
            for image in images[first : first + _AT_ONCE]:
                try:
                    read.append(self._read(image))
                except UserError as error:
                    read.append(error)
            pixels = [one for one in read if isinstance(one, np.ndarray) and one.ndim == 2]
            encoded = iter(self._encoded(np.stack(pixels)) if pixels else ())
            result += [next(encoded) if isinstance(one, np.ndarray) and one.ndim == 2 else one for one in read]
        return result

    def _encoded(self, pixels: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(pixels).unsqueeze(1).to(self.image_tokenizer.codebook.device)
        return self.image_tokenizer.encode(given).flatten(1).cpu().numpy().astype(np.uint16)

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        """Codes uint16 [N, L]. `UserError` for the first image that cannot be read.

        >>> codes = model.encode(["chest.png"])
        >>> codes.shape == (1, model.info.grid**2)
        True
        """
        codes = list[np.ndarray]()
        for found in self.encode_each(images):
            if isinstance(found, UserError):
                raise found
            codes.append(found)
        return np.stack(codes) if codes else np.zeros((0, self.info.grid**2), dtype=np.uint16)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [N, L] -> images float32 [N, S, S] in [-1, 1].

        >>> model.decode(model.encode(["chest.png"])).shape == (1, model.info.image_size, model.info.image_size)
        True
        """
        g, S = self.info.grid, self.info.image_size
        grid = torch.from_numpy(np.asarray(codes).astype(np.int64)).reshape(-1, g, g)
        device = self.image_tokenizer.codebook.device
        parts = grid.split(_AT_ONCE) if len(grid) else ()
        images = [self.image_tokenizer.decode(part.to(device)).squeeze(1).cpu().numpy() for part in parts]
        return np.concatenate(images) if images else np.zeros((0, S, S), dtype=np.float32)

    # --- reports

    def report(self, image: ImageLike, sampling: Sampling = GREEDY, candidates: int | None = None) -> str:
        """Report of one image; see `policies.reports`.

        >>> text = model.report("chest.png")
        """
        return self.reports([image], sampling, candidates)[0]

    def reports(
        self, images: Sequence[ImageLike], sampling: Sampling = GREEDY, candidates: int | None = None
    ) -> list[str]:
        """Report of each image; see `policies.reports`.

        >>> first, second = model.reports(["chest.png", "other.png"])
        """
        return policies.reports(self.asker, self.encode(images), sampling, candidates)

    def stream_report(self, image: ImageLike, sampling: Sampling = GREEDY) -> Iterator[str]:
        """The report of one candidate, in pieces of whole characters as it is written.

        >>> pieces = list(model.stream_report("chest.png"))
        >>> "".join(pieces) == model.report("chest.png", candidates=1)
        True
        """
        asked = policies.ask_for_reports(self.asker, self.encode([image]), sampling)
        negative = asked.negative[0] if asked.negative else None
        yield from self._stream_text(asked.turns[0], asked.sampling, negative)

    # --- drawings

    def draw(self, text: str, sampling: Sampling = DRAWING, candidates: int | None = None) -> np.ndarray:
        """A radiograph for a report: float32 [S, S] in [-1, 1]; see `policies.drawings`.

        `UserError` for an empty text, and for one that is longer than those of tuning.

        >>> pixels = model.draw("Large right pleural effusion.", Sampling(temperature=1.0, seed=3))
        """
        return self.draws([text], sampling, candidates)[0]

    def draws(self, texts: Sequence[str], sampling: Sampling = DRAWING, candidates: int | None = None) -> np.ndarray:
        """A radiograph for each report: float32 [N, S, S] in [-1, 1]; as `draw`. Of the same text given twice, two.

        >>> model.draws(["Cardiomegaly.", "Cardiomegaly."]).shape == (2, model.info.image_size, model.info.image_size)
        True
        """
        for text in _several(texts, "reports"):
            self._check_drawing(text)
        return self.decode(self.draw_codes(texts, sampling, candidates))

    def _check_drawing(self, text: str) -> None:
        self.asker.check(report_to_cxr.TASK.prompt(check_text(text, "the report")), self.info.grid**2)

    def draw_codes(
        self, texts: Sequence[str], sampling: Sampling = DRAWING, candidates: int | None = None
    ) -> np.ndarray:
        """Codes uint16 [N, L] of one drawing for each text; see `policies.drawings`.

        >>> model.draw_codes(["Cardiomegaly."]).shape == (1, model.info.grid**2)
        True
        """
        return policies.drawings(self.asker, self.image_tokenizer, texts, sampling, candidates)

    def stream_draw(self, text: str, sampling: Sampling = DRAWING) -> Iterator[PartialDrawing]:
        """The drawing of one candidate after each row of codes, with a preview that is black where nothing is drawn yet.

        >>> *_, last = model.stream_draw("Cardiomegaly.")
        >>> bool((last.image == model.draw("Cardiomegaly.", candidates=1)).all())
        True
        """
        self._check_drawing(text)
        asked = policies.ask_for_drawings(self.asker, [text], sampling)
        g, grammar = self.info.grid, report_to_cxr.TASK.grammar
        negative = asked.negative[0] if asked.negative else None
        with closing(self.asker.stream(asked.turns[0], grammar, asked.sampling, negative)) as tokens:
            for codes in rows_of_codes(tokens, self.asker.vocabulary, g):
                image = self.decode(filled(codes))[0]
                yield PartialDrawing(codes, without_filling(image, len(codes) / g))

    # --- questions

    def ask(self, image: ImageLike, question: str, sampling: Sampling = GREEDY) -> str:
        """Answer to a question about one image. `UserError` for an empty question, and one longer than those of
        tuning.

        >>> answer = model.ask("chest.png", "Is there cardiomegaly?")
        """
        return self.answers([image], [question], sampling)[0]

    def answers(self, images: Sequence[ImageLike], questions: Sequence[str], sampling: Sampling = GREEDY) -> list[str]:
        """Answer to question i about image i; as `ask`. An image that is asked about often is read once as codes.

        >>> (codes,) = model.encode(["chest.png"])
        >>> answers = model.answers([codes, codes], ["Is there cardiomegaly?", "Is there a nodule?"])
        """
        for question in _several(questions, "questions"):
            self._check_question(question)
        if len(images) != len(questions):
            raise UserError(f"there should be a question for each image, are {len(questions)} for {len(images)}.")
        return policies.answers(self.asker, self.encode(images), questions, sampling)

    def _check_question(self, question: str) -> None:
        check_text(question, "the question")
        self.asker.check(cxr_vqa.TASK.prompt(np.zeros(self.info.grid**2, dtype=np.uint16), question))

    def stream_ask(self, image: ImageLike, question: str, sampling: Sampling = GREEDY) -> Iterator[str]:
        """The answer of `ask`, in pieces of whole characters as it is written.

        >>> "".join(model.stream_ask("chest.png", "Is it normal?")) == model.ask("chest.png", "Is it normal?")
        True
        """
        self._check_question(question)
        yield from self._stream_text(cxr_vqa.TASK.prompt(self.encode([image])[0], question), sampling)

    # --- language

    def chat(self, messages: Sequence[Mapping[str, str]], sampling: Sampling = GREEDY) -> str:
        """Plain chat. `messages` alternate {"role": "user"} and {"role": "assistant"}, beginning and ending with user.

        `UserError` for other messages, an empty one, and a conversation that is longer than the model's context.

        >>> answer = model.chat([{"role": "user", "content": "What is a pneumothorax?"}])
        """
        return self.asker.texts([_conversation(messages)], sampling)[0]

    def stream_chat(self, messages: Sequence[Mapping[str, str]], sampling: Sampling = GREEDY) -> Iterator[str]:
        """The answer of `chat`, in pieces of whole characters as it is written.

        >>> messages = [{"role": "user", "content": "Hello"}]
        >>> "".join(model.stream_chat(messages)) == model.chat(messages)
        True
        """
        yield from self._stream_text(_conversation(messages), sampling)

    def _stream_text(
        self, turns: policies.Conversation, sampling: Sampling, negative: policies.Conversation | None = None
    ) -> Iterator[str]:
        with closing(self.asker.stream(turns, "text", sampling, negative)) as tokens:
            yield from text_pieces(tokens, self.asker.vocabulary, sampling.stop)

    # --- text and images

    def respond(
        self, instruction: str, text: str = "", image: ImageLike | None = None, sampling: Sampling = GREEDY
    ) -> list[str | np.ndarray]:
        """Response to any instruction, about a `text` or an `image`: texts, and images float32 [S, S] in [-1, 1], in the order
        and number that the model chooses.

        An image is whole, whatever is drawn. Models learn responses of one kind each, so one that holds both is beyond what
        they were trained for. `UserError` for an empty instruction, and for text and image at once.

        >>> parts = model.respond("Draw the radiograph of this report.", "Cardiomegaly.")
        """
        check_text(instruction, "the instruction")
        if text and image is not None:
            raise UserError("an instruction is about a text or about an image; give one of them.")
        about = check_text(text, "the text") if text else "" if image is None else self.encode([image])[0]
        grammar: Grammar = "in turn"
        (response,) = self.asker.responses([(Turn(instruction, about),)], grammar, sampling)
        return [s if isinstance(s, str) else self.decode(s)[0] for s in response.segments]

    # --- probabilities

    def yes_probabilities(self, codes: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        """p(yes) of yes/no questions about one image with codes [L]: float32 [len(questions)].

        >>> p = model.yes_probabilities(model.encode(["chest.png"])[0], ["Is there cardiomegaly?"])
        """
        prompts = self.asker.prompts([cxr_vqa.TASK.prompt(codes, question) for question in questions])
        return self.asker.backend.answer_probabilities(prompts, ("Yes.", "No."))[:, 0]

    def finding_probabilities(self, image: ImageLike) -> dict[str, float]:
        """p(yes) of "Is there ...?" for every finding the model was asked about in tuning. `UserError` where it was about none.

        >>> {name: round(p, 2) for name, p in model.finding_probabilities("chest.png").items()}  # doctest: +ELLIPSIS
        {'mass': 0..., ...}
        """
        names = self.info.findings
        if not names:
            raise UserError(
                "this model was asked about no finding in tuning: its data had no label both present and absent."
            )
        values = self.yes_probabilities(self.encode([image])[0], [presence_question(name) for name in names])
        return dict(zip(names, values.tolist(), strict=True))


def _several(given: Sequence[Any], what: str) -> Sequence[Any]:
    """`UserError` where it is one of them instead of several."""
    if isinstance(given, str | Path | Image.Image):
        raise UserError(f"{what} should be a list, are {repr(given)[:80]}. Put it in brackets.")
    return given


def _conversation(messages: Sequence[Mapping[str, str]]) -> policies.Conversation:
    """The turns of a chat. `UserError` as `LlmCxr.chat` says."""
    try:
        roles, said = [message["role"] for message in messages], [message["content"] for message in messages]
    except (TypeError, KeyError) as error:
        raise UserError(
            f'a message should be {{"role": "user" or "assistant", "content": text}}; given are {repr(messages)[:80]}.'
        ) from error
    if roles != [("user", "assistant")[i % 2] for i in range(len(roles))] or len(roles) % 2 == 0:
        raise UserError(f"the roles of messages should alternate user, assistant and end with user; are {roles}.")
    for role, content in zip(roles, said, strict=True):
        if role == "user" or not isinstance(content, str):  # an answer of the model's can be empty
            check_text(content, "the message")
    return language.TASK.prompt(messages)
