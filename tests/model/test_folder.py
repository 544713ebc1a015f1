"""Every file of a model folder, damaged in every way we could think of, is one error with its name; nothing is taken
silently."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.assets import SHIPPED_MODELS
from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens.architecture import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.model.find import find_model
from llmcxr.model.folder import ModelInfo, load_info, save_model
from llmcxr.model.packed import unpack
from llmcxr.model.sums import check_sums, write_sums
from llmcxr.studies.geometry import Geometry
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K, S = 16, 32
SMALL = ArchitectureSettings(S, [32, 32, 32, 64], codebook_size=K, code_dim=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """A base LLM, a model made of it, and the same packed."""
    home = tmp_path_factory.mktemp("models")
    build_model("llama", 340, max_position_embeddings=256).save_pretrained(home / "llm")
    build_tokenizer().save_pretrained(home / "llm")
    torch.manual_seed(0)
    ImageTokenizer(SMALL).save_pretrained(home / "image_tokenizer")
    codec = ImageTokenizer.from_pretrained(home / "image_tokenizer")
    model, vocabulary = (
        build_model("llama", 340, max_position_embeddings=256),
        ImageVocabulary.grow(build_tokenizer(), K),
    )
    rows = torch.randn(K, model.config.hidden_size)
    grow_language_model(model, vocabulary, rows)
    info = ModelInfo(str(home / "llm"), K, codec.grid, S, codec.fingerprint, "chat", None, ("mass",), "impression", "0")
    save_model(home / "model", model, vocabulary, home / "image_tokenizer", info, ["0" * 16])
    packed = home / "packed"
    for part in ("image_tokenizer", "judge"):  # any network stands for the judge, which is not read here
        shutil.copytree(home / "image_tokenizer", packed / part)
    down, up = torch.zeros(2, model.config.hidden_size), torch.zeros(model.config.hidden_size, 2)
    name = "model.layers.0.self_attn.o_proj"
    adapters = {f"{name}.lora_A.default.weight": down, f"{name}.lora_B.default.weight": up, "table.rows": rows}
    save_file(adapters, packed / "adapters.safetensors")
    shutil.copy(home / "model" / "llmcxr.json", packed)
    write_json(packed / "packed.json", {"lora_rank": 2})
    write_sums(packed)
    return {"llm": home / "llm", "model": home / "model", "packed": packed}


@pytest.fixture
def copied(made, tmp_path, monkeypatch):
    """Copies to damage, and a cache of their own."""
    monkeypatch.setenv("LLMCXR_CACHE", str(tmp_path / "cache"))
    for name in ("model", "packed"):
        shutil.copytree(made[name], tmp_path / name)
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        LlmCxr.from_pretrained(folder, "cpu", "float32")
    return str(caught.value)


def change(path: Path, **values) -> None:
    write_json(path, json.loads(path.read_text()) | values)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_whole_one_is_read(copied):
    for name in ("model", "packed"):
        model = LlmCxr.from_pretrained(copied / name, "cpu", "float32")
        assert model.draw_codes(["a"]).shape == (1, 16)
    with pytest.raises(UserError, match="precision: 'float8' is not one of"):
        LlmCxr.from_pretrained(copied / "model", "cpu", "float8")  # type: ignore[arg-type]


def test_a_changed_file_is_found_wherever_it_lies(copied, made):
    names = [
        p.relative_to(made["model"]) for p in sorted(made["model"].rglob("*")) if p.is_file() and p.name != "SHA256SUMS"
    ]
    assert {"model.safetensors", "llmcxr.json", "tokenizer.json", "image_tokenizer/model.safetensors"} <= {
        *map(str, names)
    }
    for name in names:
        flip(copied / "model" / name)
        message = refusal(copied / "model")
        assert (
            str(copied / "model" / name) in message
            and "is damaged or was changed" in message
            and "run that again" in message
        )
        (copied / "model" / name).unlink()
        assert f"{copied / 'model' / name} is missing" in refusal(copied / "model") or name.name == "llmcxr.json"
        shutil.copy(made["model"] / name, copied / "model" / name)
    check_sums(copied / "model")
    (copied / "model" / "README.md").write_text("a card")
    check_sums(copied / "model")


def test_a_damaged_cache_is_to_be_deleted(copied):
    place = find_model(copied / "packed")
    assert place.is_relative_to(copied / "cache") and find_model(copied / "packed") == place
    flip(place / "model.safetensors")
    message = refusal(copied / "packed")
    assert f"Delete the folder {place}: it is made anew" in message and "model.safetensors is damaged" in message
    (place / "llmcxr.json").unlink()
    assert f"Delete the folder {place}" in refusal(copied / "packed")
    shutil.rmtree(place)
    LlmCxr.from_pretrained(copied / "packed", "cpu", "float32")
    (place / "SHA256SUMS").unlink()  # as an earlier version left it
    (place / "model.safetensors").unlink()
    LlmCxr.from_pretrained(copied / "packed", "cpu", "float32")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"template": "nope"}, "template: 'nope' is not one of 'paper', 'chat'"),
        ({"grid": 9}, "grid: 9 does not divide image_size (32)"),
        ({"grid": 8}, "image_tokenizer/ is not the one that llmcxr.json names; it has grid 4, not 8"),
        ({"grid": "4"}, "grid: '4' should be a whole number"),
        ({"codebook_size": 8}, "it has codebook_size 16, not 8"),
        ({"codebook_size": -1}, "codebook_size: -1 should be 2 to 65,536"),
        ({"image_tokenizer": "0" * 12}, "it has image_tokenizer"),
        ({"findings": "mass"}, "findings: 'mass' should be a list, each text"),
        ({"findings": [1]}, "findings[0]: 1 should be text"),
        ({"findings": ["mass", "Mass"]}, "findings: two of them are one"),
        ({"findings_first": ["nope"]}, "findings_first: 'nope' should be one of"),
        ({"decoding": {"report_candidates": 0}}, "decoding.report_candidates: 0 should be 1 to 1,000"),
        ({"decoding": {"report_guidance": float("nan")}}, "decoding.report_guidance: nan should be a finite number"),
        ({"decoding": {"report_guidance": 2.0}}, "decoding: not of a model that names findings first"),
        ({"decoding": None}, "decoding: should be a mapping of settings"),
        ({"unguided_share": 1}, "unguided_share: 1 should be 0 to below 1"),
        ({"views": None}, "views: None should be a list"),
        ({"report": "all"}, "report: 'all' is not one of"),
        ({"format": "3"}, "has format 3"),
        ({"format": 9}, "has format 9"),
        ({"surprise": 1}, "surprise: no such setting"),
    ],
)
def test_what_a_model_says_of_itself(copied, values, message):
    path = copied / "model" / "llmcxr.json"
    change(path, **values)
    write_sums(copied / "model")
    found = refusal(copied / "model")
    assert message in found and str(copied / "model") in found


def test_llmcxr_json_that_is_none(copied):
    path = copied / "model" / "llmcxr.json"
    for content in (b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        write_sums(copied / "model")
        assert str(path) in refusal(copied / "model")
    values = json.loads((copied / "packed" / "llmcxr.json").read_text())
    del values["grid"]
    write_json(path, values)
    write_sums(copied / "model")
    assert "grid: is required" in refusal(copied / "model")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3), st.lists, max_leaves=3
)


@given(
    st.sampled_from(
        ["base", "grid", "findings", "decoding", "template", "views", "version", "format", "unguided_share"]
    ),
    JSON,
)
@trials(max_examples=100, deadline=None)
def test_any_value_is_taken_or_refused(made, name, value):
    folder = made["model"].parent / "any"
    folder.mkdir(exist_ok=True)
    values = json.loads((made["model"] / "llmcxr.json").read_text())
    (folder / "llmcxr.json").write_text(json.dumps(values | {name: value}))
    try:
        assert isinstance(load_info(folder), ModelInfo)
    except UserError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model": 3}', '{"model_type": 3}', "[" * 100_000])
def test_damaged_files_of_the_language_model(copied, name, content):
    """Sums that were made of the damaged file do not help."""
    (copied / "model" / name).write_text(content)
    write_sums(copied / "model")
    try:
        LlmCxr.from_pretrained(copied / "model", "cpu", "float32")
    except UserError as error:
        assert str(copied / "model") in str(error)
    else:
        assert name in ("generation_config.json", "tokenizer_config.json") and content.startswith("{")


@pytest.mark.parametrize(
    "content", ["{% for", "{{ 1 / 0 }}", "{{ messages[0]['content'] }}", "{{ raise_exception('no') }}", "x"]
)
def test_damaged_chat_templates(copied, content):
    assert (copied / "model" / "chat_template.jinja").is_file()
    (copied / "model" / "chat_template.jinja").write_text(content)
    write_sums(copied / "model")
    assert "chat template" in refusal(copied / "model")


def test_weights_that_lack_something(copied):
    path = copied / "model" / "model.safetensors"
    state = load_file(path)
    for change_state in (
        lambda s: s.pop("model.layers.0.mlp.up_proj.weight"),
        lambda s: s.update({"model.norm.weight": torch.ones(3)}),
        lambda s: s.update({"model.embed_tokens.weight": s["model.embed_tokens.weight"][:345].clone()}),
    ):
        own = dict(state)
        change_state(own)
        save_file(own, path, {"format": "pt"})
        write_sums(copied / "model")
        assert str(copied / "model") in refusal(copied / "model")
    path.write_bytes(path.read_bytes()[:500])
    write_sums(copied / "model")
    assert "its model.safetensors" in refusal(copied / "model")


def test_code_of_a_checkpoint_is_never_run(copied):
    (copied / "model" / "evil.py").write_text("raise SystemExit('ran')")
    change(
        copied / "model" / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    )
    change(copied / "model" / "config.json", model_type="evil")
    write_sums(copied / "model")
    assert "could not be loaded" in refusal(copied / "model")  # and not SystemExit


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("packed.json", {}, "lora_rank: is required"),
        ("packed.json", {"lora_rank": "2"}, "lora_rank: '2' should be a whole number"),
        ("packed.json", {"lora_rank": 3}, "adapters of rank 2, not 3"),
        ("packed.json", [], "should be a mapping"),
        ("llmcxr.json", {"base": "no/such-base"}, "Fetch it yourself, once: hf download no/such-base"),
        ("llmcxr.json", {"base": "/no/such/base"}, "without its base LLM"),
        ("llmcxr.json", {"codebook_size": 32}, "holds no 32 image rows"),
    ],
)
def test_packed_models_that_were_put_together_wrongly(copied, name, content, message):
    path = copied / "packed" / name
    write_json(path, content if name == "packed.json" else json.loads(path.read_text()) | content)
    write_sums(copied / "packed")
    with pytest.raises(UserError) as caught:
        unpack(copied / "packed")
    assert message in str(caught.value) and str(copied / "packed") in str(caught.value)


def test_a_packed_model_never_goes_to_the_network(copied, monkeypatch):
    """Every connection is an error here; the hub's own cache is read."""

    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    change(copied / "packed" / "llmcxr.json", base="someone/base")
    write_sums(copied / "packed")
    with pytest.raises(UserError, match="hf download someone/base"):
        unpack(copied / "packed")


