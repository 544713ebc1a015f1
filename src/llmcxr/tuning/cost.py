"""What tuning a language model costs: operations and bytes of its layers, its head and its optimizer, counted by torch.

No weights are loaded: models are built from their configuration on the meta device, by the code that tunes them.

Letters: P parameters, V rows of the table with K image rows among them, d width, T tokens of an example.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

from llmcxr.instructions.rendering import RenderedExample
from llmcxr.tuning import four_bit
from llmcxr.tuning.batches import collate
from llmcxr.tuning.objective import learned_tokens
from llmcxr.tuning.settings import TuningSettings
from llmcxr.tuning.tunable import UPDATED_AT_ONCE, TunableModel
from llmcxr.vocabulary.head import after_head, project
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary


@dataclass(frozen=True)
class ModelSize:
    """Counts of the grown model as it is tuned."""

    parameters: int  # P, of the stock model that results
    trained: int  # parameters with a gradient, image rows included
    rows: int  # V
    image_rows: int  # K
    width: int
    layers: int
    weight_bytes: int
    gradient_bytes: int  # while a batch is computed
    step_gradient_bytes: int  # while the optimiser steps: the same, and float32 copies of some at a time
    optimizer_bytes: int  # float32 masters and both moments
    table_copies: (
        int  # beside the table: with image rows laid over it, that one's gradient, the head's where it is trained
    )
    number_bytes: int  # of a number in products: 2 in bfloat16, 4 in float32
    logit_bytes: int  # that a logit keeps: those of a number, or 8 where the head's output is capped or scaled


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. The peak is in the backward pass or in the optimiser's step."""

    weights: int
    optimizer: int
    gradients: int
    step_gradients: int
    activations: int

    @property
    def peak(self) -> int:
        """The larger of the two moments."""
        return self.weights + self.optimizer + max(self.gradients + self.activations, self.step_gradients)


class Counts(NamedTuple):
    """Of a batch, or the sum over some. Learned tokens are `inside` images (softmax over image rows) or `outside`."""

    examples: float
    tokens: float
    squares: float  # T^2
    padded: float
    image: float
    inside: float
    outside: float
    language_tokens: float  # of examples that the base model reads, too
    language_squares: float
    anchored: float  # their learned tokens

    @property
    def learned(self) -> float:
        """Tokens that are learned."""
        return self.inside + self.outside


@dataclass(frozen=True)
class Cost:
    """What the layers and the head take, counted by torch."""

    step: tuple[float, float]  # operations of a training step for each token, and for each T^2 of an example
    base: tuple[float, float]  # the same of the base model's own pass (language.loss: base_model)
    kept: float  # bytes that the layers keep for the backward pass, for each token
    head: tuple[float, float, float]  # operations for each learned token outside, inside, and of the base model

    def operations(self, c: Counts) -> float:
        """Useful ones of a pass over the examples: no padding, nothing recomputed, of causal attention the half."""
        body = self.step[0] * c.tokens + self.step[1] * c.squares
        base = self.base[0] * c.language_tokens + self.base[1] * c.language_squares
        return body + base + float(np.dot(self.head, (c.outside, c.inside, c.anchored)))


