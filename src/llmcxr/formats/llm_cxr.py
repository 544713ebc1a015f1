"""The model that the paper's authors publish, as one of ours.

    config.json, pytorch_model.bin.index.json, pytorch_model-00001-of-00002.bin, ... (or model.safetensors)
    tokenizer.json, tokenizer_config.json, special_tokens_map.json        Dolly's; 50,281 tokens, none of them an image
    training_args.bin, *.py                                               never read

A GPT-NeoX (dolly-v2-3b) whose table has a row for each token of its text tokenizer, then 1,024 rows of images. Its images are
those of a VQ-GAN of taming-transformers, published beside it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from llmcxr import __version__
from llmcxr.foundation.artifacts import check_new_folder
from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.taming import import_taming
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.instructions.templates import build_template
from llmcxr.model.folder import ModelInfo, save_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import check_language_model, load_language_model

# The first of the ten wordings that it was trained with, of each task.
REPORT_INSTRUCTION = "Generate free-text radiology reports for the entered chest X-ray images."
DRAWING_INSTRUCTION = "Generate a chest X-ray image that corresponds to the entered free-text radiology reports for the chest X-ray image."


def import_llm_cxr(folder: Path, image_tokenizer: Path, output: Path) -> None:
    """Write the published model in `folder`, with its image tokenizer (a VQ-GAN's `.ckpt`, or an imported one), as folder `output`.

    Same weights (stored in bfloat16, as they are published), same token ids, its own prompts. `UserError` where rows, tokens and
    codes do not belong together, or a file cannot be read safely.
    """
    check_new_folder(output)
    config, tokenizer = check_language_model(str(folder))
    codec = (
        ImageTokenizer.from_pretrained(image_tokenizer) if image_tokenizer.is_dir() else import_taming(image_tokenizer)
    )
    K, tokens = len(codec.codebook), len(tokenizer)
    if config.vocab_size != tokens + K:
        raise UserError(
            f"{folder}: its table has {config.vocab_size:,} rows, which are not its tokenizer's {tokens:,} and the {K:,} codes of "
            f"{image_tokenizer}. Give the image tokenizer that was published with it, and all files of its tokenizer."
        )
    template = build_template("llm-cxr", tokenizer)
    vocabulary = ImageVocabulary.grow(tokenizer, K)
    if vocabulary.first_id != tokens:
        raise UserError(
            f"{folder}: the ids of its tokenizer have gaps: images would begin at {vocabulary.first_id:,}, not {tokens:,}."
        )
    model = load_language_model(str(folder), torch.bfloat16)
    with tempfile.TemporaryDirectory() as scratch:
        codec.save_pretrained(Path(scratch) / "image_tokenizer")
        info = ModelInfo(
            base=str(getattr(config, "_name_or_path", "") or folder.name),
            codebook_size=K,
            grid=codec.grid,
            image_size=codec.image_size,
            image_tokenizer=codec.fingerprint,
            template=template.name,
            system_prompt=None,
            findings=(),  # its questions were in free words
            report="impression",  # of its second stage
            version=__version__,
            views=("PA", "AP"),
            earliest_only=True,
            report_instruction=REPORT_INSTRUCTION,
            drawing_instruction=DRAWING_INSTRUCTION,
        )
        save_model(output, model, vocabulary, Path(scratch) / "image_tokenizer", info, None)
