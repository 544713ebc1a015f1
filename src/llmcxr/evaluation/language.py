"""Forgetting: perplexity on general text that is in no training set, against the base model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

GENERAL_TEXT = Path(__file__).parents[1] / "instructions" / "data" / "general_text.jsonl"


def general_texts() -> list[str]:
    """The shipped paragraphs."""
    return [json.loads(line)["text"] for line in GENERAL_TEXT.read_text(encoding="utf-8").splitlines()]


@torch.inference_mode()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    """exp of the mean negative log-likelihood of a token, over the tokens of all texts but each one's first.

    The softmax goes over the whole table, so probability that a tuned model gives to image tokens counts against it.
    """
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
        logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return math.exp(total / count)
