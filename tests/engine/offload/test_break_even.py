"""Load or compute: what saves the most time by what both took so far, as told to it here."""

from __future__ import annotations

from kvtool.cache.tiers.options import TierOptions
from kvtool.engine.offload.break_even import PROBE, BreakEven
from kvtool.engine.offload.build import begin_break_even


def measured(*, load_s: dict[str, float], compute_s: float) -> BreakEven:
    """Seconds a page of 4 tokens."""
    found = BreakEven(block_size=4)
    for tier, seconds in load_s.items():
        found.loaded(tier, 10, 10 * seconds)
    found.computed(100, 25 * compute_s)
    return found


def test_what_was_never_measured_is_loaded() -> None:
    assert BreakEven(4).pages_worth_loading(["disk"] * 3) == 3
    assert measured(load_s={}, compute_s=1.0).pages_worth_loading(["disk"] * 3) == 3


def test_the_faster_way_is_taken() -> None:
    assert measured(load_s={"disk": 0.9}, compute_s=1.0).pages_worth_loading(["disk"] * 3) == 3
    assert measured(load_s={"disk": 1.1}, compute_s=1.0).pages_worth_loading(["disk"] * 3) == 0


def test_a_slow_tier_is_loaded_where_a_fast_one_behind_it_makes_up_for_it() -> None:
    found = measured(load_s={"disk": 3.0, "dram": 0.5}, compute_s=1.0)
    assert found.pages_worth_loading(["dram", "dram", "disk"]) == 2
    assert found.pages_worth_loading(["disk"] + ["dram"] * 3) == 0  # costs 2.0, saves 1.5
    assert found.pages_worth_loading(["disk"] + ["dram"] * 5) == 6


def test_a_burst_does_not_decide_and_a_refused_tier_is_measured_again() -> None:
    found = measured(load_s={"disk": 0.5}, compute_s=1.0)
    for seconds in (0.5, 99.0, 0.5):
        found.loaded("disk", 1, seconds)
    assert found.pages_worth_loading(["disk"]) == 1
    slow = measured(load_s={"disk": 2.0}, compute_s=1.0)
    assert [slow.pages_worth_loading(["disk"]) for _ in range(PROBE)] == [0] * (PROBE - 2) + [1, 0]


def test_a_profile_is_what_a_run_begins_with() -> None:
    options = TierOptions(dram_bytes=1, up_gbps=(("dram", 2.0), ("disk", 0.5)))
    begun = begin_break_even(options, block_size=16, page_bytes=10**9)
    assert (begun.load_s("dram"), begun.load_s("disk")) == (0.5, 2.5)  # from the disk, then up from host memory
    assert begin_break_even(TierOptions(dram_bytes=1), block_size=16, page_bytes=1).load_s("disk") == 0.0
