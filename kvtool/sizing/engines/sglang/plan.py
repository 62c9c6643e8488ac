"""The pools that SGLang allocates for a model, as its own start would decide them from the bytes it has."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.catalog.model import Model, SharedAttention, SlidingAttention
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang.backend import ROCM, Backend, choose_backend, is_hybrid, is_mla, is_sparse_mla
from kvtool.sizing.engines.sglang.cells import StageCells, has_swa_pool, stage_cells, state_dtype
from kvtool.sizing.engines.sglang.memory import chunked_prefill_size
from kvtool.sizing.engines.sglang.pools import (
    PoolTokens,
    Sharing,
    limit,
    max_running_requests,
    sharing,
    solve,
    window_tokens,
)
from kvtool.sizing.engines.sglang.refusal import RefusedError
from kvtool.sizing.engines.sglang.versions import MODELLED, rules_of
from kvtool.system.errors import KvtoolError
from kvtool.units import round_up

VERSION = MODELLED
REQUEST_TABLE_EXTRA_TOKENS = 4  # a row of the request table is so much longer than the context
_OWN_CACHE_DTYPE_METHODS = ("modelopt", "modelopt_fp4", "modelopt_fp8", "modelopt_mixed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The pools of one rank: of the pipeline stage with the fewest tokens, which all stages then keep to."""

    cells: StageCells
    tokens: PoolTokens
    flags: Sharing
    max_running_requests: int
    dcp: int

    @property
    def max_total_num_tokens(self) -> int:
        return self.tokens.max_total_num_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens that a group of ranks holds: each dcp rank has every dcp-th of them."""
        return self.max_total_num_tokens * self.dcp

    @property
    def charged_bytes(self) -> int:
        """What the tokens and slots take of the bytes that there are; each pool allocates a page or slot more."""
        swa_bytes = (self.tokens.swa or 0) * self.cells.swa.bytes_per_token if self.cells.swa else 0
        slots = 0 if self.tokens.state_slots is None else self.tokens.state_slots + 1
        full_bytes = self.tokens.full * self.cells.full.charged_bytes
        return full_bytes + swa_bytes + slots * self.cells.charged_state_bytes

    @property
    def request_table_bytes(self) -> int:
        """The int32 slot of every token of every request: beside the pools, out of what activations are left."""
        return (self.max_running_requests + 1) * (self.flags.context + REQUEST_TABLE_EXTRA_TOKENS) * 4

    def concurrency(self, context: int, *, shared_prefix: int = 0) -> dict[str, float]:
        """How many sequences of `context` tokens each pool holds at once; a common prefix once, in the full pool,
        where the radix cache keeps it.
        """
        page = self.flags.page_size * self.dcp
        shared = min(shared_prefix, context - 1) // page * page if self.flags.radix_cache else 0
        at_once: dict[str, float] = {}
        if self.cells.full.bytes_per_token:
            at_once["full"] = (self.tokens.full * self.dcp - shared) / (round_up(context, page) - shared)
        if self.tokens.swa is not None:
            at_once["swa"] = self.tokens.swa / self.swa_tokens_of(context)
        if self.tokens.state_slots is not None:
            at_once["state"] = self.tokens.state_slots // self.flags.slots_per_request
        return at_once

    def sequences(self, context: int) -> float:
        """How many sequences of `context` tokens run at once: as many as the poorest pool holds and as are let in."""
        return min(float(self.max_running_requests), *self.concurrency(context).values())

    def swa_tokens_of(self, context: int) -> int:
        """Tokens of the SWA pool that a running request of `context` tokens may keep."""
        return min(round_up(context, self.flags.page_size), window_tokens(self.cells, self.flags.page_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangPlan:
    """`allocation` is None where SGLang would not start or kvtool does not know: `refusal` says why. `inexact`: reasons
    why the numbers may differ from SGLang's even for these bytes; `remarks`: what was chosen for lack of a flag.
    """

    model: Model
    options: EngineOptions
    pool_bytes: int
    backend: Backend | None = None
    allocation: Allocation | None = None
    refusal: str | None = None
    inexact: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def plan(model: Model, options: EngineOptions, *, pool_bytes: int) -> SglangPlan:
    """Plan one start of SGLang on GPUs that each have `pool_bytes` for all caches.

    Raises KvtoolError for values that no engine takes; what SGLang refuses is in the plan's `refusal`.
    """
    try:
        backend = choose_backend(
            model,
            options.gpu,
            cache_dtype=options.kv_cache_dtype,
            page_size=_asked_page(options),
            rules=rules_of(options),
        )
        return SglangPlan(
            model=model,
            options=options,
            pool_bytes=pool_bytes,
            backend=backend,
            allocation=_allocate(model, options, backend, pool_bytes),
            inexact=tuple(_inexact(model, options, backend)),
            remarks=tuple(_remarks(model, options, backend)),
        )
    except RefusedError as refusal:
        return SglangPlan(model=model, options=options, pool_bytes=pool_bytes, refusal=str(refusal))


def _asked_page(options: EngineOptions) -> int | None:
    if options.block_size is not None and options.block_size < 1:
        raise KvtoolError(f"block size {options.block_size} must be at least 1")
    return options.block_size


def context_length(model: Model, options: EngineOptions) -> int:
    """--context-length, or what the model was made for. Raises KvtoolError where neither is known."""
    context = options.max_model_len or model.max_position_embeddings
    if context is None:
        raise KvtoolError(f"how long a context {model.id} takes is not known: give --max-model-len")
    return context


def _allocate(model: Model, options: EngineOptions, backend: Backend, pool_bytes: int) -> Allocation:
    _check_state(model, backend, options)
    stages = stage_cells(model, options, backend)
    flags = sharing(
        options,
        model.architecture,
        page_size=backend.page_size,
        context=context_length(model, options),
        chunk=chunked_prefill_size(options),
    )
    solved = [(cells, solve(cells, pool_bytes, flags)) for cells in stages]
    # A stage without attention counts no tokens of its own: those with some decide.
    counted = [pair for pair in solved if pair[0].full.bytes_per_token or pair[0].swa] or solved
    cells, tokens = min(counted, key=lambda pair: pair[1].max_total_num_tokens)
    if options.max_total_tokens is not None:
        tokens = limit(cells, tokens, options.max_total_tokens, flags)
    return Allocation(
        cells=cells,
        tokens=tokens,
        flags=flags,
        max_running_requests=max_running_requests(tokens, flags),
        dcp=options.parallel.dcp,
    )


def _check_state(model: Model, backend: Backend, options: EngineOptions) -> None:
    """Without the extra state slots of overlapped steps a cached prefix may end anywhere: pages of one token only."""
    plain = (
        options.enable_prefix_caching is not False
        and is_hybrid(model)
        and (model.architecture or "").startswith("lfm2")
    )
    if plain and backend.page_size > 1:
        raise RefusedError(f"the radix cache of {model.architecture} needs --page-size 1, not {backend.page_size}")


def _inexact(model: Model, options: EngineOptions, backend: Backend) -> list[str]:
    """Why SGLang's own numbers may differ, though it had the same bytes."""
    reasons = []
    sliding = any(isinstance(layer.cache, SlidingAttention) for layer in model.layers)
    if options.num_speculative_tokens and (sliding or is_hybrid(model)):
        reasons.append("how a draft shares pools of windows and states is read from SGLang's code, not checked")
    if model.architecture is None and (sliding or is_hybrid(model)):
        reasons.append(f"the architecture of {model.id} is not known, and SGLang's pools depend on it")
    if (
        options.kv_cache_dtype == "auto"
        and model.quantisation
        and model.quantisation.method in _OWN_CACHE_DTYPE_METHODS
    ):
        reasons.append(f"auto follows the checkpoint's kv_cache_quant_algo, which is not read: {backend.cache_dtype}")
    if backend.platform == ROCM and is_sparse_mla(model):
        reasons.append("on ROCm the page of sparse MLA is 64 or 1 by the installed Triton: 64 is taken")
    if (
        options.max_model_len
        and model.max_position_embeddings
        and options.max_model_len > model.max_position_embeddings
    ):
        reasons.append(
            f"SGLang takes more than {model.max_position_embeddings:,} positions only with rope scaling or"
            " SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"
        )
    return reasons


