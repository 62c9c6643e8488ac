"""Cases next to limits measured beside their iterations: a device whose speed moves, and errors told apart from it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from kvtool.bench.accounting import beside_ms, with_roofline
from kvtool.bench.limits import IMPOSSIBLE, MOVED, accounting_errors
from kvtool.bench.metrics import metrics_of
from kvtool.machine.roofline import Ceiling
from kvtool.results import Check, LatencyCase, Memory, Prefix, PrefixCase, Roofline, Sample, StepBytes

BEST = Ceiling(
    read_gbps=60.0,
    copy_gbps=50.0,
    tflops=0.4,
    read_buffer_bytes=1,
    llc_bytes=None,
    dtype="bfloat16",
    kernels={},
    samples={},
)
STEP_BYTES, PREFILL_FLOPS = 600_000_000, 40_000_000_000


def case_of(tpots_s: list[float], ttfts_s: list[float]) -> LatencyCase:
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
    return LatencyCase(
        name="latency/8x1",
        inputs={},
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
    assert accounting_errors([moved]) == []
    wrong = with_roofline(case_of([0.005] * 3, [0.2] * 3), BEST, limits(30, 30, 30))
    assert (wrong.roofline.reason or "").startswith(f"{IMPOSSIBLE}: MBU 4.00")
    assert accounting_errors([moved, wrong]) == [f"latency/8x1: {wrong.roofline.reason}"]
    slow = with_roofline(case_of([0.02] * 3, [0.1] * 3), BEST, limits(60, 60, 60, tflops=0.3))
    assert (slow.roofline.reason or "").startswith(f"{MOVED}: MFU 1.33")
    assert msgspec.to_builtins(slow.roofline)["mfu"] is None


def prefix_of(cached_s: float, uncached_s: float, load_s: float | None = None) -> PrefixCase:
    """A prompt of 40 GFLOPs, three quarters of them found: 100 ms at 0.4 TFLOP/s without hits, 25 with."""
    plain = case_of([0.01] * 2, [uncached_s] * 2)
    cached = [
        msgspec.structs.replace(sample, arm="cached", ttft_s=cached_s, e2e_s=1.0, load_s=load_s)
        for sample in plain.samples
    ]
    uncached = [msgspec.structs.replace(sample, arm="uncached") for sample in plain.samples]
    given = {name: getattr(plain, name) for name in plain.__struct_fields__}
    given |= {"samples": [*cached, *uncached], "metrics": metrics_of(cached)}
    given["prefix"] = Prefix(
        requested_hit_rate=0.75,
        measured_hit_rate=0.75,
        ttft_saved_ms=1.0,
        ttft_saved_ratio=0.5,
        ttft_saved_ms_ci_low=1.0,
        ttft_saved_ms_ci_high=1.0,
        flops_saved=PREFILL_FLOPS * 3 // 4,
        kv_bytes_not_written=0,
    )
    return PrefixCase(**given)


def test_a_time_to_first_token_is_what_the_roofline_allows_or_the_gap_is_explained_in_milliseconds() -> None:
    near = with_roofline(prefix_of(0.028, 0.1), BEST).roofline
    assert near.ideal_ttft_ms == pytest.approx(25.0)
    assert near.ttft_over_ideal == pytest.approx(1.12)
    assert near.ttft_reason is None
    # Kernels at half of the limit, 12 ms of loading, and 8 more: 25 + 25 + 12 + 8.
    far = with_roofline(prefix_of(0.07, 0.2, load_s=0.012), BEST).roofline
    assert far.ttft_reason == (
        "TTFT of 70 ms is 2.80x the 25 ms that the roofline allows: 12 ms waiting for pages from below, 25 ms because "
        "kernels take 2.00x the roofline's time without hits too, 8 ms what a step takes however few its tokens"
    )
    assert with_roofline(case_of([0.01], [0.1]), BEST).roofline.ideal_ttft_ms is None


def test_a_neighbour_counts_as_far_as_it_is_prefilled_at_the_same_time() -> None:
    """Two come at once and take 40 ms; the third comes after 30 ms: 10 of its 40 ms are beside them."""
    plain = case_of([0.01], [0.04]).samples[0]
    three = [
        msgspec.structs.replace(plain, arrival_s=s, queue_s=0.0, prompt_tokens=n, cached_tokens=0)
        for s, n in ((0.0, 100), (0.0, 100), (0.03, 400))
    ]
    # A token takes 0.1 ms. The first: 100 tokens, and a quarter of 400; the third: a quarter of each of the others.
    assert beside_ms(three, 20.0) == pytest.approx(20.0)
    assert beside_ms(three[2:], 20.0) == 0.0
    assert beside_ms([msgspec.structs.replace(one, arrival_s=None) for one in three], 20.0) == 0.0