@pytest.mark.parametrize(
    "line", ["x  /etc/passwd", "0" * 64 + "  ../llm/config.json", "0" * 64 + "  /dev/zero", "no sums"]
)
def test_sums_that_name_no_file_of_the_model(copied, line):
    (copied / "model" / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(UserError, match=r"SHA256SUMS, line 1: is not a hash and a file of the model"):
        check_sums(copied / "model")


def test_geometry_travels_with_the_model(tmp_path):
    for geometry in (Geometry(), Geometry("pad", cut_borders=True)):
        info = ModelInfo("llm", 16, 2, 192, "", "chat", None, ("nodule",), "impression", "0.1", geometry=geometry)
        values = asdict(info)
        (tmp_path / "llmcxr.json").write_text(json.dumps(values))
        assert load_info(tmp_path) == info
    del values["geometry"]  # models from before it was a choice
    (tmp_path / "llmcxr.json").write_text(json.dumps(values))
    assert load_info(tmp_path).geometry == load_info(SHIPPED_MODELS / "phantom").geometry == Geometry()
    (tmp_path / "llmcxr.json").write_text(json.dumps(values | {"geometry": {"square": "round"}}))
    with pytest.raises(UserError, match=r"llmcxr\.json.*(?s:.*)square"):
        load_info(tmp_path)
