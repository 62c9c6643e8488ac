"""Tiers on a clock: flows share links fairly, and the ends of every scale are what they must be."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.cache.tiers.options import WritePolicy, parse_write_policy
from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.replay.accesses import Accesses, read_accesses
from kvtool.replay.capacity import block_bytes
from kvtool.replay.clock.clock import Clock
from kvtool.replay.clock.network import fair_rates
from kvtool.replay.clock.steps import card_steps
from kvtool.replay.curves import Curve
from kvtool.replay.loops.core import Walk
from kvtool.replay.loops.fastest import core
from kvtool.replay.saved import prefill_floor
from kvtool.replay.tiers.options import Tier, TierOptions, parse_tiers, parse_watermark
from kvtool.replay.tiers.plan import Links
from kvtool.replay.tiers.stores import Stores
from kvtool.replay.tiers.tiers import TierReplay
from kvtool.results import ReplayTiers
from kvtool.system.errors import KvtoolError
from kvtool.workloads.making.make import make_trace
from kvtool.workloads.making.options import Making
from kvtool.workloads.traces import open_trace
from kvtool.workloads.traces.write import write_trace

GPU = find_gpu("h100")
MODEL = resolve_model("llama-3.1-8b")
LAYERS = 32


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
        ("dam=1GiB", "did you mean dram"), ("dram", "is not complete"), ("dram=1GiB,dram=2GiB", "twice"),
        ("disk=/a:@7", "does not say how much"),
        ("dram=0", "has no room"), ("dram=1GiB@0", "must be above 0"), ("exclusive", "names no tier"),
    ):  # fmt: skip
        with pytest.raises(KvtoolError, match=said):
            parse_tiers(text)
