"""From which prefix on loading is faster, against hand-worked times, and which rows make the speed of a tier."""

from __future__ import annotations

import pytest

from kvtool.bench.tiers.break_even import Prefill, break_even_rows, doubling, first_faster, tier_speeds
from kvtool.bench.tiers.options import TiersOptions
from kvtool.bench.tiers.rows import What, tier_row
from kvtool.catalog.resolve import resolve_model
from kvtool.results import TierRow, TierSpeed
from kvtool.sizing.speed.traffic import prefill_flops
from kvtool.system.errors import KvtoolError
from kvtool.units import MIB


def test_the_first_whole_block_at_which_loading_is_faster() -> None:
    # 10 ms + 1 ms a token against 2 ms a token: equal at 10 tokens, faster from the block behind it on.
    assert first_faster(lambda n: 10 + n, lambda n: 2 * n, 4, 400) == 12
    assert first_faster(lambda n: 10 + n, lambda n: 2 * n, 16, 400) == 16
    assert first_faster(lambda n: 10 + 3 * n, lambda n: 2 * n, 4, 400) is None
    assert first_faster(lambda n: 0.0, lambda n: n, 4, 400) == 4
    # Computing that grows with the square is slower in the end: 3n = n^2 / 100 at 300.
    assert first_faster(lambda n: 3 * n, lambda n: n * n / 100, 16, 1 << 17) == 304


def test_every_multiple_up_to_the_first_is_slower() -> None:
    for latency in (0.0, 1.0, 7.3, 100.0):
        found = first_faster(lambda n, a=latency: a + n, lambda n: n * 1.07 + n * n / 1e4, 16, 4096)
        slower = [n for n in range(16, 4097, 16) if latency + n >= n * 1.07 + n * n / 1e4]
        assert found == (max(slower, default=0) + 16 if max(slower, default=0) < 4096 else None)


def test_doubling_ends_at_the_last() -> None:
    assert doubling(16, 100) == [16, 32, 64, 100]
    assert doubling(16, 64) == [16, 32, 64]
    assert doubling(16, 16) == [16]


def speed(tier: str, gbps: float, latency_us: float) -> TierSpeed:
    return TierSpeed(tier=tier, up_gbps=gbps, down_gbps=gbps, latency_us=latency_us, measured=True, remark="")


def test_a_disk_is_read_through_host_memory() -> None:
    model = resolve_model("smollm2-135m")
    page_bytes = 16 * 30 * 3 * 64 * 2 * 2  # tokens, layers, heads, columns, K and V, bytes of bf16
    speeds = [speed("dram", 10.0, 50.0), speed("disk", 1.0, 400.0)]
    rows = break_even_rows(model, speeds, Prefill(1e12, 4), page_bytes=page_bytes, block_size=16)
    dram, disk = rows
    assert [row.up_to_tokens for row in rows] == [8192, 8192]
    tokens, load_ms, compute_ms = disk.points[-1]
    assert tokens == 8192
    assert load_ms == pytest.approx(0.45 + 512 * page_bytes * (1 / 1e9 + 1 / 10e9) * 1e3)
    assert compute_ms == pytest.approx((prefill_flops(model, 8192) or 0) / 1e9)
    assert (dram.prefix_tokens or 0) <= (disk.prefix_tokens or 0)


def row(tier: str, direction: str, method: str, gbps: float, depth: int = 1, size: str = "full block") -> TierRow:
    what = What(tier=tier, direction=direction, method=method, size=size, size_bytes=MIB, queue_depth=depth)
    return tier_row(what, [gbps * 1e9], latency_s=[depth * 1e-4], device_s=1e-4, host_s=1e-5)


def test_the_speed_of_a_tier_is_that_of_its_pages_as_the_tiers_move_them() -> None:
    rows = [
        row("dram", "up", "copies", 20.0),
        row("dram", "up", "gathered pages", 8.0, depth=32),
        row("dram", "down", "gathered pages", 6.0, depth=32),
        row("disk", "up", "requests", 0.5),
        row("disk", "up", "requests", 2.0, depth=16),
        row("disk", "up", "requests", 9.0, size="chunk"),
        row("disk", "down", "requests", 1.0),
        row("tmpfs", "up", "requests", 5.0),
    ]
    found = {speed.tier: (speed.up_gbps, speed.down_gbps, round(speed.latency_us)) for speed in tier_speeds(rows)}
    assert found == {"dram": (8.0, 6.0, 100), "disk": (2.0, 1.0, 100)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"depths": (0,)}, "queue depth 0 must be from 1"),
        ({"chunks": (100,)}, "size of 100 bytes must be from 512 B"),
        ({"point_s": 0.0}, "seconds 0 a figure must be"),
        ({"block_size": 0}, "block size 0 must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        TiersOptions(disk=None, **given)  # type: ignore[arg-type]


def test_requests_in_flight_fit_their_buffers() -> None:
    options = TiersOptions(disk=None, depths=(1, 4, 16))
    assert options.depths_of(MIB) == [1, 4, 16]
    assert options.depths_of(64 * MIB) == [1, 4]
    assert TiersOptions(disk=None, depths=(16,)).depths_of(64 * MIB) == [1]
