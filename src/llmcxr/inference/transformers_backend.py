"""Decoding with a `transformers` model: a queue of requests of any kind, answered side by side.

A prompt is read once, whoever asks it, and what prompts have in common at their beginning once. Responses then grow together,
one token a step, in memory that is written in place; whoever has finished makes room for the next (continuous batching). No
retries: at every step only tokens that keep a response well-formed can be drawn, and inside an image the head computes its K
image rows only.

Shapes: B requests, R rows in progress (two of a guided request), T tokens, V rows of the table, K image rows, L codes of an image.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from llmcxr.foundation.randomness import stream
from llmcxr.inference.backend import Backend, Prompt, Request, Response, check_length, first_tokens, whole_response
from llmcxr.inference.drawing import draw_tokens, is_greedy, penalised
from llmcxr.inference.grammar import Next, Progress, before_stop, segments
from llmcxr.inference.llama import Llama, check_int8, is_stock_llama, state_of
from llmcxr.inference.slots import SlotCache, use_grouped_attention
from llmcxr.instructions.rendering import encode_responses, response_end
from llmcxr.instructions.templates import Template
from llmcxr.vocabulary.head import project
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

PLAUSIBLE = 0.1  # of the likeliest token's probability: what guided text may take
ROWS = 64  # in progress at once: enough that products of a step are of matrices, few enough for their keys and values
_READ_AT_ONCE = 4096  # tokens, padding included


@dataclass(eq=False)
class _Open:
    """A request in progress."""

    number: int
    request: Request
    rows: list[int]  # of the cache: the prompt's, and the negative prompt's
    random: np.random.Generator
    progress: Progress
    tokens: list[int] = field(default_factory=list)


def _common(a: Prompt, b: Prompt) -> int:
    """Tokens at the beginning that two prompts share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def group_by_beginning(prompts: Sequence[Prompt], most: Sequence[int]) -> list[tuple[int, list[int]]]:
    """(tokens in common, numbers of the prompts) of groups to be read together; of prompt i at most `most[i]` are common.

    Prompts are taken together where at least half of each is common; the others by length, with nothing in common. No group
    is longer than what is read at once.
    """
    groups: list[tuple[int, list[int]]] = []
    for i in sorted(range(len(prompts)), key=lambda i: tuple(prompts[i])):
        if groups:
            shared, numbers = groups[-1]
            common = min(shared, _common(prompts[numbers[0]], prompts[i]), most[i])
            longest = max(len(prompts[i]), *(len(prompts[n]) for n in numbers))
            rest = (longest - common) * (len(numbers) + 1)
            if 2 * common >= longest and rest + common <= _READ_AT_ONCE:
                groups[-1] = common, [*numbers, i]
                continue
        groups.append((most[i], [i]))
    result = [group for group in groups if len(group[1]) > 1]
    alone = sorted((numbers[0] for _, numbers in groups if len(numbers) == 1), key=lambda i: len(prompts[i]))
    together: list[int] = []
    for i in alone:
        if together and len(prompts[i]) * (len(together) + 1) > _READ_AT_ONCE:
            result.append((0, together))
            together = []
        together.append(i)
    return [*result, (0, together)] if together else result


