"""vLLM without a GPU: the part of its interface (0.33) that we call, with its names and signatures, around a model of transformers.

It keeps a batch as vLLM does (requests come and go, and move to other places in it) and asks the logits processor at every step.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM

AT_ONCE = 3  # requests in progress


@dataclass
class SamplingParams:
    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    detokenize: bool = True
    extra_args: dict[str, Any] | None = None


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: list[int]
    added: list[tuple[int, SamplingParams, list[int], list[int]]]
    moved: list[tuple[int, int, str]]


class AdapterLogitsProcessor:
    """As vLLM's: what a request needs, by its place in the batch."""

    def __init__(self, vllm_config, device, is_pin_memory):
        self.req_info: dict[int, Any] = {}

    def update_state(self, batch_update):
        if batch_update is None:
            return
        for place, params, _, output in batch_update.added:
            own = self.new_req_logits_processor(params)
            self.req_info.pop(place, None)
            if own is not None:
                self.req_info[place] = partial(own, output)
        for place in batch_update.removed:
            self.req_info.pop(place, None)
        for a, b, _ in batch_update.moved:
            entry = self.req_info.pop(a, None)
            self.req_info.pop(b, None)
            if entry is not None:
                self.req_info[b] = entry

    def apply(self, logits):
        for place, own in self.req_info.items():
            logits[place] = own(logits[place])
        return logits


@dataclass
class _Running:
    number: int
    prompt: list[int]
    params: SamplingParams
    random: torch.Generator | None
    output: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)


class LLM:
    def __init__(self, model: str, *, dtype: str = "auto", trust_remote_code: bool = False, **kwargs: Any) -> None:
        assert not kwargs and not trust_remote_code
        self.model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32 if dtype == "auto" else dtype
        ).eval()
        from llmcxr.inference.vllm_grammar import AllowedTokens

        self.processor = AllowedTokens(None, torch.device("cpu"), False)

    @torch.inference_mode()
    def _logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0].float()

    def generate(self, prompts, sampling_params=None, *, use_tqdm: bool = True) -> list[RequestOutput]:
        waiting = []
        for number, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True)):
            self.processor.validate_params(params)
            random = None if params.seed is None else torch.Generator().manual_seed(params.seed)
            waiting.append(_Running(number, list(prompt["prompt_token_ids"]), params, random))
        batch: list[_Running] = []
        done: dict[int, RequestOutput] = {}
        while waiting or batch:
            added = []
            while waiting and len(batch) < AT_ONCE:
                batch.append(waiting.pop(0))
                added.append((len(batch) - 1, batch[-1].params, batch[-1].prompt, batch[-1].output))
            self.processor.update_state(BatchUpdate(len(batch), [], added, []) if added else None)
            raw = torch.stack([self._logits(one.prompt + one.output)[-1] for one in batch])
            logits = self.processor.apply(raw.clone())
            for place, one in enumerate(batch):
                self._step(one, raw[place].log_softmax(-1), logits[place])
            for place in reversed(range(len(batch))):
                if reason := self._ends(batch[place]):
                    done[batch[place].number] = self._output(batch[place], reason)
                    last = batch.pop()
                    if place < len(batch):
                        batch[place] = last
                        self.processor.update_state(
                            BatchUpdate(len(batch), [], [], [(len(batch), place, "UNIDIRECTIONAL")])
                        )
                    else:
                        self.processor.update_state(BatchUpdate(len(batch), [place], [], []))
        return [done[number] for number in sorted(done)]

    def _step(self, one: _Running, raw: torch.Tensor, logits: torch.Tensor) -> None:
        params = one.params
        if params.temperature < 1e-5:
            token = int(logits.argmax())
        else:
            weights = (logits / params.temperature).softmax(-1)
            token = int(torch.multinomial(weights, 1, generator=one.random))
        one.output.append(token)
        if params.logprob_token_ids is not None:
            one.logprobs.append({i: Logprob(float(raw[i])) for i in {*params.logprob_token_ids, token}})

    def _ends(self, one: _Running) -> str | None:
        if one.output[-1] in (one.params.stop_token_ids or []):
            return "stop"
        return "length" if len(one.output) == one.params.max_tokens else None

    def _output(self, one: _Running, reason: str) -> RequestOutput:
        read = None
        if one.params.prompt_logprobs is not None:
            values = self._logits(one.prompt).log_softmax(-1)
            read = [None, *({i: Logprob(float(at[i]))} for at, i in zip(values, one.prompt[1:], strict=False))]
        return RequestOutput(one.prompt, read, [CompletionOutput(0, "", one.output, one.logprobs or None, reason)])


def install(monkeypatch) -> None:
    """Makes `import vllm` find the stand-in."""
    whole = types.ModuleType("vllm")
    part = types.ModuleType("vllm.v1.sample.logits_processor")
    part.AdapterLogitsProcessor = AdapterLogitsProcessor
    for cls in (LLM, SamplingParams):
        setattr(whole, cls.__name__, cls)
    whole.TokensPrompt = dict
    names = {
        "vllm": whole,
        "vllm.v1": types.ModuleType("vllm.v1"),
        "vllm.v1.sample": types.ModuleType("vllm.v1.sample"),
    }
    for name, module in {**names, part.__name__: part}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "llmcxr.inference.vllm_grammar", raising=False)
