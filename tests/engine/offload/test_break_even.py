"""Load or compute: what saves the most time by what both took so far, as told to it here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvtool.cache.tiers.options import TierOptions
from kvtool.engine.offload.break_even import PROBE, BreakEven, Plan
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
    past_host = replace(options, dram_bytes=None, disk_folder=Path(), kvikio=True)
    assert begin_break_even(past_host, block_size=16, page_bytes=10**9).load_s("disk") == 2.0
    assert begin_break_even(TierOptions(dram_bytes=1), block_size=16, page_bytes=1).load_s("disk") == 0.0


def test_both_ends_are_taken_where_they_save_a_page() -> None:
    even = measured(load_s={"disk": 1.0}, compute_s=1.0)
    assert even.plan(["disk"] * 9, room=99) == Plan(load=0, compute=5, load_behind=4)
    assert even.plan(["dram"] * 2 + ["disk"] * 8, room=99) == Plan(load=2, compute=4, load_behind=4)
    assert even.plan(["disk"] * 9, room=2) == Plan(load=0, compute=7, load_behind=2)
    assert even.plan(["disk"] * 9, room=1).load_behind == 1
    assert even.plan(["disk"] * 9, room=0) == Plan(load=9)
    assert even.plan(["disk"], room=99) == Plan(load=1)
    assert even.plan(["disk"] * 4 + ["dram"], room=99) == Plan(load=5)
    # A third of the time: 3 s of loading 9 pages, or 3 pages computed in 3 s while 6 are read in 2 s.
    assert measured(load_s={"disk": 1 / 3}, compute_s=1.0).plan(["disk"] * 9, room=99) == Plan(load=9)
    # Of 90 pages, 23 computed in 23 s while 67 are read in 22.3 s: 7 s less than loading them all.
    quarters = measured(load_s={"disk": 1 / 3}, compute_s=1.0).plan(["disk"] * 90, room=99)
    assert quarters == Plan(load=0, compute=23, load_behind=67)
    assert BreakEven(4).plan(["disk"] * 9, room=99) == Plan(load=9)
