"""Passes of calls: how many, how they are launched, and what stands before them."""

from __future__ import annotations

import time

import pytest
import torch

from kvtool.bench.kernels import passes
from kvtool.bench.kernels.passes import cache_flush, first_call_s, make_pass, within

CPU = torch.device("cpu")


def test_a_pass_runs_every_call_once_in_order() -> None:
    log: list[int] = []
    made = make_pass([lambda i=i: log.append(i) for i in range(3)], CPU, capture=False)
    made.sweep()
    assert log == [0, 1, 2]
    assert (made.num_calls, made.capture_s) == (3, None)


def test_capturing_is_timed_apart_from_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def captured(calls: object, device: object) -> object:
        time.sleep(0.02)
        return lambda: log.append("replay")

    monkeypatch.setattr(passes, "captured", captured)
    made = make_pass([lambda: log.append("call")], CPU, capture=True)
    made.sweep()
    assert log == ["replay"]
    assert made.capture_s is not None
    assert made.capture_s >= 0.02


def test_a_slow_kernel_gets_fewer_calls() -> None:
    calls = [lambda: None] * 10
    assert len(within(1.0, calls, timer=lambda call: 0.3)) == 4
    assert len(within(1.0, calls, timer=lambda call: 5.0)) == 1
    assert len(within(1.0, calls, timer=lambda call: 0.01)) == 10


def test_the_first_call_is_timed_on_the_wall() -> None:
    assert first_call_s(lambda: time.sleep(0.02), "cpu") >= 0.02


def test_a_flush_reads_all_that_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it returns proves the read: a sum over ones, where the zeros are replaced by them."""
    monkeypatch.setattr(torch, "zeros", torch.ones)
    assert cache_flush("cpu", 4096)().item() == 1024
