"""The whole replay: Mooncake's conversation trace against published and counted figures, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.replay.capacity import Capacity, parse_capacity
from kvtool.replay.options import ReplayOptions
from kvtool.replay.replay import replay, replay_all
from kvtool.replay.workers import Workers
from kvtool.results import ReplayDocument, encode
from kvtool.system.errors import KvtoolError
from kvtool.workloads.traces import Trace, open_trace

SLICE = Path(__file__).parents[1] / "data" / "traces" / "mooncake_conversation_200.jsonl"
WHOLE = Path(__file__).parents[3] / "shared" / "traces" / "mooncake_conversation.jsonl"
needs_trace = pytest.mark.skipif(not WHOLE.is_file(), reason="the whole conversation trace is not beside the checkout")
CAPACITIES = "1000,10000,30000,50000,100000,none"


def replayed(path: Path, policies: str, capacities: str, *, last: float = 1.0, **more: object) -> ReplayDocument:
    options = ReplayOptions(
        policies=tuple(policies.split(",")),
        capacities=tuple(parse_capacity(item) for item in capacities.split(",")),
        last=last,
        workers=Workers(jobs=1),
    )
    return replay(open_trace(path), options, **more)  # type: ignore[arg-type]


@needs_trace
def test_the_conversation_trace_counted() -> None:
    """Counts for LRU over leaves, and block and token ratios of three policies to four digits: counted twice by others
    (libCacheSim agrees on the plain ones). 12,031 requests, 288,500 blocks, 182,790 unique, 144,793,823 tokens.
    """
    document = replayed(WHOLE, "lru,lru-plain,lfu-plain", CAPACITIES)
    trace = document.trace
    assert (trace.requests, trace.total_blocks, trace.unique_blocks) == (12_031, 288_500, 182_790)
    assert trace.input_tokens == 144_793_823
    ideal = (trace.ideal_block_hit_ratio, trace.ideal_token_hit_ratio, trace.ideal_mean_request_token_hit_ratio)
    assert [round(ratio, 4) for ratio in ideal] == [0.3664, 0.3736, 0.4094]
    found = {name: [row for row in document.rows if row.policy == name] for name in ("lru", "lru-plain", "lfu-plain")}
    assert [row.hit_blocks for row in found["lru"]] == [12_847, 61_046, 93_978, 102_290, 104_924, 105_710]
    ratios = {name: [(round(r.block_hit_ratio, 4), round(r.token_hit_ratio, 4)) for r in found[name]] for name in found}
    top = (0.3664, 0.3736)
    assert ratios["lru"] == [
        (0.0445, 0.0454), (0.2116, 0.2157), (0.3257, 0.3322), (0.3546, 0.3615), (0.3637, 0.3708), top,
    ]  # fmt: skip
    assert ratios["lru-plain"] == [
        (0.0445, 0.0454), (0.2112, 0.2153), (0.3257, 0.3321), (0.3546, 0.3615), (0.3637, 0.3708), top,
    ]  # fmt: skip
    assert ratios["lfu-plain"] == [
        (0.0481, 0.0490), (0.1318, 0.1344), (0.2759, 0.2813), (0.3438, 0.3506), (0.3631, 0.3702), top,
    ]  # fmt: skip


@needs_trace
@pytest.mark.parametrize(
    ("policy", "published"),
    [("lru-plain", [3.6, 4.5, 4.5, 5.6, 18.7, 35.6, 39.8]), ("lru", [4.5, 4.5, 4.5, 5.6, 18.8, 35.6, 39.8])],
)
def test_the_seven_published_points(policy: str, published: list[float]) -> None:
    """LRU, tokens of the last half, 16K 64K 256K 1M 4M 16M tokens and no limit: the README of llmtrafficlens prints 3.6
    4.5 4.5 5.6 18.8 35.6 39.8. The first and the fifth depend on whether a request's head or tail is older.
    """
    document = replayed(WHOLE, policy, "32,128,512,2048,8192,32768,none", last=0.5)
    assert [round(100 * row.token_hit_ratio, 1) for row in document.rows] == published


@needs_trace
def test_what_kvcache_simulator_prints() -> None:
    """kvcache-simulator 0.1.3 over the last half of the tokens: LRU, optimum, and FIFO without a tree, at eight
    capacities.
    """
    document = replayed(WHOLE, "lru,optimal,fifo-plain", "102,819,1638,3276,6553,13107,26214,52428", last=0.5)
    printed = [round(100 * row.token_hit_ratio, 1) for row in document.rows]
    assert printed[:8] == [4.5, 4.6, 5.2, 7.3, 15.3, 25.0, 33.0, 37.8]
    assert printed[8:16] == [7.4, 18.0, 24.5, 32.0, 38.6, 39.8, 39.8, 39.8]
    assert printed[16:] == [3.8, 4.5, 5.1, 7.1, 14.3, 21.6, 29.0, 34.9]


def test_a_slice_of_it() -> None:
    """Chained blocks without a limit hit 1 - unique / total exactly."""
    document = replayed(SLICE, "lru,fifo,lfu,optimal,lru-plain,fifo-plain,lfu-plain", "0,50,none")
    trace = document.trace
    assert trace.ideal_block_hit_ratio == pytest.approx(1 - trace.unique_blocks / trace.total_blocks)
    for row in document.rows:
        assert row.ceiling_content >= row.ceiling_relaxed >= (row.ceiling_strict or 0) >= row.block_hit_ratio
        assert (row.limited_by == "none") == (row.capacity_blocks is None)
        assert row.hit_blocks == 0 or row.capacity_blocks != 0
    assert [curve.policy for curve in document.curves] == ["lru", "lru-plain"]
    points = document.curves[0].points
    assert points[-1].block_hit_ratio == pytest.approx(trace.ideal_block_hit_ratio)
    assert [p.block_hit_ratio for p in points] == sorted(p.block_hit_ratio for p in points)


def test_the_same_replay_is_the_same_bytes() -> None:
    first, second = (encode(replayed(SLICE, "lru,optimal,lfu-plain", "10,100", last=0.5)) for _ in range(2))
    assert first == second


def test_a_sweep_on_all_cores_is_the_sweep_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("joblib")
    alone = replayed(SLICE, "fifo,optimal", "10,100,1000")
    monkeypatch.setattr("kvtool.replay.workers.WORTH_S", 0.0)
    options = ReplayOptions(
        policies=("fifo", "optimal"),
        capacities=tuple(Capacity(blocks=n) for n in (10, 100, 1000)),
        workers=Workers(jobs=2),
    )
    assert replay(open_trace(SLICE), options) == alone


def three_traces(tmp_path: Path) -> list[Trace]:
    """The slice, its first half and its second."""
    lines = SLICE.read_text().splitlines(keepends=True)
    for name, part in (("first", lines[:100]), ("second", lines[100:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    return [open_trace(path) for path in (SLICE, tmp_path / "first.jsonl", tmp_path / "second.jsonl")]


def test_a_sweep_over_traces_is_each_of_them_alone(tmp_path: Path) -> None:
    options = ReplayOptions(policies=("lru", "fifo", "optimal"), capacities=(Capacity(blocks=100), Capacity()))
    traces = three_traces(tmp_path)
    assert replay_all(traces, options) == [replay(trace, options) for trace in traces]


def test_a_sweep_on_two_ray_workers_is_the_sweep_here(tmp_path: Path) -> None:
    """A cluster of this machine's own, for the time of the sweep: policies x capacities x traces."""
    pytest.importorskip("ray")
    options = ReplayOptions(
        policies=("fifo", "optimal", "size-aware"), capacities=tuple(Capacity(blocks=n) for n in (10, 100, 1000))
    )
    traces = three_traces(tmp_path)
    on_ray = replay_all(traces, replace(options, workers=Workers(jobs=2, address="local")))
    assert on_ray == replay_all(traces, replace(options, workers=Workers(jobs=1)))


