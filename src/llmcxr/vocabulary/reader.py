"""A small reader of codes, to start the image rows from: which codes speak for which finding, said in the LLM's own words.

A linear model reads findings from how often each code occurs in an image. Every code then starts near the words of the
findings it speaks for (and away from those it speaks against), on top of its projected code vector. The language model
finds in its input what it already knows how to copy: words.

Shapes: N images, L codes an image, K codes, F findings, d width of the LLM, D dimension of a code vector.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmcxr.vocabulary.growing import ROW_SPREAD, projected_rows

_STEPS = 400  # of Adam, over all images at once
_PENALTY = 1e-3  # L2, on the weights
_STRENGTH = 0.7  # spread of the word part of a row, in units of the part that its code vector gives


def word_vectors(names: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, table: Tensor) -> Tensor:
    """Unit vectors [F, d]: the mean text row of each name's tokens, less the mean of all text rows [V, d]."""
    table = table.float()
    rows = [table[tokenizer(" " + name, add_special_tokens=False)["input_ids"]].mean(0) for name in names]
    return F.normalize(torch.stack(rows) - table.mean(0), dim=1)


def read_codes_linearly(codes: np.ndarray, labels: np.ndarray, size: int) -> Tensor:
    """Evidence [K, F] of each code for each finding, from codes [N, L] and labels [N, F] (NaN unknown), unit spread by finding."""
    counts = torch.from_numpy(
        np.stack([np.bincount(row, minlength=size) for row in codes]).astype(np.float32)
    )  # [N, K]
    target = torch.from_numpy(labels)
    known = ~target.isnan()
    target = target.nan_to_num()
    weight = torch.zeros(size, labels.shape[1], requires_grad=True)
    bias = torch.zeros(labels.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.02)
    for _ in range(_STEPS):
        losses = F.binary_cross_entropy_with_logits(counts @ weight + bias, target, reduction="none")
        loss = (losses * known).sum() / known.sum().clamp(min=1) + _PENALTY * weight.square().sum() / labels.shape[1]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    evidence = weight.detach() - weight.detach().mean(0)
    return evidence / evidence.std(0).clamp(min=1e-6)


def reader_rows(
    vectors: Tensor,
    codes: np.ndarray,
    labels: np.ndarray,
    words: Tensor,
    table: Tensor,
    seed: int,
) -> Tensor:
    """Rows [K, d] from code vectors [K, D], what the codes speak for, and the findings' word vectors [F, d]."""
    evidence = read_codes_linearly(codes, labels, len(vectors))
    spoken = evidence @ words  # [K, d]
    spread = _STRENGTH * ROW_SPREAD * table.float().std() / spoken.std()
    return projected_rows(vectors, table, seed) + spoken * spread
