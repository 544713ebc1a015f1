"""The layers of a stock Llama, laid out for decoding: what a step costs is then its products and little else.

The same numbers as the model's own forward, up to rounding, with fewer and larger operations: on CPUs weights lie as the
kernels want them (oneDNN's layout), sums and gates are part of the products, tables of positions are made once. `int8` keeps
the weights of the layers in 8 bits, a scale for each output, and rounds what enters a product to 8 bits, a scale for each
token: sums are then of integers, and exact, whoever else is in the batch.

Shapes: n rows, T tokens of each, d width of the LLM, H query heads, G key heads, D width of a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llmcxr.foundation.errors import UserError
from llmcxr.inference.slots import SlotCache

_PACKED_AT_MOST = 2 * 2**30  # bytes of weights that are kept twice, as the model has them and as the kernels want them
_BLOCK = 64  # positions by which attention over prompts is padded
_USUAL_ROWS = 16  # for which the layout is made; other numbers of rows are as fast

Attention = Callable[
    [int, Tensor, Tensor, Tensor], Tensor
]  # layer, queries [n, H, T, D], keys, values -> [n, T, H * D]


def is_stock_llama(model: PreTrainedModel) -> bool:
    """Whether the forward below is this model's: the class itself, of plain layers (no adapters) that nobody listens to."""
    if type(model) is not LlamaForCausalLM or model.config.hidden_act != "silu":
        return False
    inner: Any = model.model
    parts: list[nn.Module] = [model, inner, inner.embed_tokens, inner.norm, model.lm_head]
    for layer in inner.layers:
        plain = (*_linears(layer), layer.input_layernorm, layer.post_attention_layernorm)
        if any(type(m) not in (nn.Linear, LlamaRMSNorm) or getattr(m, "bias", None) is not None for m in plain):
            return False
        parts += [layer, layer.self_attn, layer.mlp, *plain]
    watched = any(m._forward_hooks or m._forward_pre_hooks or parametrize.is_parametrized(m) for m in parts)
    return type(model.lm_head) is nn.Linear and model.lm_head.bias is None and not watched


def _linears(layer: Any) -> list[nn.Linear]:
    attention, mlp = layer.self_attn, layer.mlp
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return [*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def state_of(model: PreTrainedModel) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight does."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())


def check_int8(model: PreTrainedModel) -> None:
    """`UserError` where products of layers in 8 bits cannot be had."""
    if not is_stock_llama(model) or model.device.type != "cpu":
        raise UserError(
            f"precision int8 is there for models of the Llama family on the CPU; this one is {type(model).__name__} on "
            f"{model.device.type}. Give auto, bfloat16 or float32."
        )
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise UserError("precision int8 needs an x86 processor with AVX2 here. Give auto, bfloat16 or float32.")


class _Plain:
    """A product with a weight as it is, of rows [N, inputs]."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def added_to(self, rest: Tensor, x: Tensor) -> Tensor:
        return rest + self(x)


class _Packed(_Plain):
    """A product with a weight in oneDNN's own layout, and with what follows it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _USUAL_ROWS))
        self.long = weight.shape[1] > 1024

    def __call__(self, x: Tensor, then: str = "none") -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, then, [], "")

    def added_to(self, rest: Tensor, x: Tensor) -> Tensor:
        if self.long and len(x) == 1:  # the kernel for one row sums long rows in another order than that for many
            return self.added_to(rest.expand(2, -1).contiguous(), x.expand(2, -1).contiguous())[:1]
        return torch.ops.mkldnn._linear_pointwise.binary(x, rest, self.weight, None, "add")

    def multiplied_by(self, factor: Tensor, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.weight, None, "mul")


class _Int8(_Plain):
    """A product of integers of 8 bits: of the weight, by outputs, and of what enters [N, inputs] float32, by rows."""

    def __init__(self, weight: Tensor) -> None:
        scales = (weight.float().abs().amax(1) / 127).clamp(min=1e-12)
        whole = (weight.float() / scales[:, None]).round().to(torch.int8)
        with warnings.catch_warnings():  # that torch's quantised tensors will move to another package
            warnings.simplefilter("ignore")
            tensor = torch._make_per_channel_quantized_tensor(
                whole, scales, torch.zeros(len(scales), dtype=torch.long), 0
            )
            self.packed = torch.ops.quantized.linear_prepack(tensor, None)

    def __call__(self, x: Tensor) -> Tensor:
        largest = x.abs().amax(-1, keepdim=True).clamp_(min=1e-12)
        # Rounds to integers around 128, multiplies, and gives float32: sums of integers times the weight's scales.
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return product(x * (127 / largest), 1.0, 128, self.packed).mul_(largest / 127)


