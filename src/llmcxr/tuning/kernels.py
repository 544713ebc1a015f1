"""Attention, normalisation and adapters for training on CPUs: the arithmetic of the stock model, faster and with less memory.

torch's own CPU attention spends most of its time in its backward, which ran at a tenth of the matrix rate; plain products
over blocks of queries are faster at the lengths of instruction examples. Stock RMSNorm keeps float32 copies for backward.

Shapes: B examples, T tokens, H query heads, G key heads (H a multiple of G), D width of a head, C queries of a block, d width.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "llmcxr_cpu"
BLOCK = 64  # queries at once: skips most keys of the future, and the scores stay in the cache
LONGEST = 1024  # beyond, torch's own attention


def _probabilities(q: Tensor, keys: Tensor, C: int) -> Tensor:
    """Softmax over `keys` [B*G, end, D] for scaled queries [B*G, H/G*C, D], the last C of which end at `end`."""
    scores = torch.bmm(q, keys.transpose(1, 2))
    future = torch.full((C, C), float("-inf"), dtype=q.dtype).triu_(1)
    scores.view(len(q), -1, C, keys.shape[1])[..., -C:].add_(future)
    return torch.softmax(scores, -1)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        (B, H, T, D), G = q.shape, k.shape[1]
        keys, values = k.reshape(B * G, T, D), v.reshape(B * G, T, D)
        result = q.new_empty(B * G, H // G, T, D)
        for first in range(0, T, BLOCK):
            end = min(first + BLOCK, T)
            block = (q[:, :, first:end] * scale).reshape(B * G, -1, D)
            p = _probabilities(block, keys[:, :end], end - first)
            result[:, :, first:end] = torch.bmm(p, values[:, :end]).view(B * G, H // G, -1, D)
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return result.view(B, H, T, D)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        (B, H, T, D), G = q.shape, k.shape[1]
        keys, values = k.reshape(B * G, T, D), v.reshape(B * G, T, D)
        dq = q.new_empty(B * G, H // G, T, D)
        dk, dv = (k.new_zeros(B * G, T, D, dtype=torch.float32) for _ in range(2))
        for first in range(0, T, BLOCK):  # probabilities are made again: keeping them costs more memory than time
            end = min(first + BLOCK, T)
            block = (q[:, :, first:end] * ctx.scale).reshape(B * G, -1, D)
            p = _probabilities(block, keys[:, :end], end - first)
            do = gradients[0][:, :, first:end].reshape(B * G, -1, D)
            dv[:, :end] += torch.bmm(p.transpose(1, 2), do)
            dp = torch.bmm(do, values[:, :end].transpose(1, 2))
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, :, first:end] = torch.bmm(ds, keys[:, :end]).view(B * G, H // G, -1, D)
            dk[:, :end] += torch.bmm(ds.transpose(1, 2), block)
        return (
            dq.mul_(ctx.scale).view(B, H, T, D),
            dk.to(k.dtype).view(B, G, T, D),
            dv.to(v.dtype).view(B, G, T, D),
            None,
        )


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention to oneself and the past: q [B, H, T, D], k and v [B, G, T, D] -> [B, H, T, D]."""
    return _CausalAttention.apply(q, k, v, scale)  # type: ignore[no-untyped-call]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **named: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it; whatever is not plain causal training on a CPU goes to torch's own."""
    plain = attention_mask is None and not dropout and named.get("is_causal") is not False
    plain &= named.get("softcap") is None and named.get("position_bias") is None and named.get("s_aux") is None
    plain &= getattr(module, "is_causal", True) and query.shape[-1] == value.shape[-1]
    if (
        plain
        and torch.is_grad_enabled()
        and query.device.type == "cpu"
        and 1 < query.shape[2] == key.shape[2] <= LONGEST
    ):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return causal_attention(query, key, value, scale).transpose(1, 2).contiguous(), None
    result, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **named
    )
    return result, None


