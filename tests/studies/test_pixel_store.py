"""Images in one file: rows are those of the studies kept, selections copy nothing, and what fails says so."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llmcxr.foundation.errors import UserError
from llmcxr.studies import image_notes, pixel_store
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.study import Study

S = 4


def write_images(folder: Path, count: int, broken: tuple[int, ...] = ()) -> list[Study]:
    """Images whose first pixel is their number, those of `broken` not readable."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.array([[i, 255], [0, 255]], dtype=np.uint8).repeat(2, 0).repeat(2, 1)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        if i in broken:
            (folder / f"{i}.png").write_bytes(b"broken")
    return [Study(str(i), str(i), str(i), f"{i}.png", "train") for i in range(count)]


@pytest.fixture
def store(tmp_path) -> PixelStore:
    PixelStore.write(tmp_path / "pixels.npy", write_images(tmp_path, 9), tmp_path, S)
    return PixelStore.open(tmp_path / "pixels.npy")


def test_rows_are_the_studies_kept(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(pixel_store, "_BLOCK", 5)
    path, studies = tmp_path / "pixels.npy", write_images(tmp_path, 40, broken=(7,))
    kept, notes = PixelStore.write(path, studies, tmp_path, S)
    assert [s.image_id for s in kept] == [str(i) for i in range(40) if i != 7]
    assert image_notes.left_out(notes) == {"unreadable image": 1} and "7.png" in caplog.text
    store = PixelStore.open(path)
    assert store.shape == (39, S, S) and store.dtype == np.uint8
    assert [int(image[0, 0]) for image in store] == [int(s.image_id) for s in kept]
    np.testing.assert_array_equal(np.load(path), store[:])  # an ordinary .npy file, as long as it says
    assert path.stat().st_size == 128 + 39 * S * S


def test_unreadable_images_are_counted_over_all(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_store, "_BLOCK", 5)
    studies = write_images(tmp_path, 41, broken=(40,))  # the whole of the last block
    assert len(PixelStore.write(tmp_path / "p.npy", studies, tmp_path, S)[0]) == 40
    studies = write_images(tmp_path, 41, broken=(5, 6, 7, 8))
    assert len(PixelStore.write(tmp_path / "p.npy", studies, tmp_path, S)[0]) == 37
    before = (tmp_path / "p.npy").read_bytes()
    studies = write_images(tmp_path, 41, broken=(5, 6, 7, 8, 9))
    with pytest.raises(UserError, match="5 of 41 images cannot be read"):
        PixelStore.write(tmp_path / "p.npy", studies, tmp_path, S)
    assert (tmp_path / "p.npy").read_bytes() == before
    assert len(PixelStore.write(tmp_path / "p.npy", studies[4:8], tmp_path, S)[0]) == 1  # three may always fail
    with pytest.raises(UserError, match="1 of 1"):
        PixelStore.write(tmp_path / "p.npy", studies[5:6], tmp_path, S)


def test_a_selection_is_indexed_as_an_array_is(store):
    rows = np.array([8, 1, 5, 5])
    array, view = np.asarray(store[:])[rows], store.select(rows)
    assert view.shape == array.shape and len(view) == 4 and view.dtype == array.dtype
    for index in (0, -1, np.int64(2), slice(1, 3), slice(None, None, -1), [3, 0], np.array([2, 2]), np.array([], int)):
        np.testing.assert_array_equal(view[index], array[index])
        assert type(view[index]) is np.ndarray
    np.testing.assert_array_equal(view.select([3, 0])[:], array[[3, 0]])
    np.testing.assert_array_equal(view.select([])[:], array[:0])
    for wrong in (4, [0, 9]):
        with pytest.raises(IndexError):
            view[wrong]


def test_rows_are_read_without_preadv_too(store, monkeypatch):
    whole = store[:]
    monkeypatch.delattr(os, "preadv", raising=False)
    np.testing.assert_array_equal(store[[3, 8, 0]], whole[[3, 8, 0]])


def test_a_file_that_is_cut_off_is_named(store, tmp_path):
    os.truncate(tmp_path / "pixels.npy", 200)
    with pytest.raises(UserError, match="cut off"):
        store[8]
    with pytest.raises(UserError, match="is not readable"):
        PixelStore.open(tmp_path / "pixels.npy")


def test_it_travels_to_other_processes_by_its_path(store):
    view = store.select(np.arange(9)[::-1])
    packed = pickle.dumps(view)
    np.testing.assert_array_equal(pickle.loads(packed)[:], view[:])
    assert len(packed) < 1000


def test_a_file_in_use_is_let_go_before_it_is_replaced(store, tmp_path, monkeypatch):
    """As Windows asks: it replaces no file that is open."""
    view, replace = store.select([1, 2]), os.replace
    rows = view[:]

    def replaced(source, target):
        assert len(store) == len(view) == 0
        used = [os.path.realpath(p) for p in Path("/proc/self/fd").glob("*")]  # none where there is no /proc
        assert os.path.realpath(target) not in used and store._file.closed and view._file.closed
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    PixelStore.write(tmp_path / "pixels.npy", write_images(tmp_path, 3), tmp_path, S)
    assert rows[:, 0, 0].tolist() == [1, 2] and len(PixelStore.open(tmp_path / "pixels.npy")) == 3


@pytest.mark.parametrize("reserves", [True, False])
def test_a_full_disk_is_one_error_before_anything_is_read(tmp_path, small_disk, monkeypatch, reserves):
    studies, read = write_images(tmp_path / "images", 3), []
    for path in (tmp_path / "images").iterdir():
        Image.open(path).resize((64, 64)).save(path)
    monkeypatch.setattr(pixel_store, "read_image", lambda *given: read.append(given) or image_notes.read_image(*given))
    if not reserves:  # as on Windows: a write fails
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    size = r"it takes 196\.7 kB" if reserves else "of it were written"
    with pytest.raises(
        UserError, match=rf"cannot write .*pixels\.npy: (No space left|File too large).*{size}.*run again"
    ):
        PixelStore.write(small_disk / "pixels.npy", studies, tmp_path / "images", 256)
    assert os.listdir(small_disk) == [] and bool(read) != reserves


def test_what_waits_is_not_read_once_reading_is_broken_off(tmp_path, monkeypatch):
    studies, read = write_images(tmp_path, 200), []

    def slow(study, *given):
        read.append(study)
        time.sleep(0.01)
        if study.image_id == "5":
            raise KeyboardInterrupt
        return image_notes.read_image(study, *given)

    monkeypatch.setattr(pixel_store, "read_image", slow)
    with pytest.raises(KeyboardInterrupt):
        PixelStore.write(tmp_path / "pixels.npy", studies, tmp_path, S)
    assert len(read) < 50 and not list(tmp_path.glob("*pixels*"))


def test_what_is_no_store_is_named(tmp_path):
    with pytest.raises(UserError, match="Run the `studies` stage first"):
        PixelStore.open(tmp_path / "pixels.npy")
    for content in (np.zeros((2, 3)), np.zeros((2, 3, 3))):
        np.save(tmp_path / "pixels.npy", content)
        with pytest.raises(UserError, match="is not readable"):
            PixelStore.open(tmp_path / "pixels.npy")
    (tmp_path / "pixels.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="is not readable"):
        PixelStore.open(tmp_path / "pixels.npy")
