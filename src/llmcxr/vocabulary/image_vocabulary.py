"""Image codes as tokens of the text tokenizer (paper, section 2.2), and text that can never become one.

Codes: integers in [0, K). Token ids: `first_id + code`. K image tokens are called <VQ0000>, <VQ0001>, ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from llmcxr.foundation.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_name(code: int) -> str:
    """Name of an image token in the text tokenizer."""
    return f"<VQ{code:04d}>"


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the added tokens that are no text.

    Runs of spaces (GPT-NeoX) or newlines (Gemma) are added tokens too, but text. So is what stands for unknown
    characters, unless it also ends or begins texts.
    """
    text = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(i for i, token in added if token.content.strip(" \n\t▁") and i not in text)


class ImageVocabulary:
    """A text tokenizer that also holds K image tokens (none where a model is only talked to)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
        """`tokenizer` already holds the image tokens. `UserError` where it does not, or where their ids have gaps."""
        ids = cast(list[int], [tokenizer.convert_tokens_to_ids(token_name(code)) for code in range(size)])
        first = ids[0] if size else len(tokenizer)
        if first is None or (size and first == tokenizer.unk_token_id) or ids != list(range(first, first + size)):
            raise UserError(
                f"the text tokenizer does not hold {size} image tokens with consecutive ids; it belongs to another model."
            )
        self.tokenizer = tokenizer
        self.size = size
        self.first_id: int = first
        self.control_ids = control_ids(tokenizer)

    @cached_property
    def begin_ids(self) -> list[int]:
        """The begin token, where the tokenizer puts one before a text by itself (Llama, Gemma: yes; SmolLM2, GPT-NeoX: no)."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []

    @classmethod
    def grow(cls, tokenizer: PreTrainedTokenizerBase, size: int) -> ImageVocabulary:
        """Add `size` image tokens to `tokenizer` (in place) and return the vocabulary."""
        from transformers import AddedToken  # here, so that settings are read without it

        names = [AddedToken(token_name(code), special=True, normalized=False) for code in range(size)]
        tokenizer.add_tokens(names, special_tokens=True)  # type: ignore[arg-type]
        return cls(tokenizer, size)

    def encode_control(self, text: str) -> list[int]:
        """Ids of a template's own text: control tokens in it are recognised. Never pass a user's text here."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def encode_text(self, text: str) -> list[int]:
        """Ids of text from users and reports: "<VQ0001>", "### Response:" or "<|im_end|>" in it stay plain text.

        SentencePiece tokenizers that put a space before every text may put one inside such a name too.
        """
        if not text:
            return []
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if self.control_ids.isdisjoint(ids):
            return ids
        # Added tokens that are not "special" (Qwen's <think>), slow tokenizers and Unigram models (in which "</s>" is a
        # piece like any other) ignore the switch. A token cannot arise across two separate calls, so cut the text
        # after the first letter of every name, also of names that overlap.
        names = [re.escape(self.tokenizer.added_tokens_decoder[i].content) for i in self.control_ids]
        cuts = [match.start() + 1 for match in re.finditer(f"(?={'|'.join(names)})", text)]
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        ids = [i for piece in pieces for i in self.tokenizer(piece, add_special_tokens=False)["input_ids"]]
        if not self.control_ids.isdisjoint(ids):
            bad = self.tokenizer.convert_ids_to_tokens(sorted(self.control_ids.intersection(ids)))
            raise UserError(f"the text {text[:80]!r} would become the control tokens {bad}; remove those characters.")
        return ids

    def encode_codes(self, codes: np.ndarray | Sequence[int]) -> list[int]:
        """Codes in [0, K) -> token ids. ValueError for a code outside."""
        codes = np.asarray(codes).astype(np.int64)
        if codes.size and (codes.min() < 0 or codes.max() >= self.size):
            raise ValueError(f"codes should be in [0, {self.size}), are {codes.min()} to {codes.max()}")
        return (codes + self.first_id).tolist()

    def decode_codes(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Token ids of an image -> codes uint16. ValueError where an id is not an image token."""
        codes = np.asarray(ids, dtype=np.int64) - self.first_id
        if codes.size and (codes.min() < 0 or codes.max() >= self.size):
            raise ValueError("not all of these ids are image tokens")
        return codes.astype(np.uint16)

    def is_image(self, token_id: int) -> bool:
        """Whether `token_id` is an image token."""
        return self.first_id <= token_id < self.first_id + self.size

    def never_in_text(self, rows: int, end_id: int) -> list[int]:
        """Ids that no text response may hold, of a table of so many `rows`: control and image tokens but for `end_id`, what
        stands for unknown characters, and rows without a token."""
        unknown = {self.tokenizer.unk_token_id} - {None}
        return sorted(({*self.control_ids, *range(len(self.tokenizer), rows)} | unknown) - {end_id})

    def decode_text(self, ids: Iterable[int]) -> str:
        """Text of `ids` without control tokens; image tokens in it are a mistake of the caller (ValueError)."""
        ids = list(ids)
        if any(self.is_image(i) for i in ids):
            raise ValueError("image tokens in a text response")
        # Without cleaning up, which would take spaces out that were written, and could change a word that was whole.
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()
