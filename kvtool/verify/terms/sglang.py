"""SGLang's pools: what the log says was allocated beside what SGLang's planner makes of the same tokens and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvtool.results import VerifyRow
from kvtool.sizing.engines.sglang import SglangPlan, plan
from kvtool.sizing.engines.sglang.cells import TokenCell
from kvtool.sizing.engines.sglang.plan import Allocation
from kvtool.units import TIB
from kvtool.verify.budget import Estimate, weights_row
from kvtool.verify.facts import Figure, LogFacts
from kvtool.verify.inputs import Started
from kvtool.verify.rows import BYTES, TOKENS, estimate_row, exact, exact_row

_ANY_POOL_BYTES = TIB  # the bytes of a token do not depend on how many there are


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedPool:
    """One `KV Cache is allocated` line: `sizes` are K and V, or one latent row."""

    tokens: Figure
    sizes: tuple[Figure, ...]


def sglang_plan(started: Started) -> SglangPlan:
    """The plan that the bytes of a token, a page and a state are read from. Raises KvtoolError."""
    options = replace(started.options, gpu=started.options.gpu or started.kernels)
    return plan(started.model, options, pool_bytes=_ANY_POOL_BYTES)


def sglang_rows(facts: LogFacts, started: Started, planned: SglangPlan, estimated: Estimate) -> Iterator[VerifyRow]:
    """Weights and graphs, then every pool; none of those where SGLang would refuse the start. Raises KvtoolError."""
    yield weights_row(facts, estimated)
    if (graphs := facts.last("graphs")) is not None:
        text = "grows with the batch sizes captured (--cuda-graph-max-bs)"
        yield estimate_row("CUDA graphs", BYTES, graphs, estimated.graphs_bytes, text)
    if planned.allocation is not None:
        yield from _pool_rows(facts, planned.allocation)
        yield from _split_rows(facts, started, planned.allocation)
        yield from _state_rows(facts, planned.allocation)


def logged_pools(facts: LogFacts) -> list[LoggedPool]:
    """The pools of one rank, without the repetitions of the others; a draft model's come after the target's."""
    pools = [
        LoggedPool(tokens=tokens, sizes=(k_size, v_size))
        for tokens, k_size, v_size in zip(facts.of("pool_tokens"), facts.of("k_size"), facts.of("v_size"), strict=False)
    ]
    pools += [
        LoggedPool(tokens=tokens, sizes=(size,))
        for tokens, size in zip(facts.of("latent_tokens"), facts.of("kv_size"), strict=False)
    ]
    return list(dict.fromkeys(pools))


def _pool_rows(facts: LogFacts, allocation: Allocation) -> Iterator[VerifyRow]:
    """Bytes of each pool for the tokens that the log says it has, a page of padding included."""
    page, pools = allocation.flags.page_size, logged_pools(facts)
    swa_tokens = facts.first("swa_tokens")
    for name, cell in (("", allocation.cells.full), ("window ", allocation.cells.swa)):
        if cell is None:
            continue
        of_window = [pool for pool in pools if swa_tokens is not None and pool.tokens == swa_tokens]
        others = [pool for pool in pools if pool not in of_window]
        mine = of_window if name else others
        if mine:
            yield from _size_rows(name, cell, mine[0], page)


def _size_rows(name: str, cell: TokenCell, pool: LoggedPool, page: int) -> Iterator[VerifyRow]:
    rows = round(pool.tokens.value) + page
    text = f"{cell.layers} layers x ({pool.tokens.value:,.0f} tokens + a page of {page})"
    if len(pool.sizes) == 1:
        yield exact_row(f"{name}KV size", BYTES, pool.sizes[0], exact(rows * cell.bytes_per_token), text)
        return
    yield exact_row(f"{name}K size", BYTES, pool.sizes[0], exact(rows * cell.layers * cell.k_bytes), text)
    yield exact_row(f"{name}V size", BYTES, pool.sizes[1], exact(rows * cell.layers * cell.v_bytes), text)


def _split_rows(facts: LogFacts, started: Started, allocation: Allocation) -> Iterator[VerifyRow]:
    """Tokens: how the bytes of all pools together would be shared out; and from free memory, where the log has it."""
    full, swa = facts.first("full_tokens"), facts.first("swa_tokens")
    if full is not None and swa is not None and allocation.cells.swa is not None:
        pool_bytes = (
            full.value * allocation.cells.full.bytes_per_token + swa.value * allocation.cells.swa.bytes_per_token
        )
        again = plan(started.model, started.options, pool_bytes=round(pool_bytes)).allocation
        if again is not None:
            text = "of the bytes of both pools in the log (--swa-full-tokens-ratio)"
            yield exact_row("full tokens", TOKENS, full, exact(again.tokens.full), text)
            yield exact_row("window tokens", TOKENS, swa, exact(again.tokens.swa or 0), text)
    tokens, pool = facts.first("tokens"), pool_from_free_memory(facts, started)
    if tokens is not None:
        predicted = (
            None if pool is None else plan(started.model, started.options, pool_bytes=round(pool.value)).allocation
        )
        text = _tokens_text(pool, started)
        yield estimate_row("tokens", TOKENS, tokens, predicted.max_total_num_tokens if predicted else None, text)


def pool_from_free_memory(facts: LogFacts, started: Started) -> Figure | None:
    """What was free after loading, less the part of what was free before that --mem-fraction-static leaves alone."""
    before, after = facts.smallest("free_before_load"), facts.smallest("free_after_load")
    fraction = started.options.mem_fraction_static
    if before is None or after is None or fraction is None:
        return None
    left = 1 - fraction
    return Figure(
        value=after.value - before.value * left, low=after.low - before.high * left, high=after.high - before.low * left
    )


def _tokens_text(pool: Figure | None, started: Started) -> str:
    if pool is not None:
        return "from free memory before and after loading, as logged: other allocations come between"
    missing = "free memory before loading" if started.options.mem_fraction_static else "--mem-fraction-static"
    return f"the log does not have {missing}, which the pool follows from"


def _state_rows(facts: LogFacts, allocation: Allocation) -> Iterator[VerifyRow]:
    """State of the logged slots and one of padding."""
    slots, state = facts.first("state_slots"), allocation.cells.state
    if slots is None or state is None:
        return
    rows = round(slots.value) + 1
    text = f"{slots.value:,.0f} slots and one of padding (--mamba-ssm-dtype)"
    yield exact_row("convolution state", BYTES, facts.first("conv_state"), exact(rows * state.conv_bytes), text)
    yield exact_row("recurrent state", BYTES, facts.first("ssm_state"), exact(rows * state.recurrent_bytes), text)
