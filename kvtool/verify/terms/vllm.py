"""vLLM's blocks: what the log says beside what vLLM's planner makes of the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from kvtool.results import VerifyRow
from kvtool.sizing.engines.vllm.plan import VllmPlan, plan
from kvtool.units import GIB
from kvtool.verify.facts import Figure, LogFacts, exactly
from kvtool.verify.inputs import Started
from kvtool.verify.rows import BLOCKS, BYTES, REQUESTS, TOKENS, Predicted, bounded, exact, exact_row

# Until 0.20 the log counted num_blocks // groups x the smallest block (vllm-project/vllm#43308); its concurrency, and
# so the tokens of a model with one group, are the same.
TOKENS_FOLLOW_CONCURRENCY = (0, 21)
_ANY_POOL_BYTES = GIB  # what a block and a request take does not depend on the pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Plans of one start. `value` is for the pool as logged, `low` and `high` for what its rounding leaves open, and
    `counted` for the number of blocks that the log counts or that only its tokens can come from, where there is one.
    """

    value: VllmPlan
    low: VllmPlan
    high: VllmPlan
    counted: VllmPlan | None

    def of(self, number: Callable[[VllmPlan], float | None]) -> Predicted | None:
        """One number, for the blocks of the log or else of the pool; None where a plan has none."""
        if self.counted is not None:
            value = number(self.counted)
            return None if value is None else exact(value)
        return self.of_pool(number)

    def of_pool(self, number: Callable[[VllmPlan], float | None]) -> Predicted | None:
        """One number for the pool, whatever the log counts."""
        value, low, high = number(self.value), number(self.low), number(self.high)
        return None if value is None or low is None or high is None else Predicted(value=value, low=low, high=high)


def planned(facts: LogFacts, started: Started, pool: Figure | None) -> Planned:
    """Plan the start for a pool of so many bytes, and for the blocks of the log. Raises KvtoolError."""
    pool = pool or exactly(_ANY_POOL_BYTES)
    asked = replace(started.options, gpu=started.options.gpu or started.kernels)
    value = plan(started.model, asked, pool_bytes=max(0, round(pool.value)))
    options = replace(asked, gpu=value.inputs.gpu)  # the card taken for lack of one, looked up once
    low, high = (plan(started.model, options, pool_bytes=max(0, round(size))) for size in (pool.low, pool.high))
    blocks, counted = counted_blocks(facts, value), None
    if blocks:
        options = replace(options, num_gpu_blocks_override=blocks)
        counted = plan(started.model, options, pool_bytes=value.pool_bytes)
    plans = Planned(value=value, low=low, high=high, counted=counted)
    return replace(plans, counted=None) if _tokens_stand_alone(facts, plans) else plans


def _tokens_stand_alone(facts: LogFacts, plans: Planned) -> bool:
    """Whether the log's concurrency is that of its pool, but not of the blocks that its tokens come from: then the
    tokens are off, and say nothing of the blocks.
    """
    logged = facts.last("max_concurrency")
    if logged is None or plans.counted is None or facts.smallest("num_blocks") is not None:
        return False
    return logged.meets(*_ends(plans.of_pool(concurrency))) and not logged.meets(*_ends(plans.of(concurrency)))


def plan_rows(facts: LogFacts, plans: Planned, pool: Figure | None) -> Iterator[VerifyRow]:
    """Every number of a plan beside the log's. `pool` is what the log says of it, None where it does not."""
    if facts.last("one_request") is not None:
        yield from _request_rows(facts, plans)
        return
    if facts.last("block_size") is not None:
        text = "an attention page of so many tokens holds one state"
        yield exact_row("block size", TOKENS, facts.last("block_size"), plans.of(_largest_block), text)
    yield _block_bytes_row(facts, plans, pool)
    yield _blocks_row(facts, plans, pool)
    yield exact_row("blocks a request", BLOCKS, None, plans.of(lambda found: found.blocks_per_request))
    if facts.last("max_concurrency") is not None:
        yield exact_row("max concurrency", REQUESTS, facts.last("max_concurrency"), plans.of(concurrency))
    if (tokens := facts.smallest("tokens")) is not None:
        yield _tokens_row(facts, plans, tokens)
        if pool is not None and pool.low > 0:  # 0.00 GiB may be nothing at all
            yield _density_row(facts, plans, tokens, pool)
    if (stored := facts.last("stored_tokens")) is not None:
        yield exact_row("tokens", TOKENS, stored, plans.of(tokens_by_group), "blocks x tokens of a block")


def concurrency(found: VllmPlan) -> float | None:
    """Blocks by blocks a request, also of a plan that refuses for lack of them."""
    if not found.num_blocks or not found.blocks_per_request:
        return None
    return found.num_blocks / found.blocks_per_request


def tokens_by_concurrency(found: VllmPlan) -> int | None:
    """`GPU KV cache size` from 0.21 on."""
    requests = concurrency(found)
    return None if requests is None or found.max_model_len is None else int(requests * found.max_model_len)


def tokens_by_group(found: VllmPlan) -> int | None:
    """`GPU KV cache size` before 0.21: each group's share of the blocks, in the smallest blocks."""
    if not found.num_blocks or found.block_size is None:
        return None
    return found.num_blocks // len(found.groups) * found.block_size * found.inputs.parallel.dcp


def counts_by_group(facts: LogFacts) -> bool:
    """Whether the log is of a version that counts tokens so; an unknown version is taken for a new one."""
    if facts.version is None:
        return False
    return tuple(int(part) for part in facts.version.split(".")[:2] if part.isdigit()) < TOKENS_FOLLOW_CONCURRENCY


