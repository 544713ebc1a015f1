"""Using a model does not load what only training, measuring or data need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
WORKING = {"torch", "transformers", "nibabel", "pydicom", *HEAVY}  # what runs do their work with
CODE = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM
before = set(sys.modules)
from llmcxr import ImageTokenizer, LlmCxr
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""


def loaded(code: str, folder: Path | None = None) -> set[str]:
    """What a process of its own prints, word by word."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    return set(done.stdout.split())


def test_using_a_model_loads_no_trainer():
    new = loaded(CODE)
    assert "llmcxr" in new and not new.intersection(HEAVY)


def test_the_package_and_the_command_line_load_nothing_heavy():
    code = "import sys; import llmcxr.cli, llmcxr.tasks.base; print(*sys.modules)"
    assert not loaded(code).intersection({"torch", "transformers", *HEAVY})


@pytest.mark.parametrize(
    "own", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "1000"}, {"KMP_BLOCKTIME": "200"}]
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(own):
    """As the threads themselves have read it, once torch is there."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    clean = {k: v for k, v in os.environ.items() if k not in names} | {"OMP_DISPLAY_ENV": "VERBOSE"} | own
    done = subprocess.run(
        [sys.executable, "-c", "import llmcxr, torch"], capture_output=True, text=True, check=True, env=clean
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch's threads here do not say how they wait")
    assert ("GOMP_SPINCOUNT = '0'" in done.stderr) == (not own)


def test_settings_are_read_without_what_they_set():
    """So `llmcxr settings` takes less than a second."""
    new = loaded("import sys, llmcxr.recipe; print(*sys.modules)")
    assert "yaml" in new and not new.intersection(WORKING)


@pytest.mark.parametrize(
    "command",
    [
        ["run", "demo"],
        ["prepare", "demo"],
        ["plan", "demo"],
        ["pack", "demo", "packed"],
        ["inspect", "a"],
        ["evaluate", "a"],
        ["choose-decoding", "a"],
    ],
)
def test_a_slip_in_a_recipe_is_said_at_once(command, tmp_path):
    """Before anything is loaded that only a run needs."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "recipe.yaml").touch()
    code = f"import sys; from llmcxr.cli import main; code = main({[*command, 'sedd=1']!r}); print(code, *sys.modules)"
    new = loaded(code, tmp_path)
    assert "2" in new and "llmcxr.recipe" in new and not new.intersection(WORKING)


def test_the_two_names_at_the_top():
    from llmcxr import ImageTokenizer, LlmCxr

    assert {LlmCxr.__module__, ImageTokenizer.__module__} == {
        "llmcxr.inference.llm_cxr",
        "llmcxr.image_tokens.tokenizer",
    }
    assert llmcxr.__version__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        llmcxr.Nothing  # noqa: B018
