"""The objective: -log p(response | instruction, input), on response tokens only (paper, section 2.4.1).

Shapes: B examples, T tokens, d width, V rows of the table, K image rows, N supervised tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from llmcxr.tuning.batches import Batch
from llmcxr.tuning.head_loss import head_cross_entropy
from llmcxr.tuning.settings import ImageSoftmax
from llmcxr.vocabulary.head import after_head, head_bias, head_parts, project
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary


@dataclass(frozen=True)
class TokenLosses:
    """`losses` float32 [N], one a learned token; `rows` int64 [N], the example each belongs to; `read` bool [N] marks tokens
    of images that are read (none without `read_images`), the others are supervised ones."""

    losses: Tensor
    rows: Tensor
    read: Tensor


def read_tokens(batch: Batch, vocabulary: ImageVocabulary) -> Tensor:
    """Bool [B, T - 1]: target t + 1 is a code after another one, in an image that is read, not drawn."""
    image = (batch.ids >= vocabulary.first_id) & (batch.ids < vocabulary.first_id + vocabulary.size)
    return image[:, 1:] & image[:, :-1] & ~batch.supervised[:, 1:]


def learned_tokens(
    batch: Batch, vocabulary: ImageVocabulary, image_softmax: ImageSoftmax, read_images: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the learned tokens [N]: the example and the place before each, and whether its softmax goes over image rows alone."""
    wanted = batch.supervised[:, 1:]
    if read_images:
        wanted = wanted | read_tokens(batch, vocabulary)
    rows, places = wanted.nonzero(as_tuple=True)
    first, end = vocabulary.first_id, vocabulary.first_id + vocabulary.size
    pair = torch.stack([batch.ids[rows, places], batch.ids[rows, places + 1]])
    return rows, places, ((pair >= first) & (pair < end)).all(0) & (image_softmax == "image_rows")


def cross_entropy(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, first: int = 0, end: int | None = None
) -> Tensor:
    """-log p(target) of each state [N, d] over the table rows `first` to `end`; `targets` count from `first`. Float32 [N]."""
    if any(after_head(model.config.get_text_config())):
        return F.cross_entropy(project(model, hidden, first, end), targets, reduction="none")
    return head_cross_entropy(hidden, head_parts(model, first, end), targets, head_bias(model, first, end))


def anchor_losses(model: PreTrainedModel, base_hidden: Tensor, hidden: Tensor, text_rows: int) -> Tensor:
    """KL(base model || tuned model) of the next token, float32 [N], from the last hidden states [N, d] of both.

    The base model has no image rows, so its distribution goes over the `text_rows` first rows; the tuned one's over all.
    """
    with torch.no_grad():
        base = project(model, base_hidden, 0, text_rows).log_softmax(-1)
    tuned = project(model, hidden).log_softmax(-1)[:, :text_rows]
    return (base.exp() * (base - tuned)).sum(-1)


def token_losses(
    model: PreTrainedModel,
    batch: Batch,
    vocabulary: ImageVocabulary,
    image_softmax: ImageSoftmax,
    base_hidden: Tensor | None = None,
    read_images: bool = False,
) -> TokenLosses:
    """Cross entropy of every supervised token. The head runs only where a token is supervised.

    Inside an image (after its first code) decoding permits image tokens only, so with `image_rows` the softmax there
    goes over the K image rows alone; the paper's is `all_rows`. The first code competes with all tokens: there the
    model learns whether to answer with an image.

    With `base_hidden` [B_language, T, d], the base model's states for the batch's language examples in order, the loss of
    those examples is `anchor_losses` instead: keep to the base model, rather than to one sampled answer.

    With `read_images` the codes of images that are read are learned as well: every example then teaches how radiographs go
    on, which a drawing needs, for the price of K logits a code. Ours; the paper learns responses only.
    """
    hidden = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    rows, places, inside = learned_tokens(batch, vocabulary, image_softmax, read_images)
    states = hidden[rows, places]  # [N, d]
    targets = batch.ids[rows, places + 1]
    losses = states.new_zeros(len(targets), dtype=torch.float32)
    first, end = vocabulary.first_id, vocabulary.first_id + vocabulary.size
    if inside.any():
        own = cross_entropy(model, states[inside], targets[inside] - first, first, end)
        losses = losses.masked_scatter(inside, own)
    outside = ~inside
    if base_hidden is not None:
        is_language = torch.tensor([task == "language" for task in batch.tasks], device=rows.device)
        anchored = is_language[rows]
        outside = outside & ~anchored
        place_of = is_language.cumsum(0) - 1  # row of the batch -> row of base_hidden
        base_states = base_hidden[place_of[rows[anchored]], places[anchored]]
        losses = losses.masked_scatter(
            anchored, anchor_losses(model, base_states, states[anchored], vocabulary.first_id)
        )
    if outside.any():
        losses = losses.masked_scatter(outside, cross_entropy(model, states[outside], targets[outside]))
    return TokenLosses(losses, rows, ~batch.supervised[rows, places + 1])
