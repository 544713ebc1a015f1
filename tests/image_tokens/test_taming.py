"""Files of taming-transformers: the same codes and pictures as the reference that keeps taming's names, and nothing misread."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torchxrayvision.baseline_models.ieee8023.vqgan import VQModel

from llmcxr.cli import main
from llmcxr.foundation import devices
from llmcxr.foundation.checkpoints import load_foreign
from llmcxr.foundation.errors import UserError
from llmcxr.image_tokens import taming
from llmcxr.image_tokens.settings import ArchitectureSettings
from llmcxr.image_tokens.taming import export_taming, import_taming
from llmcxr.image_tokens.tokenizer import ImageTokenizer

SMALL = {
    "double_z": False,
    "z_channels": 16,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}
PAPER = SMALL | {
    "resolution": 256,
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
}
PAPER |= {"z_channels": 256}
# As the two that TorchXRayVision publishes: 24 x 24 codes of 64 dimensions from five halvings of 768 px, 12 x 12 of 128 from six.
XRV = [
    SMALL | {"resolution": 64, "ch_mult": [1, 1, 1, 1, 2, 2]},
    SMALL | {"resolution": 64, "ch_mult": [1, 1, 1, 1, 1, 2, 2]},
]


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Codes of two implementations are compared."""
    monkeypatch.setitem(devices._set, "cpu", dict.fromkeys(devices.SHAPES, torch.float32))


def pictures(count: int, layout: dict) -> torch.Tensor:
    S = layout["resolution"]
    drawn = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return F.interpolate(drawn, size=(S, S), mode="bicubic").clamp(-1, 1)


def reference(layout: dict, codes: int = 64, dim: int = 8) -> VQModel:
    """Random weights of a layout, with code vectors among what its encoder gives, as training brings about."""
    torch.manual_seed(0)
    model = VQModel(layout, codes, dim).eval().requires_grad_(False)
    z = model.quant_conv(model.encoder(pictures(2, layout).expand(-1, layout["in_channels"], -1, -1))).movedim(1, -1)
    z = z.reshape(-1, dim)
    model.quantize.embedding.weight.copy_(z.mean(0) + z.std(0) * torch.randn(codes, dim))
    return model


def write(folder: Path, model: VQModel, layout: dict, extra: dict | None = None, **params) -> Path:
    """A checkpoint as taming's trainer leaves it, and its configuration; its path."""
    e = model.quantize.embedding.weight
    state = model.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(3), "loss.logvar": torch.zeros(())}
    torch.save({"epoch": 3, "global_step": 9, "state_dict": state} | (extra or {}), folder / "last.ckpt")
    params = {"embed_dim": e.shape[1], "n_embed": e.shape[0], "ddconfig": layout} | params
    described = {"model": {"base_learning_rate": 4.5e-6, "target": "taming.models.vqgan.VQModel", "params": params}}
    (folder / "2021-12-17T08-58-54-project.yaml").write_text(yaml.safe_dump(described))
    return folder / "last.ckpt"


def check_equal(layout: dict, count: int, folder: Path, codes: int = 64, dim: int = 8) -> None:
    """Codes are those of the reference (but for ties of rounding), pictures within 1e-4."""
    model = reference(layout, codes, dim)
    own = import_taming(write(folder, model, layout))
    x = pictures(count, layout)
    wide = x.expand(-1, layout["in_channels"], -1, -1)
    quantized, _, (_, _, indices) = model.encode(wide)
    expected = indices.reshape(count, own.grid, own.grid)
    found = own.encode(x)
    assert len(expected.unique()) > 3
    z, e = model.quant_conv(model.encoder(wide)).movedim(1, -1).double(), own.codebook.double()
    for at in (found != expected).nonzero().tolist():
        a, b = (torch.dist(z[tuple(at)], e[c[tuple(at)]]) for c in (found, expected))
        assert abs(a - b) < 1e-5 * a
    assert (found != expected).float().mean() < 1e-4
    torch.testing.assert_close(
        own.decode(expected), model.decode(quantized).mean(1, True).clamp(-1, 1), atol=1e-4, rtol=0
    )


def test_codes_and_pictures_are_those_of_the_reference_on_a_thousand_images(tmp_path):
    check_equal(SMALL, 1000, tmp_path)


@pytest.mark.parametrize("layout", [SMALL | {"in_channels": 1, "out_ch": 1}, *XRV, SMALL | {"attn_resolutions": []}])
def test_other_layouts_of_taming(layout, tmp_path):
    check_equal(layout, 8, tmp_path)


