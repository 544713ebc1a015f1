"""The model while it is tuned: stock LM, image rows as parameters of their own, adapters or everything trainable.

All matrices have one precision, so every product runs at the machine's fast rate. Where that is bfloat16, what is trained has a
float32 master copy in the optimizer, since bfloat16 would lose small updates; float32 weights are their own masters. (Autocast
over float32 adapters was four times slower on CPUs.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import parted_like, whole
from llmcxr.tuning.four_bit import dequantize_linears, quantize_linears
from llmcxr.tuning.kernels import use_training_kernels
from llmcxr.tuning.settings import TuningSettings
from llmcxr.vocabulary.growing import fold_image_rows, grow_language_model, overlay_image_rows
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary


class TunableModel:
    """A grown language model prepared for tuning by `settings.method`."""

    def __init__(
        self, model: PreTrainedModel, vocabulary: ImageVocabulary, rows: Tensor, settings: TuningSettings, seed: int = 0
    ) -> None:
        """`rows` [K, d] are the starts of the image rows; `model` is changed in place.

        `UserError` where examples may be longer than the model's context.
        """
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and settings.max_tokens > positions:
            raise UserError(
                f"tuning.max_tokens: {settings.max_tokens} exceeds the {positions} positions of the language model. "
                f"Set tuning.max_tokens={positions} or less."
            )
        torch.manual_seed(seed)  # start of the adapters
        grow_language_model(model, vocabulary, rows)
        self.vocabulary = vocabulary
        self.method = settings.method
        self._peft: Any = None
        model.requires_grad_(settings.method == "full")
        if settings.method == "qlora":
            quantize_linears(model)
        if settings.method in ("lora", "qlora"):
            config = LoraConfig(
                r=settings.lora_rank, lora_alpha=settings.lora_rank, target_modules="all-linear", lora_dropout=0.0
            )
            dtype = model.dtype
            self._peft = get_peft_model(model, config, autocast_adapter_dtype=False)  # type: ignore[arg-type]
            for p in model.parameters():  # over 4-bit layers PEFT makes adapters in float32
                if p.requires_grad:
                    p.data = p.data.to(dtype)
        self.model = model
        self._restore_stock = use_training_kernels(model)
        self.image_rows = overlay_image_rows(model, vocabulary)
        for overlay in self.image_rows:
            overlay.requires_grad_(True)
        if settings.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        self._dtypes = {name: p.dtype for name, p in self.trainable().items()}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that is trained, each once."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def groups(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """(name, "rows" or "body", parameter) of all that is trained."""
        rows = {id(p) for overlay in self.image_rows for p in overlay.parameters()}
        for name, p in self.trainable().items():
            yield name, "rows" if id(p) in rows else "body", p

    def state(self) -> dict[str, Tensor]:
        """What was trained, as a state dict, on the main process (FSDP2 keeps float32 shards of what is bfloat16 elsewhere)."""
        return {
            name: whole(p.detach()).to(self._dtypes[name]).clone().contiguous() for name, p in self.trainable().items()
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor], origin: str) -> None:
        """Load what `state` gave. `UserError` (naming `origin`) where names or shapes differ."""
        own = self.trainable()
        wrong = sorted(set(own) ^ set(state)) or [n for n in own if own[n].shape != state[n].shape]
        if wrong:
            raise UserError(
                f"{origin} does not fit this model ({len(wrong)} weights differ, e.g. {wrong[0]}). Was it made with other settings?"
            )
        for name, p in own.items():
            p.copy_(state[name])

    @torch.no_grad()
    def shrink_adapters(self, kept: float) -> None:
        """Scale what the adapters add to the base model's weights by `kept`; image rows stay as they are."""
        for name, p in self.trainable().items():
            if "lora_B" in name:
                p.mul_(kept)

    @torch.no_grad()
    def base_states(self, ids: Tensor) -> Tensor:
        """Last hidden states [B, T, d] of the base model (adapters off) for token ids [B, T]."""
        with self._peft.disable_adapter():
            return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def merge(self) -> PreTrainedModel:
        """Fold rows and adapters into the weights: a stock causal LM. 4-bit weights are unpacked, not packed again."""
        fold_image_rows(self.model)
        self._restore_stock()
        self.model.activation_checkpointing_disable()
        if self.method == "qlora":
            # PEFT would add the adapters to weights that it then packs again: packed layers are merged by ourselves.
            layers: dict[str, Any] = {n: m for n, m in self.model.named_modules() if isinstance(m, LoraLayer)}
            deltas: dict[str, Tensor] = {}
            for name, layer in layers.items():
                if hasattr(layer.get_base_layer().weight, "quant_state"):
                    deltas[name] = layer.get_delta_weight("default").detach()
                else:
                    layer.merge()
            model = self._peft.unload()
            dequantize_linears(model, deltas)
            return model
        return self._peft.merge_and_unload() if self._peft is not None else self.model


