"""How the base model's language is kept while images are learned, and how much of it is: replay, and the measurement.

Replay: texts that the base model writes itself before tuning. With `language.loss: base_model` their loss is the distance to
the base model's own distribution at every token, so what it has learned of language needs no data of its training to be kept.
The measurement is made before, between and after the stages, on shipped text and on instructions that are in no training set.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.rendering import RenderedExample, render, render_plain
from llmcxr.instructions.templates import Template
from llmcxr.tuning.batches import collate, plan_batches
from llmcxr.tuning.objective import token_losses
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

_AT_ONCE = 64  # texts written together
_TOKENS = 1024  # padded tokens at once: their logits over a table of 150,000 rows take 0.6 GB
_INSTRUCTIONS = 32  # most that are measured
REPLAY_TOKENS = 96  # most of a text that the base model writes
_ROUND = 8  # texts, and instructions, that are measured before the clock is looked at: the least of both


# --- replay


def first_words(vocabulary: ImageVocabulary) -> list[int]:
    """Tokens with which a text can begin: a capital and at least one more letter, or any where there are none such."""
    known = [i for i in range(vocabulary.first_id) if i not in vocabulary.control_ids]
    words = vocabulary.tokenizer.batch_decode([[i] for i in known])
    whole = [i for i, word in zip(known, words, strict=True) if len(word) > 1 and word.isalpha() and word[0].isupper()]
    return whole or known


@torch.inference_mode()
def write_texts(
    model: PreTrainedModel, vocabulary: ImageVocabulary, count: int, seed: int, tokens: int = REPLAY_TOKENS
) -> list[str]:
    """`count` texts of at most `tokens` tokens, sampled from the base `model`, each after a first word drawn at random.

    Those that are empty are left out.
    """
    words = first_words(vocabulary)
    starts = stream(seed, "replay").choice(words, size=count, replace=count > len(words))
    writer = cast(Any, model.eval())
    # Its own distribution: no cut and no penalty. What the checkpoint asks for would fill in what is not given.
    asked = writer.generation_config
    writer.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=tokens - 1,
        eos_token_id=vocabulary.tokenizer.eos_token_id,
        pad_token_id=vocabulary.tokenizer.eos_token_id,
    )
    texts: list[str] = []
    for first in tqdm(range(0, len(starts), _AT_ONCE), desc="replay", unit="batch"):
        rows = [[*vocabulary.begin_ids, int(word)] for word in starts[first : first + _AT_ONCE]]
        ids = torch.tensor(rows, device=model.device)
        with torch.random.fork_rng(devices=[] if ids.device.type == "cpu" else [ids.device]):
            torch.manual_seed(int(stream(seed, "replay", first).integers(2**62)))
            written = writer.generate(ids, attention_mask=torch.ones_like(ids))
        texts += vocabulary.tokenizer.batch_decode(written, skip_special_tokens=True)
    writer.generation_config = asked
    return [text for text in texts if text.strip()]


def save_texts(path: Path, texts: Sequence[str]) -> None:
    """One JSON object with `text` a line."""
    with atomic_path(path) as temporary:
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def load_texts(path: Path) -> list[str]:
    """What `save_texts` wrote; `UserError` names the file where it cannot be read."""
    try:
        return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}). Remove it and run the stage `replay` again.") from error


# --- the measurement


def general_texts() -> list[str]:
    """The shipped paragraphs."""
    text = (files("llmcxr.tasks") / "data" / "general_text.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["text"] for line in text.splitlines()]


@torch.inference_mode()
def summed_loss(
    model: PreTrainedModel, examples: Sequence[RenderedExample], vocabulary: ImageVocabulary
) -> tuple[float, int]:
    """Negative log-likelihood (nats) of all supervised tokens of `examples`, and their number.

    The softmax goes over the whole table, so probability that a tuned model gives to image tokens counts against it.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for group in plan_batches(np.array([len(e.ids) for e in examples]), _TOKENS, 0):
        batch = collate([examples[i] for i in group]).to(model.device)
        losses = token_losses(model, batch, vocabulary, "all_rows").losses
        total, count = total + float(losses.cpu().double().sum()), count + len(losses)
    model.train(was_training)
    return total, count


def perplexity(model: PreTrainedModel, vocabulary: ImageVocabulary, texts: Sequence[str]) -> float:
    """exp of the mean loss of a token, over the tokens of all texts but each one's first."""
    total, count = summed_loss(model, [render_plain(text, vocabulary) for text in texts], vocabulary)
    return math.exp(total / count)


class LanguageCheck:
    """The measurement before, between and after the stages of tuning.

    `model` may be the base model, not yet grown: `vocabulary` and `template` give the same ids for text.
    """

    def __init__(
        self, vocabulary: ImageVocabulary, template: Template, instructions: Sequence[Turn], max_tokens: int
    ) -> None:
        """`instructions` are held out from training; those longer than `max_tokens` are passed over."""
        self.vocabulary = vocabulary
        self.texts = [render_plain(text, vocabulary) for text in general_texts()]
        made = [render(InstructionExample("language", (turn,)), template, vocabulary) for turn in instructions]
        self.instructions = [example for example in made if len(example.ids) <= max_tokens][:_INSTRUCTIONS]

    def extend(
        self, trace: list[dict[str, Any]], after: str, model: PreTrainedModel, seconds: float = math.inf
    ) -> list[dict[str, Any]]:
        """`trace` and what `model` gives `after` the named stage ("base" comes first, before any).

        Each entry has `perplexity`, its ratio to the first entry's, and the mean loss of an `instruction`'s response token
        (None without instructions). The first entry is of as many `rounds` of 8 texts and 8 instructions as fit in
        `seconds`, one at least; the others are of the same ones, so that they compare.
        """
        sums = np.zeros((2, 2))  # of texts and of instructions: nats, tokens
        rounds = trace[0]["rounds"] if trace else math.ceil(max(len(self.texts), len(self.instructions)) / _ROUND)
        begin = time.monotonic()
        done = 0
        while done < rounds and (trace or not done or (time.monotonic() - begin) * (done + 1) / done <= seconds):
            part = slice(done * _ROUND, (done + 1) * _ROUND)
            for row, examples in enumerate((self.texts[part], self.instructions[part])):
                sums[row] += summed_loss(model, examples, self.vocabulary)
            done += 1
        value = math.exp(sums[0, 0] / sums[0, 1])
        entry = {
            "after": after,
            "perplexity": value,
            "perplexity_ratio": value / (trace[0]["perplexity"] if trace else value),
            "instruction_loss": sums[1, 0] / sums[1, 1] if sums[1, 1] else None,
            "rounds": done,
        }
        return [*trace, entry]
