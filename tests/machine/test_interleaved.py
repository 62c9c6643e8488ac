"""Limits beside iterations, with a scripted device whose speed halves and doubles in the middle of a run."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
import torch

from kvtool.bench.accounting import IMPOSSIBLE, MOVED, is_impossible, with_roofline
from kvtool.bench.harness import case_inputs
from kvtool.bench.metrics import metrics_of
from kvtool.machine.interleaved import Windows
from kvtool.machine.roofline import WINDOW, Ceiling, product_name
from kvtool.results import Case, Check, Memory, Roofline, Sample, StepBytes
from kvtool.units import MIB
from tests.bench.tiny_model import loaded

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
STEP_BYTES, PREFILL_FLOPS = 600_000_000, 40_000_000_000


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
    assert [round(limit.read_gbps, 6) for limit in windows.take()] == [60.0, 60.0, 30.0]
    assert windows.take() == []


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


def case_of(tpots_s: list[float], ttfts_s: list[float]) -> Case:
    samples = [
        Sample(
            arm="baseline",
            iteration=iteration,
            ttft_s=ttft_s,
            e2e_s=ttft_s + 4 * tpot_s,
            itl_s=[tpot_s] * 4,
            output_tokens=5,
            prompt_tokens=8,
            cached_tokens=0,
        )
        for iteration, (tpot_s, ttft_s) in enumerate(zip(tpots_s, ttfts_s, strict=True))
    ]
    return Case(
        name="latency/8x1",
        part="latency",
        inputs=case_inputs(loaded()),
        samples=samples,
        metrics=metrics_of(samples),
        bytes=StepBytes(
            weights_read=STEP_BYTES,
            kv_read=0,
            kv_written=0,
            other=0,
            prefill_flops=PREFILL_FLOPS,
            decode_flops=1,
        ),
        roofline=Roofline(),
        memory=Memory(kv_predicted_bytes=0, kv_allocated_bytes=0, kv_pool_bytes=0, kv_waste_bytes=0, peak_bytes=None),
        prefix=None,
        check=Check(text="none"),
    )


def limits(*read_gbps: float, tflops: float = 0.4) -> list[Ceiling]:
    return [replace(BEST, read_gbps=rate, tflops=tflops) for rate in read_gbps]


def test_utilisation_is_taken_iteration_by_iteration() -> None:
    # 80 % throughout, while the device slows down to half: the medians of TPOT and of reads are of other iterations.
    case = case_of([0.0125, 0.0125, 0.025, 0.025, 0.025], [0.2] * 5)
    roofline = with_roofline(case, BEST, limits(60, 60, 60, 30, 30)).roofline
    assert roofline.mbu == pytest.approx(0.8)
    assert roofline.mfu == pytest.approx(0.5)
    assert roofline.read_gbps_measured == 60.0
    alone = with_roofline(case, BEST).roofline
    assert alone.mbu == pytest.approx(0.4)


def test_what_the_device_never_did_is_an_error_and_what_it_did_at_another_time_is_not() -> None:
    moved = with_roofline(case_of([0.0125] * 3, [0.2] * 3), BEST, limits(30, 30, 30))
    assert moved.roofline.mbu is None
    assert (moved.roofline.reason or "").startswith(f"{MOVED}: MBU 1.60")
    assert not is_impossible(moved)
    wrong = with_roofline(case_of([0.005] * 3, [0.2] * 3), BEST, limits(30, 30, 30))
    assert (wrong.roofline.reason or "").startswith(f"{IMPOSSIBLE}: MBU 4.00")
    assert is_impossible(wrong)
    slow = with_roofline(case_of([0.02] * 3, [0.1] * 3), BEST, limits(60, 60, 60, tflops=0.3))
    assert (slow.roofline.reason or "").startswith(f"{MOVED}: MFU 1.33")
    assert msgspec.to_builtins(slow.roofline)["mfu"] is None
