"""A small reader of codes: a classifier whose code vectors have the LLM's width, to start the image rows from.

Shapes: B images, L codes an image, K codes, d width of the LLM, F findings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from llmcxr.foundation.devices import autocast
from llmcxr.foundation.randomness import stream
from llmcxr.foundation.settings import setting


@dataclass(frozen=True)
class ReaderSettings:
    """Training of the small reader."""

    steps: int = setting(400, "optimiser steps")
    batch_size: int = setting(64, "images a step")
    learning_rate: float = setting(1e-3, "AdamW, one cycle")


class CodeReader(nn.Module):
    """Codes [B, L] -> logits of findings [B, F]."""

    def __init__(self, vectors: Tensor, length: int, findings: int, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(vectors.clone(), freeze=False)  # [K, d]
        self.narrow = nn.Linear(vectors.shape[1], width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(width, findings)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits [B, F]."""
        return self.head(self.layers(self.narrow(self.embedding(codes)) + self.place).mean(1))


def reader_vectors(
    vectors: Tensor, codes: np.ndarray, labels: np.ndarray, settings: ReaderSettings, seed: int
) -> Tensor:
    """Train a `CodeReader` from code vectors [K, d] on codes [N, L] and labels [N, F] (NaN unknown); its vectors [K, d]."""
    torch.manual_seed(seed)
    spread = vectors.std()
    reader = CodeReader(vectors / spread, codes.shape[1], labels.shape[1]).train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, max(2, settings.steps))
    device = torch.device("cpu")
    for step in tqdm(range(settings.steps), desc="reader of codes", unit="step"):
        rows = stream(seed, "reader", step).choice(len(codes), min(settings.batch_size, len(codes)), replace=False)
        target = torch.from_numpy(labels[rows])
        known = ~target.isnan()
        with autocast(device):
            logits = reader(torch.from_numpy(codes[rows].astype(np.int64)))
        losses = F.binary_cross_entropy_with_logits(logits.float(), target.nan_to_num(), reduction="none")
        optimizer.zero_grad(set_to_none=True)
        ((losses * known).sum() / known.sum().clamp(min=1)).backward()
        optimizer.step()
        schedule.step()
    return reader.embedding.weight.detach() * spread
