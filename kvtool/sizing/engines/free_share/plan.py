"""The pool of TensorRT-LLM or LMDeploy: blocks of all layers' K and V in what there is for the cache.

TensorRT-LLM: llmapi/llm_args.py (KvCacheConfig) and batch_manager/kvCacheManager.cpp; a public log has 8,219 blocks of
32 tokens in 0.9 of 17.83 GiB. LMDeploy: messages.py (TurbomindEngineConfig) and models/llama/BlockManager.cc.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kvtool.catalog.model import FullAttention, LatentAttention, Model, SlidingAttention
from kvtool.results import SizeEngine
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import state_format
from kvtool.sizing.usage import gpu_cache, growth_bytes
from kvtool.system.errors import KvtoolError
from kvtool.units import MAX_LENGTH_TOKENS, ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRules:
    """`share` is what the engine takes for the cache of what is free, by its flag `flag`; `version` is the release that
    was read. The last block of a pool is one that begins in it (`rounds_up`), or one that ends in it.
    """

    title: str
    version: str
    flag: str
    share: float
    block_size: int
    step_tokens: int
    rounds_up: bool
    log: str


RULES: Mapping[str, ShareRules] = {
    "tensorrt-llm": ShareRules(
        title="TensorRT-LLM",
        version="1.4",
        flag="free_gpu_memory_fraction",
        share=0.9,
        block_size=32,
        step_tokens=8192,  # max_num_tokens
        rounds_up=True,
        log="Allocated {gib:.2f} GiB for max tokens in paged KV cache ({tokens})",
    ),
    "lmdeploy": ShareRules(
        title="LMDeploy",
        version="0.10",
        flag="cache_max_entry_count",
        share=0.8,
        block_size=64,
        step_tokens=8192,  # max_prefill_token_num
        rounds_up=False,
        log="[BlockManager] max_block_count = {blocks}",
    ),
}
NAMES = tuple(RULES)


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeSharePlan:
    """`refusal` is why it would not start, where it has less than a sequence's blocks."""

    rules: ShareRules
    options: EngineOptions
    block_size: int
    bytes_per_token: int
    num_blocks: int
    longest: int
    refusal: str | None

    @property
    def tokens(self) -> int:
        return self.num_blocks * self.block_size


def plan(model: Model, options: EngineOptions, *, pool_bytes: int) -> FreeSharePlan:
    """The blocks of `pool_bytes`. Raises KvtoolError for layers that are no full attention."""
    rules = RULES[options.name]
    _check_layers(model, rules)
    block_size = options.block_size or rules.block_size
    each = bytes_per_token(model, options)
    blocks = pool_bytes // (each * block_size)
    if rules.rounds_up:
        blocks = ceil_div(pool_bytes // each, block_size)
    longest = options.max_model_len or model.max_position_embeddings or MAX_LENGTH_TOKENS
    return FreeSharePlan(
        rules=rules,
        options=options,
        block_size=block_size,
        bytes_per_token=each,
        num_blocks=blocks,
        longest=longest,
        refusal=None if blocks > 0 else f"nothing is left for a block of {block_size} tokens",
    )


def _check_layers(model: Model, rules: ShareRules) -> None:
    """Windows have pools of their own in one and are kept whole in the other; states are apart in both."""
    for layer in model.layers:
        full = isinstance(layer.cache, FullAttention | LatentAttention)
        if not full or isinstance(layer.cache, SlidingAttention) or layer.indexer is not None:
            raise KvtoolError(
                f"--engine {rules.title.lower()} plans models of full attention and MLA: how it shares its pool with "
                f"the windows, states or indexers of {model.id} is not known here"
            )


def bytes_per_token(model: Model, options: EngineOptions) -> int:
    """Of all layers on the rank that holds most. Raises KvtoolError for a dtype that is none."""
    cache = gpu_cache(
        model,
        parse_cache_format(options.kv_cache_dtype, model.dtype),
        parallel=options.parallel,
        block_size=1,
        state=state_format(model),
    )
    return max(growth_bytes(stage, indexer=False) for stage in cache.stages)


def capacity(found: FreeSharePlan, context: int, *, shared_prefix: int = 0) -> float:
    """Requests of `context` tokens whose blocks the pool holds at once, whole blocks of a prefix counted once."""
    shared = min(shared_prefix, context) // found.block_size
    own = ceil_div(context, found.block_size) - shared
    return max(0.0, (found.num_blocks - shared) / own) if own else float(found.num_blocks > 0)


def size_engine(found: FreeSharePlan, *, context: int) -> SizeEngine:
    """The plan in the words that all engines share."""
    if found.refusal is not None:
        return SizeEngine(name=found.options.name, version=found.rules.version, refusal=found.refusal)
    size = found.num_blocks * found.block_size * found.bytes_per_token
    length = min(context, found.longest)
    return SizeEngine(
        name=found.options.name,
        version=found.rules.version,
        block_size=found.block_size,
        bytes_per_block=found.block_size * found.bytes_per_token,
        num_blocks=found.num_blocks,
        blocks_per_request=ceil_div(length, found.block_size),
        max_concurrency=capacity(found, length),
        gpu_kv_cache_tokens=found.tokens,
        log_line=found.rules.log.format(gib=size / 2**30, tokens=found.tokens, blocks=found.num_blocks),
        exact_given_pool=True,
        max_model_len=length,
        pool_bytes=size,
        fixed_bytes_per_request=0,
        slope_bytes_per_token=found.bytes_per_token,
    )


def assumptions(found: FreeSharePlan) -> Iterator[str]:
    """What the plan takes for given."""
    rules = found.rules
    yield (
        f"{rules.title} takes {share_of(found.options):g} of what is free once the model is loaded for its cache "
        f"({rules.flag}), in blocks of {found.block_size} tokens"
    )
    if found.options.name == "lmdeploy":
        yield "LMDeploy by its TurboMind backend; its PyTorch backend first keeps what a step's logits take"


def share_of(options: EngineOptions) -> float:
    """What was asked for, else the engine's own. Raises KvtoolError for what is no share."""
    asked = options.free_memory_fraction
    if asked is not None and not 0 < asked <= 1:
        raise KvtoolError(f"--free-memory-fraction {asked} must be above 0 and at most 1")
    return RULES[options.name].share if asked is None else asked
