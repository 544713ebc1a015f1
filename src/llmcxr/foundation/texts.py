"""Text and paths from people. Bytes that are not UTF-8 come from the system as lone surrogates: no characters."""

from __future__ import annotations

from pathlib import Path

from llmcxr.foundation.errors import UserError


def is_text(text: str) -> bool:
    """Whether `text` is made of characters only, so that it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def path_of(given: str | Path) -> Path:
    """A path in which ~ is home. `UserError` where it is the home of a user whom the system does not know."""
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise UserError(f"{str(given)!r}: ~ is home; that of this user is not known. Write the whole path.") from error


def check_text(text: str, what: str) -> str:
    """`text` itself. `UserError` (calling it `what`) where it is no text, empty or blank, or not made of characters."""
    if not isinstance(text, str):
        raise UserError(f"{what} should be text, is {repr(text)[:80]}.")
    if not is_text(text):
        raise UserError(f"{what} is not valid text: {text[:80]!r} holds bytes that are not UTF-8. Write it as UTF-8.")
    if not text.strip():
        raise UserError(f"{what} is empty. Give some words.")
    return text
