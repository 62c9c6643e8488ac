"""From bytes to tokens: how SGLang shares what it has for caches among its pools.

Truth: sglang 0.5.23, srt/model_executor/pool_configurator.py and srt/mem_cache/kv_cache_configurator.py. It works in
floats of GiB where states are concerned, and so does this, to come to the same token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang.cells import EXTRA_BUFFER_ARCHITECTURES, StageCells
from kvtool.sizing.engines.sglang.refusal import RefusedError
from kvtool.system.errors import KvtoolError
from kvtool.units import GIB, round_up

SWA_FULL_TOKENS_RATIO = 0.8
MAMBA_FULL_MEMORY_RATIO = 0.9
SWA_EVICTION_INTERVAL = 128  # SGLANG_SWA_EVICTION_INTERVAL
LEAST_REQUESTS, MOST_REQUESTS, REQUESTS_AT_FULL_LENGTH = 2048, 4096, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTokens:
    """Tokens of the pools of one rank. `full` is also max_total_num_tokens, save where all layers slide."""

    full: int
    swa: int | None = None
    state_slots: int | None = None

    @property
    def max_total_num_tokens(self) -> int:
        return self.full or self.swa or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """The flags that decide how a rank shares its bytes; `context` is the longest sequence. One per start."""

    page_size: int
    context: int
    chunked_prefill_size: int
    attention_dp: int
    slots_per_request: int
    swa_ratio: float
    mamba_ratio: float
    max_total_tokens: int | None
    max_running_requests: int | None
    max_mamba_cache_size: int | None
    radix_cache: bool


def sharing(options: EngineOptions, architecture: str | None, *, page_size: int, context: int, chunk: int) -> Sharing:
    """The flags with SGLang's defaults in. Raises KvtoolError for a ratio that is none, RefusedError for one that
    SGLang refuses.
    """
    swa_ratio = SWA_FULL_TOKENS_RATIO if options.swa_full_tokens_ratio is None else options.swa_full_tokens_ratio
    if not 0 < swa_ratio <= 1:
        raise RefusedError(f"--swa-full-tokens-ratio {swa_ratio} must be above 0 and at most 1")
    mamba_ratio = options.mamba_full_memory_ratio
    if mamba_ratio is not None and mamba_ratio <= 0:
        raise KvtoolError(f"--mamba-full-memory-ratio {mamba_ratio} must be above 0")
    return Sharing(
        page_size=page_size,
        context=context,
        chunked_prefill_size=chunk,
        attention_dp=options.parallel.dp if options.parallel.dp_attention else 1,
        slots_per_request=slots_per_request(architecture, radix_cache=options.enable_prefix_caching is not False),
        swa_ratio=swa_ratio,
        mamba_ratio=MAMBA_FULL_MEMORY_RATIO if mamba_ratio is None else mamba_ratio,
        max_total_tokens=options.max_total_tokens,
        max_running_requests=options.max_running_requests,
        max_mamba_cache_size=options.max_mamba_cache_size,
        radix_cache=options.enable_prefix_caching is not False,
    )


def slots_per_request(architecture: str | None, *, radix_cache: bool) -> int:
    """State slots a request takes: its own, two for cached prefixes, and two more where steps overlap."""
    if not radix_cache:
        return 1
    return 5 if architecture in EXTRA_BUFFER_ARCHITECTURES else 3


def solve(cells: StageCells, pool_bytes: int, flags: Sharing) -> PoolTokens:
    """The pools of a rank that has `pool_bytes`, before --max-total-tokens. Raises RefusedError where SGLang stops."""
    slots, rest = None, pool_bytes
    if cells.state is not None:
        slots, rest = _state_slots(cells.charged_state_bytes, pool_bytes, flags)
    if rest <= 0:
        raise RefusedError("nothing is left for the KV cache: raise --mem-fraction-static, or use more GPUs")
    if cells.swa is None:
        tokens = _token_pool(cells.full.charged_bytes, rest, flags)
    elif _is_capped(cells, flags):
        tokens = _capped_swa(cells, rest, flags)
    else:
        tokens = _ratio_swa(cells, rest, flags)
    if tokens.max_total_num_tokens <= 0:
        raise RefusedError("not enough memory for a page of the KV cache: raise --mem-fraction-static")
    return replace(tokens, state_slots=slots)


def limit(cells: StageCells, tokens: PoolTokens, most: int, flags: Sharing) -> PoolTokens:
    """The pools when a rank may hold no more than `most` tokens: --max-total-tokens, or the poorest pipeline stage."""
    if most >= tokens.max_total_num_tokens:
        return tokens
    asked, most = most, most // flags.page_size * flags.page_size
    if most <= 0:
        raise RefusedError(f"--max-total-tokens is less than a page of {flags.page_size} tokens")
    if tokens.swa is None:
        return replace(tokens, full=most)
    if not cells.full.layers:
        return replace(tokens, full=0, swa=most)
    if _is_capped(cells, flags):
        return replace(tokens, full=most, swa=min(tokens.swa, asked))  # in whole pages the full pool alone
    return replace(tokens, full=most, swa=_checked(_swa_share(most, flags), cells, flags))


def max_running_requests(tokens: PoolTokens, flags: Sharing) -> int:
    """Requests at once, for each rank of attention. Raises RefusedError where there is not state for one."""
    total = tokens.max_total_num_tokens
    if flags.max_running_requests is None:
        requests = max(min(int(total / flags.context * REQUESTS_AT_FULL_LENGTH), MOST_REQUESTS), LEAST_REQUESTS)
    else:
        requests = max(1, flags.max_running_requests // flags.attention_dp)
    requests = min(requests, total // 2)
    if tokens.state_slots is not None:
        requests = min(requests, tokens.state_slots // flags.slots_per_request)
        if requests <= 0:
            raise RefusedError(
                f"{tokens.state_slots} state slots are too few for a request, which takes {flags.slots_per_request}:"
                " raise --mem-fraction-static or --mamba-full-memory-ratio"
            )
    return requests


def window_tokens(cells: StageCells, page_size: int) -> int:
    """The most that windows keep of a running request: what has left the window goes in steps, and page by page."""
    assert cells.window is not None
    return cells.window + SWA_EVICTION_INTERVAL + 2 * page_size


def _state_slots(slot_bytes: int, pool_bytes: int, flags: Sharing) -> tuple[int, int]:
    """(slots, bytes left); one slot more than that is allocated, for padding."""
    rest_gib = pool_bytes / GIB
    if flags.max_mamba_cache_size is not None:
        slots = flags.max_mamba_cache_size // flags.attention_dp
    elif not flags.radix_cache and flags.max_running_requests is not None:
        slots = max(1, flags.max_running_requests // flags.attention_dp)
    else:
        budget_bytes = rest_gib * flags.mamba_ratio / (1 + flags.mamba_ratio) * GIB
        slots = int((budget_bytes - slot_bytes) // slot_bytes)
    if slots <= 0:
        raise RefusedError(
            f"not enough memory for a slot of {slot_bytes:,} B of recurrent state: raise --mem-fraction-static"
        )
    return slots, int((rest_gib - (slots + 1) * slot_bytes / GIB) * GIB)


def _token_pool(cell_bytes: int, rest: int, flags: Sharing) -> PoolTokens:
    """One pool for all layers; a model without attention counts tokens up to its context, which cost nothing."""
    total = rest // cell_bytes if cell_bytes else flags.max_total_tokens or flags.context
    return PoolTokens(full=total // flags.page_size * flags.page_size)


def _ratio_swa(cells: StageCells, rest: int, flags: Sharing) -> PoolTokens:
    """--swa-full-tokens-ratio tokens of windows for each token of the full pool."""
    assert cells.swa is not None
    page = flags.page_size
    if not cells.full.layers:
        return PoolTokens(full=0, swa=int(rest // cells.swa.bytes_per_token) // page * page)
    cell = cells.full.charged_bytes + flags.swa_ratio * cells.swa.bytes_per_token
    full = int(rest // cell) // page * page
    return PoolTokens(full=full, swa=_checked(_swa_share(full, flags), cells, flags))


def _swa_share(full: int, flags: Sharing) -> int:
    return int(full * flags.swa_ratio) // flags.page_size * flags.page_size


def _checked(swa: int, cells: StageCells, flags: Sharing) -> int:
    """The scheduler takes a window and a page for a request: a pool without them would never start one."""
    assert cells.window is not None
    if cells.window + flags.page_size >= swa:
        raise RefusedError(
            f"the SWA pool ({swa:,} tokens) cannot hold one request, a window of {cells.window:,} and a page of"
            f" {flags.page_size}: raise --swa-full-tokens-ratio or the memory"
        )
    return swa


def _is_capped(cells: StageCells, flags: Sharing) -> bool:
    """Without a radix cache and with --max-running-requests, SGLang knows the most that windows can take."""
    return (
        flags.max_running_requests is not None
        and not flags.radix_cache
        and flags.chunked_prefill_size > 0
        and cells.full.layers > 0
    )


def _capped_swa(cells: StageCells, rest: int, flags: Sharing) -> PoolTokens:
    """Windows for all requests and two chunks of prefill in flight; the rest is the full pool's."""
    assert cells.swa is not None
    assert flags.max_running_requests is not None
    page = flags.page_size
    requests = max(1, flags.max_running_requests // flags.attention_dp)
    swa = round_up(window_tokens(cells, page) * requests + 2 * flags.chunked_prefill_size + page, page)
    full = (rest - swa * cells.swa.bytes_per_token) // cells.full.charged_bytes // page * page
    if full <= 0:
        raise RefusedError(
            f"windows of {requests:,} requests take {swa:,} tokens and leave no room for full attention:"
            " lower --max-running-requests or raise the memory"
        )
    return PoolTokens(full=full, swa=swa)
