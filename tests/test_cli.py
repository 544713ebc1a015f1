"""Mistakes on the command line: exit code 2, one clear message with the file or key, never a traceback."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys

import pytest
from PIL import Image

import llmcxr
from llmcxr import cli, commands
from llmcxr.cli import CLOSED_PIPE, main
from llmcxr.commands import COMMANDS


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
        message = fails(capsys, "run", str(path), f"llm={llm}", "image_tokenizer.pretrained=no/such/tokenizer")
        assert str(llm) in message and "no/such/tokenizer does not exist" in message
        assert not list(tmp_path.glob("runs/*/manifest.parquet"))
    large = "image_tokenizer.architecture={image_size: 2048, channels: [32, 32, 32, 32, 32]}"
    message = fails(capsys, "run", str(path), large, "tuning={max_tokens: 20000, tokens_per_batch: 20000}")
    assert "reads 8,192 tokens at most, of which an image alone takes 16,384" in message


@pytest.mark.parametrize(
    "command", [["report", "x.png"], ["ask", "x.png", "Is there?"], ["findings", "x.png"], ["draw", "a"], ["chat", "a"]]
)
def test_no_model(tmp_path, capsys, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").save("x.png")
    message = fails(capsys, *command, "--model", str(tmp_path))
    assert f"there is no model '{tmp_path}': it holds no model" in message


def test_unknown_asset(capsys):
    assert "no asset is called 'nothing'" in fails(capsys, "fetch", "nothing")


def test_wrong_words_are_argparse_errors(capsys):
    unused = [
        ["findings", "x.png", option, "1"] for option in ("--temperature", "--top-p", "--seed", "--max-new-tokens")
    ]
    for arguments in (["nothing"], ["run"], ["run", "r.yaml", "--nothing"], *unused):
        assert refused(arguments) == 2


def refused(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


@pytest.mark.parametrize("number", ["abc", "0", "-1", "1.5", "\u00b2", "9" * 30, ""])
def test_a_wrong_number_is_said_in_words(number, capsys):
    for arguments in (["report", "x.png", "--candidates"], ["preview", "--size"], ["plan", "r.yaml", "--devices"]):
        assert refused([*arguments[:-1], f"{arguments[-1]}={number}"]) == 2
        assert f"{number!r} should be a whole number, at least 1" in capsys.readouterr().err
    for rate in ("abc", "nan", "inf", "0", "-1"):
        assert refused(["report", "x.png", f"--guidance={rate}"]) == 2
        assert f"{rate!r} should be a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.gz", ".png", "/dev/null"])
def test_a_drawing_is_a_png_or_nothing(name, capsys):
    assert refused(["draw", "Effusion.", "-o", name]) == 2
    assert f"{name!r} should end in .png" in capsys.readouterr().err


def test_version(capsys):
    assert refused(["--version"]) == 0
    assert capsys.readouterr().out == f"llmcxr {llmcxr.__version__}\n"


@pytest.mark.parametrize("text", ["", "  ", "caf\udce9"])
def test_texts_are_checked_before_a_model_is_loaded(text, capsys, monkeypatch):
    for module in (commands.use, commands.many):
        monkeypatch.setattr(module, "load", lambda arguments: pytest.fail("the model was loaded"))
    for arguments in (["ask", "x.png", text], ["draw", text], ["chat", text]):
        assert "is empty" in (said := fails(capsys, *arguments)) or "not UTF-8" in said


def shell(line: str, **options) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `llmcxr` is ours."""
    script = f'set -o pipefail; llmcxr() {{ "{sys.executable}" -m llmcxr "$@"; }}; {line}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120, **options)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_and_a_full_disk_are_no_traceback(unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = shell("llmcxr recipes | true", env=environment)
    assert (done.returncode, done.stderr) in ((CLOSED_PIPE, ""), (0, ""))  # `true` may end after all was written
    done = shell("llmcxr recipes | { sleep 2; exec 0<&-; sleep 1; }", env=environment)
    assert done.stderr == ""
    done = shell("llmcxr recipes >&-", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    if os.path.exists("/dev/full"):
        done = shell("llmcxr recipes > /dev/full", env=environment)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert "what is printed cannot be written: [Errno 28]" in done.stderr


class Echo:
    """Instead of a model: says what it was told last, and how much was said before."""

    def stream_chat(self, messages, sampling):
        yield messages[-1]["content"]
        yield f" ({len(messages)})"


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setattr(commands.use, "load", lambda arguments: Echo())


def test_piped_chat_prints_answers_only(echo, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nAgain\n\nnever said\n"))
    assert main(["chat"]) == 0
    assert capsys.readouterr() == ("Hello (1)\nAgain (3)\n", "")


def test_chat_without_an_input(echo, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of a closed one
    assert main(["chat"]) == 0 and main(["chat", "Hello"]) == 0
    assert capsys.readouterr() == ("Hello (1)\n", "")


def test_chat_of_what_is_not_utf8(echo, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert "what comes in is not UTF-8" in fails(capsys, "chat")


def test_a_file_name_that_is_not_utf8_can_be_printed(capsys):
    assert "caf\\udce9.yaml is neither a file nor" in fails(capsys, "run", "caf\udce9.yaml")


def test_settings_lists_every_key(capsys):
    assert main(["settings"]) == 0
    text = capsys.readouterr().out
    assert (
        "tuning.stages.rows_learning_rate: 0.002" in text and "image_tokenizer.architecture.codebook_size: 1024" in text
    )
    assert main(["settings", "judge"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and all("judge" in line for line in lines[::2])
    assert "no setting's key contains 'zzzz'" in fails(capsys, "settings", "zzzz")


def test_no_command_gets_the_list_of_them(capsys):
    assert main([]) == 2
    said = capsys.readouterr()
    assert "write the report of a radiograph" in said.out and said.err == ""


def test_help_is_quick_and_names_every_command():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "llmcxr", "--help"], capture_output=True, text=True, check=True
    )
    for word in ("fetch", "run", "report", "ask", "draw", "findings", "chat", "For research only"):
        assert word in result.stdout
    assert " torch\n" not in result.stderr  # heavy libraries only where they are needed


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_answers_what_a_newcomer_asks(name, capsys):
    """What each argument is, what it is where it is left out, and a line to copy, which is one of the command's."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    helped, command = capsys.readouterr().out, COMMANDS[name]
    assert f"\ne.g. llmcxr {command.example}\n" in helped
    parser = cli._parser()
    given = parser.parse_args(shlex.split(command.example))
    assert given.function is command.function
    own = parser._subparsers._group_actions[0].choices[name]
    for action in own._actions[1:]:
        told = " ".join((action.help or "").split())
        assert len(told.split()) >= 4, f"{action.dest}: {told!r} says too little"
        may_be_left_out = action.option_strings and not action.required and action.nargs != 0
        if may_be_left_out or action.nargs == "?":
            assert "default: " in told, f"{action.dest}: what is it where it is left out?"


def test_home_is_home_in_every_path(tmp_path, capsys, monkeypatch):
    """Also where no shell sees the ~, as in --output=~/drawn.png; nothing is written beside it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home" / "made" / ".stages").mkdir(parents=True)
    (tmp_path / "home" / "made" / ".stages" / "lock").touch()
    (tmp_path / "home" / "made" / "recipe.yaml").write_text("name: made\n")
    (tmp_path / "home" / "recipe.yaml").write_text("name: made\nruns: '~'\n")
    assert f"{tmp_path / 'home' / 'made'}/studies.json does not exist" in fails(capsys, "inspect", "~/made")
    assert "no finished model" in fails(capsys, "pack", "~/recipe.yaml", "~/packed")
    monkeypatch.setattr(commands.use, "load", lambda arguments: pytest.fail(f"loaded for {arguments.output}"))
    (tmp_path / "home" / "taken.png").mkdir()
    assert "home/taken.png: it is a folder" in fails(capsys, "draw", "x", "--output=~/taken.png")
    assert [p.name for p in tmp_path.iterdir()] == ["home"]
    with pytest.raises(SystemExit, match="2"):
        main(["preview", "-o", "~nobodyofthisname/x"])
    assert "~ is home; that of this user is not known" in capsys.readouterr().err
    for words in (["prepare", "~nobodyofthisname/x"], ["chat", "x", "--model", "~nobodyofthisname/x"]):
        monkeypatch.undo()
        assert "~ is home" in fails(capsys, *words)


LONG = "x" * 300


@pytest.mark.parametrize("words", [["inspect", LONG], ["prepare", LONG], ["chat", "x", "--model", LONG]])
def test_names_that_the_system_refuses(words, capsys):
    assert LONG in fails(capsys, *words)


def test_an_image_is_read_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    (tmp_path / "no.png").write_text("no picture")
    monkeypatch.setattr("llmcxr.inference.llm_cxr.LlmCxr.from_pretrained", lambda *_: pytest.fail("loaded"))
    for words in (["report"], ["findings"]):
        assert "no.png" in fails(capsys, *words, str(tmp_path / "no.png"))
        assert "missing.png cannot be opened" in fails(capsys, *words, str(tmp_path / "missing.png"))
