"""A run that uses, or trains on, an image tokenizer that is there: its sizes are the run's, and nothing is trained unasked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_files import film, picture_file

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings
from llmcxr.image_tokens.settings import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.image_tokens.training import trainable_quantizer, training_pass
from llmcxr.pipeline import Run
from llmcxr.recipe import Recipe
from llmcxr.stages.context import with_given_sizes
from llmcxr.stages.image_tokens import codes_stage, image_tokenizer_stage

SIZES = ArchitectureSettings(
    32, kind="vqgan", channels=[32, 32, 32], codebook_size=16, code_dim=8, blocks=1, z_channels=32
)


@pytest.fixture
def given(tmp_path) -> Path:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(SIZES).train()
    trainable_quantizer(tokenizer)
    training_pass(tokenizer, torch.randn(16, 1, 32, 32))
    tokenizer.eval().save_pretrained(tmp_path / "given")
    return tmp_path / "given"


def recipe(folder: Path, **image_tokenizer: object) -> Recipe:
    for i in range(6):
        picture_file(folder / f"{i}.png", film(64))
    (folder / "table.csv").write_text("image\n" + "\n".join(f"{i}.png" for i in range(6)))
    training = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "adversarial_weight": 0.0}
    source = {"kind": "table", "table": {"path": str(folder / "table.csv")}}
    plain = {"runs": str(folder), "device": "cpu", "precision": "float32", "source": source}
    return build_settings(Recipe, plain | {"image_tokenizer": training | image_tokenizer})


def test_codes_are_the_given_tokenizers(given, tmp_path):
    run = Run(recipe(tmp_path, pretrained=str(given)))
    assert run.recipe.image_tokenizer.architecture == SIZES and run.context.image_size == 32
    run.run("studies")
    image_tokenizer_stage(run.context).run()
    codes_stage(run.context).run()
    assert run.context.image_tokenizer.fingerprint == ImageTokenizer.from_pretrained(given).fingerprint
    assert {len(codes) for codes in run.context.codes.values()} == {64}


def test_training_goes_on_from_it(given, tmp_path):
    run = Run(recipe(tmp_path, start=str(given), learning_rate=1e-9))
    run.run("studies")
    image_tokenizer_stage(run.context).run()
    begun, ended = ImageTokenizer.from_pretrained(given), run.context.image_tokenizer
    assert begun.fingerprint != ended.fingerprint and ended.architecture == SIZES
    for (name, a), b in zip(begun.named_parameters(), ended.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


def test_what_does_not_go_with_it_is_said(given, tmp_path):
    with pytest.raises(UserError, match=r"start: nothing is trained where `pretrained` is given"):
        recipe(tmp_path, pretrained=str(given), start=str(given))
    with pytest.raises(UserError, match=r"image_tokenizer.start: `start` has an image tokenizer"):
        build_settings(
            Recipe, {"start": "phantom", "image_tokenizer": {"start": str(given)}, "tuning": {"method": "lora"}}
        )
    narrow = {"tuning": {"max_tokens": 200, "tokens_per_batch": 200}, "image_tokenizer": {"pretrained": str(given)}}
    assert (
        with_given_sizes(build_settings(Recipe, narrow)).image_tokenizer.architecture.grid == 8
    )  # 64 of 200; not the default's 256
    narrow["tuning"] = {"max_tokens": 60, "tokens_per_batch": 200}
    with pytest.raises(
        UserError, match=r"with the image tokenizer .*given, has 1 fault.*\n.*no room for text beside 64"
    ):
        with_given_sizes(build_settings(Recipe, narrow))
    there = recipe(tmp_path, start=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"none does not exist. `llmcxr import tokenizer`"):
        Run(there).run()
