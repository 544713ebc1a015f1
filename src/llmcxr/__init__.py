"""llmcxr: teach a text-only LLM to read and write chest radiographs. For research only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmcxr.image_tokens.tokenizer import ImageTokenizer
    from llmcxr.inference.llm_cxr import LlmCxr

__version__ = "0.1.0"
__all__ = ["ImageTokenizer", "LlmCxr", "__version__"]


def __getattr__(name: str) -> Any:  # so that `import llmcxr` and the command line stay light
    if name == "LlmCxr":
        from llmcxr.inference.llm_cxr import LlmCxr

        return LlmCxr
    if name == "ImageTokenizer":
        from llmcxr.image_tokens.tokenizer import ImageTokenizer

        return ImageTokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
