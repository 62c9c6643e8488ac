"""Outputs with tiers are those without, token for token, whatever pool, mix of requests, policy or accident."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtool.cache.admission import ADMISSION
from kvtool.cache.eviction.eviction import EVICTION
from kvtool.cache.manager import SequenceCache
from kvtool.cache.tiers.options import TierOptions, WritePolicy, parse_tiers
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.offload import host as host_module
from kvtool.engine.offload.notices import Notices
from kvtool.engine.offload.page_file import file_bytes
from kvtool.engine.preemption import PREEMPTION
from kvtool.engine.sequence import Sequence
from tests.engine.conftest import SaveTiny
from tests.engine.offload import fake_kvikio
from tests.engine.requests import Request, run
from tests.engine.running import load, prompt

BLOCK = 4
POLICIES = (WritePolicy(kind="through"), WritePolicy(kind="selective", hits=1), WritePolicy(kind="back"))


@pytest.fixture(scope="module")
def loaded(tiny: SaveTiny) -> LoadedModel:
    return load(tiny("llama-3-gqa").folder, block_size=BLOCK)


def engine_with(loaded: LoadedModel, num_pages: int, tiers: TierOptions | None, **config: object) -> Engine:
    """Its clock stands still, so that loading costs nothing and is always worth it. Nothing was warned of yet."""
    loaded.notices = Notices()
    return Engine(loaded, num_pages=num_pages, config=replace(loaded.config, tiers=tiers, **config), clock=lambda: 0.0)


def as_fast_either_way(engine: Engine) -> None:
    """Loading a page takes as long as computing it, whatever is measured from here on."""
    assert engine.offload is not None
    engine.offload._break_even.computed(BLOCK, 1.0)
    engine.offload._break_even.loaded("disk", 1, 1.0)
    engine.offload._break_even.computed = engine.offload._break_even.loaded = lambda *_: None  # type: ignore[method-assign]


def outputs(engine: Engine, requests: list[Request]) -> list[list[int]]:
    tokens = [sequence.output_ids for sequence in run(engine, requests)]
    if engine.offload is not None:
        engine.offload.stack.check()
    engine.close()
    return tokens


@st.composite
def mixes(draw: st.DrawFn) -> list[Request]:
    """Prompts that begin alike, come at any time, and come again."""
    stems = [prompt(24, seed) for seed in range(2)]
    requests = []
    for seed in range(draw(st.integers(1, 8))):
        stem = draw(st.sampled_from(stems))[: draw(st.integers(1, 24))]
        tail = prompt(draw(st.integers(0, 6)), 10 + seed % 3)
        requests.append(Request(stem + tail, draw(st.integers(1, 6)), arrival=draw(st.integers(0, 30))))
    return requests


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=mixes(),
    spare_pages=st.integers(0, 8),
    policy=st.sampled_from(POLICIES),
    dram_pages=st.none() | st.integers(1, 12),
    disk_pages=st.none() | st.integers(1, 30),
    exclusive=st.booleans(),
    kvikio=st.booleans(),
    both_ends=st.booleans(),
    index=st.sampled_from(["hashed", *EVICTION]),
    admission=st.sampled_from(ADMISSION),
    preemption=st.sampled_from(sorted(PREEMPTION)),
    partial_hits=st.booleans(),
)
def test_tokens_are_the_same(
    loaded: LoadedModel,
    folders: Iterator[Path],
    requests: list[Request],
    spare_pages: int,
    policy: WritePolicy,
    dram_pages: int | None,
    disk_pages: int | None,
    exclusive: bool,
    kvikio: bool,
    both_ends: bool,
    index: str,
    admission: str,
    preemption: str,
    partial_hits: bool,
) -> None:
    """`index` is "hashed", or the eviction policy of a radix tree. Whatever comes up comes layer by layer."""
    page_bytes = loaded.page_bytes
    num_pages = max(-(-(len(r.prompt) + r.max_tokens - 1) // BLOCK) for r in requests) + spare_pages
    if dram_pages is None and disk_pages is None:
        dram_pages = 3
    tiers = TierOptions(
        dram_bytes=None if dram_pages is None else dram_pages * page_bytes,
        disk_folder=None if disk_pages is None else next(folders),
        disk_bytes=None if disk_pages is None else disk_pages * file_bytes(page_bytes),
        exclusive=exclusive and policy.kind == "back" and dram_pages is not None,
        kvikio=kvikio and dram_pages is None and disk_pages is not None,
        write=policy,
    )
    expected = outputs(engine_with(loaded, num_pages, None), requests)
    for _ in range(2):  # the second run finds what the first left on the disk
        engine = engine_with(
            loaded,
            num_pages,
            tiers,
            index="hashed" if index == "hashed" else "radix",
            eviction="lru" if index == "hashed" else index,
            admission=admission,
            preemption=preemption,
            partial_hits=partial_hits and index != "hashed",
        )
        if both_ends:
            as_fast_either_way(engine)
        assert outputs(engine, requests) == expected
        assert engine.loaded.notices.lines == []


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Fresh ones, which kvikio can serve too."""
    fake_kvikio.install(monkeypatch)
    return (tmp_path / str(number) for number in count())