AttentionInterface.register(NAME, _attention)  # type: ignore[arg-type]
AttentionMaskInterface.register(NAME, sdpa_mask)  # type: ignore[arg-type]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = x.float().pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()  # bit for bit as the stock module
        ctx.save_for_backward(x, weight, r)
        return weight * (x * r).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, r = ctx.saved_tensors
        dy = gradients[0]
        dw = None
        if ctx.needs_input_grad[1]:
            dw = (dy * (x * r).to(x.dtype)).sum(tuple(range(x.ndim - 1)), dtype=torch.float32).to(weight.dtype)
        g = dy * weight
        along = (g * x).sum(-1, keepdim=True, dtype=torch.float32) * r**3 / x.shape[-1]
        return torch.addcmul(g * r.to(x.dtype), x, along.to(x.dtype), value=-1), dw, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., d] over its root mean square (taken in float32), times weight [d]; keeps no copy of x for backward."""
    return _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]


def _eps(module: nn.Module) -> float | None:
    """The constant of a module that computes exactly `rms_norm` (Llama's kind; Gemma's, with 1 + weight, is not), else None."""
    eps = getattr(module, "variance_epsilon", None)
    weight = getattr(module, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, Tensor) or weight.ndim != 1 or module._forward_hooks:
        return None
    with torch.no_grad():
        x = torch.linspace(-1, 2, 2 * len(weight), dtype=weight.dtype, device=weight.device).view(2, -1)
        return eps if torch.allclose(module(x), rms_norm(x, weight, eps), rtol=2**-7) else None


def _forward(self: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.device.type != "cpu":
        return type(self).forward(self, hidden_states)
    return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ down.T
        ctx.save_for_backward(rows, inner, weight, down, up)
        ctx.scale = scale
        result = F.linear(rows, weight, bias).addmm_(inner, up.T, alpha=scale)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, down, up = ctx.saved_tensors
        dy = gradients[0].reshape(-1, gradients[0].shape[-1])
        d_inner = dy @ up
        if ctx.scale != 1:
            d_inner *= ctx.scale
        d_up = dy.T @ inner
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(d_inner, down).view(*gradients[0].shape[:-1], -1)
        return dx, None, None, d_inner.T @ rows, d_up if ctx.scale == 1 else d_up.mul_(ctx.scale), None


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """x W^T + bias + scale (x A^T) B^T for a frozen W [out, in]; `down` is A [r, in], `up` is B [out, r]; x [..., in].

    The adapter's products are added in place, forward and backward, where PEFT's own layer makes four more tensors of full size.
    """
    return _LoraLinear.apply(x, weight, bias, down, up, scale)  # type: ignore[no-untyped-call]


def _lora_forward(self: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
    if x.device.type != "cpu" or not torch.is_grad_enabled() or self.disable_adapters or self.merged or rest or named:
        return type(self).forward(self, x, *rest, **named)
    name, base = self.active_adapters[0], self.base_layer
    return lora_linear(
        x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
    )


def _is_plain_lora(module: nn.Module) -> bool:
    """A PEFT layer that computes exactly `lora_linear`: one adapter over a frozen, unquantized `nn.Linear`, no dropout."""
    if (
        not isinstance(module, LoraLinear)
        or type(module.base_layer) is not nn.Linear
        or len(module.active_adapters) != 1
    ):
        return False
    name, base = module.active_adapters[0], module.base_layer
    adapters = (module.lora_A[name], module.lora_B[name])
    return (
        not base.weight.requires_grad
        and not module.lora_variant
        and isinstance(module.lora_dropout[name], nn.Identity)
        and all(layer.bias is None and layer.weight.dtype == base.weight.dtype for layer in adapters)
    )


def use_training_kernels(model: PreTrainedModel) -> Callable[[], None]:
    """Put the kernels of this module into `model`, where they compute the same; returns what takes them out again.

    Attention is replaced where the model takes torch's (`sdpa`), and falls back to it by itself off the CPU, without
    gradients, and wherever a mask, a window or a cap is in play. A model without weights (meta device) stays as it is.
    """
    if model.device.type == "meta":
        return lambda: None
    replaced: list[Any] = []
    for module in model.modules():
        if _eps(module) is not None:
            module.forward = types.MethodType(_forward, module)
            replaced.append(module)
        elif _is_plain_lora(module):
            module.forward = types.MethodType(_lora_forward, module)
            replaced.append(module)
    before = model.config._attn_implementation
    if before == "sdpa":
        model.set_attn_implementation(NAME)

    def undo() -> None:
        for module in replaced:
            del module.forward
        if before == "sdpa":
            model.set_attn_implementation(before)

    return undo
