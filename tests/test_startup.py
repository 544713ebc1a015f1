"""Using a model does not load what only training, measuring or data need."""

from __future__ import annotations

import subprocess
import sys

import pytest

import llmcxr

# Some of them come with transformers wherever they are installed (accelerate, scipy, torchvision): none may come with us.
HEAVY = (
    "accelerate",
    "diffusers",
    "lpips",
    "matplotlib",
    "pandas",
    "peft",
    "pyarrow",
    "scipy",
    "skimage",
    "sklearn",
    "tensorboard",
    "torchvision",
    "torchxrayvision",
    "vector_quantize_pytorch",
)
CODE = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM
before = set(sys.modules)
from llmcxr import ImageTokenizer, LlmCxr
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""


def loaded(code: str) -> set[str]:
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_using_a_model_loads_no_trainer():
    new = loaded(CODE)
    assert "llmcxr" in new and not new.intersection(HEAVY)


def test_the_package_and_the_command_line_load_nothing_heavy():
    code = "import sys; import llmcxr.cli, llmcxr.tasks.base; print(*sys.modules)"
    assert not loaded(code).intersection({"torch", "transformers", *HEAVY})


def test_the_two_names_at_the_top():
    from llmcxr import ImageTokenizer, LlmCxr

    assert {LlmCxr.__module__, ImageTokenizer.__module__} == {
        "llmcxr.inference.llm_cxr",
        "llmcxr.image_tokens.tokenizer",
    }
    assert llmcxr.__version__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        llmcxr.Nothing  # noqa: B018