def _remarks(model: Model, options: EngineOptions, backend: Backend) -> list[str]:
    card = options.gpu.name if options.gpu else "no card named, so that of Hopper"
    remarks = [f"attention backend {backend.attention} ({card}), pages of {backend.page_size}, {backend.cache_dtype}"]
    if is_sparse_mla(model) and backend.cache_dtype == "fp8":
        row = "scaled rows" if backend.scaled_rows else "raw rows"
        remarks.append(f"fp8 rows of sparse MLA: {row}, as the default backend of this card reads them")
    elif is_mla(model) and backend.cache_dtype == "fp8":
        remarks.append("fp8 rows of dense MLA are raw: no scales beside the tokens")
    if is_hybrid(model):
        remarks.append(f"recurrent state in {state_dtype(model, options)}, convolution state in bf16")
    if sliding_kept_whole(model):
        remarks.append(f"SGLang has no window pool for {model.architecture}: its sliding layers keep every token")
    if any(isinstance(layer.cache, SharedAttention) for layer in model.layers):
        remarks.append("SGLang allocates the KV-sharing layers too")
    if options.parallel.dp_attention:
        remarks.append(
            f"DP attention: --tp-size {options.parallel.tp} --dp-size {options.parallel.dp};"
            " each replica has pools of its own, and --max-running-requests is divided among them"
        )
    return remarks


def capacity(plan: SglangPlan, tokens: int, *, shared_prefix: int = 0) -> float:
    """Requests of `tokens` tokens that the pools hold at once: as many as the poorest of them."""
    if plan.allocation is None:
        return 0.0
    return min(plan.allocation.concurrency(tokens, shared_prefix=shared_prefix).values(), default=0.0)


def sliding_kept_whole(model: Model) -> bool:
    sliding = any(isinstance(layer.cache, SlidingAttention) for layer in model.layers)
    return sliding and not has_swa_pool(model)
