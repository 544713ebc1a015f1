"""How a codebook does while it is trained: share in use, perplexity, codes restarted; and when they are.

Shapes: K codes, N vectors of a step (over all processes).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

_MEMORY = 10  # vectors a code: what was met in as many counts as in use


def restart_dead_codes(quantizer: VectorQuantize, vectors: int) -> None:
    """Let codes restart from a step's `vectors` once they have less than a fifth of their fair share of them.

    They begin anew with all of it: with less than the threshold they would be dead again in the next step, and in every one.
    """
    codebook = quantizer._codebook
    fair = vectors / codebook.codebook_size
    codebook.threshold_ema_dead_code, codebook.reset_cluster_size = 0.2 * fair, fair


class CodebookHealth(nn.Module):
    """Watches a quantizer that returns (vectors, codes, loss) from its forward; its buffers are part of a checkpoint.

    In use is a code that was met within the last 10 K vectors, of which each would be met ten times if all were used alike;
    the perplexity's counts fade over as many.
    """

    unmet: Tensor
    counts: Tensor
    restarts: Tensor

    def __init__(self, quantizer: nn.Module, codebook_size: int) -> None:
        super().__init__()
        self.memory = float(_MEMORY * codebook_size)
        self.register_buffer("unmet", torch.full((codebook_size,), self.memory))  # vectors since each was met
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("restarts", torch.zeros(()))  # codes, in all
        quantizer.register_forward_hook(self._after)
        codebook: Any = getattr(quantizer, "_codebook", None)
        if hasattr(codebook, "replace"):  # VectorQuantize's own, called with the dead codes of a step
            replace = codebook.replace

            def counted(samples: Tensor, batch_mask: Tensor, **more: Any) -> None:
                self.restarts += batch_mask.sum().clamp(max=samples.shape[-2])
                replace(samples, batch_mask, **more)

            codebook.replace = counted

    def _after(self, quantizer: nn.Module, given: Any, result: tuple[Tensor, ...]) -> None:
        if not quantizer.training:
            return
        codes = result[1].flatten().long()
        self.unmet += len(codes)
        self.unmet[codes] = 0
        self.counts *= max(0.0, 1 - len(codes) / self.memory)
        self.counts.index_add_(0, codes, torch.ones_like(codes, dtype=self.counts.dtype))

    def terms(self) -> dict[str, Tensor]:
        """`codebook_use` (share), `perplexity`, and `restarts` (codes, in all steps so far)."""
        p = self.counts / self.counts.sum().clamp(min=1)
        return {
            "codebook_use": (self.unmet < self.memory).float().mean(),
            "perplexity": torch.special.entr(p).sum().exp(),
            "restarts": self.restarts.clone(),
        }
