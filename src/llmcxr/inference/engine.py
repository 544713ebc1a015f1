"""Decoding under a grammar of modalities: a response is text, or an image of exactly L codes.

No retries: at every step only tokens that keep the response well-formed can be drawn. Inside an image the head runs over
the K image rows only.

Shapes: B responses, T tokens of the longest prompt, V rows of the table, K image rows, L codes of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from llmcxr.inference.backend import Response, Sampling
from llmcxr.instructions.example import Turn
from llmcxr.instructions.templates import Template
from llmcxr.vocabulary.head import project
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

Modality = Literal["text", "image", "any"]
GREEDY = Sampling()
DRAWING = Sampling(temperature=1.0)  # the whole distribution: drawings of one report should differ
PLAUSIBLE = 0.1  # of the likeliest token's probability: what guided text may take
CANDIDATE = Sampling(temperature=0.7, top_p=0.95)  # further candidates of a report


def draw_tokens(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One index for each row of logits [B, N] -> int64 [B]."""
    if sampling.temperature < 1e-5:  # smaller ones would overflow
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[:, -1:], -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p  # the most likely token always stays
        probabilities = probabilities.masked_fill(outside.scatter(-1, order, outside), 0)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


class Engine:
    """Batched decoding with one model, vocabulary and template."""

    def __init__(
        self, model: PreTrainedModel, vocabulary: ImageVocabulary, template: Template, image_length: int
    ) -> None:
        self.model, self.vocabulary, self.template, self.image_length = model, vocabulary, template, image_length
        self.device = model.device
        closing = [p for p in template.pieces((Turn("a", "", "a"),)) if p.ends_response]
        self.end_id: int = vocabulary.encode_control(str(closing[0].content))[0]
        V = model.get_output_embeddings().weight.shape[0]
        # In text only the end token, and no other control or image token nor an unused row of a padded table, may come.
        self._text = torch.ones(V, dtype=torch.bool)
        self._text[len(vocabulary.tokenizer) :] = False
        self._text[list(vocabulary.control_ids)] = False
        if vocabulary.tokenizer.unk_token_id is not None:
            self._text[vocabulary.tokenizer.unk_token_id] = False
        self._text[self.end_id] = True
        self._first = self._text.clone()  # first token of a response of either modality
        self._first[vocabulary.first_id : vocabulary.first_id + vocabulary.size] = True
        self._text, self._first = self._text.to(self.device), self._first.to(self.device)

    def _pad(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Left-padded ids and mask [B, T]."""
        T = max(map(len, prompts))
        ids = torch.zeros(len(prompts), T, dtype=torch.long)
        mask = torch.zeros(len(prompts), T, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, T - len(prompt) :] = torch.tensor(prompt)
            mask[row, T - len(prompt) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def _hidden(self, ids: Tensor, mask: Tensor | None, places: Tensor, cache: Any) -> Tensor:
        output = self.model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=places, cache=cache, use_cache=True
        )
        return output.last_hidden_state

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        modality: Modality,
        sampling: Sampling,
        negative: Sequence[Sequence[int]] | None = None,
    ) -> list[Response]:
        """A response to each prompt (token ids that end where the response begins).

        With `negative`, a prompt that says less for each prompt, there is classifier-free guidance (Ho and Salimans, 2022):
        logits go from those of the prompt that says less `sampling.guidance` times as far as to those of the other. In
        text only tokens that are at least a tenth as likely as the likeliest without guidance can be drawn.
        """
        if negative is not None and (modality == "any" or sampling.guidance is None or len(negative) != len(prompts)):
            raise ValueError("guidance needs a modality, a strength, and one negative prompt for each prompt")
        guided, strength = negative is not None, 1.0 if sampling.guidance is None else sampling.guidance
        B, L = len(prompts), self.image_length
        first, end = self.vocabulary.first_id, self.vocabulary.first_id + self.vocabulary.size
        generator = torch.Generator(self.device).manual_seed(sampling.seed)
        ids, mask = self._pad([*prompts, *(negative or ())])
        ragged = bool((mask == 0).any())
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        # Without padding no mask is passed, which keeps the fast attention kernels in use.
        hidden = self._hidden(ids, mask if ragged else None, places, cache)[:, -1]
        place = places[:, -1]
        tokens: list[list[int]] = [[] for _ in range(B)]
        live = torch.arange(B, device=self.device)  # the responses whose states are computed
        drawing = torch.full((B,), modality == "image", device=self.device)  # of the live ones, as all that follows
        finished = torch.zeros(B, dtype=torch.bool, device=self.device)
        step = 0
        while True:
            n = len(live)
            new = torch.full((n,), self.end_id, device=self.device)
            if drawing.any():
                logits = project(self.model, hidden[:n][drawing], first, end)
                if guided:
                    less = project(self.model, hidden[n:][drawing], first, end)
                    logits = less + strength * (logits - less)
                new[drawing] = draw_tokens(logits, sampling, generator) + first
            if (writing := ~drawing & ~finished).any():
                allowed = self._first if modality == "any" and step == 0 else self._text
                logits = project(self.model, hidden[:n][writing]).masked_fill(~allowed, -torch.inf)
                if guided:
                    less = project(self.model, hidden[n:][writing])
                    unlikely = logits < logits.max(-1, keepdim=True).values + math.log(PLAUSIBLE)
                    logits = (less + strength * (logits - less)).masked_fill(unlikely, -torch.inf)
                new[writing] = draw_tokens(logits, sampling, generator)
                drawing |= writing & (new >= first) & (new < end)
            for number, row in enumerate(live.tolist()):
                if finished[number]:
                    continue
                tokens[row].append(int(new[number]))
                limit = L if drawing[number] else sampling.max_new_tokens
                if len(tokens[row]) >= limit or (not drawing[number] and tokens[row][-1] == self.end_id):
                    finished[number], drawing[number] = True, False
            if finished.all():
                break
            place = place + 1
            if ragged:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if 2 * int(finished.sum()) >= n:  # most are finished: go on without them
                kept = (~finished).nonzero().flatten()
                rows = torch.cat([kept, kept + n]) if guided else kept
                cache.batch_select_indices(rows)
                mask, place = mask[rows], place[rows]
                live, new, drawing, finished = live[kept], new[kept], drawing[kept], finished[kept]
            given = torch.cat([new, new]) if guided else new
            hidden = self._hidden(given[:, None], mask if ragged else None, place[:, None], cache)[:, -1]
            step += 1
        return [self._response(row) for row in tokens]

    def _response(self, tokens: list[int]) -> Response:
        if self.vocabulary.is_image(tokens[0]):
            return Response(codes=self.vocabulary.decode_codes(tokens))
        complete = tokens[-1] == self.end_id
        return Response(text=self.vocabulary.decode_text(tokens[:-1] if complete else tokens), complete=complete)

    @torch.inference_mode()
    def log_likelihoods(self, prompts: Sequence[Sequence[int]], responses: Sequence[str]) -> np.ndarray:
        """log p(text response, its end included | prompt) in nats: float64 [B]."""
        endings = [[*self.vocabulary.encode_text(response), self.end_id] for response in responses]
        rows = [[*prompt, *ending] for prompt, ending in zip(prompts, endings, strict=True)]
        T = max(map(len, rows))
        ids = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=self.device)
        # Right padding needs no mask: a causal model never looks at it from a real token.
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        result = []
        for row, prompt, ending in zip(hidden, prompts, endings, strict=True):
            logits = project(self.model, row[len(prompt) - 1 : len(prompt) - 1 + len(ending)])
            targets = torch.tensor(ending, device=self.device)
            result.append(-torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item())
        return np.array(result)

    @torch.inference_mode()
    def answer_probabilities(self, prompts: Sequence[Sequence[int]], answers: Sequence[str]) -> np.ndarray:
        """p(answer), by first token, over the given answers only: float32 [B, len(answers)], rows sum to 1.

        What the prompts have in common at their beginning (an image asked many questions) is computed once.
        """
        ids = [self.vocabulary.encode_text(answer)[0] for answer in answers]
        if len(set(ids)) < len(ids):
            raise ValueError(f"the answers {list(answers)} begin with the same token")
        shared = min(map(len, prompts)) - 1
        for prompt in prompts[1:]:
            while prompt[:shared] != prompts[0][:shared]:
                shared -= 1
        B = len(prompts)
        rests = [list(prompt[shared:]) for prompt in prompts]
        T = max(map(len, rests))
        padded = torch.tensor([rest + [0] * (T - len(rest)) for rest in rests], device=self.device)
        cache = DynamicCache(config=self.model.config)
        if shared:
            common = torch.tensor([list(prompts[0][:shared])], device=self.device)
            self._hidden(common, None, torch.arange(shared, device=self.device)[None], cache)
            cache.batch_repeat_interleave(B)
        # Right padding needs no mask: a causal model never looks at it from a real token.
        places = torch.arange(shared, shared + T, device=self.device)[None].expand(B, T)
        hidden = self._hidden(padded, None, places, cache)
        last = hidden[torch.arange(B), torch.tensor([len(rest) - 1 for rest in rests])]
        # In float32: bfloat16 logits are so coarse that many images would tie.
        logits = torch.cat([project(self.model, last, i, i + 1, precise=True) for i in ids], dim=1)
        return logits.softmax(-1).cpu().numpy()
