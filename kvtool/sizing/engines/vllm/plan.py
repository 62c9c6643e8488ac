"""The plan that vLLM makes at its start: groups, blocks, how many requests, and the line it logs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvtool.catalog.model import Model
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm.backend import choose_backend
from kvtool.sizing.engines.vllm.grouping import Group, one_group, promoted, several_groups
from kvtool.sizing.engines.vllm.hybrid import paged_layers
from kvtool.sizing.engines.vllm.inputs import Inputs, resolve
from kvtool.sizing.engines.vllm.layers import MLA, SLIDING, SLIDING_MLA, STATE, LayerCache
from kvtool.sizing.engines.vllm.packed import pack_layers
from kvtool.sizing.engines.vllm.refusal import RefusedError, check_batch, check_supported
from kvtool.sizing.engines.vllm.versions import MODELLED
from kvtool.sizing.fit import largest
from kvtool.sizing.parallel import pipeline_stages
from kvtool.units import GIB

VERSION = MODELLED
Stage = tuple[Group, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmPlan:
    """What one start would allocate. `groups` are those of the whole model, `stages` each pipeline stage's part of
    them; `bytes_per_block` and `bytes_needed` (by one request) have one number a stage. Where `refusal` says why vLLM
    would not start, what it had not worked out by then is None or empty.

    `max_concurrency` counts the null block, which no request can have, as vLLM's own line does.
    """

    inputs: Inputs
    pool_bytes: int
    groups: Stage = ()
    stages: tuple[Stage, ...] = ()
    bytes_per_block: tuple[int, ...] = ()
    max_model_len: int | None = None
    num_blocks: int | None = None
    blocks_per_request: int | None = None
    bytes_needed: tuple[int, ...] = ()
    estimated_max_model_len: int | None = None
    refusal: str | None = None

    @property
    def fits(self) -> bool:
        return self.refusal is None

    @property
    def max_concurrency(self) -> float | None:
        if self.refusal or not self.num_blocks or not self.blocks_per_request:
            return None
        return self.num_blocks / self.blocks_per_request

    @property
    def gpu_kv_cache_tokens(self) -> int | None:
        if self.max_concurrency is None or self.max_model_len is None or self.num_blocks is None:
            return None
        if not self.inputs.rules.tokens_follow_concurrency:
            return self.num_blocks // len(self.groups) * (self.block_size or 0) * self.inputs.parallel.dcp
        return int(self.max_concurrency * self.max_model_len)

    @property
    def log_line(self) -> str | None:
        if self.max_concurrency is None:
            return None
        return (
            f"GPU KV cache size: {self.gpu_kv_cache_tokens:,} tokens, Maximum concurrency for {self.max_model_len:,} "
            f"tokens per request: {self.max_concurrency:.2f}x"
        )

    @property
    def block_size(self) -> int | None:
        """Tokens of the smallest block, which is what vLLM calls its block size from then on."""
        return min((group.block_size for group in self.groups), default=None)

    @property
    def scheduler_block_size(self) -> int | None:
        """Tokens that every group's blocks divide: what the scheduler rounds to."""
        if not self.groups:
            return None
        dcp = self.inputs.parallel.dcp
        return math.lcm(*(group.block_size * (1 if group.layers[0].kind == STATE else dcp) for group in self.groups))

    @property
    def kv_tp_replicas(self) -> int:
        """Consecutive tensor-parallel ranks that hold the same bytes: all of them where every layer is MLA. vLLM tells
        those of its first pipeline stage.
        """
        parallel, kinds = self.inputs.parallel, set()
        for group, here in zip(self.groups, self.stages[0] if self.stages else (), strict=True):
            kinds |= {cache.kind for cache in (here.layers if group.mixed and here.layers else group.layers)}
        return parallel.tp if kinds and kinds <= {MLA, SLIDING_MLA} and parallel.dcp == 1 else 1


def plan(model: Model, options: EngineOptions, *, pool_bytes: int) -> VllmPlan:
    """What vLLM would allocate of `pool_bytes` on every GPU.

    Raises KvtoolError for values that vLLM does not take and for heads that tp cannot deal out; a start that vLLM
    itself would break off comes back as a plan with its `refusal`.
    """
    inputs = resolve(model, options)
    empty = VllmPlan(inputs=inputs, pool_bytes=pool_bytes)
    try:
        check_batch(inputs.max_num_batched_tokens, inputs.max_num_seqs)
        check_supported(inputs.model, inputs.parallel)
        by_layer = paged_layers(inputs, choose_backend(inputs))
        _check_latent(by_layer, inputs)
        groups = _groups([cache for layer in by_layer for cache in layer], inputs)
        _check_windows(groups, inputs)
    except RefusedError as refused:
        return replace(empty, refusal=str(refused))
    if not groups:
        return replace(empty, refusal=f"{model.id} keeps nothing in a cache: there is nothing to plan")
    return _fill(replace(empty, groups=groups, stages=_stages(groups, by_layer, inputs)))


def _groups(caches: list[LayerCache], inputs: Inputs) -> Stage:
    """The groups of all layers of all stages. Raises RefusedError where their pages cannot be made to agree."""
    if not inputs.hybrid_manager:
        caches = promoted(caches, inputs.rules)
    if not caches:
        return ()
    single = one_group(caches, inputs.rules)
    if single is not None:
        return (single,)
    if any(cache.kind == SLIDING_MLA for cache in caches):
        return pack_layers(caches)
    return several_groups(caches, inputs.rules)