class _Layer:
    def __init__(self, layer: Any, kind: type[_Plain]) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = kind(torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]))
        self.out, self.down = kind(attention.o_proj.weight), kind(mlp.down_proj.weight)
        gates = (mlp.gate_proj.weight, mlp.up_proj.weight)
        self.gates = [kind(w) for w in gates] if kind is _Packed else [kind(torch.cat(gates))]

    def gated(self, x: Tensor) -> Tensor:
        first = self.gates[0]
        if isinstance(first, _Packed):
            return self.gates[1].multiplied_by(first(x, "swish"), x)  # type: ignore[attr-defined]
        gate, up = first(x).chunk(2, -1)
        return F.silu(gate) * up


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.variance_epsilon)


class Llama:
    """Its layers and head. Weights are taken as they are now: make it anew where they change (`state_of`)."""

    def __init__(self, model: PreTrainedModel, int8: bool = False) -> None:
        config: Any = model.config
        self.model, self.int8, self.state = model, int8, state_of(model)
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.width: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        weights = [m.weight for layer in model.model.layers for m in _linears(layer)]
        twice = sum(w.nbytes for w in weights) <= _PACKED_AT_MOST and torch.backends.mkldnn.is_available()
        self._kind = _Packed if twice and model.device.type == "cpu" else _Plain
        kind = _Int8 if int8 else self._kind
        with torch.no_grad():
            self._layers = [_Layer(layer, kind) for layer in model.model.layers]
        self._head: dict[tuple[int, int | None], _Plain] = {}
        half = self.width // 2
        self._sign = torch.tensor([-1.0] * half + [1.0] * half, dtype=model.dtype, device=model.device)

    def _forward(self, ids: Tensor, places: Tensor, attend: Attention) -> Tensor:
        """States [n, T, d] after the last layer and norm, of tokens [n, T] at places [n or 1, T]."""
        inner, (n, T), (H, G, D) = self.model.model, ids.shape, (self.heads, self.key_heads, self.width)
        x = inner.embed_tokens(ids).flatten(0, 1)
        cos, sin = (t[:, :, None] for t in inner.rotary_emb(x, position_ids=places))
        sin = sin * self._sign
        if self.int8:  # what lies between the products is small: as exact as it can be
            x = x.float()
        for i, layer in enumerate(self._layers):
            all_heads = layer.qkv(_norm(x, layer.before)).to(cos.dtype).view(n, T, H + 2 * G, D)
            turned = all_heads[:, :, : H + G]
            turned = torch.addcmul(turned * cos, turned.roll(D // 2, -1), sin)
            queries, keys, values = turned[:, :, :H], turned[:, :, H:], all_heads[:, :, H + G :]
            seen = attend(i, *(t.transpose(1, 2) for t in (queries, keys, values))).view(n * T, H * D)
            x = layer.out.added_to(x, seen.to(x.dtype))
            x = layer.down.added_to(x, layer.gated(_norm(x, layer.between)))
        return _norm(x, inner.norm).to(cos.dtype).view(n, T, -1)

    def read(self, ids: Tensor, first: int, cache: DynamicCache) -> Tensor:
        """States [n, T, d] of tokens [n, T] that follow `first` ones in the cache, which takes theirs."""
        n, T = ids.shape
        places = torch.arange(first, first + T, device=ids.device)
        # In whole blocks, always with a mask: then no number depends on how long the longest prompt is.
        spare = -(first + T) % _BLOCK
        seen = torch.arange(first + T + spare, device=ids.device) <= places[:, None]
        hidden = torch.zeros(seen.shape, dtype=self.model.dtype, device=ids.device).masked_fill_(~seen, -torch.inf)
        group = self.heads // self.key_heads

        def attend(i: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            both = (F.pad(t, (0, 0, 0, spare)) for t in cache.update(keys, values, i))
            keys, values = (t.repeat_interleave(group, 1) for t in both)
            return F.scaled_dot_product_attention(queries, keys, values, hidden).transpose(1, 2).reshape(n, T, -1)

        return self._forward(ids, places[None], attend)

    def step(self, ids: Tensor, places: Tensor, seen: Tensor | None, cache: SlotCache) -> Tensor:
        """States [R, d] of one new token a row [R, 1] at places [R, 1]; `seen` bool [R, 1, 1, positions] of the cache, None: all."""
        R, G, D = len(ids), self.key_heads, self.width
        hidden = (
            None if seen is None else torch.zeros_like(seen, dtype=self.model.dtype).masked_fill_(~seen, -torch.inf)
        )

        def attend(i: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            keys, values = cache.update(keys, values, i)
            # The query heads of a key head are so many rows of one product. For one token a row this is several times as
            # fast as torch's attention on CPUs.
            weights = (queries.reshape(R, G, -1, D) * D**-0.5) @ keys.mT
            return (weights if hidden is None else weights.add_(hidden)).softmax(-1) @ values

        return self._forward(ids, places, attend)[:, 0]

    def logits(self, states: Tensor, first: int, end: int | None) -> Tensor:
        """Of table rows `first` to `end` [N, end - first] float32, for states [N, d]."""
        if (first, end) not in self._head:
            self._head[first, end] = self._kind(self.model.lm_head.weight[first:end])
        return self._head[first, end](states).float()
