"""CheXbert behind the labeller's interface: a small random network with the published checkpoint's layout."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from llmcxr.foundation.errors import UserError
from llmcxr.labelling.chexbert import CheXbertLabeller
from llmcxr.labelling.registry import build_labeller
from llmcxr.recipe import Recipe
from llmcxr.studies.study import Study

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "no",
    "effusion",
    "mass",
    "the",
    "lungs",
    "are",
    "clear",
    "small",
    "left",
    ".",
    "pneumo",
    "##thorax",
]
TEXTS = ["No pneumothorax.\n The lungs  are clear", "Small left effusion. " * 20, "", "\u0130 xyz \ud800"]


@pytest.fixture
def folder(tmp_path):
    """The layout of chexbert.pth, 64 hidden units wide; heads far from each other, so that no class is a tie."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    bert = BertModel(config)
    weights = {f"module.bert.{k}": v for k, v in bert.state_dict().items()}
    weights["module.bert.embeddings.position_ids"] = torch.arange(32)[None]  # as older versions saved
    for i in range(14):
        classes = 2 if i == 13 else 4
        weights |= {
            f"module.linear_heads.{i}.weight": torch.randn(classes, 64),
            f"module.linear_heads.{i}.bias": torch.randn(classes),
        }
    torch.save(
        {"epoch": 1, "model_state_dict": weights, "optimizer_state_dict": {"state": {}}}, tmp_path / "chexbert.pth"
    )
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


def by_hand(folder, text: str) -> dict[str, int]:
    """One text, as the published code reads it: at most 512 words with both ends, the class of [CLS]."""
    weights = torch.load(folder / "chexbert.pth", weights_only=True)["model_state_dict"]
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    bert = BertModel(config).eval()
    bert.load_state_dict(
        {k[12:]: v for k, v in weights.items() if k.startswith("module.bert.") and "position_ids" not in k}
    )
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    ids = [2, *tokenizer.convert_tokens_to_ids(tokenizer.tokenize(" ".join(text.split()))), 3]
    ids = ids if len(ids) <= 32 else [*ids[:31], 3]
    with torch.no_grad():
        first = bert(torch.tensor([ids]))[0][0, 0]
    states = {}
    for i, name in enumerate(CheXbertLabeller.findings):
        k = int(
            (weights[f"module.linear_heads.{i}.weight"] @ first + weights[f"module.linear_heads.{i}.bias"]).argmax()
        )
        states |= {} if k == 0 else {name: {1: 1, 2: 0, 3: -1}[k]}
    return states


def test_labels_are_those_of_the_published_code_in_any_batch(folder):
    labeller = build_labeller("chexbert", folder)
    assert labeller is build_labeller("chexbert", folder)
    together = [reading.states for reading in labeller.read_all(TEXTS * 9)]
    assert together[:3] == [by_hand(folder, text) for text in TEXTS[:3]] == [labeller.read(t).states for t in TEXTS[:3]]
    assert together == together[:4] * 9
    assert len({value for states in together for value in states.values()}) == 3
    assert not labeller.sided and labeller.read(TEXTS[0]).mentions == () and labeller.read_all([]) == []
    assert list(labeller.findings)[0] == "Enlarged Cardiomediastinum" and list(labeller.findings)[-1] == "No Finding"


def test_a_recipe_without_the_folder_is_refused(folder):
    with pytest.raises(UserError, match="needs the folder that holds chexbert.pth"):
        Recipe(labeller="chexbert")
    assert Recipe(labeller="chexbert", chexbert=folder).chexbert == folder


def test_missing_and_foreign_files_are_named(folder, tmp_path_factory):
    with pytest.raises(UserError, match=r"labeller: chexbert needs `chexbert`"):
        build_labeller("chexbert")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=r"holds no chexbert\.pth and no vocab\.txt.*stanfordmlgroup/CheXbert"):
        CheXbertLabeller(empty)
    (empty / "vocab.txt").write_text("\n".join(WORDS))
    for content in (
        b"",
        b"no checkpoint",
    ):
        (empty / "chexbert.pth").write_bytes(content)
        with pytest.raises(UserError, match=r"chexbert\.pth is not CheXbert's checkpoint"):
            CheXbertLabeller(empty)
    class_inside = {"model_state_dict": Study}  # which only an unsafe loader would build
    for content in (class_inside, {}, {"model_state_dict": {"a": 3}}, {"model_state_dict": {"a": torch.ones(1)}}):
        torch.save(content, empty / "chexbert.pth")
        with pytest.raises(UserError, match=r"chexbert\.pth (is not CheXbert's|does not hold the weights of a BERT)"):
            CheXbertLabeller(empty)
    whole = torch.load(folder / "chexbert.pth", weights_only=True)
    whole["model_state_dict"]["module.linear_heads.13.weight"] = torch.ones(4, 64)
    torch.save(whole, empty / "chexbert.pth")
    with pytest.raises(UserError, match=r"no head linear_heads\.13 of 2 classes \(No Finding\)"):
        CheXbertLabeller(empty)
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "one", "more"]))
    with pytest.raises(UserError, match="take the vocabulary of bert-base-uncased"):
        CheXbertLabeller(folder)
