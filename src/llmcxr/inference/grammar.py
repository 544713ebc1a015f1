"""What may come next in a response: a state machine over kinds of tokens, which a backend's mask follows.

    text      t* e            t: a token of text, e: the end token
    image     c^L             c: a code; L codes of an image, neither more nor fewer
    in turn   (t | c^L)* e

Only whole responses come out of it: an image is begun where there is room for all of its codes, and a response that stops
without its end token stops between images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from llmcxr.instructions.example import Grammar

Next = Literal["text", "image", "either"]  # text here is a token of text or the end token


@dataclass
class Progress:
    """A response in progress; `counted` and `codes` say how far it is.

    `most` is how many tokens of text can come, in which an image counts as one; `room` how many tokens of any kind (None: no
    limit). A text has room for one token, and an image for all of its own, or ValueError.
    """

    grammar: Grammar
    length: int  # L
    most: int
    room: int | None = None
    counted: int = 0  # tokens of text, and images that are begun
    codes: int = 0  # of the image in progress; 0: none is
    ended: bool = False

    def __post_init__(self) -> None:
        if not self._fits(self.length if self.grammar == "image" else 1):
            raise ValueError("there is no room for a response")

    def _fits(self, tokens: int) -> bool:
        return self.room is None or self.room >= tokens

    @property
    def next(self) -> Next:
        """The kind of token that must come, where nothing has ended."""
        if self.codes or self.grammar == "image":
            return "image"
        return "either" if self.grammar == "in turn" and self._fits(self.length) else "text"

    def take(self, image: bool, end: bool = False) -> None:
        """One token more: a code, or one of text, which can be the `end`. ValueError for one that cannot come."""
        if self.ended or self.next == ("text" if image else "image"):
            raise ValueError("this token cannot come here")
        if not self.codes:
            self.counted += 1
        self.codes = (self.codes + 1) % self.length if image else 0
        if self.room is not None:
            self.room -= 1
        if not self.codes:
            self.ended = end or self.grammar == "image" or self.counted == self.most or not self._fits(1)


def segments(tokens: Iterable[int], is_image: Callable[[int], bool], length: int) -> Iterator[tuple[bool, list[int]]]:
    """(whether it is an image, token ids) of each text and each image; only the last image can be shorter than `length`."""
    for image, run in groupby(tokens, is_image):
        ids = list(run)
        step = length if image else len(ids)
        yield from ((image, ids[i : i + step]) for i in range(0, len(ids), step))


def before_stop(text: str, stop: Sequence[str]) -> str | None:
    """`text` before the first of the stop texts; None where it holds none."""
    return min((text[: text.index(s)] for s in stop if s in text), key=len, default=None)
