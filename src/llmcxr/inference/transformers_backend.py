"""Decoding with a `transformers` model, in batches.

No retries: at every step only tokens that keep the response well-formed can be drawn. Inside an image the head runs over
the K image rows only.

Shapes: B responses, T tokens of the longest prompt, V rows of the table, K image rows, L codes of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from llmcxr.foundation.errors import UserError
from llmcxr.inference.backend import Backend, Prompts, Response, Sampling
from llmcxr.instructions.example import Grammar, Turn
from llmcxr.instructions.rendering import encode_free
from llmcxr.instructions.templates import Template
from llmcxr.vocabulary.head import project
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

PLAUSIBLE = 0.1  # of the likeliest token's probability: what guided text may take


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


class TransformersBackend(Backend):
    """Batched decoding with one model, vocabulary and template."""

    def __init__(
        self, model: PreTrainedModel, vocabulary: ImageVocabulary, template: Template, image_length: int
    ) -> None:
        self.model, self.vocabulary, self.template, self.image_length = model, vocabulary, template, image_length
        self.device = model.device
        # Tokens that the model can read (None: it sets no limit).
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
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
        self._text = self._text.to(self.device)

    def _pad(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
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

    def _logits(self, hidden: Tensor, grammar: Grammar, guidance: float | None) -> Tensor:
        """Of the tokens that can come: the K image rows [n, K], or all rows [n, V] without what is no text.

        With `guidance` the second half of `hidden` [2n, d] is of the prompts that say less.
        """
        first = self.vocabulary.first_id
        rows = (first, first + self.vocabulary.size) if grammar == "image" else (0, None)
        told = hidden if guidance is None else hidden[: len(hidden) // 2]
        logits = project(self.model, told, *rows)
        if grammar == "text":
            logits = logits.masked_fill(~self._text, -torch.inf)
        if guidance is None:
            return logits
        less = project(self.model, hidden[len(told) :], *rows)
        led = less + guidance * (logits - less)
        if grammar == "image":
            return led
        return led.masked_fill(logits < logits.max(-1, keepdim=True).values + math.log(PLAUSIBLE), -torch.inf)

    @torch.inference_mode()
    def stream(
        self, prompts: Prompts, grammar: Grammar, sampling: Sampling, negative: Prompts | None = None
    ) -> Iterator[tuple[int, int]]:
        """See `Backend`. ValueError where `negative` comes without `sampling.guidance`, or not one for each prompt.

        A text ends at the latest where the model's context does; `UserError` where a prompt leaves no room for a
        response.
        """
        if negative is not None and (sampling.guidance is None or len(negative) != len(prompts)):
            raise ValueError("guidance needs a strength, and one negative prompt for each prompt")
        if not prompts:
            return
        guidance = sampling.guidance if negative is not None else None
        longest = max(map(len, [*prompts, *(negative or ())]))
        self.check_room(longest, self.image_length if grammar == "image" else 1)
        limit = self.image_length if grammar == "image" else sampling.max_new_tokens
        if self.context is not None:
            limit = min(limit, self.context - longest)
        generator = torch.Generator(self.device).manual_seed(sampling.seed)
        ids, mask = self._pad([*prompts, *(negative or ())])
        ragged = bool((mask == 0).any())
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        # Without padding no mask is passed, which keeps the fast attention kernels in use.
        hidden = self._hidden(ids, mask if ragged else None, places, cache)[:, -1]
        place = places[:, -1]
        live = torch.arange(len(prompts), device=self.device)  # the responses whose states are computed
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)  # of the live ones
        for step in range(1, limit + 1):
            copies = 1 if guidance is None else 2  # of each live response: with guidance, the prompt that says less too
            new = torch.full((len(live),), self.end_id, device=self.device)
            open_ = ~finished
            drawn = draw_tokens(self._logits(hidden[open_.repeat(copies)], grammar, guidance), sampling, generator)
            new[open_] = drawn + self.vocabulary.first_id if grammar == "image" else drawn
            yield from zip(live[open_].tolist(), new[open_].tolist(), strict=True)
            if grammar == "text":
                finished = finished | (new == self.end_id)
            if step == limit or finished.all():
                return
            place = place + 1
            if ragged:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if 2 * int(finished.sum()) >= len(live):  # most are finished: go on without them
                kept = (~finished).nonzero().flatten()
                rows = torch.cat([kept + k * len(live) for k in range(copies)])
                cache.batch_select_indices(rows)
                mask, place = mask[rows], place[rows]
                live, new, finished = live[kept], new[kept], finished[kept]
            given = new.repeat(copies)
            hidden = self._hidden(given[:, None], mask if ragged else None, place[:, None], cache)[:, -1]

    def check_room(self, tokens: int, response: int, most: int | None = None) -> None:
        """`UserError` where a prompt and its response have more tokens than the context, or than `most`."""
        limit = min((n for n in (self.context, most) if n is not None), default=None)
        if limit is not None and tokens + response > limit:
            raise UserError(
                f"the text is too long: with all that goes with it, it takes {tokens:,} tokens, and this model reads "
                f"at most {limit - response:,}. Shorten it."
            )

    def generate(
        self, prompts: Prompts, grammar: Grammar, sampling: Sampling, negative: Prompts | None = None
    ) -> list[Response]:
        """See `Backend`."""
        tokens: list[list[int]] = [[] for _ in prompts]
        for row, token in self.stream(prompts, grammar, sampling, negative):
            tokens[row].append(token)
        return [self._response(row, grammar) for row in tokens]

    def _response(self, tokens: list[int], grammar: Grammar) -> Response:
        if grammar == "image":
            return Response(codes=self.vocabulary.decode_codes(tokens))
        complete = tokens[-1:] == [self.end_id]
        return Response(text=self.vocabulary.decode_text(tokens[:-1] if complete else tokens), complete=complete)

    @torch.inference_mode()
    def log_likelihoods(self, prompts: Prompts, responses: Sequence[str]) -> np.ndarray:
        """log p(text response, its end included | prompt) in nats: float64 [B]."""
        endings = [[*encode_free(response, self.template, self.vocabulary), self.end_id] for response in responses]
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
    def answer_probabilities(self, prompts: Prompts, answers: Sequence[str]) -> np.ndarray:
        """p(answer), by first token, over the given answers only: float32 [B, len(answers)], rows sum to 1.

        What the prompts have in common at their beginning (an image asked many questions) is computed once.
        """
        if not prompts:
            return np.zeros((0, len(answers)), dtype=np.float32)
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
