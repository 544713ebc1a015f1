"""SHA256SUMS: what is learned of a model later comes into its folder whole, also where the process is killed."""

from __future__ import annotations

import os

import pytest

from llmcxr.foundation.artifacts import read_json
from llmcxr.foundation.errors import UserError
from llmcxr.model.sums import SUMS, check_sums, put_json, write_sums


@pytest.fixture(params=[False, True], ids=["ordinary", "packed"])
def folder(request, tmp_path):
    """A model folder with sums, which knows something already."""
    (tmp_path / "llmcxr.json").write_text("{}")
    (tmp_path / "image_tokenizer").mkdir()
    (tmp_path / "image_tokenizer" / "weights").write_text("weights")
    if request.param:
        (tmp_path / "packed.json").write_text("{}")
        (tmp_path / "adapters.safetensors").write_text("adapters")
    write_sums(tmp_path)
    put_json(tmp_path, "known.json", 1)
    return tmp_path


def killed_at(step: int, work) -> bool:
    """Whether `work`, done by a process that is killed at its change of the disk number `step`, was killed."""
    if (child := os.fork()) == 0:
        left = [step]

        def counted(real):
            def change(*arguments, **keywords):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return real(*arguments, **keywords)

            return change

        for name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_sums_are_those_of_the_whole_folder(folder):
    before = (folder / SUMS).read_text()
    write_sums(folder)
    assert (folder / SUMS).read_text() == before and "known.json" in before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_kill_leaves_the_old_or_the_new(folder):
    found, step = [], 0
    while killed_at(step, lambda: put_json(folder, "known.json", 2)):
        check_sums(folder)
        found.append(read_json(folder / "known.json"))
        assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".") and p.suffix != ".partial") == []
        put_json(folder, "known.json", 1)
        step += 1
    assert set(found) == {1, 2} and found == sorted(found)


def test_it_hides_no_damage(folder):
    (folder / "image_tokenizer" / "weights").write_text("WEIGHTS")
    with pytest.raises(UserError, match="weights is damaged"):
        put_json(folder, "known.json", 2)
    assert read_json(folder / "known.json") == 1