def build_tunable(
    config: PreTrainedConfig,
    vocabulary: ImageVocabulary,
    settings: TuningSettings,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> TunableModel:
    """The model as it is tuned, with random (on the meta device: no) weights, without checkpointing.

    There are no weights to pack on the meta device: QLoRA is LoRA there, and `size_of` counts its 4 bits.
    """
    method = "lora" if device.type == "meta" and settings.method == "qlora" else settings.method
    settings = dataclasses.replace(settings, method=method, gradient_checkpointing=False)
    with device:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
        width = model.get_input_embeddings().weight.shape[1]
        return TunableModel(model, vocabulary, torch.zeros(vocabulary.size, width), settings)


def size_of(tunable: TunableModel, quantised: bool = False) -> ModelSize:
    """Counts of a model as it is tuned (also on the meta device). `quantised`: frozen linear layers are in 4 bits (QLoRA)."""
    model, config = cast(Any, tunable.model), tunable.model.config.get_text_config()
    overlays = {id(p) for o in tunable.image_rows for p in o.parameters()}
    parameters = {id(p): p for p in model.parameters()}
    trained = [p for p in parameters.values() if p.requires_grad]
    adapters = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    table = model.get_input_embeddings().parametrizations.weight.original
    packed = {id(m.weight) for _, m in four_bit.linears(tunable.model) if quantised and not m.weight.requires_grad}
    weights = sum(p.numel() * (four_bit.BYTES if key in packed else p.element_size()) for key, p in parameters.items())
    count, gradients = sum(p.numel() for p in trained), sum(p.nbytes for p in trained)
    return ModelSize(
        parameters=sum(p.numel() for key, p in parameters.items() if key not in overlays) - adapters,
        trained=count,
        rows=table.shape[0],
        image_rows=tunable.vocabulary.size,
        width=table.shape[1],
        layers=config.num_hidden_layers,
        weight_bytes=round(weights),
        gradient_bytes=gradients,
        step_gradient_bytes=gradients + 4 * min(count, UPDATED_AT_ONCE + max(p.numel() for p in trained)),
        optimizer_bytes=sum((8 if p.dtype == torch.float32 else 12) * p.numel() for p in trained),
        table_copies=2 + table.requires_grad,
        number_bytes=tunable.model.dtype.itemsize,
        logit_bytes=8 if any(after_head(config)) else tunable.model.dtype.itemsize,
    )


def cost_of(tunable: TunableModel, config: PreTrainedConfig, settings: TuningSettings) -> Cost:
    """Costs of the model `tunable` (on the meta device) of this configuration.

    The layers: one and two of them, of the model's own width with unset weights, are run on a few tokens; torch counts the
    operations, and what autograd saves is added up. (Kernels for CPUs keep less.)
    """

    def passes(layers: int) -> np.ndarray:
        """[3 passes, 3]: operations of a step and of the base model, and bytes kept; counting on 32 and 64 tokens, and not on 32."""
        shallow = copy.deepcopy(config)
        text = shallow.get_text_config()
        text.vocab_size, text.num_hidden_layers = 8, layers
        text.pad_token_id = text.bos_token_id = text.eos_token_id = None
        if kinds := getattr(text, "layer_types", None):
            text.layer_types = list(kinds)[:layers]
        words = copy.copy(tunable.vocabulary)
        words.first_id, words.size = 8, 2
        small = build_tunable(shallow, words, settings, torch.device("meta"), tunable.model.dtype)
        model = cast(nn.Module, small.model).to_empty(device="cpu").train()
        own = {t.untyped_storage().data_ptr() for t in itertools.chain(model.parameters(), model.buffers())}

        def run(T: int, counting: bool) -> tuple[float, float, float]:
            kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

            def pack(tensor: Tensor) -> Tensor:
                address = tensor.untyped_storage().data_ptr()
                if address not in own:
                    kept.setdefault(address, tensor)
                return tensor

            ids = torch.zeros(1, T, dtype=torch.long)
            # torch's counter knows attention on CPUs as plain products only, which keep more than what is used otherwise.
            with sdpa_kernel(SDPBackend.MATH) if counting else contextlib.nullcontext():
                with FlopCounterMode(display=False) as step, saved_tensors_hooks(pack, lambda tensor: tensor):
                    hidden = small.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
                    if counting:
                        hidden.sum().backward()
                with FlopCounterMode(display=False) as base:
                    if counting and settings.language.loss == "base_model":
                        small.base_states(ids)
            bytes_kept = sum(t.untyped_storage().nbytes() for t in kept.values()) // T
            return step.get_total_flops(), base.get_total_flops(), bytes_kept

        return np.array([run(32, True), run(64, True), run(32, False)], dtype=float)

    def head(first: int, end: int | None, learned: bool = True) -> float:
        state = torch.zeros(1, width, dtype=tunable.model.dtype, device="meta", requires_grad=True)
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(learned):
            logits = project(tunable.model, state, first, end)
            if learned:
                logits.sum().backward()
        return counter.get_total_flops()

    width, first_id = cast(Any, tunable.model).get_input_embeddings().weight.shape[1], tunable.vocabulary.first_id
    one, two = passes(1), passes(2)
    depth = config.get_text_config().num_hidden_layers
    short, long, plain = one + (two - one) * (depth - 1)
    if settings.gradient_checkpointing:  # what goes into each layer, and all of the one that is computed again
        plain = one[2] + tunable.model.dtype.itemsize * width * (depth - 1)
    half = (long / 64 - short / 32) / 64  # of the square; the causal half is what is needed
    linear = short / 32 - 64 * half
    return Cost(
        step=(linear[0], half[0]),
        base=(linear[1], half[1]),
        kept=plain[2],
        head=(head(0, None), head(first_id, first_id + tunable.vocabulary.size), head(0, first_id, learned=False)),
    )


def device_memory(size: ModelSize, tokens: int, kept: float, largest: Counts, shards: int = 1) -> Memory:
    """Bytes on one device for batches of `tokens` padded tokens, with the learned ones of `largest`.

    The layers keep `kept` bytes a token. The head adds `logit_bytes` a logit (it becomes its own gradient), 8 against the base
    model's distribution; the table exists `table_copies` times more. `shards` > 1: weights, gradients and
    optimizer states are spread over that many devices, and one layer's weights are gathered at a time.
    """
    logits = (largest.outside - largest.anchored) * size.rows + largest.inside * size.image_rows
    gathered = 0 if shards == 1 else 2 * size.weight_bytes // max(1, size.layers)  # this layer and the next
    tables = size.number_bytes * size.table_copies * size.rows * size.width
    head = size.logit_bytes * logits + 8 * largest.anchored * size.rows + tables
    return Memory(
        weights=size.weight_bytes // shards + gathered,
        optimizer=size.optimizer_bytes // shards,
        gradients=size.gradient_bytes // shards,
        step_gradients=size.step_gradient_bytes // shards,
        activations=round(tokens * kept + head),
    )


def counts_of(examples: Sequence[RenderedExample], vocabulary: ImageVocabulary, settings: TuningSettings) -> Counts:
    """Of the batch that these examples make."""
    batch, T = collate(examples), np.array([len(e.ids) for e in examples], dtype=float)
    rows, _, inside = learned_tokens(batch, vocabulary, settings.image_softmax, settings.read_image_weight > 0)
    image = (batch.ids >= vocabulary.first_id) & (batch.ids < vocabulary.first_id + vocabulary.size)
    language = np.array([e.task == "language" for e in examples]) & (settings.language.loss == "base_model")
    return Counts(
        examples=len(examples),
        tokens=batch.tokens,
        squares=float((T**2).sum()),
        padded=batch.ids.numel(),
        image=int(image.sum()),
        inside=int(inside.sum()),
        outside=int((~inside).sum()),
        language_tokens=float(T[language].sum()),
        language_squares=float((T[language] ** 2).sum()),
        anchored=int((torch.from_numpy(language)[rows] & ~inside).sum()),
    )
