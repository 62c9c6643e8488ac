"""vLLM's blocks: what the log says beside what vLLM's planner makes of the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvtool.results import VerifyRow
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm import VllmPlan, plan
from kvtool.units import GIB, TIB
from kvtool.verify.budget import kv_pool
from kvtool.verify.facts import Figure, LogFacts, exactly
from kvtool.verify.inputs import Started
from kvtool.verify.rows import BLOCKS, BYTES, REQUESTS, TOKENS, Predicted, exact, exact_row

# Until 0.20 the log counted num_blocks // groups x the smallest block (vllm-project/vllm#43308); its concurrency, and so
# the tokens of a model with one group, are the same.
TOKENS_FOLLOW_CONCURRENCY = (0, 21)
_ROOM_BYTES = 1024 * TIB  # a pool in which everything fits: what one request takes does not depend on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Plans for the pool as logged, and for the ends of the range that its rounding leaves open."""

    value: VllmPlan
    low: VllmPlan
    high: VllmPlan

    def of(self, number: str) -> Predicted | None:
        """One number of the three plans; None where a plan has none."""
        value, low, high = (getattr(each, number) for each in (self.value, self.low, self.high))
        return None if value is None or low is None or high is None else Predicted(value=value, low=low, high=high)


def plans(started: Started, facts: LogFacts, pool: Figure) -> Planned:
    """Plan the start for a pool of so many bytes; blocks that the log counts overrule them. Raises KvtoolError."""
    options, blocks = started.options, facts.smallest("num_blocks")
    if blocks is not None and blocks.value > 0:
        options, pool = replace(options, num_gpu_blocks_override=round(blocks.value)), exactly(pool.value)
    value, low, high = (
        plan(started.model, options, pool_bytes=max(0, round(size))) for size in (pool.value, pool.low, pool.high)
    )
    return Planned(value=value, low=low, high=high)


def vllm_rows(facts: LogFacts, started: Started, pool: Figure | None) -> Iterator[VerifyRow]:
    """Every number of the plan, given the pool; what one request takes where vLLM refused. Raises KvtoolError."""
    if facts.last("one_request") is not None:
        yield from _request_rows(facts, started, pool)
    if pool is None or (facts.refusal is not None and facts.refusal.kind == "one_request"):
        return
    planned = plans(started, facts, pool)
    block, blocks = planned.value.bytes_per_block, planned.of("num_blocks")
    if facts.last("block_size") is not None:
        yield exact_row("block size", TOKENS, facts.last("block_size"), planned.of("block_size"))
    yield _block_bytes_row(facts, block)
    yield exact_row("blocks", BLOCKS, *_blocks(facts, planned, blocks))
    yield exact_row("blocks a request", BLOCKS, None, planned.of("blocks_per_request"), "vLLM does not log it")
    if facts.last("max_concurrency") is not None:
        yield exact_row("max concurrency", REQUESTS, facts.last("max_concurrency"), planned.of("max_concurrency"))
    if facts.smallest("tokens") is not None:
        yield exact_row("tokens", TOKENS, facts.smallest("tokens"), tokens(facts, planned))
