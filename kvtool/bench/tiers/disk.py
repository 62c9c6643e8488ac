"""The disk's rows: sizes by queue depths, down and up, both at once, and what checksums cost."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kvtool.bench.session import Step
from kvtool.bench.tiers.options import TiersOptions
from kvtool.bench.tiers.rows import What, tier_row
from kvtool.engine.offload.page_file import LEAST_STRIPE_BYTES
from kvtool.machine.direct_io import ALIGNMENT
from kvtool.machine.disk import Check, Requests, Scratch, serve
from kvtool.machine.filesystem import filesystem_of
from kvtool.results import TierRow
from kvtool.units import format_bytes, round_up

PAGE_CACHE = "page cache"


def disk_name(folder: Path, *, direct: bool) -> tuple[str, str]:
    """The tier that a file in the folder is measured as, and a remark: `disk` only where it may be one."""
    filesystem = filesystem_of(folder)
    if filesystem.not_a_disk is not None:
        return filesystem.kind or "unknown", filesystem.not_a_disk
    if not direct:
        return PAGE_CACHE, f"{filesystem.kind} has no O_DIRECT: memory may answer for the disk"
    return "disk", filesystem.remark or ""


def disk_steps(
    options: TiersOptions, sizes: dict[str, int], scratch: Scratch, name: str, remark: str
) -> Iterator[Step[TierRow]]:
    """A step a row. `sizes` are the model's own, by name."""
    named = [(size, round_up(count, ALIGNMENT)) for size, count in sizes.items()]
    for size, size_bytes in [*named, *(("chunk", chunk) for chunk in options.chunks if chunk % ALIGNMENT == 0)]:
        for depth in options.depths_of(size_bytes):
            for direction in ("down", "up"):
                what = What(
                    tier=name,
                    direction=direction,
                    method="requests",
                    size=size,
                    size_bytes=size_bytes,
                    queue_depth=depth,
                    streams=depth,
                    remark=remark,
                )
                yield _step(scratch, what, options)
    size_bytes = round_up(sizes["full block"], ALIGNMENT)
    depth = options.depths_of(size_bytes)[-1]
    for direction, method, check in (("both", "requests", None), ("up", "checked requests", checksums)):
        what = What(
            tier=name,
            direction=direction,
            method=method,
            size="full block",
            size_bytes=size_bytes,
            queue_depth=max(2, depth),
            streams=max(2, depth),
            remark=remark,
        )
        yield _step(scratch, what, options, check)


def checksums(page: memoryview) -> list[int]:
    """What reading a page file checks, stripe by stripe."""
    return [zlib.crc32(page[start : start + LEAST_STRIPE_BYTES]) for start in range(0, len(page), LEAST_STRIPE_BYTES)]


def _step(scratch: Scratch, what: What, options: TiersOptions, check: Check | None = None) -> Step[TierRow]:
    title = f"{what.tier} {what.direction}, {format_bytes(what.size_bytes)} x {what.queue_depth}"
    return Step(title, partial(_measured, scratch, what, options, check))


def _measured(scratch: Scratch, what: What, options: TiersOptions, check: Check | None) -> TierRow:
    requests = Requests(what.size_bytes, what.queue_depth, what.direction, check)
    served = serve(scratch, requests, seconds=options.point_s, seed=options.seed)
    return tier_row(what, served.rates, latency_s=served.latencies_s, device_s=served.wall_s, host_s=served.cpu_s)
