"""Devices and precision: what is faster here is taken, what is asked for is kept, and all processes do the same."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch
from toy_stage import together

from llmcxr.foundation import devices
from llmcxr.foundation.devices import (
    asked_precision,
    autocast,
    freed_memory_kept,
    measured_precision,
    precision,
    set_precision,
)
from llmcxr.foundation.processes import Processes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_set():
    measured_precision.cache_clear()
    devices._set.clear()
    yield
    measured_precision.cache_clear()
    devices._set.clear()


@pytest.mark.parametrize(
    ("slow", "expected"),
    [  # bfloat16's time in units of float32's, in training and in generating
        ((2.7, 2.7), (torch.float32, torch.float32)),
        ((0.5, 0.5), (torch.bfloat16, torch.bfloat16)),
        ((1.1, 1.1), (torch.bfloat16, torch.bfloat16)),
        ((2.7, 0.6), (torch.float32, torch.bfloat16)),
    ],
)
def test_the_faster_one_is_taken_for_each_use(slow, expected, monkeypatch):
    """bfloat16 was fixed: on CPUs without its instructions a run took three times as long."""

    def seconds(dtype, rows, inputs, outputs):
        return 1.0 if dtype == torch.float32 else slow[0] if rows > 8 else slow[1]

    monkeypatch.setattr(devices, "seconds_of_product", seconds)
    assert (precision(CPU, "training"), precision(CPU, "generating")) == expected
    with autocast(CPU):
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype == expected[0]


def test_it_is_measured_once_in_a_moment(monkeypatch):
    first = precision(CPU, "training")
    monkeypatch.setattr(devices, "seconds_of_product", lambda *_: pytest.fail("measured again"))
    assert precision(CPU, "training") == first and precision(CPU, "generating")


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_setting_overrides_and_measures_nothing(name, monkeypatch):
    monkeypatch.setattr(devices, "seconds_of_product", lambda *_: pytest.fail("measured"))
    set_precision(CPU, asked_precision(name, CPU))
    assert precision(CPU, "training") == precision(CPU, "generating") == getattr(torch, name)
    with autocast(CPU):
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype == getattr(torch, name)


def test_what_has_no_bfloat16_computes_in_float32(monkeypatch):
    assert set(measured_precision("mps").values()) == {torch.float32}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert set(measured_precision("cuda").values()) == {torch.float32}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    measured_precision.cache_clear()
    assert set(measured_precision("cuda").values()) == {torch.bfloat16}


def agree(processes: Processes, folder) -> None:
    faster = torch.float32 if processes.main else torch.bfloat16
    devices.measured_precision = lambda kind: dict.fromkeys(devices.SHAPES, faster)  # type: ignore[assignment]
    processes.agree_on_precision("auto")
    (folder / str(processes.rank)).write_text(f"{precision(CPU, 'training')} {precision(CPU, 'generating')}")


def test_all_processes_take_what_the_main_one_measured(tmp_path):
    assert together(agree, tmp_path) == [(0, ""), (0, "")]
    assert {(tmp_path / rank).read_text() for rank in "01"} == {"torch.float32 torch.float32"}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_kept_inside_and_returned_after():
    def new_pages() -> int:  # that the system had to clear for ten blocks of 64 MiB, one after the other
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.zeros(16 << 20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    one_block, before = (64 << 20) // resource.getpagesize(), resident()
    with freed_memory_kept():
        assert new_pages() < 2 * one_block
        assert resident() > before + one_block // 2
    assert resident() < before + one_block // 2
