"""Settings: what a user may write, every way to get it wrong, and the help that comes from the same definition."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Literal

import pytest

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings, describe_settings, load_settings, setting, settings_to_dict
from llmcxr.recipe import Recipe


@dataclass(frozen=True)
class Inner:
    rate: float = setting(1e-3, "a rate")
    steps: int = setting(10, "steps")
    widths: list[int] = setting([1, 2], "widths")

    def faults(self) -> list[str]:
        return [f"steps: {self.steps} is below 1"] if self.steps < 1 else []


@dataclass(frozen=True)
class Outer:
    name: str = setting("run", "a name")
    mode: Literal["lora", "full"] = setting("lora", "a mode")
    inner: Inner = setting(Inner(), "inner")
    many: list[Inner] = setting([Inner()], "a list")
    path: Path | None = setting(None, "a path")
    weights: dict[str, float] = setting({}, "weights")
    optional: Inner | None = setting(None, "maybe")
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
        ({"name": 3}, "name: 3 should be str"),
        ({"flag": 1}, "flag: 1 should be bool"),
        ({"inner": {"steps": True}}, "inner.steps: True should be int"),
        ({"inner": {"steps": 1.5}}, "inner.steps: 1.5 should be int"),
        ({"inner": {"rate": None}}, "inner.rate: None should be float"),
        ({"inner": {"widths": 3}}, "inner.widths: 3 should be list[int]"),
        ({"inner": {"widths": [1, "b"]}}, "inner.widths[1]: 'b' should be int"),
        ({"inner": [1]}, "inner: should be a mapping of settings, is [1]"),
        ({"inner": None}, "inner: should be a mapping of settings, is None"),
        ({"weights": {"a": "b"}}, "weights.a: 'b' should be float"),
        ({"optional": {"setps": 1}}, "optional.setps: no such setting"),
        ({"mode": True}, "mode: True is not one of 'lora', 'full'"),
        ({"path": 3}, "path: 3 should be Path"),
    ],
)
def test_wrong_types_are_named(values, key):
    lines = fault_lines(values)
    assert lines[0] == "x.yaml has 1 fault:" and lines[1].startswith("  - " + key), lines


def test_a_required_setting():
    @dataclass(frozen=True)
    class Needs:
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
    wanted = {key for key in keys_of(recipe) if key != "source.table"}
    assert wanted <= set(described)
    assert any(key.startswith("source.table.") for key in described)
    assert [key for key, _, about in rows if not about] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a/b"}, "name: 'a/b' should be the name of a folder"),
        ({"source": {"kind": "table"}}, "table: is required where kind is table"),
        ({"source": {"kind": "tabel"}}, "kind: 'tabel' is not one of phantom, table"),
        ({"image_tokenizer": {"architecture": {"channels": []}}}, "image_tokenizer.architecture.channels"),
        ({"image_tokenizer": {"architecture": {"channels": [0]}}}, "image_tokenizer.architecture.channels"),
        ({"image_tokenizer": {"architecture": {"channels": [48]}}}, "channels: [48] are not positive multiples of 32"),
        ({"image_tokenizer": {"architecture": {"image_size": 250}}}, "250 is not a multiple of 16"),
        ({"tuning": {"stages": []}}, "tuning.stages"),
        ({"tuning": {"stages": [{"name": "model"}]}}, "tuning.stages[0].name: 'model' is the name of something else"),
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