class TransformersBackend(Backend):
    """Decoding with one model, vocabulary and template."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: ImageVocabulary,
        template: Template,
        image_length: int,
        int8: bool = False,
    ) -> None:
        """`int8`: products of layers in 8 bits. `UserError` where the model or the machine has none."""
        self.model, self.vocabulary, self.template, self.image_length = model, vocabulary, template, image_length
        self.device = model.device
        if int8:
            check_int8(model)
        self._int8 = int8
        self._llama: Llama | None = None
        use_grouped_attention(model)
        # Tokens that the model can read (None: it sets no limit).
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.end_id = response_end(template, vocabulary)[-1]
        V = model.get_output_embeddings().weight.shape[0]
        # In text only the end token, and no other control or image token nor an unused row of a padded table, may come.
        self._text = torch.ones(V, dtype=torch.bool)
        self._text[vocabulary.never_in_text(V, self.end_id)] = False
        self._text = self._text.to(self.device)
        self._either = self._text.clone()
        self._either[vocabulary.first_id : vocabulary.first_id + vocabulary.size] = True

    # --- reading

    def _fast(self) -> Llama | None:
        """The model's layers laid out for decoding, of its weights as they are now; None of other families."""
        if not is_stock_llama(self.model):
            self._llama = None
        elif self._llama is None or self._llama.state != state_of(self.model):
            self._llama = None  # not two at a time
            self._llama = Llama(self.model, self._int8)
        return self._llama

    def _body(self, ids: Tensor, first: int, cache: DynamicCache) -> Tensor:
        """States [n, T, d] of tokens [n, T] that follow `first` ones in the cache, which takes theirs."""
        if self._llama is not None:
            return self._llama.read(ids, first, cache)
        places = torch.arange(first, first + ids.shape[1], device=self.device)[None].expand(len(ids), -1)
        return self._stock(ids, places, None, cache)

    def _step(self, ids: Tensor, cache: SlotCache) -> Tensor:
        """States [R, d] of one new token a row [R, 1]."""
        places, seen = cache.begin_step()
        if self._llama is not None:
            states = self._llama.step(ids, places, seen, cache)
        else:
            mask = self._mask(seen, places, cache.get_seq_length() + 1)
            states = self._stock(ids, places, mask, cache)[:, -1]
        cache.end_step()
        return states

    def _project(self, states: Tensor, first: int, end: int | None) -> Tensor:
        """Logits of table rows for states [N, d]: [N, end - first] float32."""
        if self._llama is not None:
            return self._llama.logits(states, first, end)
        return project(self.model, states, first, end)

    def _stock(self, ids: Tensor, places: Tensor, mask: Any, cache: Any) -> Tensor:
        output = self.model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=places, cache=cache, use_cache=True
        )
        return output.last_hidden_state

    def _read(
        self, prompts: Sequence[Prompt], first: Sequence[int]
    ) -> Iterator[tuple[list[int], int, Tensor, DynamicCache]]:
        """Read all prompts: of each group (numbers, P, hidden states [n, T, d] from position P on, keys and values).

        P is at most `first` of each of the group. Shorter prompts are padded at the right, which needs no mask: a causal
        model never looks there from a real token.
        """
        self._fast()
        for P, numbers in group_by_beginning(prompts, first):
            cache = DynamicCache()
            if P:
                common = torch.tensor([list(prompts[numbers[0]][:P])], device=self.device)
                self._body(common, 0, cache)
                cache.batch_repeat_interleave(len(numbers))
            rests = [list(prompts[i][P:]) for i in numbers]
            T = max(map(len, rests))
            ids = torch.tensor([rest + [0] * (T - len(rest)) for rest in rests], device=self.device)
            yield numbers, P, self._body(ids, P, cache), cache

    # --- decoding

    def check_room(self, tokens: int, response: int, most: int | None = None) -> None:
        """`UserError` where a prompt and its response have more tokens than the context, or than `most`."""
        check_length(tokens, response, self.context, most)

    def _progress(self, request: Request) -> Progress:
        """Of a response that has not begun: at most what the context leaves. `UserError` where it leaves no room."""
        longest = max(len(request.prompt), len(request.negative or ()))
        self.check_room(longest, self.image_length if request.grammar == "image" else 1)
        room = None if self.context is None else self.context - longest
        return Progress(request.grammar, self.image_length, request.sampling.max_new_tokens, room)

    def _open(self, waiting: Sequence[tuple[int, Request]], cache: SlotCache) -> tuple[list[_Open], Tensor]:
        """Read the prompts of requests into the cache: (requests, hidden states [R, d] of their new rows, in order)."""
        asked = [tuple(p) for _, r in waiting for p in ((r.prompt,) if r.negative is None else (r.prompt, r.negative))]
        unique = list(dict.fromkeys(asked))
        row_of: dict[Prompt, list[int]] = {}
        for row, prompt in enumerate(asked, len(cache)):
            row_of.setdefault(prompt, []).append(row)
        first, order, states = len(cache), list[int](), list[Tensor]()
        for numbers, P, hidden, read in self._read(unique, [len(p) - 1 for p in unique]):
            lengths = torch.tensor([len(unique[i]) for i in numbers], device=self.device)
            counts = [len(row_of[unique[i]]) for i in numbers]
            sources = torch.repeat_interleave(torch.tensor(counts, device=self.device))
            cache.admit(read, sources, lengths[sources], ROWS)
            states.append(hidden[sources, lengths[sources] - P - 1])
            order += [row for i in numbers for row in row_of[unique[i]]]
        # Rows stand in the order in which they were read, not in which they were asked.
        place = {row: first + k for k, row in enumerate(order)}
        opened, row = [], first
        for number, request in waiting:
            rows = [place[row + k] for k in range(1 if request.negative is None else 2)]
            row += len(rows)
            digest = hashlib.sha256(np.array(request.prompt, dtype=np.int64).tobytes()).hexdigest()
            random = stream(request.sampling.seed, "response", digest)
            opened.append(_Open(number, request, rows, random, self._progress(request)))
        return opened, torch.cat(states)

    def _mask(self, seen: Tensor | None, places: Tensor, positions: int) -> Any:
        """What each row sees, as the model wants to be told: of layers with a sliding window, what is within it."""
        config = self.model.config.get_text_config()
        window, kinds = (
            getattr(config, "sliding_window", None) or positions,
            set(getattr(config, "layer_types", None) or ()),
        )
        slides = positions > window and kinds != {"full_attention"}
        if seen is None and not slides:
            return None
        if seen is None:
            seen = torch.ones(len(places), 1, 1, positions, dtype=torch.bool, device=self.device)
        near = seen
        if slides:
            near = seen & (torch.arange(positions, device=self.device) > places[:, :, None, None] - window)
        if self.model.config._attn_implementation == "eager":  # adds its mask
            low = torch.finfo(self.model.dtype).min
            seen, near = (torch.zeros_like(m, dtype=self.model.dtype).masked_fill(~m, low) for m in (seen, near))
        return {kind: seen if kind == "full_attention" else near for kind in kinds} if len(kinds) > 1 else near

    def _logits(self, hidden: Tensor, opened: Sequence[_Open], kind: Next) -> Tensor:
        """Of the tokens that can come to each request [n, K] of an image, else [n, V], from all rows' states [R, d]."""
        first = self.vocabulary.first_id
        table = (first, first + self.vocabulary.size) if kind == "image" else (0, None)
        guided = [i for i, one in enumerate(opened) if len(one.rows) == 2]
        rows = [one.rows[0] for one in opened] + [opened[i].rows[1] for i in guided]
        both = self._project(hidden[rows], *table)
        logits, less = both[: len(opened)], both[len(opened) :]
        if kind != "image":
            logits = logits.masked_fill(~(self._text if kind == "text" else self._either), -torch.inf)
        if guided:
            told = logits[guided]
            strength = torch.tensor([opened[i].request.sampling.guidance for i in guided], device=self.device)[:, None]
            led = less + strength * (told - less)
            if kind != "image":
                led = led.masked_fill(told < told.amax(-1, keepdim=True) + math.log(PLAUSIBLE), -torch.inf)
            logits = logits.index_copy(0, torch.tensor(guided, device=self.device), led)
        if kind != "image":
            for i, one in enumerate(opened):
                penalty = one.request.sampling.repetition_penalty
                if penalty != 1 and (written := self._written(one)):
                    logits[i] = penalised(logits[i], written, penalty)
        return logits

    def _written(self, one: _Open) -> list[int]:
        """Tokens of its texts."""
        return [token for token in one.tokens if not self.vocabulary.is_image(token)]

    def _draw(self, hidden: Tensor, opened: Sequence[_Open]) -> None:
        """Give each request its next token."""
        next_of = [one.progress.next for one in opened]
        for kind in dict.fromkeys(next_of):
            those = [one for one, own in zip(opened, next_of, strict=True) if own == kind]
            samplings = [one.request.sampling for one in those]
            numbers = [0.0 if is_greedy(s) else one.random.random() for s, one in zip(samplings, those, strict=True)]
            drawn = draw_tokens(self._logits(hidden, those, kind), samplings, numbers).tolist()
            first = self.vocabulary.first_id if kind == "image" else 0
            for one, token in zip(those, drawn, strict=True):
                one.tokens.append(first + token)
                one.progress.take(self.vocabulary.is_image(first + token), first + token == self.end_id)

    def _ends(self, one: _Open) -> bool:
        stop = one.request.sampling.stop
        if one.progress.ended or not stop:
            return one.progress.ended
        image, last = list(self._segments(one.tokens))[-1]
        return not image and before_stop(self.vocabulary.decode_text(last), stop) is not None

    def _segments(self, tokens: Sequence[int]) -> Iterator[tuple[bool, list[int]]]:
        return segments(tokens, self.vocabulary.is_image, self.image_length)

    @torch.inference_mode()
    def stream(self, requests: Sequence[Request]) -> Generator[tuple[int, int], None, None]:
        """See `Backend`. A text ends at the latest where the model's context does; `UserError` where a prompt leaves no room."""
        for request in requests:
            self._progress(request)
        waiting = deque(enumerate(requests))
        self._fast()
        cache, opened = SlotCache(self.device, exact=self._llama is not None), list[_Open]()
        hidden = torch.zeros(0, 0)
        while waiting or opened:
            if waiting and len(cache) <= ROWS * 3 // 4:  # a few at once, since reading one by one is slow
                taken = list[tuple[int, Request]]()
                while waiting and len(cache) + 2 * len(taken) + 2 <= ROWS:
                    taken.append(waiting.popleft())
                new, states = self._open(taken, cache)
                hidden = torch.cat([hidden, states]) if len(opened) else states
                opened += new
            self._draw(hidden, opened)
            yield from [(one.number, one.tokens[-1]) for one in opened]
            ended = {one.number: one for one in opened if self._ends(one)}
            if ended:
                opened = [one for one in opened if one.number not in ended]
                moved = cache.drop(row for one in ended.values() for row in one.rows)
                for one in opened:
                    one.rows = [moved.get(row, row) for row in one.rows]
            if opened:
                token_of = {row: one.tokens[-1] for one in opened for row in one.rows}
                new_tokens = torch.tensor([[token_of[row]] for row in range(len(cache))], device=self.device)
                hidden = self._step(new_tokens, cache)

    def response(self, tokens: Sequence[int], request: Request) -> Response:
        """See `Backend`."""
        return whole_response(tokens, request, self.end_id, self.image_length, self.vocabulary)

    # --- likelihoods

    @torch.inference_mode()
    def log_likelihoods(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """log p(text response, its end included | prompt) in nats: float64 [B]."""
        endings = encode_responses(responses, self.template, self.vocabulary)
        rows = [[*prompt, *ending] for prompt, ending in zip(prompts, endings, strict=True)]
        result = np.zeros(len(rows))
        for numbers, P, hidden, _ in self._read(rows, [len(prompt) - 1 for prompt in prompts]):
            for i, states in zip(numbers, hidden, strict=True):
                first = len(prompts[i]) - 1 - P
                logits = self._project(states[first : first + len(endings[i])], 0, None)
                targets = torch.tensor(endings[i], device=self.device)
                result[i] = -torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        return result

    @torch.inference_mode()
    def answer_probabilities(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> np.ndarray:
        """p(answer), by first token, over the given answers only: float32 [B, len(answers)], rows sum to 1."""
        ids = first_tokens(answers, self.vocabulary)
        result = np.zeros((len(prompts), len(answers)), dtype=np.float32)
        for numbers, P, hidden, _ in self._read(prompts, [len(prompt) - 1 for prompt in prompts]):
            last = hidden[torch.arange(len(numbers)), [len(prompts[i]) - P - 1 for i in numbers]]
            # In float32: bfloat16 logits are so coarse that many images would tie.
            logits = torch.cat([project(self.model, last, i, i + 1, precise=True) for i in ids], dim=1)
            result[numbers] = logits.softmax(-1).cpu().numpy()
        return result

    @torch.inference_mode()
    def code_log_probabilities(self, prompts: Sequence[Prompt], codes: np.ndarray) -> np.ndarray:
        """log p(code | prompt, the codes before it) in nats, of images with codes [B, L]: float32 [B, L, K]."""
        rows = [[*p, *self.vocabulary.encode_codes(own)] for p, own in zip(prompts, codes, strict=True)]
        L, first = np.shape(codes)[1], self.vocabulary.first_id
        result = np.zeros((len(rows), L, self.vocabulary.size), dtype=np.float32)
        for numbers, P, hidden, _ in self._read(rows, [len(prompt) - 1 for prompt in prompts]):
            for i, states in zip(numbers, hidden, strict=True):
                own = states[len(prompts[i]) - 1 - P :][:L]
                logits = project(self.model, own, first, first + self.vocabulary.size)
                result[i] = logits.log_softmax(-1).cpu().numpy()
        return result
