"""Limits beside iterations, with a scripted device whose speed halves and doubles in the middle of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvtool.kernels.cpu import native
from kvtool.machine import interleaved, roofline
from kvtool.machine.interleaved import Windows
from kvtool.machine.roofline import WINDOW, Ceiling, Kernel, product_name, weights_kernels
from kvtool.units import MIB

PRODUCTS = {product_name((512, 512, 512)): 0.3, product_name((2048, 2048, 2048)): 0.4}
BEST = Ceiling(
    read_gbps=60.0,
    copy_gbps=50.0,
    tflops=0.4,
    read_buffer_bytes=MIB,
    llc_bytes=None,
    dtype="bfloat16",
    kernels={"read sum": 60.0, "read dot": 55.0, "read matrix-vector": 20.0} | PRODUCTS,
    samples={},
)


def test_a_case_takes_the_better_of_the_windows_around_each_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows("cpu", torch.bfloat16, BEST)
    speeds = iter([60.0, 60.0, 30.0, 30.0])
    calls: list[float] = []

    def scripted(call: object) -> float:
        calls.append(calls[-1] if len(calls) % (3 * WINDOW) else next(speeds))  # two reads and a product, in turns
        return MIB / (calls[-1] * 1e9)

    monkeypatch.setattr(windows, "_timer", scripted)
    for _ in range(4):
        windows.measure()
    assert [round(beside.limit.read_gbps, 6) for beside in windows.take()] == [60.0, 60.0, 30.0]
    assert windows.take() == []


class Reader:
    """Compiled kernels, as far as they read: told what was read."""

    def __init__(self) -> None:
        self.read: list[torch.Tensor] = []

    def read_all(self, weight: torch.Tensor) -> int:
        self.read.append(weight)
        return 0


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    reader = Reader()
    monkeypatch.setattr(native, "native", lambda: reader)
    return reader


@pytest.mark.usefixtures("reader")
def test_an_iteration_has_the_weights_read_just_before_it_and_just_after(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows("cpu", torch.bfloat16, BEST, [torch.ones(2**16, dtype=torch.bfloat16)])
    speeds = iter([10.0, 40.0, 90.0, 20.0])  # two windows, each with the weights at both of its ends

    def scripted(kernels: list[Kernel], timer: object) -> float:
        return 1e9 * (next(speeds) if [kernel.name for kernel in kernels] == ["read weights"] else 50.0)

    monkeypatch.setattr(interleaved, "race_rate", scripted)
    windows.measure()
    windows.measure()
    (beside,) = windows.take()
    assert beside.weights_gbps == pytest.approx(60.0)  # the geometric mean of 40 and 90
    assert beside.limit.read_gbps == 50.0


def test_of_large_weights_the_first_are_read(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.ones(2**10), torch.ones(2**10), torch.ones(2**10)]
    monkeypatch.setattr(roofline, "MOST_WEIGHTS_BYTES", 2 * weights[0].nbytes)
    (kernel,) = weights_kernels(weights)
    kernel.call()
    assert (kernel.work, [id(weight) for weight in reader.read]) == (2 * weights[0].nbytes, list(map(id, weights[:2])))


def test_what_cannot_be_read_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "native", lambda: None)
    windows = Windows("cpu", torch.bfloat16, BEST, [torch.ones(2**10)])
    windows.measure()
    windows.measure()
    assert [beside.weights_gbps for beside in windows.take()] == [None]


def test_the_fastest_kernels_that_are_over_soon_take_turns() -> None:
    windows = Windows("cpu", torch.float32, replace(BEST, kernels=BEST.kernels | {product_name((512,) * 3): 0.5}))
    assert {kernel.name for kernel in windows._reads} == {"read sum", "read dot"}
    assert [kernel.name for kernel in windows._products] == [product_name((512,) * 3)]
    slow = Windows("cpu", torch.float32, replace(BEST, kernels=BEST.kernels | dict.fromkeys(PRODUCTS, 1e-3)))
    assert [kernel.name for kernel in slow._products] == [product_name((512,) * 3)]
    assert windows.buffer_bytes == MIB


def test_without_kernels_to_choose_from_there_are_no_windows() -> None:
    windows = Windows("cpu", torch.float32, replace(BEST, kernels={}))
    windows.measure()
    assert (windows.take(), windows.buffer_bytes) == ([], 0)
