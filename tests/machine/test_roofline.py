"""The ceiling's arithmetic with scripted timers, a real measurement in small, and cache sizes as Linux lists them."""

from __future__ import annotations

import math

import pytest
import torch

from kvtool.machine import roofline
from kvtool.machine.roofline import (
    Ceiling,
    Kernel,
    best_rate,
    copy_kernel,
    last_level_cache_bytes,
    measure_roofline,
    race,
    read_kernels,
    stream_buffer_bytes,
)
from kvtool.system.errors import DeviceError
from kvtool.units import GIB, KIB, MIB


def test_one_lucky_turn_does_not_set_the_ceiling_and_a_slow_stretch_does_not_lower_it():
    assert best_rate([10, 10, 99, 10, 10]) == 10
    assert best_rate([10, 10, 10, 2, 2, 2, 2, 2]) == 10
    assert best_rate([7]) == 7


def test_kernels_take_turns_and_at_least_a_window_of_them():
    log = []
    kernels = [Kernel(name, lambda name=name: log.append(name), 100) for name in "ab"]
    rates = race(kernels, timer=lambda call: call() or 0.5, seconds=0)
    assert rates == {"a": [200.0] * 3, "b": [200.0] * 3}
    assert "".join(log) == "ab" + "ababab"


def test_every_read_kernel_counts_the_whole_buffer_and_copy_counts_both_ways():
    buffer = torch.ones(8192 * 8, dtype=torch.bfloat16)
    kernels = read_kernels(buffer)
    assert {kernel.work for kernel in kernels} == {8192 * 8 * 2}
    read = {kernel.name: kernel.call() for kernel in kernels}
    if (all_words := read.pop("read compiled", None)) is not None:
        assert all_words == 0x3F803F80 * 8192 * 4 % 2**32
    assert all(torch.isfinite(result).all() for result in read.values())
    copy = copy_kernel(torch.arange(10.0))
    assert copy.work == 40
    assert copy.call().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_small_measurement_is_complete_and_finite(monkeypatch, dtype):
    monkeypatch.setattr(roofline, "stream_buffer_bytes", lambda device, llc_bytes: 4 * MIB)
    ceiling = measure_roofline("cpu", dtype, seconds=0.05)
    assert ceiling.read_gbps == max(v for k, v in ceiling.kernels.items() if k.startswith("read"))
    assert ceiling.copy_gbps == ceiling.kernels["copy"]
    assert ceiling.tflops == max(v for k, v in ceiling.kernels.items() if k.startswith("matmul"))
    assert all(0 < v < math.inf for v in ceiling.kernels.values())
    assert ceiling.samples.keys() == ceiling.kernels.keys()
    assert min(ceiling.samples.values()) >= roofline.WINDOW


def test_a_measurement_leaves_the_random_stream_alone(monkeypatch):
    monkeypatch.setattr(roofline, "stream_buffer_bytes", lambda device, llc_bytes: MIB)
    before = torch.get_rng_state()
    measure_roofline("cpu", torch.float32, seconds=0.01)
    assert torch.equal(before, torch.get_rng_state())


def test_no_room_for_the_buffer_is_one_line(monkeypatch):
    monkeypatch.setattr(roofline, "stream_buffer_bytes", lambda device, llc_bytes: 4 * MIB)

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(torch, "empty", out_of_memory)
    with pytest.raises(DeviceError, match="cpu has no room for the 4 MiB"):
        measure_roofline("cpu", torch.float32)


def test_the_better_of_two_measurements_figure_by_figure():
    def ceiling(read, copy):
        return Ceiling(
            read_gbps=read,
            copy_gbps=copy,
            tflops=1.0,
            read_buffer_bytes=1,
            llc_bytes=None,
            dtype="bfloat16",
            kernels={"read sum": read, "copy": copy},
            samples={"read sum": 3, "copy": 4},
        )

    best = ceiling(10, 5).best_of(ceiling(8, 7))
    assert (best.read_gbps, best.copy_gbps) == (10, 7)
    assert best.kernels == {"read sum": 10, "copy": 7}
    assert best.samples == {"read sum": 6, "copy": 8}


@pytest.mark.parametrize(
    ("device", "llc_bytes", "expected"),
    [
        ("cpu", None, 256 * MIB),
        ("cpu", 2 * MIB, 256 * MIB),
        ("cpu", 105 * MIB, 420 * MIB),
        ("cpu", 200 * MIB, 512 * MIB),
        ("cpu", 768 * MIB, 1536 * MIB),
        ("cuda", 50 * MIB, GIB),
        ("cuda:0", 256 * MIB, GIB),
    ],
)
def test_the_buffer_is_larger_than_the_cache_and_bounded(device, llc_bytes, expected):
    assert stream_buffer_bytes(device, llc_bytes) == expected


def write_cache(root, index, level, kind, size):
    folder = root / f"index{index}"
    folder.mkdir()
    for name, value in (("level", level), ("type", kind), ("size", size)):
        (folder / name).write_text(f"{value}\n")


def test_the_last_level_is_the_highest_that_linux_lists(tmp_path):
    write_cache(tmp_path, 0, 1, "Data", "48K")
    write_cache(tmp_path, 1, 1, "Instruction", "32K")
    write_cache(tmp_path, 2, 2, "Unified", "2048K")
    assert last_level_cache_bytes("cpu", tmp_path) == 2 * MIB
    write_cache(tmp_path, 3, 3, "Unified", "107520K")
    assert last_level_cache_bytes("cpu", tmp_path) == 107520 * KIB


def test_an_unlisted_or_odd_cache_is_none(tmp_path):
    assert last_level_cache_bytes("cpu", tmp_path) is None
    write_cache(tmp_path, 0, 3, "Unified", "lots")
    assert last_level_cache_bytes("cpu", tmp_path) is None
