"""Forgetting: how well a model still speaks, on general text and on instructions that are in no training set.

A few seconds a measurement on two cores with the shipped text, so that it is made before, between and after the stages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.rendering import RenderedExample, render, render_plain
from llmcxr.instructions.templates import Template
from llmcxr.tuning.batches import collate, plan_batches
from llmcxr.tuning.objective import token_losses
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

_TOKENS = 1024  # padded tokens at once: their logits over a table of 150,000 rows take 0.6 GB
_INSTRUCTIONS = 32  # most that are measured


def general_texts() -> list[str]:
    """The shipped paragraphs."""
    text = (files("llmcxr.tasks") / "data" / "general_text.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["text"] for line in text.splitlines()]


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, examples: Sequence[RenderedExample], vocabulary: ImageVocabulary) -> float:
    """Mean negative log-likelihood (nats) of a supervised token, over the tokens of all `examples`; NaN without any.

    The softmax goes over the whole table, so probability that a tuned model gives to image tokens counts against it.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for group in plan_batches(np.array([len(e.ids) for e in examples]), _TOKENS, 0):
        batch = collate([examples[i] for i in group]).to(model.device)
        losses = token_losses(model, batch, vocabulary, "all_rows").losses
        total, count = total + float(losses.double().sum()), count + len(losses)
    model.train(was_training)
    return total / count if count else math.nan


def perplexity(model: PreTrainedModel, vocabulary: ImageVocabulary, texts: Sequence[str]) -> float:
    """exp of the mean loss of a token, over the tokens of all texts but each one's first."""
    return math.exp(mean_loss(model, [render_plain(text, vocabulary) for text in texts], vocabulary))


class LanguageCheck:
    """The measurement before, between and after the stages of tuning.

    `model` may be the base model, not yet grown: `vocabulary` and `template` give the same ids for text.
    """

    def __init__(
        self, vocabulary: ImageVocabulary, template: Template, instructions: Sequence[Turn], max_tokens: int
    ) -> None:
        """`instructions` are held out from training; those longer than `max_tokens` are passed over."""
        self.vocabulary, self.texts = vocabulary, general_texts()
        made = [render(InstructionExample("language", (turn,)), template, vocabulary) for turn in instructions]
        self.instructions = [example for example in made if len(example.ids) <= max_tokens][:_INSTRUCTIONS]

    def extend(self, trace: list[dict[str, Any]], after: str, model: PreTrainedModel) -> list[dict[str, Any]]:
        """`trace` and what `model` gives `after` the named stage ("base" comes first, before any).

        Each entry has `perplexity`, its ratio to the first entry's, and the mean loss of an `instruction`'s response token.
        """
        value = perplexity(model, self.vocabulary, self.texts)
        entry = {
            "after": after,
            "perplexity": value,
            "perplexity_ratio": value / (trace[0]["perplexity"] if trace else value),
            "instruction_loss": mean_loss(model, self.instructions, self.vocabulary) if self.instructions else None,
        }
        return [*trace, entry]