def counted_blocks(facts: LogFacts, found: VllmPlan) -> int | None:
    """Blocks that the log counts, else the only number that makes its tokens; None where none does."""
    logged, tokens = facts.smallest("num_blocks"), facts.smallest("tokens")
    if logged is not None and logged.value > 0:
        return round(logged.value)
    if tokens is None or tokens.value <= 0:
        return None
    if counts_by_group(facts):
        return round(tokens.value / (found.block_size or 1)) if len(found.groups) == 1 else None
    return implied_blocks(round(tokens.value), found.blocks_per_request, found.max_model_len)


def implied_blocks(tokens: int, blocks_per_request: int | None, max_model_len: int | None) -> int | None:
    """The number of blocks of which vLLM would log exactly so many tokens."""
    if not blocks_per_request or not max_model_len:
        return None
    near = round(tokens * blocks_per_request / max_model_len)
    made = (
        blocks for blocks in (near, near + 1, near - 1) if int(blocks / blocks_per_request * max_model_len) == tokens
    )
    return next(made, None)


def ranks_without_pool(facts: LogFacts, found: VllmPlan) -> int:
    """Ranks whose pool the log does not tell: vLLM takes the smallest number of blocks of all."""
    parallel = found.inputs.parallel
    ranks = {reading.rank for reading in facts.readings if reading.term == "kv_pool"}
    return max(0, parallel.tp * parallel.pp - max(1, len(ranks)))


def _largest_block(found: VllmPlan) -> int | None:
    return max((group.block_size for group in found.groups), default=None)


def _request_bytes(found: VllmPlan) -> int | None:
    blocks, size = found.blocks_per_request, _block_bytes(found)
    return None if blocks is None or size is None else blocks * size


def _block_bytes(found: VllmPlan) -> int | None:
    """Of the pipeline stage whose blocks are largest."""
    return max(found.bytes_per_block, default=None)


def _block_bytes_row(facts: LogFacts, plans: Planned, pool: Figure | None) -> VerifyRow:
    """Logged only as the pool by its blocks, which leaves a part of a block open."""
    blocks, logged, text = facts.smallest("num_blocks"), None, ""
    if blocks is not None and blocks.value > 0 and pool is not None:
        low, high = pool.low / (blocks.value + 1), pool.high / blocks.value
        logged, text = Figure(value=pool.value / blocks.value, low=low, high=high), "the pool by its number of blocks"
    return exact_row("bytes of a block", BYTES, logged, plans.of(_block_bytes), text)


def _blocks_row(facts: LogFacts, plans: Planned, pool: Figure | None) -> VerifyRow:
    """The log's blocks beside those of its pool; without a pool there is nothing to predict them from."""
    counted, tokens = plans.counted, facts.smallest("tokens")
    logged = None if counted is None or counted.num_blocks is None else exactly(counted.num_blocks)
    predicted = None if pool is None else plans.of_pool(lambda found: found.num_blocks)
    text = ""
    if facts.smallest("num_blocks") is None and tokens is not None:
        text = "no number makes both the logged tokens and concurrency"
        text = "the only number that makes the logged tokens" if logged else text
    return bounded(exact_row("blocks", BLOCKS, logged, predicted, text), ranks_without_pool(facts, plans.value))


def _tokens_row(facts: LogFacts, plans: Planned, tokens: Figure) -> VerifyRow:
    by_group, text = counts_by_group(facts), ""
    if facts.version is None and not tokens.meets(*_ends(plans.of(tokens_by_concurrency))):
        by_group = tokens.meets(*_ends(plans.of(tokens_by_group)))
    if by_group and len(plans.value.groups) > 1:
        text = "as vLLM before 0.21 counts: blocks by groups, in the smallest blocks"
    row = exact_row("tokens", TOKENS, tokens, plans.of(tokens_by_group if by_group else tokens_by_concurrency), text)
    return bounded(row, ranks_without_pool(facts, plans.value))


def _ends(predicted: Predicted | None) -> tuple[float, float]:
    return (0, -1) if predicted is None else (predicted.low, predicted.high)


def _density_row(facts: LogFacts, plans: Planned, tokens: Figure, pool: Figure) -> VerifyRow:
    """Tokens by the pool, so that starts on different cards compare."""
    count = tokens_by_group if counts_by_group(facts) else tokens_by_concurrency
    predicted = plans.of_pool(count)
    logged = Figure(
        value=tokens.value / pool.value * GIB, low=tokens.low / pool.high * GIB, high=tokens.high / pool.low * GIB
    )
    if predicted is not None:
        ends = (predicted.low / pool.low * GIB, predicted.high / pool.high * GIB)
        predicted = Predicted(value=predicted.value / pool.value * GIB, low=min(ends), high=max(ends))
    return bounded(exact_row("tokens a GiB", TOKENS, logged, predicted), ranks_without_pool(facts, plans.value))


def _request_rows(facts: LogFacts, plans: Planned) -> Iterator[VerifyRow]:
    """Of a refusal: what one request needs, and the longest that would fit."""
    needed, longest = facts.last("one_request"), facts.last("estimated_max_len")
    yield exact_row("one request", BYTES, needed, plans.of_pool(_request_bytes))
    if longest is not None:
        predicted = plans.of_pool(lambda found: found.estimated_max_model_len)
        yield exact_row("estimated max len", TOKENS, longest, predicted, "the longest that fits the pool")
