"""Logits of some rows of the output head for some states, as the stock model computes them, and nothing else.

Shapes: N states, d width of the LLM, V rows of the table.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import PreTrainedConfig, PreTrainedModel


def head_parts(model: PreTrainedModel, first: int = 0, end: int | None = None) -> list[Tensor]:
    """Rows `first` to `end` of the head, in order, in its precision, as parts: image rows apart where they are laid over it.

    Unlike `head.weight` this copies no table, and a frozen part asks for no gradient.
    """
    head: Any = model.get_output_embeddings()
    if not parametrize.is_parametrized(head, "weight"):
        return [head.weight[first:end]]
    table, overlay = head.parametrizations.weight.original, head.parametrizations.weight[0]
    last = overlay.first_id + len(overlay.rows)
    end = len(table) if end is None else min(end, len(table))
    parts, start = [], 0
    for part in (table[: overlay.first_id], overlay.rows.to(table.dtype), table[last:]):
        a, b = max(first - start, 0), min(end - start, len(part))
        if a < b:
            parts.append(part[a:b])
        start += len(part)
    return parts


def head_bias(model: PreTrainedModel, first: int, end: int | None) -> Tensor | None:
    bias = getattr(model.get_output_embeddings(), "bias", None)
    return None if bias is None else bias[first:end]


def after_head(config: PreTrainedConfig) -> tuple[float | None, float | None]:
    """Cap (Gemma 2) and scale (Cohere) of the logits of a model with this configuration of its text half."""
    return getattr(config, "final_logit_softcapping", None), getattr(config, "logit_scale", None)


def project(
    model: PreTrainedModel, hidden: Tensor, first: int = 0, end: int | None = None, precise: bool = False
) -> Tensor:
    """Logits of table rows `first` to `end` for hidden states [N, d] -> float32 [N, end - first].

    `precise` multiplies in float32 whatever the model's precision is.
    """
    hidden = hidden.float() if precise else hidden
    bias = head_bias(model, first, end)
    logits = torch.cat([F.linear(hidden, part.to(hidden.dtype)) for part in head_parts(model, first, end)], dim=1)
    logits = (logits if bias is None else logits + bias.to(hidden.dtype)).float()
    cap, scale = after_head(model.config.get_text_config())
    if cap:
        logits = cap * torch.tanh(logits / cap)
    if scale:
        logits = logits * scale
    return logits
