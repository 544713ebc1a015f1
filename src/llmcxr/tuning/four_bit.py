"""Frozen linear layers in 4 bits while adapters are tuned (QLoRA: NF4 with double quantisation), and back.

Shapes: n inputs and m outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmcxr.foundation.optional import require

_BLOCK = 64  # weights that share a scale
BYTES = (4 + 8 / _BLOCK + 32 / (_BLOCK * 256)) / 8  # of a weight: 4 bits, and its scale, which is quantised in turn


def bitsandbytes() -> Any:
    """The package, which is optional. `UserError` says how to get it."""
    return require("bitsandbytes", "tuning.method: qlora", "tuning.method=lora")


def linears(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """Names and layers that 4 bits are for: every linear one but the head.

    Layers whose inputs are no multiple of NF4's block of 64 (none in usual models) stay as they are: CPUs would unpack them
    wrongly.
    """
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is not head and isinstance(module, nn.Linear | Conv1D):
            inputs = module.weight.shape[1 if isinstance(module, nn.Linear) else 0]
            if inputs % _BLOCK == 0:
                yield name, module


@torch.no_grad()
def quantize_linears(model: PreTrainedModel) -> None:
    """Put `linears` into 4 bits, in place, one after the other; the table stays as it is."""
    bnb = bitsandbytes()
    for name, module in list(linears(model)):
        weight = module.weight if isinstance(module, nn.Linear) else module.weight.T.contiguous()  # [m, n]
        new = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], module.bias is not None, weight.dtype, device="meta")
        kept = bnb.nn.Params4bit(weight.detach().clone(), False, quant_type="nf4", compress_statistics=True, module=new)
        new.weight, new.bias = kept.to(weight.device), module.bias
        # A layout for decoding on CPUs, taken on in evaluation; going on to train, or back to full weights, would be wrong.
        new.support_avx512bf16_for_cpu = False
        new.was_conv1d = isinstance(module, Conv1D)
        model.set_submodule(name, new)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # PEFT's mark for its 4-bit layers


@torch.no_grad()
def dequantize_linears(model: PreTrainedModel, deltas: dict[str, Tensor]) -> None:
    """Undo `quantize_linears`: ordinary layers again, in place. `deltas` [m, n] by layer name are added in float32."""
    bnb = bitsandbytes()
    dtype = model.dtype
    for name, module in list(model.named_modules()):
        if not isinstance(module, bnb.nn.Linear4bit):
            continue
        weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        weight = (weight + deltas[name].float() if name in deltas else weight).to(dtype)
        m, n = weight.shape
        new: nn.Module
        with torch.device("meta"):
            new = Conv1D(m, n) if module.was_conv1d else nn.Linear(n, m, bias=module.bias is not None)
        new.weight = nn.Parameter(weight.T.contiguous() if module.was_conv1d else weight, requires_grad=False)
        if module.bias is not None:
            new.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
        model.set_submodule(name, new)
    del model.is_loaded_in_4bit