LONG = [Request(prompt(40, seed), 3, arrival=100 * turn) for turn in range(2) for seed in range(3)]


@pytest.mark.parametrize("tiers", ["dram=1MiB", "disk={}:1MiB", "dram=1MiB,disk={}:1MiB"])
@pytest.mark.parametrize("write", ["through", "back"])
def test_a_prefix_that_left_the_pool_comes_back_from_below(
    loaded: LoadedModel, tmp_path: Path, tiers: str, write: str
) -> None:
    engine = engine_with(loaded, 12, parse_tiers(tiers.format(tmp_path), write))
    sequences = run(engine, LONG)
    assert [sequence.cached_tokens for sequence in sequences] == [0, 0, 0, 36, 36, 36]
    counters = engine.tiers()
    assert sum(counter.hit_tokens for counter in counters) == 3 * 36
    moved = loaded.page_bytes * 3 * 36 // BLOCK
    assert sum(counter.bytes_out for counter in counters) == moved
    assert counters[0].bytes_in >= moved
    engine.close()
    assert engine.loaded.notices.lines == []


@pytest.mark.parametrize("budget", [4, 6, 8192])
def test_half_of_a_prefix_is_computed_while_the_other_half_is_read(
    loaded: LoadedModel, tmp_path: Path, budget: int
) -> None:
    expected = outputs(engine_with(loaded, 12, None), LONG[:1])
    tiers = parse_tiers(f"disk={tmp_path}:1MiB")
    outputs(engine_with(loaded, 12, tiers), LONG[:1])
    config = replace(loaded.config, tiers=tiers, max_num_batched_tokens=budget)
    engine = Engine(loaded, num_pages=12, config=config, clock=lambda: 0.0)
    as_fast_either_way(engine)
    assert engine.offload is not None
    engine.offload.prefetch = lambda sequence: None  # type: ignore[method-assign]
    (sequence,) = run(engine, LONG[:1])
    assert [sequence.output_ids] == expected
    disk = engine.tiers()[-1]
    assert (disk.recomputed_tokens, disk.hit_tokens, sequence.cached_tokens) == (20, 16, 16)  # 5 and 4 of 9 pages
    engine.offload.stack.check()
    engine.close()


