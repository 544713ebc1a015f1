"""Self-distilled replay: texts that the base model writes itself, to which the tuned model is then held.

With `language_loss: base_model` their loss is the distance to the base model's own distribution at every token, so what the
model has learned of language needs no data of its training to be kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import setting
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

_AT_ONCE = 64  # texts written together


@dataclass(frozen=True)
class ReplaySettings:
    """Texts that the base model writes before tuning, as further items of the language task."""

    texts: int = setting(0, "how many; 0: none. For language_loss: base_model (ours)")
    tokens: int = setting(96, "most tokens of each")
    seed: int = setting(0, "of the sampling")

    def faults(self) -> list[str]:
        """Impossible values."""
        faults = [] if self.texts >= 0 else [f"texts: {self.texts} should be at least 0"]
        return faults + ([] if self.tokens >= 2 else [f"tokens: {self.tokens} should be at least 2"])


def first_words(vocabulary: ImageVocabulary) -> list[int]:
    """Tokens with which a text can begin: a capital and at least one more letter, or any where there are none such."""
    known = [i for i in range(vocabulary.first_id) if i not in vocabulary.control_ids]
    words = vocabulary.tokenizer.batch_decode([[i] for i in known])
    whole = [i for i, word in zip(known, words, strict=True) if len(word) > 1 and word.isalpha() and word[0].isupper()]
    return whole or known


@torch.inference_mode()
def write_texts(model: PreTrainedModel, vocabulary: ImageVocabulary, settings: ReplaySettings) -> list[str]:
    """Texts sampled from the base `model`, each after a first word that is drawn at random."""
    words = first_words(vocabulary)
    starts = stream(settings.seed, "replay").choice(words, size=settings.texts, replace=settings.texts > len(words))
    writer = cast(Any, model.eval())
    # Its own distribution: no cut and no penalty. What the checkpoint asks for would fill in what is not given.
    asked = writer.generation_config
    writer.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=settings.tokens - 1,
        eos_token_id=vocabulary.tokenizer.eos_token_id,
        pad_token_id=vocabulary.tokenizer.eos_token_id,
    )
    texts: list[str] = []
    for first in tqdm(range(0, len(starts), _AT_ONCE), desc="replay", unit="batch"):
        rows = [[*vocabulary.begin_ids, int(word)] for word in starts[first : first + _AT_ONCE]]
        ids = torch.tensor(rows, device=model.device)
        with torch.random.fork_rng(devices=[] if ids.device.type == "cpu" else [ids.device]):
            torch.manual_seed(int(stream(settings.seed, "replay", first).integers(2**62)))
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
