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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import setting

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


def first_words(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens with which a text can begin: a capital and at least one more letter, or any where there are none such."""
    known = [(i, str(tokenizer.decode([i]))) for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    words = [i for i, word in known if len(word) > 1 and word.isalpha() and word[0].isupper()]
    return words or [i for i, _ in known]


@torch.inference_mode()
def write_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: ReplaySettings) -> list[str]:
    """Texts sampled from `model` at temperature 1, each from another first word, drawn at random."""
    words = first_words(tokenizer)
    starts = stream(settings.seed, "replay").choice(words, size=settings.texts, replace=settings.texts > len(words))
    bos = tokenizer("a")["input_ids"][:1] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []
    generate = cast(Any, model.eval()).generate
    ending = tokenizer.eos_token_id
    texts: list[str] = []
    for first in tqdm(range(0, len(starts), _AT_ONCE), desc="replay", unit="batch"):
        ids = torch.tensor([[*bos, int(word)] for word in starts[first : first + _AT_ONCE]], device=model.device)
        with torch.random.fork_rng(devices=[] if ids.device.type == "cpu" else [ids.device]):
            torch.manual_seed(int(stream(settings.seed, "replay", first).integers(2**62)))
            written = generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=settings.tokens - ids.shape[1],
                pad_token_id=ending,
            )
        texts += [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    return texts


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
