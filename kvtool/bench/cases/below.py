"""Prefixes that lie below the block pool: the tiers of a benchmark, and requests that find nothing in the pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from kvtool.bench.harness import run_requests
from kvtool.cache.tiers.options import TierOptions, WritePolicy
from kvtool.engine.engine import Engine
from kvtool.engine.sequence import Sequence
from kvtool.system.errors import DeviceError, KvtoolError
from kvtool.workloads import Request


@contextmanager
def private_tiers(tiers: TierOptions | None) -> Iterator[TierOptions | None]:
    """The tiers with a folder of this run's own inside the user's, which goes with it: what an earlier run left would
    be hits that nobody asked for. Raises KvtoolError."""
    if tiers is None or tiers.disk_folder is None:
        yield tiers
        return
    try:
        tiers.disk_folder.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(prefix="kvtool-bench-", dir=tiers.disk_folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise KvtoolError(f"--tiers disk={tiers.disk_folder}: {error.strerror or error}") from error
    with folder as name:
        yield replace(tiers, disk_folder=Path(name))


def own_tiers(tiers: TierOptions | None, name: str) -> TierOptions | None:
    """The same for one engine of several: its files are in a folder of its own, as an engine opens one alone."""
    if tiers is None or tiers.disk_folder is None:
        return tiers
    return replace(tiers, disk_folder=tiers.disk_folder / name)


def divided(tiers: TierOptions | None, engines: int) -> TierOptions | None:
    """An equal part of the tiers for each of so many engines that have them at once."""
    if tiers is None:
        return None
    parts = {name: size and size // engines for name, size in tiers.capacities.items()}
    return replace(tiers, dram_bytes=parts["dram"], disk_bytes=parts["disk"])


def each_tier(tiers: TierOptions | None) -> dict[str, TierOptions]:
    """Every tier alone, pages moved down at once and always loaded, so that what is found there can be measured."""
    if tiers is None:
        return {}
    alone = replace(tiers, exclusive=False, write=WritePolicy(), always_load=True)
    found = {}
    if tiers.dram_bytes is not None:
        found["dram"] = replace(alone, disk_folder=None, disk_bytes=None)
    if tiers.disk_folder is not None:
        found["disk"] = replace(alone, dram_bytes=None)
    return found


def run_from_below(engine: Engine, requests: list[Request]) -> list[Sequence]:
    """One request after the other, each with an empty pool, when all that moves down has landed. Raises DeviceError
    where the engine has no tier."""
    if engine.offload is None:
        raise DeviceError("; ".join(engine.loaded.notices.lines) or "the engine has no tier")
    done: list[Sequence] = []
    for request in requests:
        engine.offload.settle()
        engine.cache.reset()
        done += run_requests(engine, [request], concurrency=1)
    return done


def tier_hits(engine: Engine) -> int:
    """Tokens that were loaded from tiers so far."""
    return sum(counters.hit_tokens for counters in engine.tiers())
