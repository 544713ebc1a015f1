"""Settings: what a user may write, every way to get it wrong, and the help that comes from the same definition."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import (
    NameOrPath,
    Range,
    Settings,
    Share,
    build_settings,
    checked,
    describe_settings,
    load_settings,
    setting,
    settings_to_dict,
)
from llmcxr.foundation.yaml_text import parse_yaml
from llmcxr.inference.backend import Sampling
from llmcxr.recipe import Recipe


@dataclass(frozen=True)
class Inner(Settings):
    rate: float = setting(1e-3, "a rate")
    steps: int = setting(10, "steps")
    widths: list[int] = setting([1, 2], "widths")

    def faults(self) -> list[str]:
        return [f"steps: {self.steps} is below 1"] if self.steps < 1 else []


@dataclass(frozen=True)
class Outer(Settings):
    name: str = setting("run", "a name")
    mode: Literal["lora", "full"] = setting("lora", "a mode")
    inner: Inner = setting(Inner(), "inner")
    many: list[Inner] = setting([Inner()], "a list")
    path: Path | None = setting(None, "a path")
    weights: dict[str, float] = setting({}, "weights")
    optional: Inner | None = setting(None, "maybe")
    shares: dict[str, Share] = setting({}, "shares")
    few: Annotated[int, Range(2, 5)] | None = setting(None, "few")
    llm: NameOrPath = setting("a", "a name or a path")
    flag: bool = setting(False, "a flag")


def fault_lines(values) -> list[str]:
    with pytest.raises(UserError) as caught:
        build_settings(Outer, values, "x.yaml")
    return str(caught.value).splitlines()


def test_everything_is_converted():
    made = build_settings(
        Outer,
        {
            "inner": {"rate": "1e-3", "steps": 3},
            "many": [{"rate": 2}],
            "path": "a/b",
            "weights": {"x": 1},
            "optional": {"steps": 5},
            "flag": True,
        },
    )
    assert made.inner == Inner(0.001, 3)
    assert made.many == [Inner(2.0)] and isinstance(made.many[0].rate, float)
    assert made.path == Path("a/b") and made.weights == {"x": 1.0} and made.optional == Inner(steps=5) and made.flag


def test_the_nearest_name_is_proposed():
    assert fault_lines({"inner": {"setps": 3}})[1] == "  - inner.setps: no such setting; did you mean inner.steps?"
    assert "settings here: name, mode" in fault_lines({"qqqqqq": 1})[1]
    assert "did you mean 'full'?" in fault_lines({"mode": "ful"})[1]


def test_all_faults_are_reported_at_once():
    lines = fault_lines({"nmae": "a", "inner": {"steps": 0}, "many": [{}, {"rate": "fast"}], "mode": "qlora"})
    assert lines[0] == "x.yaml has 4 faults:"
    text = "\n".join(lines)
    for part in (
        "nmae: no such setting; did you mean name?",
        "inner.steps: 0 is below 1",
        "many[1].rate: 'fast'",
        "mode:",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"name": 3}, "name: 3 should be text"),
        ({"flag": 1}, "flag: 1 should be true or false"),
        ({"inner": {"steps": True}}, "inner.steps: True should be a whole number"),
        ({"inner": {"steps": 1.5}}, "inner.steps: 1.5 should be a whole number"),
        ({"inner": {"rate": None}}, "inner.rate: None should be a finite number"),
        ({"inner": {"widths": 3}}, "inner.widths: 3 should be a list, each a whole number"),
        ({"inner": {"widths": [1, "b"]}}, "inner.widths[1]: 'b' should be a whole number"),
        ({"inner": [1]}, "inner: should be a mapping of settings, is [1]"),
        ({"inner": None}, "inner: should be a mapping of settings, is None"),
        ({"weights": {"a": "b"}}, "weights.a: 'b' should be a finite number"),
        ({"optional": {"setps": 1}}, "optional.setps: no such setting"),
        ({"mode": True}, "mode: True is not one of 'lora', 'full'"),
        ({"path": 3}, "path: 3 should be a path"),
    ],
)
def test_wrong_types_are_named(values, key):
    lines = fault_lines(values)
    assert lines[0] == "x.yaml has 1 fault:" and lines[1].startswith("  - " + key), lines


def test_a_required_setting():
    @dataclass(frozen=True)
    class Needs(Settings):
        file: str

    with pytest.raises(UserError, match="file: is required"):
        build_settings(Needs, {})


def test_yaml_and_overrides(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("inner: {rate: 1e-3}\nname: a\n")  # YAML 1.1 reads 1e-3 as text
    made = load_settings(Outer, path, ["inner.steps=7", "name='b=c'", "many=[{rate: 2e-5}]", "optional.widths=[3]"])
    assert made.inner == Inner(1e-3, 7) and made.name == "b=c"
    assert made.many == [Inner(2e-5)] and made.optional == Inner(widths=[3])
    assert load_settings(Outer, path, ["path=null"]).path is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.steps", "should look like key.sub=value"),
        ("=3", "should look like key.sub=value"),
        ("name.sub=3", "name is not a group of settings"),
        ("inner.steps=[", "not valid YAML"),
        ("inner.stesp=3", "did you mean inner.steps?"),
    ],
)
def test_wrong_overrides(tmp_path, override, message):
    path = tmp_path / "r.yaml"
    path.write_text("name: a\n")
    with pytest.raises(UserError) as caught:
        load_settings(Outer, path, [override])
    assert message in str(caught.value)


def test_wrong_files(tmp_path):
    with pytest.raises(UserError, match=r"missing\.yaml does not exist"):
        load_settings(Outer, tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(Outer, tmp_path)
    for name, content in (("list.yaml", b"- a\n"), ("broken.yaml", b"a: [\n"), ("binary.yaml", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            load_settings(Outer, tmp_path / name)
    (tmp_path / "empty.yaml").write_text("")
    assert load_settings(Outer, tmp_path / "empty.yaml") == Outer()


def test_default_recipe_survives_a_round_trip():
    recipe = build_settings(Recipe, {})
    assert build_settings(Recipe, settings_to_dict(recipe)) == recipe


def keys_of(value, prefix="") -> set[str]:
    result = set()
    for f in fields(value):
        inner = getattr(value, f.name)
        if is_dataclass(inner):
            result |= keys_of(inner, f"{prefix}{f.name}.")
        elif isinstance(inner, list) and inner and is_dataclass(inner[0]):
            result |= keys_of(inner[0], f"{prefix}{f.name}.")
        else:
            result.add(prefix + f.name)
    return result


def test_describe_settings_covers_the_whole_recipe_and_explains_each():
    recipe = build_settings(Recipe, {})
    rows = describe_settings(Recipe)
    described = [key for key, _, _ in rows]
    assert len(set(described)) == len(described)
    # A block that is not set, as those of most sources, is described by the settings in it.
    assert [key for key in keys_of(recipe) if not any(d == key or d.startswith(f"{key}.") for d in described)] == []
    assert [key for key, _, about in rows if not about] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a/b"}, "name: 'a/b' should be the name of a folder"),
        ({"source": {"kind": "table"}}, "table: is required where kind is table"),
        ({"source": {"kind": "tabel"}}, "kind: 'tabel' is not one of phantom, table"),
        ({"image_tokenizer": {"architecture": {"channels": []}}}, "image_tokenizer.architecture.channels"),
        ({"image_tokenizer": {"architecture": {"channels": [0]}}}, "image_tokenizer.architecture.channels"),
        ({"image_tokenizer": {"architecture": {"channels": [48]}}}, "channels: [48] are not multiples of 32"),
        ({"image_tokenizer": {"architecture": {"image_size": 250}}}, "250 is not a multiple of 16"),
        ({"tuning": {"stages": []}}, "tuning.stages: needs at least one stage"),
        ({"tuning": {"system_prompt": "Be brief."}}, "system_prompt: the paper's template has none"),
        ({"tuning": {"stages": [{"conversations": {}}]}}, "conversations: {} needs a weight above 0"),
        ({"tuning": {"stages": [{"mixture": {"language": 0}}]}}, "needs a weight above 0"),
        ({"tuning": {"stages": [{"mixture": {"vqa": 1}}]}}, "tuning.stages[0].mixture.vqa: no such task"),
        ({"tuning": {"max_tokens": 200}}, "tuning.max_tokens: 200 leaves no room"),
        ({"tuning": {"stages": [{"adapters_kept": 1.5}]}}, "adapters_kept: 1.5 should be 0 to 1"),
        ({"tuning": {"method": "full", "stages": [{"adapters_kept": 0.5}]}}, "adapters_kept needs method: lora"),
        ({"tuning": {"stages": [{"rare_findings": 0.1}]}}, "rare_findings needs findings_first: [report_to_cxr]"),
        ({"tuning": {"max_tokens": 4096}}, "max_tokens: 4096 exceeds tokens_per_batch"),
    ],
)
def test_impossible_recipes(values, message):
    with pytest.raises(UserError) as caught:
        build_settings(Recipe, values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"shares": {"a": 2}}, "shares.a: 2 should be 0 to 1"),
        ({"shares": {"a": -0.1}}, "shares.a: -0.1 should be 0 to 1"),
        ({"shares": {"a": ".nan"}}, "shares.a: '.nan' should be a finite number, 0 to 1"),
        ({"few": 1}, "few: 1 should be 2 to 5"),
        ({"few": 6}, "few: 6 should be 2 to 5"),
        ({"few": "x"}, "few: 'x' should be a whole number, 2 to 5"),
        ({"few": 10**5000}, "few: a number that long should be 2 to 5"),
        ({"inner": {"rate": math.nan}}, "inner.rate: nan should be a finite number"),
        ({"inner": {"rate": "inf"}}, "inner.rate: 'inf' should be a finite number"),
        ({"inner": {"rate": 10**400}}, "should be a finite number"),
        ({"name": "a\ud800"}, "should be text (it holds half a character)"),
        ({"path": "a\0b"}, "should be a path (it holds a zero byte)"),
        ({"path": "~nobody-of-this-name/a"}, "path: '~nobody-of-this-name/a' should be a path (~ is home"),
        ({"llm": "~nobody-of-this-name/a"}, "llm: '~nobody-of-this-name/a' should be a path (~ is home"),
        ({"weights": {False: 1}}, "weights: the name False is not text; put what you mean in quotes"),
        ({"weights": {1: 1, "1": 2}}, "weights.1: is there twice"),
        ({"name": "x" * 10_000}, None),
        ({"q" * 10_000: 1}, "no such setting"),
    ],
)
def test_values_that_cannot_be(values, fault):
    if fault is None:
        assert build_settings(Outer, values).name == values["name"]
        return
    lines = fault_lines(values)
    assert len(lines) == 2 and fault in lines[1] and len(lines[1]) < 500, lines


def test_what_is_made_in_python_is_checked_too():
    with pytest.raises(UserError, match=r"Outer has 2 faults:\n  - shares.a: 3 .*\n  - few: 9"):
        Outer(shares={"a": 3}, few=9)
    with pytest.raises(UserError, match="few: 1 should be 2 to 5"):
        replace(Outer(few=3), few=1)
    with pytest.raises(UserError, match="Inner has 1 fault:\n  - steps: 0 is below 1"):
        Inner(steps=0)
    assert Outer(few=np.int64(3)).few == 3 and Outer(shares={"a": 1}).shares == {"a": 1.0}
    assert Outer(inner={"steps": 4}).inner == Inner(steps=4) and Outer(path="a").path == Path("a")
    assert checked(Share, 0.5, "share") == 0.5
    with pytest.raises(UserError, match=r"^share: 2 should be 0 to 1\.$"):
        checked(Share, 2, "share")


def test_home_is_home_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made = build_settings(Outer, {"path": "~/a", "llm": "~/b"})
    assert made.path == tmp_path / "a" and made.llm == str(tmp_path / "b")
    recipe = build_settings(
        Recipe,
        {"runs": "~", "llm": "~/l", "start": "~/s", "clinical_features": {"weights": "~/w.pt"}}
        | {
            "image_tokenizer": {"perceptual": "~/p", "pretrained": "~/t"},
            "tuning": {"language": {"instructions": "~/i"}},
        }
        | {"source": {"kind": "table", "table": {"path": "~/x.csv", "images": "~/y"}}},
    )
    assert "~" not in str(settings_to_dict(recipe)).replace("~ is home", "")


def numbers_of(kind, key=""):
    """(key, type, range or None) of every number in a type, settings inside it included."""
    if isinstance(kind, type) and issubclass(kind, Settings):
        for name, inner in get_type_hints(kind, include_extras=True).items():
            yield from numbers_of(inner, f"{key}.{name}")
    elif get_args(kind) and get_args(kind)[0] in (int, float) and hasattr(kind, "__metadata__"):
        yield key, get_args(kind)[0], next(a for a in get_args(kind)[1:] if isinstance(a, Range))
    elif kind in (int, float):
        yield key, kind, None
    else:
        for inner in get_args(kind):
            yield from numbers_of(inner, key)


@pytest.mark.parametrize("cls", [Recipe, Sampling])
def test_every_number_has_a_range(cls):
    found = list(numbers_of(cls))
    assert len(found) > 5 and [key for key, _, allowed in found if allowed is None] == []
    assert all(math.isfinite(allowed.low) and math.isfinite(allowed.high) for _, _, allowed in found)


def test_ranges_are_shown():
    rows = {key: about for key, _, about in describe_settings(Recipe)}
    assert rows["tuning.lora_rank"].endswith("[1 to 4,096]")
    assert rows["tuning.stages.learning_rate"].endswith("[above 0, up to 1]")
    assert rows["tuning.method"].endswith("[lora | qlora | full]")
    for value, text in ((0.5, "0.5"), (0, "0"), (1, "1")):
        assert (value in Range(0, 1, above=True, below=True)) == (text == "0.5")


@pytest.mark.parametrize(
    "values",
    [{"temperature": math.nan}, {"temperature": -1}, {"top_p": 0}, {"top_p": 2}, {"seed": 2**64}, {"seed": -1}]
    + [{"max_new_tokens": 0}, {"top_k": -1}, {"guidance": 0}, {"guidance": math.inf}, {"seed": 1.5}],
)
def test_requests_are_checked_by_the_same_rules(values):
    with pytest.raises(UserError, match=f"Sampling has 1 fault:\n  - {next(iter(values))}: "):
        Sampling(**values)


BAD = {
    "twice": ("name: a\ninner: {steps: 1}\nname: b\n", "has name twice, in lines 1 and 3"),
    "twice inside": ("inner: {steps: 1, steps: 2}\n", "has steps twice, in lines 1 and 1"),
    "bomb": (
        "a: &a [" + "x," * 50 + "]\nb: &b [" + "*a," * 50 + "]\nc: [" + "*b," * 50 + "]\n",
        "more than 20,000 values",
    ),
    "endless": ("name: &a [*a]\n", "more than 20,000 values"),
    "deep": ("name: " + "[" * 100_000, "more than 30 groups"),
    "deep, blocks": ("".join(" " * i + "a:\n" for i in range(200)), "more than 30 groups"),
    "long number": ("name: " + "9" * 10_000 + "\n", "is not valid YAML"),
    "no date": ("name: 2024-13-45\n", "is not valid YAML"),
    "python": ("name: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    "two documents": ("name: a\n---\nname: b\n", "is not valid YAML"),
    "a list as a name": ("? [a]\n: b\n", "is not valid YAML"),
    "large": ("#" * 1_000_001, "more than 1,000,000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_no_one_means(tmp_path, name):
    text, message = BAD[name]
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_settings(Outer, path)
    assert str(path) in str(caught.value) and message in str(caught.value) and len(str(caught.value)) < 1000
    if len(text) < 1_000_000 and "twice" not in name:
        (tmp_path / "ok.yaml").write_text("")
        with pytest.raises(UserError, match="override"):
            load_settings(Outer, tmp_path / "ok.yaml", [f"inner={text}"])


def test_merged_groups_may_be_replaced(tmp_path):
    (tmp_path / "r.yaml").write_text("inner: &i {steps: 3, rate: 1}\noptional: {<<: *i, steps: 4}\n")
    assert load_settings(Outer, tmp_path / "r.yaml").optional == Inner(1.0, 4)


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([f.name for f in fields(Outer)]), VALUES, max_size=5))
@trials(max_examples=200, deadline=None)
def test_anything_is_taken_or_refused(values):
    try:
        made = build_settings(Outer, values)
    except UserError as error:
        assert str(error).startswith("the settings has ")
    else:
        assert build_settings(Outer, settings_to_dict(made)) == made


@given(st.text(alphabet="abc:[]{}&*!|>-<,'\"#?~ \n\t01.", max_size=60))
@trials(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text):
    try:
        parse_yaml(text, "this")
    except UserError as error:
        assert str(error).startswith("this")
