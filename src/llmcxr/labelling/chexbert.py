"""CheXbert's own labels from its published checkpoint (Smit et al., EMNLP 2020): BERT, and a head for each observation.

The folder holds two files that are not shipped here:

    chexbert.pth    the checkpoint of stanfordmlgroup/CheXbert, also in StanfordAIMI/RRG_scorers on the Hugging Face Hub
    vocab.txt       the vocabulary of google-bert/bert-base-uncased there

In the checkpoint `model_state_dict` has keys `module.bert.*` and `module.linear_heads.N.*`. Classes of a head are
blank, positive, negative and uncertain; the last head, No Finding, has the first two. It reads English, gives no
evidence, and no sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcxr.foundation.errors import UserError
from llmcxr.labelling.base import Reading
from llmcxr.labelling.terms import CHEXPERT
from llmcxr.studies.findings import NO_FINDING, LabelSet

if TYPE_CHECKING:
    import torch
    from transformers import BertModel

WEIGHTS, VOCABULARY = "chexbert.pth", "vocab.txt"
_STATES: tuple[int | None, ...] = (None, 1, 0, -1)  # by class
_BATCH = 16  # texts at once
_WORDS_OF_A_HEAD = 64  # hidden units of one attention head, in BERT of every published size


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        found = {str(k).removeprefix("module."): v for k, v in held["model_state_dict"].items()}
        if not all(isinstance(value, torch.Tensor) for value in found.values()):
            raise TypeError("some weights are no tensors")
        return found
    except Exception as error:  # disk, the safe unpickler and wrong contents raise many kinds
        raise UserError(
            f"{path} is not CheXbert's checkpoint ({type(error).__name__}: {str(error).partition(chr(10))[0]}). "
            "Download it again from stanfordmlgroup/CheXbert."
        ) from error


def _bert(weights: dict[str, torch.Tensor], path: Path) -> BertModel:
    """The encoder, with the sizes that its weights have."""
    from transformers import BertConfig, BertModel

    own = {k.removeprefix("bert."): v for k, v in weights.items() if k.startswith("bert.")}
    own.pop("embeddings.position_ids", None)  # a constant that older versions of transformers saved
    try:
        words, hidden = own["embeddings.word_embeddings.weight"].shape
        config = BertConfig(
            vocab_size=words,
            hidden_size=hidden,
            num_hidden_layers=len({k.split(".")[2] for k in own if k.startswith("encoder.layer.")}),
            num_attention_heads=max(1, hidden // _WORDS_OF_A_HEAD),
            intermediate_size=own["encoder.layer.0.intermediate.dense.weight"].shape[0],
            max_position_embeddings=own["embeddings.position_embeddings.weight"].shape[0],
            type_vocab_size=own["embeddings.token_type_embeddings.weight"].shape[0],
        )
        bert = BertModel(config)
        bert.load_state_dict(own)
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} does not hold the weights of a BERT encoder: {str(error).splitlines()[0]}.") from error
    return bert.eval()


class CheXbertLabeller:
    """A `Labeller` with CheXbert's weights from a local folder. `UserError` where a file is missing or another's."""

    findings = LabelSet([*CHEXPERT, NO_FINDING])  # in the order of the heads
    sided = LabelSet()

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        import torch
        from transformers import BertTokenizer

        missing = [name for name in (WEIGHTS, VOCABULARY) if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"chexbert: {folder} holds no {' and no '.join(missing)}. Put there {WEIGHTS} "
                f"(stanfordmlgroup/CheXbert, or StanfordAIMI/RRG_scorers on the Hugging Face Hub) and {VOCABULARY} "
                "(google-bert/bert-base-uncased there)."
            )
        path = folder / WEIGHTS
        weights = _state_dict(path)
        self._device = torch.device(device)
        self._bert = _bert(weights, path)
        torch.nn.Module.to(self._bert, self._device)
        self._heads = []
        for i, name in enumerate(self.findings):
            classes = 2 if name == NO_FINDING else 4
            weight, bias = weights.get(f"linear_heads.{i}.weight"), weights.get(f"linear_heads.{i}.bias")
            if weight is None or bias is None or weight.shape != (classes, self._bert.config.hidden_size):
                raise UserError(f"{path} has no head linear_heads.{i} of {classes} classes ({name}). Is it CheXbert's?")
            self._heads.append((weight.to(self._device), bias.to(self._device)))
        self._tokenizer: Any = BertTokenizer(str(folder / VOCABULARY), do_lower_case=True)
        if len(self._tokenizer) > self._bert.config.vocab_size:
            raise UserError(
                f"{folder / VOCABULARY} has {len(self._tokenizer)} words, {path.name} {self._bert.config.vocab_size}: "
                "take the vocabulary of bert-base-uncased."
            )

    def read(self, text: str) -> Reading:
        """What one text says."""
        return self.read_all([text])[0]

    def read_all(self, texts: Sequence[str]) -> list[Reading]:
        """What texts say, in order. Text beyond the encoder's 512 word pieces is not read, as in the original."""
        import torch

        readings: list[Reading] = []
        for at in range(0, len(texts), _BATCH):
            # a lone surrogate, which the word-piece tokenizer refuses, becomes "?"
            part = [" ".join(text.encode("utf-8", "replace").decode().split()) for text in texts[at : at + _BATCH]]
            batch = self._tokenizer(
                part,
                padding=True,
                truncation=True,
                max_length=self._bert.config.max_position_embeddings,
                return_tensors="pt",
            ).to(self._device)
            with torch.inference_mode():
                first = self._bert(batch["input_ids"], attention_mask=batch["attention_mask"])[0][:, 0]  # [CLS], [B, D]
                classes = [(first @ weight.T + bias).argmax(1).tolist() for weight, bias in self._heads]  # 14 times [B]
            for row in zip(*classes, strict=True):
                told = {name: _STATES[k] for name, k in zip(self.findings, row, strict=True)}
                readings.append(Reading({name: state for name, state in told.items() if state is not None}))
        return readings
