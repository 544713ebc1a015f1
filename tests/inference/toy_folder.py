"""A model folder as a run leaves it, at toy size and untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import build_model, build_tokenizer
from PIL import Image

from llmcxr.image_tokens.architecture import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.model.folder import ModelInfo, save_model
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K, S = 16, 32


def write_toy_run(folder: Path) -> Path:
    """`folder` with model/, which names findings first."""
    torch.manual_seed(0)
    small = ArchitectureSettings(S, [32, 32, 32, 64], codebook_size=K, code_dim=8)
    tokenizer = ImageTokenizer(small)
    torch.nn.init.normal_(tokenizer.quantizer._codebook.embed)  # one code stands for all in an untrained one
    tokenizer.save_pretrained(folder / "image_tokenizer")
    codec = ImageTokenizer.from_pretrained(folder / "image_tokenizer")
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model("phi", vocabulary.first_id)
    grow_language_model(model, vocabulary, 0.4 * torch.randn(K, model.config.hidden_size))
    with torch.no_grad():  # its texts are short
        model.get_output_embeddings().bias[vocabulary.tokenizer.eos_token_id] = 2.0
    both, findings = ("cxr_to_report", "report_to_cxr"), ("mass", "nodule")
    info = ModelInfo("toy", K, codec.grid, S, codec.fingerprint, "chat", None, findings, "impression", "0", both)
    save_model(folder / "model", model, vocabulary, folder / "image_tokenizer", info, ["0" * 16])
    return folder


def write_image(path: Path, seed: int = 0, side: int = S) -> Path:
    """A picture of random greys."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side), dtype=np.uint8)).save(path)
    return path
