"""LlmCxr: its examples run, and its forms for many say what those for one say."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_folder import write_image, write_toy_run

from llmcxr.foundation.errors import UserError
from llmcxr.inference.backend import Sampling
from llmcxr.inference.llm_cxr import LlmCxr

SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with runs/quickstart, two pictures, and a file that is none."""
    home = tmp_path_factory.mktemp("home")
    write_toy_run(home / "runs" / "quickstart")
    write_image(home / "chest.png", 1)
    write_image(home / "other.png", 2)
    (home / "broken.png").write_text("no picture")
    return home


@pytest.fixture(scope="module")
def model(home) -> LlmCxr:
    return LlmCxr.from_pretrained(home / "runs" / "quickstart", "cpu", "float32")


def test_the_examples_of_the_docstrings_run(model, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    names = {"model": model, "LlmCxr": LlmCxr, "Sampling": Sampling, "np": np}
    tests = [t for t in doctest.DocTestFinder().find(LlmCxr, "LlmCxr", globs=names) if t.examples]
    shown = {t.name.split(".")[1] for t in tests}
    public = {n for n, own in vars(LlmCxr).items() if not n.startswith("_") and not isinstance(own, property)}
    assert {n for n in public if inspect.isroutine(getattr(LlmCxr, n))} == shown, "every public method has an example"
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.summarize().failed == 0, capsys.readouterr().out


def test_many_are_each_of_them(model, home):
    paths = [home / "chest.png", home / "other.png"]
    with Image.open(paths[1]) as picture:
        picture.load()
    pixels = model.images.pixels(paths[0])
    codes = model.encode(paths)
    assert codes.shape == (2, 16) and codes.dtype == np.uint16 and not np.array_equal(*codes)
    np.testing.assert_array_equal(model.encode([pixels, codes[1], str(paths[0]), picture]), codes[[0, 1, 0, 1]])
    assert model.reports(paths, SHORT) == model.reports(codes, SHORT) == [model.report(p, SHORT) for p in paths]
    questions = ["Is there a mass?", "Where?"]
    assert model.answers(paths, questions, SHORT) == [
        model.ask(p, q, SHORT) for p, q in zip(paths, questions, strict=True)
    ]
    texts, free = ["Mass.", "Nodule."], Sampling(1.0, seed=1)
    alone = np.stack([model.draw(t, free) for t in texts])
    np.testing.assert_allclose(model.draws(texts, free), alone, atol=1e-4)  # the same codes, painted together
    assert len(model.encode([])) == len(model.draws([])) == len(model.reports([])) == len(model.answers([], [])) == 0
    first, second = model.draws(["Mass."] * 2, free)
    assert not np.array_equal(first, second)


def test_a_bad_image_is_an_error_of_its_own(model, home):
    found = model.read_each(
        [home / "chest.png", home / "broken.png", np.arange(16) % 5, np.arange(16), np.zeros((2, 2))]
    )
    assert [isinstance(one, UserError) for one in found] == [False, True, False, False, True]
    assert "broken.png" in str(found[1]) and np.array_equal(found[2].codes, np.arange(16) % 5)
    for codes in (np.arange(17), np.arange(15), np.arange(1, 17), np.arange(16) - 1):
        with pytest.raises(UserError, match="codes of an image should be 16 whole numbers from 0 to 15"):
            model.report(codes)
    for use in (
        lambda: model.reports(str(home / "chest.png")),
        lambda: model.draws("Mass."),
        lambda: model.answers([home / "chest.png"], "Where?"),
    ):
        with pytest.raises(UserError, match="should be a list"):
            use()
    with pytest.raises(UserError, match="a question for each image, are 2 for 1"):
        model.answers([home / "chest.png"], ["Where?", "What?"])
    with pytest.raises(UserError, match="the report is empty"):
        model.draws(["Mass.", " "])


def test_a_response_holds_what_the_model_chooses(model, home):
    codes, side = model.encode([home / "chest.png"])[0], model.info.image_size
    kinds = set()
    for seed in range(12):
        parts = model.respond("Go on.", image=home / "chest.png", sampling=Sampling(2.0, max_new_tokens=12, seed=seed))
        kinds |= {type(part) for part in parts}
        assert all(isinstance(part, str) or part.shape == (side, side) for part in parts)
        again = model.respond("Go on.", image=codes, sampling=Sampling(2.0, max_new_tokens=12, seed=seed))
        assert len(again) == len(parts) and all(np.array_equal(a, b) for a, b in zip(again, parts, strict=True))
    assert kinds == {str, np.ndarray}
    with pytest.raises(UserError, match="about a text or about an image"):
        model.respond("Go on.", "Mass.", home / "chest.png")
