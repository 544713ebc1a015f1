"""Growing the token table of a language model by K image rows (paper, section 2.2), tied or untied head alike.

Shapes: V rows of the table, K image rows among them, d width of the LLM, D dimension of a code vector.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

# Spread of projected rows in units of the text rows'. As heads of a tied table, rows as large as text rows give overconfident
# logits (a drawing begins at 19 nats a token instead of ln K = 6.9); as inputs they are normalised before the first layer.
ROW_SPREAD = 0.18


def table_of(model: PreTrainedModel) -> nn.Parameter:
    """The input table [V, d]."""
    return cast(nn.Parameter, model.get_input_embeddings().weight)


def is_tied(model: PreTrainedModel) -> bool:
    """Whether input table and output head are one matrix."""
    return model.get_output_embeddings().weight is table_of(model)


def random_rows(table: Tensor, size: int, seed: int) -> Tensor:
    """Rows [size, d] as in the paper: random, here with the text rows' mean and spread by dimension."""
    generator = torch.Generator().manual_seed(seed)
    table = table.float()
    return table.mean(0) + table.std(0) * torch.randn(size, table.shape[1], generator=generator)


def projected_rows(vectors: Tensor, table: Tensor, seed: int) -> Tensor:
    """Rows [K, d] from code vectors [K, D] by a random projection: like codes start alike.

    Centred, and scaled to `ROW_SPREAD` of the text rows' spread.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = vectors.float().cpu()
    if rows.shape[1] != table.shape[1]:
        rows = rows @ torch.randn(rows.shape[1], table.shape[1], generator=generator)
    rows = rows - rows.mean(0)
    return rows * (ROW_SPREAD * table.float().std() / rows.std()) + table.float().mean(0)


@torch.no_grad()
def grow_language_model(model: PreTrainedModel, vocabulary: ImageVocabulary, rows: Tensor) -> None:
    """Give `model` the image rows [K, d], in place; old rows, and so the logits of text, stay as they are.

    A table that is already longer than the text vocabulary (padded to a round size) is used before it is grown.
    """
    end = vocabulary.first_id + vocabulary.size
    table = table_of(model)
    if rows.shape != (vocabulary.size, table.shape[1]):
        raise ValueError(f"rows should be [{vocabulary.size}, {table.shape[1]}], are {list(rows.shape)}")
    if table.shape[0] < end:
        model.resize_token_embeddings(end, mean_resizing=False)
    weights = (table_of(model),) if is_tied(model) else (table_of(model), model.get_output_embeddings().weight)
    for weight in weights:
        weight[vocabulary.first_id : end] = rows.to(weight)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        bias[vocabulary.first_id : end] = 0


class ImageRows(nn.Module):
    """The K image rows as a parameter of their own, laid over the frozen or slower table during tuning.

    Gives the new rows float32 precision and a learning rate of their own, whatever is done with the rest.
    """

    def __init__(self, rows: Tensor, first_id: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.detach().clone().float())  # [K, d]
        self.first_id = first_id

    def forward(self, weight: Tensor) -> Tensor:
        """Table [V, d] with the image rows in place."""
        end = self.first_id + self.rows.shape[0]
        return torch.cat([weight[: self.first_id], self.rows.to(weight.dtype), weight[end:]])


def overlay_image_rows(model: PreTrainedModel, vocabulary: ImageVocabulary) -> list[ImageRows]:
    """Lay `ImageRows` over input table and head (one shared module where they are tied). Undo with `fold_image_rows`."""
    end = vocabulary.first_id + vocabulary.size
    tied = is_tied(model)
    overlays: list[ImageRows] = []
    modules: tuple[Any, Any] = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in modules:
        if not overlays or not tied:
            overlays.append(ImageRows(module.weight[vocabulary.first_id : end], vocabulary.first_id))
        parametrize.register_parametrization(module, "weight", overlays[-1])
    return overlays


@torch.no_grad()
def fold_image_rows(model: PreTrainedModel) -> None:
    """Write the tuned rows into the table and leave a stock model, its tie restored."""
    modules: tuple[Any, Any] = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = modules[0].parametrizations.weight[0] is modules[1].parametrizations.weight[0]
    for module in modules:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    if tied:
        modules[1].weight = modules[0].weight
