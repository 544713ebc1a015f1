"""Text that people give. Bytes that are not UTF-8 come from the system as lone surrogates, which are no characters."""

from __future__ import annotations

from llmcxr.foundation.errors import UserError


def is_text(text: str) -> bool:
    """Whether `text` is made of characters only, so that it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str, what: str) -> str:
    """`text` itself. `UserError` (calling it `what`) where it is empty or blank, or not made of characters."""
    if not is_text(text):
        raise UserError(f"{what} is not valid text: {text[:80]!r} holds bytes that are not UTF-8. Write it as UTF-8.")
    if not text.strip():
        raise UserError(f"{what} is empty. Give some words.")
    return text