def test_one_that_gave_way_is_read_ahead_before_it_is_seated_again(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request takes the pages of the second, which comes back from the disk, read while it waited."""
    requests = [Request(prompt(20, seed), tokens) for seed, tokens in ((0, 24), (1, 12))]
    expected = outputs(engine_with(loaded, 30, None), requests)
    engine = engine_with(loaded, 12, parse_tiers(f"disk={tmp_path}:1MiB"))
    offload = engine.offload
    assert offload is not None
    back, ahead = offload.back, list[int]()

    def seated(sequence: Sequence, pages: SequenceCache) -> int:
        if sequence.num_preemptions:
            ahead.append(len(offload.stack._ahead))
        return back(sequence, pages)

    monkeypatch.setattr(offload, "back", seated)
    sequences = run(engine, requests)
    assert [sequence.output_ids for sequence in sequences] == expected
    assert [sequence.num_preemptions for sequence in sequences] == [0, 1]
    assert ahead == [engine.tiers()[0].hit_tokens // BLOCK]
    assert ahead[0] > 0
    engine.close()


def test_selective_moves_down_what_was_hit_often_enough(loaded: LoadedModel) -> None:
    stem = prompt(16)
    engine = engine_with(loaded, 40, parse_tiers("dram=1MiB", "selective:2"))
    moved = []
    for seed in range(4):
        run(engine, [Request(stem + prompt(5, seed), 2)])
        moved.append(engine.tiers()[0].bytes_in // loaded.page_bytes)
    assert moved == [0, 0, 4, 4], "the stem's four pages after their second hit, and no other"


def test_exclusive_keeps_no_page_in_host_memory_that_is_in_the_pool(loaded: LoadedModel) -> None:
    engine = engine_with(loaded, 12, parse_tiers("dram=1MiB,exclusive", "back"))
    run(engine, LONG)
    assert engine.offload is not None
    in_pool = {engine.offload._key_of[page] for page in engine.cache.index.pages()}
    assert in_pool
    assert not any(key in engine.offload.stack.host for key in in_pool)


def test_the_next_run_reuses_what_is_on_the_disk_but_not_that_of_other_weights(
    loaded: LoadedModel, tiny: SaveTiny, tmp_path: Path
) -> None:
    tiers = parse_tiers(f"disk={tmp_path}:1MiB", "back")
    outputs(engine_with(loaded, 20, tiers), LONG[:1])
    again = engine_with(loaded, 20, tiers)
    assert [sequence.cached_tokens for sequence in run(again, LONG[:1])] == [36]
    again.close()
    other = engine_with(load(tiny("llama-biased").folder, block_size=BLOCK), 20, tiers)
    assert [sequence.cached_tokens for sequence in run(other, LONG[:1])] == [0]
    other.close()


def test_a_full_disk_costs_the_tier_and_never_a_token(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outputs(engine_with(loaded, 12, None), LONG)
    written = count()
    pwritev = os.pwritev

    def fills_up(fd: int, views: list[memoryview], offset: int) -> int:
        if next(written) >= 5:
            raise OSError(28, "No space left on device")
        return pwritev(fd, views, offset)

    monkeypatch.setattr(os, "pwritev", fills_up)
    engine = engine_with(loaded, 12, parse_tiers(f"disk={tmp_path}:1MiB"))
    assert outputs(engine, LONG) == expected
    assert len(engine.loaded.notices.lines) == 1
    assert "the disk is full; this run goes on without a disk tier" in engine.loaded.notices.lines[0]


def refused(*_: object) -> None:
    raise RuntimeError("CUDA error: out of memory\nwhile pinning")


@pytest.mark.parametrize(("name", "refuses"), [("available_bytes", lambda device: 0), ("_allocated", refused)])
@pytest.mark.parametrize("tiers", ["dram=1MiB", "dram=1MiB,disk={}:1MiB", "disk={}:1MiB"])
def test_host_memory_that_is_refused_costs_the_tier_and_never_a_token(
    loaded: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiers: str,
    name: str,
    refuses: Callable[..., object],
) -> None:
    """No room for it, or none that may be pinned for a GPU."""
    expected = outputs(engine_with(loaded, 12, None), LONG)
    monkeypatch.setattr(host_module, name, refuses)
    engine = engine_with(loaded, 12, parse_tiers(tiers.format(tmp_path)))
    assert engine.offload is None
    assert outputs(engine, LONG) == expected
    assert all("this run goes on without a" in line for line in engine.loaded.notices.lines)
    assert len(engine.loaded.notices.lines) == len(tiers.split(","))


def test_a_tier_too_small_for_a_page_says_so(loaded: LoadedModel) -> None:
    engine = engine_with(loaded, 12, TierOptions(dram_bytes=1))
    assert engine.offload is None
    assert "1 B hold no page of" in engine.loaded.notices.lines[0]


def test_latents_and_scales_move_whole(tiny: SaveTiny, tmp_path: Path) -> None:
    for name, dtype in (("deepseek-v3", "auto"), ("llama-3-gqa", "int8_per_token_head"), ("mistral-window", "fp8")):
        model = load(tiny(name).folder, block_size=BLOCK, kv_cache_dtype=dtype)
        expected = outputs(engine_with(model, 12, None), LONG)
        assert outputs(engine_with(model, 12, parse_tiers(f"dram=1MiB,disk={tmp_path / name}:1MiB", "back")), LONG) == (
            expected
        )


def test_pages_in_slots_are_the_pools_own_bytes(loaded: LoadedModel) -> None:
    engine = engine_with(loaded, 6, parse_tiers("dram=1MiB"))
    assert engine.offload is not None
    for layer in engine.pool.layers:
        for tensor in layer.tensors:
            tensor.copy_(torch.randn(tensor.shape))
    before = [tensor.clone() for layer in engine.pool.layers for tensor in layer.tensors]
    copies = engine.offload.stack._copies
    copies.down([5, 0, 3], [7, 8, 2])
    for layer in engine.pool.layers:
        for tensor in layer.tensors:
            tensor.zero_()
    copies.up([2, 7, 8], [3, 5, 0]).finish()
    after = [tensor for layer in engine.pool.layers for tensor in layer.tensors]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[[0, 3, 5]], old[[0, 3, 5]])
        assert not new[[1, 2, 4]].any()
