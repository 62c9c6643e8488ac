"""vLLM's blocks: what the log says beside what vLLM's planner makes of the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from kvtool.results import VerifyRow
from kvtool.sizing.engines.vllm.plan import VllmPlan, plan
from kvtool.units import GIB
from kvtool.verify.facts import Figure, LogFacts, exactly
from kvtool.verify.inputs import Started
from kvtool.verify.rows import BLOCKS, BYTES, REQUESTS, TOKENS, Predicted, exact, exact_row

# Until 0.20 the log counted num_blocks // groups x the smallest block (vllm-project/vllm#43308); its concurrency, and so
# the tokens of a model with one group, are the same.
TOKENS_FOLLOW_CONCURRENCY = (0, 21)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Plans for the pool as logged, and for the ends of the range that its rounding leaves open."""

    value: VllmPlan
    low: VllmPlan
    high: VllmPlan

    def of(self, number: Callable[[VllmPlan], float | None]) -> Predicted | None:
        """One number of the three plans; None where a plan has none."""
        value, low, high = number(self.value), number(self.low), number(self.high)
        return None if value is None or low is None or high is None else Predicted(value=value, low=low, high=high)


def planned(facts: LogFacts, started: Started, pool: Figure) -> Planned:
    """Plan the start for a pool of so many bytes; blocks that the log counts overrule them. Raises KvtoolError."""
    options, blocks = started.options, facts.smallest("num_blocks")
    if blocks is not None and blocks.value > 0:
        options, pool = replace(options, num_gpu_blocks_override=round(blocks.value)), exactly(pool.value)
    value, low, high = (
        plan(started.model, options, pool_bytes=max(0, round(size))) for size in (pool.value, pool.low, pool.high)
    )
    return Planned(value=value, low=low, high=high)


def plan_rows(facts: LogFacts, plans: Planned, pool: Figure | None) -> Iterator[VerifyRow]:
    """Every number of a plan beside the log's. `pool` is None where the plan's was not logged."""
    if facts.last("one_request") is not None:
        yield from _request_rows(facts, plans)
        return
    if facts.last("block_size") is not None:
        text = "tokens of a block of attention, as large as a state"
        yield exact_row("block size", TOKENS, facts.last("block_size"), plans.of(_largest_block), text)
    yield _block_bytes_row(facts, plans, pool)
    yield _blocks_row(facts, plans)
    text = "vLLM does not log it"
    yield exact_row("blocks a request", BLOCKS, None, plans.of(lambda found: found.blocks_per_request), text)
    if facts.last("max_concurrency") is not None:
        yield exact_row("max concurrency", REQUESTS, facts.last("max_concurrency"), plans.of(concurrency))
    if (tokens := facts.smallest("tokens")) is not None:
        predicted = plans.of(token_count(facts))
        yield exact_row("tokens", TOKENS, tokens, predicted)
        if pool is not None and predicted is not None:
            yield _density_row(tokens, predicted, pool)


def concurrency(found: VllmPlan) -> float | None:
    """Blocks by blocks a request, also of a plan that refuses for lack of them."""
    if not found.num_blocks or not found.blocks_per_request:
        return None
    return found.num_blocks / found.blocks_per_request


def token_count(facts: LogFacts) -> Callable[[VllmPlan], int | None]:
    """How the log's version counts the tokens of a plan; unknown versions as today's."""
    if facts.version is not None and _number(facts.version) < TOKENS_FOLLOW_CONCURRENCY:
        return tokens_by_group
    return tokens_by_concurrency


def tokens_by_concurrency(found: VllmPlan) -> int | None:
    """`GPU KV cache size` from 0.21 on."""
    requests = concurrency(found)
    return None if requests is None or found.max_model_len is None else int(requests * found.max_model_len)


def tokens_by_group(found: VllmPlan) -> int | None:
    """`GPU KV cache size` before 0.21: each group's share of the blocks, in the smallest blocks."""
    if not found.num_blocks or found.block_size is None:
        return None
    return found.num_blocks // len(found.groups) * found.block_size * found.inputs.parallel.dcp


def implied_blocks(tokens: Figure, found: VllmPlan) -> int | None:
    """The number of blocks that makes exactly these tokens; None where none does."""
    request, longest = found.blocks_per_request, found.max_model_len
    if not request or not longest or not tokens.exact:
        return None
    near = round(tokens.value * request / longest)
    return next(
        (blocks for blocks in (near, near - 1, near + 1) if int(blocks / request * longest) == tokens.value), None
    )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _largest_block(found: VllmPlan) -> int | None:
    return max((group.block_size for group in found.groups), default=None)


def _block_bytes(found: VllmPlan) -> int | None:
    return max(found.bytes_per_block, default=None)


def _block_bytes_row(facts: LogFacts, plans: Planned, pool: Figure | None) -> VerifyRow:
    """Logged only as the pool by its blocks, which leaves a part of a block open."""
    blocks, logged, text = facts.smallest("num_blocks"), None, "vLLM does not log it"
    if blocks is not None and blocks.value > 0 and pool is not None:
        logged = Figure(
            value=pool.value / blocks.value, low=pool.low / (blocks.value + 1), high=pool.high / blocks.value
        )
        text = "the pool by its number of blocks"
    return exact_row("bytes of a block", BYTES, logged, plans.of(_block_bytes), text)


def _blocks_row(facts: LogFacts, plans: Planned) -> VerifyRow:
    logged, text = facts.smallest("num_blocks"), ""
    tokens = facts.smallest("tokens")
    if logged is None and tokens is not None and token_count(facts) is tokens_by_concurrency:
        implied = implied_blocks(tokens, plans.value)
        logged = None if implied is None else exactly(implied)
        text = "the only number that makes the logged tokens" if implied else "no number makes the logged tokens"
    return exact_row("blocks", BLOCKS, logged, plans.of(lambda found: found.num_blocks), text)


def _density_row(tokens: Figure, predicted: Predicted, pool: Figure) -> VerifyRow:
    """Both sides by the same pool, so that starts on different cards compare."""
    logged = Figure(
        value=tokens.value / pool.value * GIB, low=tokens.low / pool.high * GIB, high=tokens.high / pool.low * GIB
    )
    per_gib = Predicted(
        value=predicted.value / pool.value * GIB,
        low=predicted.low / pool.low * GIB,
        high=predicted.high / pool.high * GIB,
    )
    low, high = sorted((per_gib.low, per_gib.high))
    return exact_row("tokens a GiB", TOKENS, logged, Predicted(value=per_gib.value, low=low, high=high))


def _request_rows(facts: LogFacts, plans: Planned) -> Iterator[VerifyRow]:
    """Of a refusal: what one request needs, and the longest that would fit."""
    needed, longest = facts.last("one_request"), facts.last("estimated_max_len")
    yield exact_row("one request", BYTES, needed, plans.of(lambda found: found.bytes_needed))
    if longest is not None:
        text = "the longest that fits the pool"
        yield exact_row(
            "estimated max len", TOKENS, longest, plans.of(lambda found: found.estimated_max_model_len), text
        )
