"""Toy tokenizers and models: real classes at a size that trains in a second, built without any download."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from llmcxr.foundation.assets import fetch
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

torch.set_num_threads(1)

# Property tests try the same inputs everywhere, so that a change is to blame where one fails; search for new ones with
# `pytest --hypothesis-profile=default`.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

SENTENCES = [
    "Write the report of this chest radiograph.",
    "Is there a pleural effusion? Yes. No. Right pleural effusion; cardiomegaly.",
    "The heart is normal in size. No pneumothorax. The lungs are clear.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\n\nInput:\n\n### Response:\n user assistant system",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(*added: AddedToken, size: int = 340) -> PreTrainedTokenizerFast:
    """Byte-level BPE (lossless for any text) with ChatML; `added` come after the trained tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=size, special_tokens=names, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHATML
    if added:
        tokenizer.add_tokens(list(added))
    return tokenizer


def build_model(kind: str, rows: int, tied: bool = False, seed: int = 0, **extra):
    """A random float32 causal LM with two layers and `rows` rows in its table."""
    torch.manual_seed(seed)
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    common = {"vocab_size": rows, "tie_word_embeddings": tied, "max_position_embeddings": 512} | extra
    config = {
        "neox": lambda: GPTNeoXConfig(**wide, **common),
        "llama": lambda: LlamaConfig(**wide, num_key_value_heads=2, **common),
        "qwen3": lambda: Qwen3Config(**wide, num_key_value_heads=2, head_dim=8, **common),
        "phi": lambda: PhiConfig(**wide, **common),
        "gpt2": lambda: GPT2Config(
            n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, n_positions=512, **common
        ),
    }[kind]()
    # Rows for special tokens of other tokenizers do not exist here.
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    model = AutoModelForCausalLM.from_config(config)
    for p in model.parameters():  # the usual start is so small that all logits are alike
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)
    return model.eval()


@pytest.fixture(scope="session")
def smollm_tokenizer():
    """The text tokenizer of the embedded base LLM (do not change it: take `fresh_smollm`)."""
    from transformers import AutoTokenizer

    folder = fetch("smollm2-135m-instruct")
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


@pytest.fixture
def toy_vocabulary() -> ImageVocabulary:
    """The toy tokenizer with 16 image tokens."""
    return ImageVocabulary.grow(build_tokenizer(), 16)
