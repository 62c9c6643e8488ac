"""How a GPU serves on the clock: steps, loads that overlap with them, and loads that do not come in time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from kvtool.catalog.resolve import resolve_model
from kvtool.replay.clock.steps import StepTimes
from kvtool.replay.saved import PrefillFloor, counted_work
from kvtool.replay.tiers.options import Tier, TierOptions, parse_prefetch
from kvtool.replay.tiers.plan import Links, Plan
from kvtool.replay.tiers.stores import Stores
from kvtool.replay.tiers.timed import Timed
from kvtool.replay.tiers.timing import Run, run
from kvtool.system.errors import KvtoolError

MODEL = resolve_model("llama-3.1-8b")
LAYERS = 32
NO_OVERHEAD = StepTimes(PrefillFloor(counted_work(MODEL), 1e15, 0.0))


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


def test_two_that_need_the_same_load_share_it() -> None:
    """B hits what A is loading: it waits for that, 4 blocks of 1 GB at 1 GB/s, and both are computed behind it."""
    stores = Stores([4, 100], exclusive=False, write_after=0)
    for path in ([1, 2, 3, 4], [5, 6, 7, 8]):
        stores.request(path)
    loads, shares = stores.request([1, 2, 3, 4]), stores.request([1, 2, 3, 4])
    assert (loads.places, loads.brought_by) == ((1, 1, 1, 1), ())
    assert (shares.places, shares.brought_by) == ((0, 0, 0, 0), ((0, 2),))
    links = Links((Tier(name="dram", capacity_bytes=1, read_gbps=1.0, write_gbps=1.0),), 10**9, 16, LAYERS)
    for plan, first_s, second_s in (
        (Plan("load", (4,), 0.0, 1.0), 6.0, 6.0),
        (Plan("recompute", (0,), 0.0, 1.0), 1.0, 2.0),  # there once it is computed
    ):
        first = Timed(0.0, partial(given, plan), input_tokens=65)
        second = Timed(0.5, lambda room: Plan("none", (0,), 0.0, 1.0), input_tokens=65, in_gpu=4, shares=((0, first),))
        played = run([first, second], links, TierOptions(tiers=links.tiers, loading="bulk"), NO_OVERHEAD)
        assert played.read == [plan.blocks[0] * 10**9]
        assert second.late_blocks == 0
        assert (first.first_s, second.first_s) == pytest.approx((first_s, second_s))


def given(plan: Plan, room: int) -> Plan:
    """That plan, whatever the room."""
    return plan


def test_what_decodes_gives_way_where_memory_ends() -> None:
    """Two prompts of 48 tokens with answers of 40, in 8 blocks of 16. Their 65th tokens do not fit: the younger one
    waits until the other has ended, and is computed again. Prompts take 1 s each, decode steps 0.12 s, 0.11 alone.
    """
    times = replace(NO_OVERHEAD, decode_s=0.1, sequence_s=0.01)
    again_s = times.floor.compute_s(0, 64)
    for pool_tokens, ends_s, preemptions in (
        (128, (2 + 15 * 0.12 + 24 * 0.11, 2 + 15 * 0.12 + 24 * 0.11 + again_s + 23 * 0.11), 1),
        (64, (1 + 39 * 0.11, 2 * (1 + 39 * 0.11)), 0),  # the second waits for the first to end
        (1000, (2 + 39 * 0.12, 2 + 39 * 0.12), 0),
    ):
        requests = [
            Timed(0.0, lambda room: Plan("none", (), 0.0, 1.0), input_tokens=48, output_tokens=40) for _ in range(2)
        ]
        run(requests, Links((), 1, 16, 1), TierOptions(tiers=(), pool_tokens=pool_tokens), times)
        assert [one.ended_s for one in requests] == pytest.approx(ends_s), pool_tokens
        assert [one.preemptions for one in requests] == [0, preemptions]
        assert requests[1].recomputed_tokens == 64 * preemptions


def test_prompts_that_begin_alike_share_memory() -> None:
    """Of 3 blocks each two are the same: with a block for each answer six hold both."""
    for shared, together in ((True, True), (False, False)):
        nodes = ([1, 2, 3], [1, 2, 4] if shared else [5, 6, 7])
        first, second = (
            Timed(0.0, lambda room: Plan("none", (), 0.0, 1.0), input_tokens=48, output_tokens=2, nodes=path)
            for path in nodes
        )
        run([first, second], Links((), 1, 16, 1), TierOptions(tiers=(), pool_tokens=96), NO_OVERHEAD)
        assert (first.first_s == second.first_s) == together


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
