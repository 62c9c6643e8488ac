"""How close a measurement may come to the device's limits, measured in the same run, before it must be wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kvtool.results import Case, KernelRoofline, Roofline, WorkloadCase

ACCOUNTING_LIMIT = 1.03  # more than this share of a measured limit means that bytes or FLOPs were miscounted
IMPOSSIBLE = "accounting error"
MOVED = "the device's speed changed in the middle of the case"
CACHE_MULTIPLE = 2  # a working set under this many last-level caches may be served from them
IN_CACHE = f"the working set is under {CACHE_MULTIPLE}x the last-level cache, which may serve it faster than memory"


class WithRoofline(Protocol):
    """A measured case of any document."""

    @property
    def name(self) -> str: ...

    @property
    def roofline(self) -> Roofline | KernelRoofline: ...


def streams(working_set_bytes: int, llc_bytes: int | None) -> bool:
    """Whether so many bytes must come from memory, because no cache holds them."""
    return llc_bytes is None or working_set_bytes >= CACHE_MULTIPLE * llc_bytes


def beyond(mbu: float | None, mfu: float | None, *, read_share: float = 1.0, tflops_share: float = 1.0) -> str | None:
    """What is wrong with an MBU or MFU above the limit, None where nothing is.

    They are shares of what the device did beside the case, and that is `read_share` and `tflops_share` of the best it
    did in the run. Nothing can beat the best; what it did beside the case it may have beaten by changing in its middle.
    """
    wrong = [f"{n} {v:.2f}" for n, v in (("MBU", mbu), ("MFU", mfu)) if v is not None and v > ACCOUNTING_LIMIT]
    if not wrong:
        return None
    impossible = max((mbu or 0.0) * read_share, (mfu or 0.0) * tflops_share) > ACCOUNTING_LIMIT
    return f"{IMPOSSIBLE if impossible else MOVED}: {' and '.join(wrong)} of what the device did in the same run"


def accounting_errors(cases: Iterable[WithRoofline]) -> list[str]:
    """A line for each case whose bytes or FLOPs must have been miscounted."""
    return [
        f"{case.name}: {case.roofline.reason}" for case in cases if (case.roofline.reason or "").startswith(IMPOSSIBLE)
    ]


def hit_errors(cases: Iterable[Case]) -> list[str]:
    """A line for each workload whose hits are not those that were generated, though nothing was evicted."""
    return [
        f"{case.name}: {wrong}" for case in cases if isinstance(case, WorkloadCase) and (wrong := _wrong_hits(case))
    ]


def _wrong_hits(case: WorkloadCase) -> str | None:
    """What left the pool and stayed in a tier is found there, but for what it was faster to compute."""
    work = case.workload
    found, expected = work.hit_tokens, work.hit_tokens_expected
    if work.evicted_pages and work.kept_below:
        found += sum(tier.recomputed_tokens for tier in work.tiers)
    may_be_fewer = (work.evicted_pages > 0 and not work.kept_below) or not work.hits_exact
    may_be_more = bool(case.inputs.get("partial_hits"))
    if found == expected or (may_be_fewer if found < expected else may_be_more):
        return None
    return f"{expected:,} hit tokens were generated but the allocator counted {found:,}"