def test_a_ray_cluster_needs_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ReplayOptions(policies=("fifo",), capacities=(Capacity(blocks=9),), workers=Workers(address="auto"))
    with pytest.raises(KvtoolError, match=r"pip install 'kvtool\[cluster\]'"):
        replay(open_trace(SLICE), options)


def test_a_capacity_in_bytes_is_as_many_blocks_of_the_model() -> None:
    """Llama 3.1 8B in bf16 keeps 131,072 bytes a token, so a block of 512 tokens takes 64 MiB."""
    model = resolve_model("llama-3.1-8b")
    document = replayed(SLICE, "lru", "1GiB,16,none", model=model)
    assert document.bytes_per_block == 64 << 20
    assert [row.capacity_blocks for row in document.rows] == [16, 16, None]
    assert [row.capacity_bytes for row in document.rows] == [1 << 30, 1 << 30, None]
    assert document.rows[0].hit_blocks == document.rows[1].hit_blocks


def test_milliseconds_are_those_of_the_flops_that_hits_save() -> None:
    """Two prompts of 512 tokens of which the second hits: at 2 x 6.98e9 multiply-adds a token and 989.5 TFLOP/s a
    prefill takes 7.2 ms and more for attention, and reading 16 GB of weights at 3.35 TB/s takes 4.8 ms at least.
    """
    model, gpu = resolve_model("llama-3.1-8b"), find_gpu("h100")
    assert gpu.bf16_tflops is not None
    assert gpu.memory_bandwidth_gbps is not None
    document = replayed(SLICE, "lru", "none", model=model, gpu=gpu)
    (row,) = document.rows
    assert row.ttft_saved_ms is not None
    tokens = row.token_hit_ratio * document.trace.input_tokens / document.trace.requests
    by_weights_alone = 2 * 6.98e9 * tokens / (gpu.bf16_tflops * 1e12) * 1e3
    assert by_weights_alone < row.ttft_saved_ms < 1.3 * by_weights_alone


