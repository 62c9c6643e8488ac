"""Times and speeds: published ones, those of a benchmark, and those that a replay takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.model import FullAttention, Layer, Model
from kvtool.catalog.resolve import resolve_model
from kvtool.replay.capacity import parse_capacity
from kvtool.replay.clock.clock import Clock
from kvtool.replay.options import ReplayOptions
from kvtool.replay.replay import replay
from kvtool.replay.tiers.breakeven import break_even_gbps, transfer_s
from kvtool.replay.tiers.fits import has_steps, measured_steps
from kvtool.replay.tiers.options import TierOptions, parse_tiers
from kvtool.replay.tiers.profile import Measured, Observed, read_profiles
from kvtool.sizing.params import count_params
from kvtool.sizing.speed.traffic import attention_flops
from kvtool.system.errors import KvtoolError
from kvtool.workloads.traces import open_trace

GPU = find_gpu("h100")
MODEL = resolve_model("llama-3.1-8b")


def test_a_transfer_takes_what_mooncake_measured() -> None:
    """Mooncake's transfer of Qwen3-8B's cache over 8 RoCE links: nine points, fitted by 0.394 ms + bytes / 146.1 GB/s
    (147,456 bytes a token).
    """
    milliseconds = [0.54, 0.61, 0.92, 1.50, 2.51, 4.75, 8.84, 16.43, 31.65]
    for power, measured in enumerate(milliseconds):
        num_bytes = (128 << power) * 147_456
        assert sent_alone(num_bytes, 146.1e9, 0.394e-3) * 1e3 == pytest.approx(measured, rel=0.10)
        assert sent_alone(num_bytes, 146.1e9, 0.394e-3) == pytest.approx(transfer_s(num_bytes, 146.1, 0.394e-3))


def sent_alone(num_bytes: int, bytes_per_s: float, latency_s: float) -> float:
    """Seconds of one flow."""
    clock = Clock([bytes_per_s])
    clock.send((0,), num_bytes, lambda: None, latency_s=latency_s)
    clock.run()
    return clock.now_s


@pytest.mark.parametrize(("gpus_tflops", "gbps"), [(8 * 312, 5.86), (8 * 989, 18.57)])
def test_mooncakes_break_even(gpus_tflops: float, gbps: float) -> None:
    """FAST '25, eq. 2, for Llama-3-70B behind 8,192 tokens: flops = l (4 p^2 d + 22 p d^2), a cache of 2 l p d s / gqa
    bytes, d = 8,192 and gqa = 8. The paper rounds to 6 and 19 GB/s.
    """
    tokens, width, layers, gqa, element_bytes = 8192, 8192, 80, 8, 2
    flops = layers * (4 * tokens**2 * width + 22 * tokens * width**2)
    kv_bytes = 2 * layers * tokens * width * element_bytes / gqa
    assert break_even_gbps(kv_bytes, flops, gpus_tflops * 1e12) == pytest.approx(gbps, abs=0.005)


@pytest.mark.parametrize(
    ("name", "dtype", "low", "high"),
    [("qwen2.5-32b", "bf16", 117, 267), ("gpt-oss-120b", "fp8", 47, 95), ("qwen3-235b-a22b", "fp8", 39, 60)],
)
def test_gigabytes_a_petaflop_as_dualpath_has_them(name: str, dtype: str, low: float, high: float) -> None:
    """DualPath (arXiv 2602.21548), table 1: 429 new tokens behind 16k and 64k cached ones. It counts the cache of full
    layers, and the parameters that a token is multiplied with, the output head among them.
    """
    model = resolve_model(name)
    params = count_params(model)
    assert params is not None
    share = 1.0 if model.moe is None else model.moe.experts_per_token / model.moe.num_experts
    active = params.layers + params.experts * share + params.head
    full = [layer.cache for layer in model.layers if type(layer.cache) is FullAttention]
    per_token = (1 if dtype == "fp8" else 2) * sum(2 * cache.kv_heads * cache.k_head_dim for cache in full)
    for cached, published in ((16384, low), (65536, high)):
        flops = 2 * active * 429 + attention_flops(model, new_tokens=429, cached_tokens=cached)
        assert per_token * cached / 1e9 / (flops / 1e15) == pytest.approx(published, rel=0.02)


def longer_flops(tokens: int, width: int) -> int:
    """FLOPs of an encoder layer with an MLP of 4 x width, over all pairs of tokens, from what sizing counts of a causal
    one: n (n + 1) / 2 pairs become n^2.
    """
    layer = Layer(cache=FullAttention(kv_heads=1, k_head_dim=width, v_head_dim=width))
    shape = Model(id="longer", source="", architecture=None, attention="full", layers=(layer,), hidden_size=width,
                  vocab_size=None, num_heads=1)  # fmt: skip
    causal = attention_flops(shape, new_tokens=tokens, cached_tokens=0)
    own = attention_flops(shape, new_tokens=1, cached_tokens=0)
    return 2 * causal - tokens * own + 2 * tokens * 12 * width**2


def test_merging_tokens_as_longer_does() -> None:
    """LONGER (RecSys '25): 2,048 tokens of 32 take 24 L d^2 + 4 L^2 d = 587.2 MFLOP a layer; four of them merged into
    one of 128 take 24 L d^2 K + 4 L^2 d / K = 335.5.
    """
    assert longer_flops(2048, 32) / 1e6 == pytest.approx(587.2, abs=0.05)
    assert longer_flops(2048 // 4, 32 * 4) / 1e6 == pytest.approx(335.5, abs=0.05)


def observed(sequences: int, prompt: int, cached: int, ttft_ms: list[float], tpot_ms: float) -> Observed:
    ttft_s = tuple(value / 1e3 for value in ttft_ms)
    return Observed(sequences, prompt, cached, 8, ttft_s, (tpot_ms / 1e3,) * len(ttft_s))


def test_steps_take_what_was_measured_of_them() -> None:
    """Interpolated between the medians, a fall evened out, decodes by the best fit; nine in ten samples lie within the
    spread. A hit is as long as what it leaves to compute.
    """
    model = resolve_model("smollm2-135m")
    seen = (
        observed(1, 100, 0, [90, 100, 110], 20.0), observed(4, 100, 0, [290, 300, 310], 26.0),
        observed(1, 200, 100, [80, 96, 112], 20.0),
    )  # fmt: skip
    measured = Measured(tflops=1.0, model=model.id, num_layers=model.num_layers, observed=seen)
    times = measured_steps(model, measured)
    floor = times.floor
    one_s, four_s = floor.last_s(100, 0), 4 * floor.last_s(100, 0)
    for alike_s in (one_s, floor.last_s(200, 100)):
        assert floor.step_s(alike_s) == pytest.approx(0.098)  # the mean of the two, which is no fall
    assert 0.099 < floor.step_s((one_s + four_s) / 2) < floor.step_s(four_s) == pytest.approx(0.300)
    assert floor.step_s(four_s + 0.5) == pytest.approx(0.800)  # behind it at the rate
    assert floor.step_s(floor.last_s(1, 0)) == pytest.approx(0.098)  # no decode is a prompt of one token
    assert times.step_s(0.0, 1, 104) == pytest.approx(0.020)
    assert times.step_s(0.0, 4, 4 * 104) == pytest.approx(0.026)
    assert times.spread is not None
    assert times.spread[0] < 1 < times.spread[1] < 1.3
    assert times.slower(2.0).step_s(0.0, 1, 104) == pytest.approx(0.040)
    assert not has_steps(MODEL, measured)


def test_a_profile_of_the_very_model_needs_no_card(tmp_path: Path) -> None:
    """Its first tokens come with the range of what was measured; the times of another model's steps say nothing."""
    path = Path(__file__).parents[2] / "examples" / "reports" / "cpu" / "bench.json"
    measured = read_profiles([path])
    slice_path = Path(__file__).parents[1] / "data" / "traces" / "mooncake_conversation_200.jsonl"
    none = ReplayOptions(tiers=TierOptions(tiers=()), measured=measured)
    document = replay(open_trace(slice_path), none, model=resolve_model("smollm2-135m"))
    (clock,) = document.tiers
    low, high = clock.ttft_p50_range_ms or (0, 0)
    assert 0 < low <= clock.ttft_ms.p50 <= high
    assert low < high
    assert clock.tpot_ms is not None
    assert document.gpu == json.loads(path.read_bytes())["environment"]["cpu"]
    with pytest.raises(KvtoolError, match="with steps of that model"):
        replay(open_trace(slice_path), none, model=MODEL)


def test_a_document_has_the_tiers_and_measured_speeds(tmp_path: Path) -> None:
    (tmp_path / "tiers.json").write_text(
        '{"schema": "kvtool.tiers/1", "tiers": [{"tier": "dram", "up_gbps": 55, "down_gbps": 50, "latency_us": 9}]}'
    )
    (tmp_path / "bench.json").write_text(
        '{"schema": "kvtool.bench/1", "cases": [{"part": "latency", "metrics": {"ttft_ms": {"p50": 100}}, '
        '"bytes": {"prefill_flops": 4e13}}]}'
    )
    measured = read_profiles([tmp_path / "tiers.json", tmp_path / "bench.json"])
    assert (measured.tflops, measured.tiers["dram"]) == (400.0, (55, 50, 9e-6))
    slice_path = Path(__file__).parents[1] / "data" / "traces" / "mooncake_conversation_200.jsonl"
    options = ReplayOptions(
        capacities=(parse_capacity("1GiB"),), tiers=TierOptions(tiers=parse_tiers("dram=64GiB")[0]), measured=measured
    )
    document = replay(open_trace(slice_path), options, model=MODEL, gpu=GPU)
    (below,) = document.tiers
    assert (below.tiers[0].source, below.tiers[0].read_gbps) == ("measured", 55)
    assert document.rows[0].bytes_read == {"dram": below.tiers[0].bytes_read}
    with pytest.raises(KvtoolError, match="need a MODEL and a card"):
        replay(open_trace(slice_path), options)
