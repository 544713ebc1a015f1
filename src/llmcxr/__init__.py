"""llmcxr: teach a text-only LLM to read and write chest radiographs. For research only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmcxr.image_tokens.tokenizer import ImageTokenizer
    from llmcxr.inference.llm_cxr import LlmCxr

# Threads that spin while they wait for one another make a busy neighbour cost many times its share
# (benchmarks/neighbours.py), so they sleep. The threads read this once, when torch is loaded; whoever has set how they
# wait keeps that.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}.intersection(os.environ):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

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
