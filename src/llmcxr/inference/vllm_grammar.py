"""What lets vLLM draw only tokens that can come: a logits processor, which vLLM finds by its entry point in every process.

A request says which tokens can come as `extra_args={"llmcxr_allowed": [[first, end], ...]}` (ends not included); others, of whatever
model, are left alone. So does `vllm serve` of an exported model, where llmcxr is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from llmcxr.inference.vllm_backend import ALLOWED


def _faults(ranges: Any) -> bool:
    def pair(value: Any) -> bool:
        return (
            isinstance(value, Sequence)
            and len(value) == 2
            and all(type(i) is int for i in value)
            and 0 <= value[0] < value[1]
        )

    return not (isinstance(ranges, Sequence) and ranges and all(map(pair, ranges)))


class AllowedTokens(AdapterLogitsProcessor):
    """Logits of tokens outside the ranges of a request become -inf."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """ValueError for ranges that are none; the server tells its client."""
        ranges = (sampling_params.extra_args or {}).get(ALLOWED)
        if ranges is not None and _faults(ranges):
            raise ValueError(f"{ALLOWED} should be a list of [first, end] of token ids, first below end")

    def is_argmax_invariant(self) -> bool:
        """It changes which token is the likeliest."""
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[[list[int], Tensor], Tensor] | None:
        """Masks the logits [V] of one request; None where it has no ranges."""
        ranges = (params.extra_args or {}).get(ALLOWED)
        if ranges is None:
            return None

        def masked(output_ids: list[int], logits: Tensor) -> Tensor:
            kept = torch.full_like(logits, -torch.inf)
            for first, end in ranges:
                kept[first:end] = logits[first:end]
            return kept

        return masked