UPDATED_AT_ONCE = 2**24  # weights whose gradients are float32 at the same time


class MasterAdamW:
    """AdamW on float32 copies of (bfloat16) parameters, with one learning rate for rows and one for the body."""

    def __init__(self, tunable: TunableModel) -> None:
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        groups: dict[str, list[nn.Parameter]] = {"body": [], "rows": []}
        for _, group, p in tunable.groups():
            master = p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
            self._pairs.append((p, master))
            groups[group].append(master)
        self._names = [name for name in groups if groups[name]]
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[name]} for name in self._names], betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )

    def step(self, rates: dict[str, float], divisor: float, clip: float = 1.0) -> float:
        """Divide the summed gradients by `divisor`, clip their norm, update; returns the norm before clipping.

        A norm that is not finite updates nothing.
        """
        for group, name in zip(self.optimizer.param_groups, self._names, strict=True):
            group["lr"] = rates[name]
        gradients: list[Tensor | None] = [p.grad for p, _ in self._pairs]
        if any(g is None for g in gradients):
            raise UserError("a trained weight got no gradient: is a task of the mixture missing?")
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients if g is not None]
        total = torch.linalg.vector_norm(torch.stack(norms))
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total) / divisor
        for p, _ in self._pairs:
            p.grad = None
        if math.isfinite(norm):
            factor, first, size = min(1.0, clip / (norm + 1e-6)) / divisor, 0, 0
            for last, (_, master) in enumerate(self._pairs):
                size += master.numel()
                if size >= UPDATED_AT_ONCE or last == len(self._pairs) - 1:
                    self._update(range(first, last + 1), gradients, factor)
                    first, size = last + 1, 0
        return norm

    @torch.no_grad()
    def _update(self, places: range, gradients: list[Tensor | None], factor: float) -> None:
        """Update some of the weights, and forget their gradients; the optimizer passes over masters without one."""
        for place in places:
            gradient, gradients[place] = gradients[place], None
            assert gradient is not None
            self._pairs[place][1].grad = gradient.float().mul_(factor)
        self.optimizer.step()
        for p, master in (self._pairs[place] for place in places):
            master.grad = None
            if master is not p:
                p.copy_(master)

    def state(self) -> dict[str, Any]:
        """Masters and moments, whole on the main process (all processes must call)."""
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            index: {key: whole(value) for key, value in moments.items()}
            for index, moments in optimizer["state"].items()
        }
        return {"masters": [whole(master.detach()) for _, master in self._pairs], "optimizer": optimizer}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Load a copy of what `state` gave: it may be mapped from a file that is replaced later."""
        for (p, master), saved in zip(self._pairs, state["masters"], strict=True):
            master.copy_(parted_like(saved, master))
            p.copy_(master)
        flat = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            index: {k: parted_like(v, flat[index]).clone() if v.ndim else v.clone() for k, v in own.items()}
            for index, own in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict(state["optimizer"] | {"state": moments})