def test_a_hybrid_keeps_states_apart_and_says_so() -> None:
    model = resolve_model("qwen3-next-80b-a3b-instruct")
    document = replayed(SLICE, "lru", "10GiB,none", model=model)
    assert document.bytes_per_block is not None
    options = ReplayOptions(capacities=(parse_capacity("10GiB"), Capacity()), state_every=4, workers=Workers(jobs=1))
    apart = replay(open_trace(SLICE), options, model=model)
    assert apart.bytes_per_block is None
    assert apart.rows[0].capacity_blocks is None
    assert apart.rows[0].ceiling_strict is None
    assert all(row.hit_blocks % 4 == 0 for row in apart.rows)
    assert any("every 4 blocks" in line for line in apart.assumptions)


def lines(tmp_path: Path, *requests: dict[str, object]) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def test_order_is_the_files_unless_sorted(tmp_path: Path) -> None:
    """Newest first, a prompt cannot hit the one before it; by time the second is its continuation."""
    path = lines(
        tmp_path,
        {"timestamp": 3000, "input_length": 1024, "hash_ids": [1, 2]},
        {"timestamp": 2000, "input_length": 1000, "hash_ids": [3, 4]},
        {"timestamp": 1000, "input_length": 512, "hash_ids": [1]},
    )
    document = replayed(path, "lru", "1")
    assert document.rows[0].hit_blocks == 0
    assert "times fall most of the time" in document.warnings[0]
    by_time = replay(open_trace(path), ReplayOptions(capacities=(Capacity(blocks=3),), sort_by_time=True))
    assert by_time.rows[0].hit_blocks == 1
    assert by_time.rows[0].mean_request_token_hit_ratio == pytest.approx(0.5 / 3)


def test_chains_that_break_and_wrong_counts_are_warnings(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        {"timestamp": 0, "input_length": 1024, "hash_ids": [1, 2]},
        {"timestamp": 1, "input_length": 1024, "hash_ids": [3, 2]},
        {"timestamp": 2, "input_length": 2000, "hash_ids": [1]},
    )
    document = replayed(path, "lru", "none")
    assert len(document.warnings) == 2
    assert document.warnings[0].startswith("1 block ids stand behind different ids")
    assert document.warnings[1].startswith("1 requests have another number of blocks")
    assert document.rows[0].hit_blocks == 1


def test_hashes_without_a_sign_are_ids_too(tmp_path: Path) -> None:
    ids = [0, 2**63 - 1, 2**63, 2**64 - 1]
    path = lines(tmp_path, *({"timestamp": at, "input_length": 2048, "hash_ids": ids} for at in range(2)))
    assert replayed(path, "lru", "none").rows[0].hit_blocks == 4


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([{"timestamp": 0, "input_length": 5, "hash_ids": []}], "has lengths only"),
        (
            [{"timestamp": 0, "input_length": 5, "hash_ids": [1], "block_size": size} for size in (512, 256)],
            "line 2: blocks of 512 and 256 tokens do not go into one replay",
        ),
        ([{"timestamp": 0, "input_length": 5, "hash_ids": [2**64]}], "line 1: a block id has more than 64 bits"),
    ],
)
def test_what_cannot_be_replayed_is_refused(tmp_path: Path, requests: list[dict[str, object]], message: str) -> None:
    with pytest.raises(KvtoolError) as raised:
        replayed(lines(tmp_path, *requests), "lru", "none")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "capacity"),
    [
        ("1000", Capacity(blocks=1000)),
        ("20GiB", Capacity(num_bytes=20 << 30)),
        ("None", Capacity()),
        ("0", Capacity(0)),
    ],
)
def test_capacities_as_users_write_them(text: str, capacity: Capacity) -> None:
    assert parse_capacity(text) == capacity


def test_what_users_get_wrong() -> None:
    with pytest.raises(KvtoolError, match="capacity 'lots' is neither blocks"):
        parse_capacity("lots")
    with pytest.raises(KvtoolError, match="a capacity of 20 GiB needs a MODEL"):
        replayed(SLICE, "lru", "20GiB")
    with pytest.raises(KvtoolError, match="policy 'belady' is not one of"):
        replayed(SLICE, "belady", "none")
    with pytest.raises(KvtoolError, match="--last 0 must be above 0"):
        replayed(SLICE, "lru", "none", last=0)
    with pytest.raises(KvtoolError, match="need a MODEL"):
        replayed(SLICE, "lru", "none", gpu=find_gpu("h100"))
    with pytest.raises(KvtoolError, match="are of a MODEL"):
        replay(open_trace(SLICE), ReplayOptions(state_every=4))
    with pytest.raises(KvtoolError, match="--tp 2 shares the prefill of a card"):
        replay(open_trace(SLICE), ReplayOptions(tp=2))
    with pytest.raises(KvtoolError, match="--state-every 0 must be"):
        replay(open_trace(SLICE), ReplayOptions(state_every=0), model=resolve_model("llama-3.1-8b"))
    options = ReplayOptions(capacities=(Capacity(blocks=5),), state_every=4)
    with pytest.raises(KvtoolError, match="says nothing where blocks differ in bytes"):
        replay(open_trace(SLICE), options, model=resolve_model("qwen3-next-80b-a3b-instruct"))