def test_the_papers_layout_whole(tmp_path):
    """All its weights, on an image of a quarter of the side; and our defaults are its sizes."""
    small = PAPER | {"resolution": 64, "attn_resolutions": [4]}
    check_equal(small, 2, tmp_path, 1024, 256)
    (config,) = tmp_path.glob("*.yaml")
    described = yaml.safe_load(config.read_text())
    described["model"]["params"]["ddconfig"] = PAPER
    config.write_text(yaml.safe_dump(described))
    a = import_taming(tmp_path / "last.ckpt").architecture
    assert a == ArchitectureSettings(codebook="euclidean", image_channels=3)


def lightning(monkeypatch) -> dict:
    """What Lightning leaves in a checkpoint: classes as keys, objects with state, mappings and lists of classes of its own."""

    class ModelCheckpoint:
        def __init__(self) -> None:
            self.monitor, self.best = "val/rec_loss", torch.tensor(0.5)

        def __setstate__(self, state: dict) -> None:
            raise AssertionError("code of the file's classes ran")

    class AttributeDict(dict):
        pass

    class Scalar:
        def __reduce__(self):
            return AttributeDict, ()

    module = types.ModuleType("pytorch_lightning_like")
    for made in (ModelCheckpoint, AttributeDict, Scalar):
        made.__module__, made.__qualname__ = module.__name__, made.__name__
        setattr(module, made.__name__, made)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return {
        "callbacks": {ModelCheckpoint: {"best_model_score": np.float64(0.25)}, Scalar: {"path": Path("last.ckpt")}},
        "hyper_parameters": AttributeDict(lr=1e-4, inner=AttributeDict(a=[1, 2])),
        "loops": [ModelCheckpoint(), Scalar(), {1, 2}, OrderedDict(a=1)],
        "dtype": np.dtype("float32"),
    }


def test_lightnings_objects_are_passed_over_without_running_them(tmp_path, monkeypatch):
    model = reference(SMALL)
    path = write(tmp_path, model, SMALL, lightning(monkeypatch))
    monkeypatch.delitem(sys.modules, "pytorch_lightning_like")  # it is not installed where the file is read
    read = load_foreign(path)
    assert read["global_step"] == 9 and read["hyper_parameters"] == {"lr": 1e-4, "inner": {"a": [1, 2]}}
    assert "pytorch_lightning_like" not in sys.modules
    assert torch.equal(import_taming(path).codebook, model.quantize.embedding.weight)


class _Opens:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_file_that_would_run_something_does_not(tmp_path):
    import subprocess

    ran = tmp_path / "ran"
    for function in (os.system, subprocess.getoutput):
        path = write(tmp_path, reference(SMALL), SMALL, {"x": _Opens(function, f"touch {ran}")})
        try:
            import_taming(path)
        except UserError as error:
            assert "cannot be read" in str(error)  # modules of the system are refused even by name
        assert not ran.exists()


@pytest.mark.parametrize("around", ["", "first_stage_model.", "module."])
def test_weights_under_a_prefix_alone_and_as_safetensors(around, tmp_path):
    model = reference(SMALL)
    path = write(tmp_path, model, SMALL)
    state = {around + k: v.contiguous() for k, v in model.state_dict().items()}
    torch.save(state, path)
    save_file(state, tmp_path / "last.safetensors")
    for file in (path, tmp_path / "last.safetensors"):
        assert torch.equal(import_taming(file).codebook, model.quantize.embedding.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ddconfig": SMALL | {"double_z": True}}, "of another network than VQ-GAN's: double_z: True, not False"),
        ({"ddconfig": SMALL | {"ch_mult": [2, 4]}}, r"ch_mult: \[2, 4\] does not begin with 1"),
        ({"ddconfig": SMALL | {"ch_mult": [1, "x"]}}, r"ddconfig.ch_mult should be whole .* are 32 and \[1, 'x'\]"),
        ({"ddconfig": SMALL | {"ch": None}}, "ddconfig.ch and ddconfig.ch_mult should be whole numbers above 0"),
        ({"ddconfig": SMALL | {"ch": 48}}, r"ddconfig.ch_mult: \[48, 48\] are not multiples of 32 \(the widths"),
        ({"ddconfig": SMALL | {"out_ch": 1}}, "in_channels: 3, but out_ch: 1"),
        ({"ddconfig": SMALL | {"in_channels": 4, "out_ch": 4}}, "ddconfig.in_channels: 4 is not one of 1, 3"),
        ({"ddconfig": {k: v for k, v in SMALL.items() if k != "ch"}}, "ch is missing"),
        (
            {"ddconfig": SMALL | {"resolution": 18}},
            r"ddconfig.resolution: 18 is not a multiple of 4 \(halvings by ddconfig.ch_mult\)",
        ),
        ({"ddconfig": None}, "not a VQ-GAN: a VQModel has n_embed, embed_dim and ddconfig"),
        ({"unet_config": {}}, "a diffusion model or transformer over an autoencoder"),
        ({"ddconfig": SMALL | {"num_res_blocks": 2}}, r"encoder\.down\.0\.block\.1\.norm1\.weight is missing.* more\)"),
        ({"ddconfig": SMALL | {"attn_resolutions": []}}, r"attn\.0\.norm\.weight is of no part of that network"),
        ({"n_embed": 32}, r"quantize\.embedding\.weight is of \[1, 64, 8\], not \[1, 32, 8\]"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(change, message, tmp_path):
    path = write(tmp_path, reference(SMALL), SMALL, **change)
    with pytest.raises(UserError, match=message):
        import_taming(path)


WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=4)
)


