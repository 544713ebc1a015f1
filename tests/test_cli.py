"""Mistakes on the command line: exit code 2, one clear message with the file or key, never a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmcxr.cli import main


def fails(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.startswith("llmcxr: ")
    return captured.err


def test_a_typo_in_a_recipe(tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text("tuning: {lora_rnak: 3}\n")
    message = fails(capsys, "run", str(path))
    assert (
        f"{path} has 1 fault" in message
        and "tuning.lora_rnak: no such setting; did you mean tuning.lora_rank?" in message
    )


def test_overrides_stages_and_files(tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text(f"runs: {tmp_path}\n")
    assert "should look like key.sub=value" in fails(capsys, "run", str(path), "tuning.lora_rank")
    assert "no stage is called 'judg'. Stages: studies, " in fails(capsys, "run", str(path), "--stage", "judg")
    assert "stage codes needs studies, which is not done" in fails(capsys, "run", str(path), "--stage", "codes")
    assert "stage codes needs" in fails(capsys, "run", str(path), "--stage", "codes", "seed=3")
    assert "did you mean seed?" in fails(capsys, "run", str(path), "--stage", "codes", "sed=3")
    assert "missing.yaml is neither a file nor a shipped recipe" in fails(capsys, "run", str(tmp_path / "missing.yaml"))
    assert "cannot be read" in fails(capsys, "run", str(tmp_path))
    assert "device" in fails(capsys, "run", str(path), "device=gpu")


def test_a_wrong_llm_is_said_before_the_first_stage(tmp_path, capsys):
    """With whatever else is missing, all at once."""
    path = tmp_path / "r.yaml"
    (tmp_path / "empty").mkdir()
    path.write_text(f"runs: {tmp_path / 'runs'}\n")
    for llm in (tmp_path / "empty", "chest-ct", tmp_path / "none"):
        message = fails(capsys, "run", str(path), f"llm={llm}", "image_tokenizer.pretrained=no/tokenizer")
        assert str(llm) in message and "no/tokenizer does not exist" in message
        assert not list(tmp_path.glob("runs/*/manifest.parquet"))
    large = "image_tokenizer.architecture={image_size: 2048, channels: [32, 32, 32, 32, 32]}"
    message = fails(capsys, "run", str(path), large, "tuning={max_tokens: 20000, tokens_per_batch: 20000}")
    assert "reads 8,192 tokens at most, of which an image alone takes 16,384" in message


@pytest.mark.parametrize(
    "command", [["report", "x.png"], ["ask", "x.png", "Is there?"], ["findings", "x.png"], ["draw", "a"], ["chat", "a"]]
)
def test_no_model(tmp_path, capsys, command):
    message = fails(capsys, *command, "--model", str(tmp_path))
    assert f"there is no model '{tmp_path}': it holds no model" in message


def test_unknown_asset(capsys):
    assert "no asset is called 'nothing'" in fails(capsys, "fetch", "nothing")


def test_wrong_words_are_argparse_errors(capsys):
    unused = [
        ["findings", "x.png", option, "1"] for option in ("--temperature", "--top-p", "--seed", "--max-new-tokens")
    ]
    for arguments in ([], ["nothing"], ["run"], ["run", "r.yaml", "--nothing"], *unused):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_settings_lists_every_key(capsys):
    assert main(["settings"]) == 0
    text = capsys.readouterr().out
    assert (
        "tuning.stages.rows_learning_rate: 0.002" in text and "image_tokenizer.architecture.codebook_size: 1024" in text
    )
    assert main(["settings", "judge"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and all("judge" in line for line in lines[::2])


def test_help_is_quick_and_names_every_command():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "llmcxr", "--help"], capture_output=True, text=True, check=True
    )
    for word in ("fetch", "run", "report", "ask", "draw", "findings", "chat", "For research only"):
        assert word in result.stdout
    assert " torch\n" not in result.stderr  # heavy libraries only where they are needed