def _check_latent(by_layer: Sequence[Sequence[LayerCache]], inputs: Inputs) -> None:
    kinds = {cache.kind for layer in by_layer for cache in layer}
    if not inputs.rules.windows_beside_latent and {MLA, SLIDING} <= kinds:
        raise RefusedError("MLA is not supported for slidingwindow")


def _check_windows(groups: Stage, inputs: Inputs) -> None:
    if inputs.parallel.dcp > 1 and any(
        cache.kind in (SLIDING, SLIDING_MLA) for group in groups for cache in group.layers
    ):
        raise RefusedError("DCP not support sliding window.")


def _stages(groups: Stage, by_layer: Sequence[Sequence[LayerCache]], inputs: Inputs) -> tuple[Stage, ...]:
    """Every group's layers on each pipeline stage, maybe none; stages that keep nothing at all take no part."""
    stages, count = [], inputs.model.num_layers
    by_stage = pipeline_stages(range(count), inputs.parallel.pp)
    by_stage[-1] += range(count, len(by_layer))  # draft layers run where the output head is
    for layers in by_stage:
        here = [replace(group, layers=tuple(c for c in group.layers if c.layer in layers)) for group in groups]
        stages.append(tuple(here))
    return tuple(stage for stage in stages if any(group.layers for group in stage))


def _fill(plan: VllmPlan) -> VllmPlan:
    """Blocks of the pool and of a request, and whether one request fits beside the null block."""
    inputs = plan.inputs
    bytes_per_block = tuple(max(group.page_bytes for group in stage) for stage in plan.stages)
    given = pools = [plan.pool_bytes] * len(bytes_per_block)
    if inputs.num_blocks is not None:
        pools = [inputs.num_blocks * size for size in bytes_per_block]
    held = 1 if inputs.rules.null_block_held else 0
    checked = pools if inputs.rules.override_checked else given
    usable = [pool - held * size for pool, size in zip(checked, bytes_per_block, strict=True)]
    longest = inputs.max_model_len
    plan = replace(plan, bytes_per_block=bytes_per_block, num_blocks=_num_blocks(pools, bytes_per_block))
    if inputs.auto_fit:
        longest = min(_longest_that_fits(plan, *stage) for stage in zip(usable, bytes_per_block, strict=True))
        if longest == 0:
            return replace(
                plan,
                refusal="Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token.",
            )
    blocks = request_blocks(plan, longest)
    needed = tuple(blocks * size for size in bytes_per_block)
    plan = replace(plan, max_model_len=longest, blocks_per_request=blocks, bytes_needed=needed)
    for available, size in zip(usable, bytes_per_block, strict=True):
        if blocks * size > available:
            return _too_small(plan, available, size)
    return plan


def _num_blocks(pools: Sequence[int], bytes_per_block: Sequence[int]) -> int:
    return max(0, min(pool // size for pool, size in zip(pools, bytes_per_block, strict=True)))


def request_blocks(plan: VllmPlan, tokens: int) -> int:
    """Blocks that a request of `tokens` tokens takes, all groups together."""
    return sum(group.blocks(tokens, plan.inputs) for group in plan.groups)


def capacity(plan: VllmPlan, tokens: int, *, shared_prefix: int = 0) -> float:
    """Requests of `tokens` tokens that the pool holds at once, without the null block, which is nobody's. Blocks of
    full and MLA layers under a common prefix count once where prompts are cached; what windows and states share, not.
    """
    blocks = request_blocks(plan, tokens)
    if plan.refusal or not plan.num_blocks or not blocks:
        return 0.0
    shared = _shared_blocks(plan, min(shared_prefix, tokens - 1))
    return (plan.num_blocks - 1 - shared) / (blocks - shared)


def _shared_blocks(plan: VllmPlan, prefix_tokens: int) -> int:
    """A prefix is found in steps that the blocks of every group divide."""
    step = plan.scheduler_block_size
    if step is None or not plan.inputs.prefix_caching:
        return 0
    found, dcp = prefix_tokens // step * step, plan.inputs.parallel.dcp
    return sum(found // (group.block_size * dcp) for group in plan.groups if group.grows)


def _longest_that_fits(plan: VllmPlan, available: int, bytes_per_block: int) -> int:
    return largest(
        lambda tokens: request_blocks(plan, tokens) * bytes_per_block <= available, plan.inputs.max_model_len
    )


def _too_small(plan: VllmPlan, available: int, bytes_per_block: int) -> VllmPlan:
    """vLLM's refusal of a request that does not fit, and how many bytes are missing."""
    needed = (plan.blocks_per_request or 0) * bytes_per_block
    if available <= 0:
        return replace(plan, refusal="No available memory for the cache blocks.")
    longest = _longest_that_fits(plan, available, bytes_per_block)
    estimate = f" Based on the available memory, the estimated maximum model length is {longest}." if longest else ""
    refusal = (
        f"To serve at least one request with the model's max seq len ({plan.max_model_len}), ({_gib(needed)} GiB KV "
        f"cache is needed, which is larger than the available KV cache memory ({_gib(available)} GiB).{estimate} "
        f"{needed - available:,} bytes are missing."
    )
    return replace(plan, estimated_max_model_len=longest or None, refusal=refusal)


def _gib(count: int) -> str:
    return f"{round(count / GIB, 2)}"