@given(st.sampled_from(["n_embed", "embed_dim", *(k for k in SMALL if k != "dropout")]), WRONG)
def test_a_wrong_value_is_said_by_the_files_own_key(tmp_path_factory, key, value):
    """Whatever stands there, it is a layout, or one error that names the file and its key, and none of our settings."""
    params = {"embed_dim": 8, "n_embed": 64, "ddconfig": SMALL}
    changed = params | {key: value} if key in params else params | {"ddconfig": SMALL | {key: value}}
    path = tmp_path_factory.mktemp("yaml") / "project.yaml"
    path.write_text(yaml.safe_dump({"model": {"target": "taming.models.vqgan.VQModel", "params": changed}}))
    try:
        taming._architecture(path)
    except UserError as error:
        said = str(error)
        assert str(path) in said and key in said
        own = {f.name for f in dataclasses.fields(ArchitectureSettings)} - {"z_channels"}
        assert not own & set(re.findall(r"\w+", said.replace(str(path), "").replace(repr(value), "")))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"model.diffusion_model.out.weight": torch.zeros(1)}, "is a diffusion model"),
        ({"transformer.tok_emb.weight": torch.zeros(1)}, "is a transformer over codes"),
        ({"quantize.embed.weight": torch.zeros(1)}, "Gumbel"),
        ({"layer1.weight": torch.zeros(1)}, r"has no quantize\.embedding\.weight \(but layer1\.weight"),
        ({"epoch": 1}, "holds no weights"),
        ([1], "holds no weights"),
    ],
)
def test_a_wrong_checkpoint_says_what_it_is(state, message, tmp_path):
    path = write(tmp_path, reference(SMALL), SMALL)
    torch.save(state, path)
    with pytest.raises(UserError, match=message):
        import_taming(path)


def test_files_that_are_broken_or_not_there(tmp_path):
    path = write(tmp_path, reference(SMALL), SMALL)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read as a file of torch\.save .* downloaded whole"):
        import_taming(path)
    with pytest.raises(UserError, match=r"none\.ckpt is no file"):
        import_taming(tmp_path / "none.ckpt")
    (tmp_path / "another.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="2 configurations .* Give the one of this checkpoint"):
        import_taming(path)
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"another\.yaml is no configuration of taming-transformers"):
        import_taming(path, tmp_path / "another.yaml")


def test_commands_there_and_back(tmp_path, capsys):
    """Imported, exported, and read by the reference: the same weights. What taming has no word for is refused."""
    model = reference(SMALL)
    path = write(tmp_path, model, SMALL)
    folder, out = tmp_path / "tokenizer", tmp_path / "out" / "ours.ckpt"
    assert main(["import", "tokenizer", str(path), str(folder)]) == 0
    assert "16 px, 4 x 4 codes of 64" in capsys.readouterr().out
    assert main(["export", str(folder), str(out), "--to", "taming"]) == 0
    torch.testing.assert_close(torch.load(out)["state_dict"], dict(model.state_dict()), rtol=0, atol=0)
    layout = yaml.safe_load(out.with_suffix(".yaml").read_text())["model"]["params"]
    again = VQModel(layout["ddconfig"], layout["n_embed"], layout["embed_dim"])
    again.load_state_dict(torch.load(out)["state_dict"])
    own, x = ImageTokenizer.from_pretrained(folder), pictures(2, SMALL)
    assert torch.equal(import_taming(out).encode(x), own.encode(x))
    for change, fault in (({"codebook": "cosine"}, "by angle"), ({"kind": "mixer", "patch": 4}, "kind mixer")):
        other = ImageTokenizer(ArchitectureSettings(16, [32, 32], 64, 8, **change))
        with pytest.raises(UserError, match=fault):
            export_taming(other, out)
