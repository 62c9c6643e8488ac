"""Tiers on a clock: flows share links fairly, loads overlap with layers, and the ends of every scale are what they
must be.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.cache.tiers.options import WritePolicy, parse_write_policy
from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.model import FullAttention, Layer, Model
from kvtool.catalog.resolve import resolve_model
from kvtool.errors import KvtoolError
from kvtool.replay.accesses import Accesses, read_accesses
from kvtool.replay.capacity import block_bytes, parse_capacity
from kvtool.replay.clock.clock import Clock
from kvtool.replay.clock.network import fair_rates
from kvtool.replay.clock.steps import StepTimes, card_steps
from kvtool.replay.curves import Curve
from kvtool.replay.loops.core import Walk
from kvtool.replay.loops.fastest import core
from kvtool.replay.options import ReplayOptions
from kvtool.replay.replay import replay
from kvtool.replay.saved import PrefillFloor, counted_work, prefill_floor
from kvtool.replay.tiers.breakeven import break_even_gbps, transfer_s
from kvtool.replay.tiers.fits import has_steps, measured_steps
from kvtool.replay.tiers.options import Tier, TierOptions, parse_prefetch, parse_tiers, parse_watermark
from kvtool.replay.tiers.plan import Links, Plan
from kvtool.replay.tiers.profile import Measured, Observed, read_profiles
from kvtool.replay.tiers.stores import Stores
from kvtool.replay.tiers.tiers import TierReplay
from kvtool.replay.tiers.timed import Timed
from kvtool.replay.tiers.timing import Run, run
from kvtool.results import ReplayTiers
from kvtool.sizing.params import count_params
from kvtool.sizing.speed.traffic import attention_flops
from kvtool.workloads.making.make import make_trace
from kvtool.workloads.making.options import Making
from kvtool.workloads.traces import open_trace
from kvtool.workloads.traces.write import write_trace

GPU = find_gpu("h100")
MODEL = resolve_model("llama-3.1-8b")
LAYERS = 32
NO_OVERHEAD = StepTimes(PrefillFloor(counted_work(MODEL), 1e15, 0.0))


def test_links_are_shared_max_min_fair() -> None:
    """Bertsekas and Gallager, Data Networks, 6.5.2: flow (0, 1) is held by link 0 of three, and the rest of link 1
    goes to the one that has no other limit.
    """
    crossing = {path: (count, {link: path.count(link) for link in path}) for path, count in
                {(0,): 2, (0, 1): 1, (1,): 1, (1, 2): 1}.items()}  # fmt: skip
    assert fair_rates(crossing, [3.0, 10.0, 2.0]) == pytest.approx({(0,): 1, (0, 1): 1, (1,): 7, (1, 2): 2})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([(0,), (1,), (0, 1), (1, 1)]), st.integers(1, 99), st.integers(0, 9)),
                min_size=1, max_size=12))  # fmt: skip
def test_no_byte_is_lost_and_no_link_exceeds_its_speed(flows: list[tuple[tuple[int, ...], int, int]]) -> None:
    clock = Clock([4.0, 2.0])
    ended: list[float] = []
    for path, num_bytes, start in flows:
        clock.at(start, lambda path=path, n=num_bytes: clock.send(path, n, lambda: ended.append(clock.now_s)))
    clock.run()
    assert len(ended) == len(flows)
    for link, speed in enumerate((4.0, 2.0)):
        sent = sum(num_bytes * path.count(link) for path, num_bytes, _ in flows)
        assert clock.network.moved[link] == pytest.approx(sent, abs=1e-6)
        assert sent <= speed * max(ended) * (1 + 1e-6)


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


def timed(load_blocks: int, compute_s: float, *, loading: str) -> float:
    """Seconds of one request that loads blocks of 1 GB at 1 GB/s in LAYERS layers."""
    links = Links((Tier(name="dram", capacity_bytes=1, read_gbps=1.0, write_gbps=1.0),), 10**9, 16, LAYERS)
    options = TierOptions(tiers=links.tiers, loading=loading)
    request = Timed(0.0, lambda room: Plan("load", (load_blocks,), 0.0, compute_s))
    return run([request], links, options, NO_OVERHEAD).ttft_s()[0]


@pytest.mark.parametrize(("load_s", "compute_s"), [(8, 2.0), (2, 8.0), (4, 4.0)])
def test_layers_overlap_as_the_pipeline_formula_says(load_s: int, compute_s: float) -> None:
    load, compute = load_s / LAYERS, compute_s / LAYERS
    formula = load + (LAYERS - 1) * max(load, compute) + compute
    assert timed(load_s, compute_s, loading="layerwise") == pytest.approx(formula)
    assert timed(load_s, compute_s, loading="bulk") == pytest.approx(load_s + compute_s)


@pytest.fixture(scope="module")
def accesses(tmp_path_factory: pytest.TempPathFactory) -> Accesses:
    path = tmp_path_factory.mktemp("tiers") / "chats.jsonl"
    write_trace(path, make_trace(Making(kind="multi-turn", num_sessions=16, input_len=2048, request_rate=2.0, seed=3)))
    return read_accesses(open_trace(path), core()).by_time()


TIMES = card_steps(prefill_floor(MODEL, GPU), GPU, 131_072)  # bytes of a token in bf16


def with_tiers(accesses: Accesses, options: TierOptions, blocks: int = 200) -> ReplayTiers:
    room = block_bytes(MODEL, block_size=accesses.block_size, kv_cache_dtype="auto")
    assert room.uniform is not None
    links = Links(options.tiers, room.uniform, accesses.block_size, LAYERS)
    full = Curve(core(), accesses, "lru", sizes=None, first=0).full_capacity
    return TierReplay(accesses, TIMES, links, options, 0, full, {"ttft": 0.1, "tpot": 0.05}).at(blocks)


def tier(gbps: float, *, capacity: int = 1 << 50) -> tuple[Tier, ...]:
    return (Tier(name="dram", capacity_bytes=capacity, read_gbps=gbps, write_gbps=gbps),)


def test_an_infinite_link_is_the_oracle_and_none_is_computing(accesses: Accesses) -> None:
    fast = with_tiers(accesses, TierOptions(tiers=tier(1e12)))
    assert fast.ttft_ms.mean == pytest.approx(fast.oracle_ttft_ms.mean, rel=1e-6)
    slow = with_tiers(accesses, TierOptions(tiers=tier(1e-9)))
    assert slow.ttft_ms.mean == pytest.approx(slow.without_ttft_ms.mean)
    assert set(slow.decisions) <= {"none", "recompute"}
    assert fast.ttft_saved_ms > 0 == slow.ttft_saved_ms


def test_the_decision_is_no_worse_than_either(accesses: Accesses) -> None:
    """One session at a time waits for nobody, so that the estimate on idle links is the time."""
    alone = replace(accesses, arrival_s=np.arange(accesses.num_requests) * 100.0)
    means = {
        decision: with_tiers(alone, TierOptions(tiers=tier(4.0), decision=decision)).ttft_ms.mean
        for decision in ("auto", "load", "recompute", "both")
    }
    assert means["auto"] <= min(means.values()) * (1 + 1e-9)
    assert means["auto"] < means["recompute"]


def test_a_tier_without_end_hits_all_that_was_seen(accesses: Accesses) -> None:
    found = with_tiers(accesses, TierOptions(tiers=tier(50.0)), blocks=50)
    assert found.token_hit_ratio == Curve(core(), accesses, "lru", sizes=None, first=0).at(None).token_hit_ratio
    (one,) = found.tiers
    assert (
        one.bytes_written == len(accesses.parents) * 2 * LAYERS * 8 * 128 * 2 * accesses.block_size
    )  # each block once
    assert one.write_amplification == one.bytes_written / one.bytes_read


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=25),
    st.integers(1, 6),
    st.integers(1, 8),
    st.sampled_from([0, 2, None]),
    st.booleans(),
)
def test_tiers_hold_what_their_room_and_policy_allow(
    requests: list[list[int]], top: int, low: int, write_after: int | None, exclusive: bool
) -> None:
    """The GPU hits what LRU alone does; with everything written back and nothing twice, both together what LRU with
    both rooms does.
    """
    exclusive = exclusive and write_after is None
    stores = Stores([top, low], exclusive=exclusive, write_after=write_after)
    alone, both = Stores([top], exclusive=False, write_after=0), Stores([top + low], exclusive=False, write_after=0)
    names: dict[tuple[int, ...], int] = {}
    for ids in requests:
        path = [names.setdefault(tuple(ids[: n + 1]), len(names)) for n in range(len(ids))]
        places, reference, joined = (one.request(path).places for one in (stores, alone, both))
        assert sum(place == 0 for place in places) >= len(reference)
        assert places[: len(reference)] == reference
        if exclusive:
            assert len(places) == len(joined)
        elif write_after is None:
            assert len(places) <= len(joined)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=25),
    st.integers(0, 4),
    st.sampled_from([0, 2, None]),
    st.booleans(),
)
def test_from_the_full_size_on_a_tier_gives_nothing_more(
    requests: list[list[int]], top: int, write_after: int | None, exclusive: bool
) -> None:
    """LRU's longest distance that hits, less the GPU's own room where nothing is kept twice: with it, what is hit is
    what a tier without end hits; and for a tier that gets everything, with a block less it is not.
    """
    exclusive = exclusive and write_after is None
    names: dict[tuple[int, ...], int] = {}
    paths = [[names.setdefault(tuple(ids[: n + 1]), len(names)) for n in range(len(ids))] for ids in requests]
    lengths = np.array([len(path) for path in paths])
    tree = core().tree()
    nodes = tree.add(np.array([block for ids in requests for block in ids], dtype=np.int64), lengths)
    walk = Walk(nodes, np.concatenate(([0], np.cumsum(lengths))), tree.parents())
    full = int(core().lru_distances(walk, tail_last=False).max())

    def hits(room: int) -> int:
        stores = Stores([top, room], exclusive=exclusive, write_after=write_after)
        return sum(len(stores.request(path).places) for path in paths)

    needed = max(0, full - top) if exclusive else max(0, full)
    assert hits(needed) == hits(10**6)
    if needed and (exclusive or write_after == 0) and full > top:
        assert hits(needed - 1) < hits(needed)


def test_a_watermark_evicts_ahead() -> None:
    """Over nine of ten blocks, a tier goes down to its five most recent ones."""
    stores = Stores([1, 10], exclusive=False, write_after=0, watermark=(0.9, 0.5))
    for block in range(10):
        stores.request([block])
    assert [block for block in range(10) if deepcopy(stores).request([block]).places] == [5, 6, 7, 8, 9]
    with pytest.raises(KvtoolError, match="is none: write"):
        parse_watermark("0.8/0.9")


def test_a_short_queue_holds_a_fast_tier_to_littles_law() -> None:
    """4 blocks of 1 MB in flight behind 100 us come at 40 GB/s, whatever the link could do."""
    (one,), _ = parse_tiers("disk=1TiB@100x4")
    assert one.queue_depth == 4
    assert replace(one, latency_s=1e-4).bytes_per_s(10**6) == pytest.approx(40e9)
    assert replace(one, latency_s=1e-4).bytes_per_s(10**7) == 100e9


def test_decodes_and_prompts_share_steps() -> None:
    """Prompts of 1 s each; a decode step takes 0.1 s. A runs alone, B arrives in the second step of A's decodes and is
    computed with the third, in the 1 s that it takes alone; the two decode on together.
    """
    times = replace(NO_OVERHEAD, decode_s=0.1, sequence_s=0.01)
    none = TierOptions(tiers=())
    requests = [
        Timed(arrival, lambda room: Plan("none", (), 0.0, 1.0), input_tokens=8, output_tokens=tokens)
        for arrival, tokens in ((0.0, 6), (1.15, 3))
    ]
    run(requests, Links((), 1, 16, 1), none, times)
    first, second = requests
    assert first.ttft_s == pytest.approx(1.0)
    assert second.first_s == pytest.approx(1.22 + 1.0)  # two steps of 0.11, then the prompt and A's token together
    assert first.ended_s == second.ended_s == pytest.approx(2.22 + 2 * 0.12)
    assert second.tpot_s == pytest.approx(0.12)
    assert first.tpot_s == pytest.approx((2 * 0.11 + 1.0 + 2 * 0.12) / 5)


def test_no_more_than_the_concurrency_are_in() -> None:
    requests = [Timed(0.0, lambda room: Plan("none", (), 0.0, 1.0)) for _ in range(3)]
    run(requests, Links((), 1, 16, 1), TierOptions(tiers=(), concurrency=1), NO_OVERHEAD)
    assert [one.ended_s for one in requests] == pytest.approx([1, 2, 3])
    assert [one.ttft_s for one in requests] == pytest.approx([1, 1, 1])
    at_once = [Timed(0.0, lambda room: Plan("none", (), 0.0, 1.0)) for _ in range(3)]
    assert run(at_once, Links((), 1, 16, 1), TierOptions(tiers=()), NO_OVERHEAD).ttft_s() == pytest.approx([3, 3, 3])


def test_a_prefix_that_is_being_computed_is_not_there_yet() -> None:
    """B hits four blocks of A. In one step with it, it computes them too; in the step behind, it finds them."""
    stores = Stores([100], exclusive=False, write_after=0)
    assert [stores.request(path).stored_by for path in ([1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6])] == [
        (), ((0, 0),), ((0, 0), (4, 1)),
    ]  # fmt: skip
    for arrival, late_blocks in ((0.0, 4), (0.5, 0)):
        plan = Plan("none", (), 0.0, 1.0)
        first = Timed(0.0, lambda room, plan=plan: plan, input_tokens=64)  # type: ignore[misc]
        second = Timed(
            arrival, lambda room, plan=plan: plan, input_tokens=80, in_gpu=4, needs=((0, first),)  # type: ignore[misc]
        )  # fmt: skip
        run([first, second], Links((), 1, 16, 1), TierOptions(tiers=()), NO_OVERHEAD)
        assert second.late_blocks == late_blocks
        assert second.first_s == pytest.approx(2.0 + NO_OVERHEAD.floor.compute_s(0, 16 * late_blocks))


SLOW_DISK = Links((Tier(name="disk", capacity_bytes=1, read_gbps=1.0, write_gbps=1.0),), 10**9, 16, LAYERS)


def loading_eight_blocks(prefetch: str, *, busy_s: float, look_ahead: int | None = None) -> tuple[Timed, Run]:
    """A request whose 8 blocks take 8 s to come, behind one that computes for `busy_s`; computing a block anew takes
    0.25 s in step times of its own making.
    """
    floor = NO_OVERHEAD.floor
    slow = replace(NO_OVERHEAD, floor=floor.slower(0.25 / floor.compute_s(112, 128)))
    options = TierOptions(
        tiers=SLOW_DISK.tiers, loading="bulk", prefetch=parse_prefetch(prefetch), look_ahead=look_ahead
    )
    busy = Timed(0.0, lambda room: Plan("none", (0,), 0.0, busy_s))
    request = Timed(1e-6, lambda room: Plan("load", (min(8, room),), 0.0, 0.5, loaded_end=128))
    return request, run([busy, request], SLOW_DISK, options, slow)


def test_what_a_prefetch_does_when_its_turn_comes() -> None:
    """After 2.5 s two blocks of eight are there: best effort computes six, and half a block was read in vain."""
    waited, _ = loading_eight_blocks("wait", busy_s=2.5)
    assert (waited.ttft_s, waited.missed_blocks, waited.stall_s) == (pytest.approx(8.5), 0, pytest.approx(5.5))
    cut, played = loading_eight_blocks("best-effort", busy_s=2.5)
    assert cut.missed_blocks == 6
    assert cut.ttft_s == pytest.approx(2.5 + 0.5 + 6 * 0.25, rel=0.02)
    assert played.read == [pytest.approx(2.5e9, rel=1e-3)]
    assert played.unused_bytes == pytest.approx(5e8, rel=1e-3)
    late, _ = loading_eight_blocks("timeout:3000+8000", busy_s=2.5)  # 3 s, and 8 s x 128 / 1024
    assert (late.missed_blocks, late.stall_s) == (4, pytest.approx(1.5))
    with pytest.raises(KvtoolError, match="did you mean best-effort"):
        parse_prefetch("best-efort")
    with pytest.raises(KvtoolError, match="needs --loading bulk"):
        TierOptions(tiers=(), prefetch=parse_prefetch("best-effort"))


def test_only_the_first_in_line_load_ahead() -> None:
    """The second begins to load when the first is taken from the line, at once, as no other is computed."""
    options = TierOptions(tiers=SLOW_DISK.tiers, loading="bulk", look_ahead=1)
    requests = [Timed(0.0, lambda room: Plan("load", (2,), 0.0, 5.0)) for _ in range(2)]
    assert run(requests, SLOW_DISK, options, NO_OVERHEAD).ttft_s() == pytest.approx([7, 12])
    both = [Timed(0.0, lambda room: Plan("load", (2,), 0.0, 5.0)) for _ in range(2)]
    assert run(both, SLOW_DISK, replace(options, look_ahead=None), NO_OVERHEAD).ttft_s() == pytest.approx([9, 14])


def test_hits_are_cut_where_staging_is_full(accesses: Accesses) -> None:
    """Room for no block on its way is computing, all of it; room for all of them is no limit."""
    options = TierOptions(tiers=tier(4.0), decision="load")
    free = with_tiers(accesses, options)
    none = with_tiers(accesses, replace(options, staging_bytes=1))
    assert none.ttft_ms == none.without_ttft_ms
    assert none.cut_tokens == none.tiers[0].hit_tokens > 0 == none.tiers[0].bytes_read
    some = with_tiers(accesses, replace(options, staging_bytes=64 << 20))
    assert 0 < some.cut_tokens < none.cut_tokens
    assert free.cut_tokens == 0
    assert with_tiers(accesses, replace(options, staging_bytes=1 << 50)) == free


def test_what_is_asked_of_tiers() -> None:
    tiers, switches = parse_tiers("disk=/tmp/kv:1TiB@7/4, dram=64GiB,half-duplex")
    assert [(one.name, one.capacity_bytes, one.read_gbps, one.write_gbps) for one in tiers] == [
        ("dram", 64 << 30, None, None), ("disk", 1 << 40, 7.0, 4.0),
    ]  # fmt: skip
    assert switches == {"half-duplex"}
    assert [parse_write_policy(text).after_hits for text in ("through", "selective:2", "back")] == [0, 2, None]
    with pytest.raises(KvtoolError, match="did you mean selective"):
        parse_write_policy("selectiv:2")
    with pytest.raises(KvtoolError, match="needs --write-policy back"):
        TierOptions(tiers=tiers, exclusive=True, write=WritePolicy())
    for text, said in (
        ("dam=1GiB", "did you mean dram"), ("dram", "does not say how much"), ("dram=1GiB,dram=2GiB", "twice"),
        ("dram=0", "has no room"), ("dram=1GiB@0", "must be above 0"), ("exclusive", "names no tier"),
    ):  # fmt: skip
        with pytest.raises(KvtoolError, match=said):
            parse_tiers(text)


def longer_flops(tokens: int, width: int) -> int:
    """FLOPs of an encoder layer with an MLP of 4 x width, over all pairs of tokens, from what sizing counts of a causal
    one: n (n + 1) / 2 pairs become n^2.
    """
    layer = Layer(FullAttention(kv_heads=1, k_head_dim=width, v_head_dim=width))
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
    steps = {one: floor.step_s(floor.compute_s(0, one)) for one in (100, 250, 400)}
    assert steps[100] == pytest.approx(0.098, rel=0.03)  # the mean of two cases that take nearly as much
    assert steps[100] < steps[250] < steps[400] <= pytest.approx(0.300, rel=0.01)
    assert floor.step_s(floor.compute_s(0, 800)) == pytest.approx(
        0.300 + floor.compute_s(0, 800) - 4 * floor.last_s(100, 0), rel=0.01
    )
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
    assert 0 < low < clock.ttft_ms.p50 < high
    assert clock.tpot_ms is not None
    assert document.gpu == "Intel(R) Xeon(R) Processor"
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
