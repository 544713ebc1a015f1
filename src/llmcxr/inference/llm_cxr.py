"""LlmCxr: load a model folder and use it.

Pixels: images go in as a path, a PIL image, an array [S, S] in [-1, 1], or as their codes, whole numbers [L] (`encode`); they
come out as float32 [S, S] in [-1, 1], bone white.
Letters: N images, S side in pixels, L = g * g codes of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch

from llmcxr.foundation import devices
from llmcxr.foundation.assets import DEFAULT_MODEL
from llmcxr.foundation.devices import pick_device
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import checked
from llmcxr.foundation.texts import check_text
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.inference import policies
from llmcxr.inference.backend import DRAWING, GREEDY, Backend, Sampling
from llmcxr.inference.consistency import CheckedSentence, check_possible, check_report, labeller_for
from llmcxr.inference.explanation import Explanation, explanations
from llmcxr.inference.outside import Outside
from llmcxr.inference.reading import ImageLike, ImageReader, ReadImage, several
from llmcxr.inference.streaming import PartialDrawing, filled, rows_of_codes, text_pieces, without_filling
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.inference.vllm_backend import VllmBackend
from llmcxr.instructions.example import Grammar, Turn
from llmcxr.instructions.questions import PRESENCE_ANSWERS, SIDE_ANSWERS, side_question
from llmcxr.instructions.templates import build_template
from llmcxr.model.calibration import Calibration, load_calibration
from llmcxr.model.find import find_model
from llmcxr.model.folder import ModelInfo, check_image_tokenizer, load_checked
from llmcxr.model.outside import OutsideLimits, read_limits
from llmcxr.model.sums import remedy
from llmcxr.tasks import cxr_vqa, language, report_to_cxr
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_config, load_language_model, load_text_tokenizer

BackendName = Literal["transformers", "vllm"]
LoadedPrecision = Literal["auto", "float32", "bfloat16", "int8"]


class LlmCxr:
    """One model that reads and writes chest radiographs. For research only.

    What takes one image or text has a form for many, which the engine answers side by side: `reports`, `answers`, `draws`.
    What answers has a form that streams: `stream_report`, `stream_ask`, `stream_draw`, `stream_chat`; it is of one candidate,
    and closing it stops the work.
    """

    def __init__(
        self,
        asker: policies.Asker,
        image_tokenizer: ImageTokenizer,
        calibration: Calibration | None = None,
        limits: OutsideLimits | None = None,
    ) -> None:
        """`calibration`: of its probabilities; None: they are raw. `limits`: what is usual of images that the model knows; None: it
        never warns of others."""
        self.asker, self.image_tokenizer, self.calibration = asker, image_tokenizer, calibration
        self.images = ImageReader(asker, image_tokenizer, limits)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = DEFAULT_MODEL,
        device: str = "auto",
        precision: LoadedPrecision = "auto",
        backend: BackendName = "transformers",
    ) -> LlmCxr:
        """Load a model: a shipped one by name, a run's folder, its model/ folder, a packed model, or a hub repository.

        `precision` is the language model's, auto the faster of float32 and bfloat16 here; int8 computes the layers of a Llama in 8 bits on
        CPUs, which is faster still and loses a little (docs/generation.md). `backend` decodes; vllm chooses its own device and has no int8, and
        cannot guide (give guidance 1). Raises `UserError` where there is no model, or where image tokenizer and model do not belong together.

        >>> model = LlmCxr.from_pretrained("runs/quickstart", device="cpu")
        """
        folder = find_model(name)
        info = load_checked(folder)
        place = pick_device(device)
        precision = checked(LoadedPrecision, precision, "precision")
        image_tokenizer = ImageTokenizer.from_pretrained(folder / "image_tokenizer").to(place)
        check_image_tokenizer(folder, info, image_tokenizer)
        checked(BackendName, backend, "backend")
        if (backend, precision) == ("vllm", "int8"):
            raise UserError('precision int8 is of backend="transformers". Leave one of the two out.')
        path = folder.resolve()
        try:
            text_tokenizer, rows = load_text_tokenizer(str(path)), load_config(str(path)).vocab_size
            vocabulary = ImageVocabulary(text_tokenizer, info.codebook_size)
            if rows < vocabulary.first_id + vocabulary.size:
                raise UserError(f"its tokenizer has more tokens than its language model has rows ({rows}).")
            template, length = build_template(info.template, text_tokenizer, info.system_prompt), info.grid**2
            if backend == "transformers":
                faster = devices.precision(place, "generating")  # with int8 of what is not a layer
                dtype = faster if precision in ("auto", "int8") else getattr(torch, precision)
                model = load_language_model(str(path), dtype).to(place)  # type: ignore[arg-type]
        except UserError as error:
            raise UserError(f"{folder}: {str(error).splitlines()[0]} {remedy(folder)}") from error
        engine: Backend
        if backend == "transformers":
            engine = TransformersBackend(model, vocabulary, template, length, int8=precision == "int8")
        else:
            engine = VllmBackend(path, vocabulary, template, length, precision)
        asker = policies.Asker(engine, template, vocabulary, info)
        limits = read_limits(folder) if backend == "transformers" else None  # vLLM gives no likelihoods of all codes
        return cls(asker, image_tokenizer, load_calibration(folder), limits)

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self.asker.info

    # --- images and codes

    def read_each(self, images: Sequence[ImageLike]) -> list[ReadImage | UserError]:
        """Each image's codes and whether it is outside the model's data, or why it cannot be read, so that one bad file does not
        stop the others.

        >>> [type(found).__name__ for found in model.read_each(["chest.png", "missing.png"])]
        ['ReadImage', 'UserError']
        """
        return self.images.read_each(images)

    def encode(self, images: Sequence[ImageLike]) -> np.ndarray:
        """Codes uint16 [N, L]. `UserError` for the first image that cannot be read.

        >>> codes = model.encode(["chest.png"])
        >>> codes.shape == (1, model.info.grid**2)
        True
        """
        return self.images.encode(images)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [N, L] -> images float32 [N, S, S] in [-1, 1].

        >>> model.decode(model.encode(["chest.png"])).shape == (1, model.info.image_size, model.info.image_size)
        True
        """
        return self.images.decode(codes)

    # --- reports

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
        believe of it (`inference/consistency.py`); `UserError` where the model has no calibration.

        >>> text = model.report("chest.png")
        """
        calibration = check_possible(self.calibration) if check else None
        codes = self.images.asked_about([image])
        text = self.reports(list(codes), sampling, candidates)[0]
        if calibration is None:
            return text
        names = self.info.findings
        return check_report(text, self.finding_probabilities(codes[0]), calibration, labeller_for(names))

    def reports(
        self, images: Sequence[ImageLike], sampling: Sampling = GREEDY, candidates: int | None = None
    ) -> list[str]:
        """Report of each image; see `policies.reports`.

        >>> first, second = model.reports(["chest.png", "other.png"])
        """
        return policies.reports(self.asker, self.images.asked_about(images), sampling, candidates)

    def stream_report(self, image: ImageLike, sampling: Sampling = GREEDY) -> Iterator[str]:
        """The report of one candidate, in pieces of whole characters as it is written.

        >>> pieces = list(model.stream_report("chest.png"))
        >>> "".join(pieces) == model.report("chest.png", candidates=1)
        True
        """
        asked = policies.ask_for_reports(self.asker, self.images.asked_about([image]), sampling)
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
        for text in several(texts, "reports"):
            self._check_drawing(text)
        return self.decode(self.draw_codes(texts, sampling, candidates))

    def _check_drawing(self, text: str) -> None:
        self.asker.check(self.asker.drawing(check_text(text, "the report")), "image")

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
        for question in several(questions, "questions"):
            self._check_question(question)
        if len(images) != len(questions):
            raise UserError(f"there should be a question for each image, are {len(questions)} for {len(images)}.")
        return policies.answers(self.asker, self.images.asked_about(images), questions, sampling)

    def _check_question(self, question: str) -> None:
        check_text(question, "the question")
        self.asker.check(cxr_vqa.TASK.prompt(np.zeros(self.info.grid**2, dtype=np.uint16), question))

    def stream_ask(self, image: ImageLike, question: str, sampling: Sampling = GREEDY) -> Iterator[str]:
        """The answer of `ask`, in pieces of whole characters as it is written.

        >>> "".join(model.stream_ask("chest.png", "Is it normal?")) == model.ask("chest.png", "Is it normal?")
        True
        """
        self._check_question(question)
        yield from self._stream_text(cxr_vqa.TASK.prompt(self.images.asked_about([image])[0], question), sampling)

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
        about = check_text(text, "the text") if text else "" if image is None else self.images.asked_about([image])[0]
        grammar: Grammar = "in turn"
        (response,) = self.asker.responses([(Turn(instruction, about),)], grammar, sampling)
        return [s if isinstance(s, str) else self.decode(s)[0] for s in response.segments]

    # --- probabilities

    def yes_probabilities(self, codes: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        """p(yes) of yes/no questions about one image with codes [L]: float32 [len(questions)].

        >>> p = model.yes_probabilities(model.encode(["chest.png"])[0], ["Is there cardiomegaly?"])
        """
        prompts = self.asker.prompts([cxr_vqa.TASK.prompt(codes, question) for question in questions])
        return self.asker.backend.answer_probabilities(prompts, PRESENCE_ANSWERS)[:, 0]

    def presence_probabilities(self, codes: np.ndarray, findings: Sequence[str]) -> np.ndarray:
        """p(yes) of "Is there ...?" of findings on one image with codes [L], not calibrated: float32 [len(findings)].

        >>> model.presence_probabilities(model.encode(["chest.png"])[0], ["mass"]).shape
        (1,)
        """
        return policies.presence_answers(self.asker, codes[None], findings)[0, :, 0]

    def side_answers(self, codes: np.ndarray, findings: Sequence[str]) -> np.ndarray:
        """p of each of `SIDE_ANSWERS` to the side question of findings on one image with codes [L]: float32 [len(findings), 3].

        >>> model.side_answers(model.encode(["chest.png"])[0], ["mass"]).shape
        (1, 3)
        """
        prompts = self.asker.prompts([cxr_vqa.TASK.prompt(codes, side_question(name)) for name in findings])
        return self.asker.backend.answer_probabilities(prompts, tuple(SIDE_ANSWERS.values()))

    def finding_probabilities(self, image: ImageLike) -> dict[str, float]:
        """p of every finding the model was asked about in tuning: p(yes) of "Is there ...?", calibrated where the model has a
        calibration (`self.calibration`). `UserError` where it was asked about none.

        >>> {name: round(p, 2) for name, p in model.finding_probabilities("chest.png").items()}  # doctest: +ELLIPSIS
        {'mass': 0..., ...}
        """
        names = self.info.findings
        if not names:
            raise UserError(
                "this model was asked about no finding in tuning: its data had no label both present and absent."
            )
        values = self.presence_probabilities(self.images.asked_about([image])[0], names)
        p_yes = dict(zip(names, values.tolist(), strict=True))
        return p_yes if self.calibration is None else self.calibration.probabilities(p_yes)

    def finding_sides(self, image: ImageLike) -> dict[str, dict[str, float]]:
        """p that a finding, if it is there, is on the "left", "right", or "both" sides, for findings whose sides the
        calibration knows; none without one.

        >>> sides = model.finding_sides("chest.png")
        """
        if self.calibration is None or not self.calibration.sides:
            return {}
        names = self.calibration.sides
        p = self.calibration.side_probabilities(self.side_answers(self.encode([image])[0], names))
        return {name: dict(zip(SIDE_ANSWERS, row, strict=True)) for name, row in zip(names, p.tolist(), strict=True)}

    # --- beyond its answers

    def explain(self, image: ImageLike, text: str) -> Explanation:
        """Where the model sees a finding that it was asked about in tuning, or what speaks for a sentence of a report.

        See `explanation.explanations`. `UserError` for an empty text, and one longer than those of tuning.

        >>> model.explain("chest.png", "mass").falls.shape == (model.info.grid, model.info.grid)
        True
        """
        return self.explain_all(image, [text])[0]

    def explain_all(self, image: ImageLike, texts: Sequence[str]) -> list[Explanation]:
        """`explain` of several texts, which share what is read.

        >>> mass, nodule = model.explain_all("chest.png", ["mass", "nodule"])
        """
        for text in texts:
            self.asker.check(self.asker.drawing(check_text(text, "the finding or sentence")), "image")
        return list(explanations(self.asker, self.images.asked_about([image])[0], texts))

    def outside(self, image: ImageLike) -> Outside:
        """How unlike its training radiographs an image is.

        >>> model.outside("chest.png").l1 > 0
        True
        """
        return self.images.outside(image)

    def reconstruction(self, image: ImageLike) -> tuple[np.ndarray, np.ndarray]:
        """The image as it is read, and what its codes keep of it: float32 [S, S] each.

        >>> read, kept = model.reconstruction("chest.png")
        """
        pixels = self.images.pixels(image)
        return pixels, self.decode(self.encode([pixels]))[0]

    def statistics(self, images: Sequence[ImageLike]) -> np.ndarray:
        """Of images, what `OutsideLimits` is made of: float64 [N, 2].

        >>> model.statistics(["chest.png", "other.png"]).shape
        (2, 2)
        """
        return self.images.statistics(images)


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
