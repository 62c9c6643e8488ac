"""TensorRT-LLM's and LMDeploy's blocks: what the log says of them beside the tokens and bytes of this model's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kvtool.catalog.model import CacheKind, ChunkedAttention, FullAttention, LatentAttention, Model, SlidingAttention
from kvtool.results import VerifyRow
from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.engines.free_share import bytes_per_token
from kvtool.system.errors import KvtoolError
from kvtool.verify.facts import LogFacts
from kvtool.verify.inputs import Started
from kvtool.verify.rows import BYTES, TOKENS, exact, exact_row

Windowed = SlidingAttention | ChunkedAttention
_HEADS = ("kv_heads", "k_head_dim", "v_head_dim")
_DTYPES = {"tensorrt-llm": (AUTO, "fp8", "int8"), "lmdeploy": (AUTO,)}
_BLOCK_TOKENS = (64, 128)  # LMDeploy's default cache_block_seq_len, and that of its first releases
# A head of a token in so many bits and four bytes of scale and zero point, as in the formats of these names.
_QUANT_POLICIES = {"0": AUTO, "4": "int4_per_token_head", "8": "int8_per_token_head"}


def block_rows(facts: LogFacts, started: Started) -> tuple[list[VerifyRow], list[str]]:
    """The rows, and what they rest on. Raises KvtoolError.

    Where nothing tells the cache's dtype or the tokens of a block, those that the engine may have are tried: the
    logged bytes agree with one of them, or are off from the default.
    """
    if facts.flags.get("max_attention_window"):
        started = replace(started, model=_whole_windows(started.model))
    if not all(_planned(layer.cache) for layer in started.model.layers):
        return [], [f"not planned: the states and windows of {started.model.id} in {facts.engine}"]
    tried = [(words, list(_rows(facts, option))) for words, option in _alternatives(facts, started)]
    agreeing = [(words, rows) for words, rows in tried if all(row.verdict != "off" for row in rows)]
    words, rows = (agreeing or tried)[0]
    return rows, [f"the log does not say so, but its bytes are those of {words}"] if agreeing and words else []


def _planned(cache: CacheKind | None) -> bool:
    return isinstance(cache, FullAttention | LatentAttention) and not isinstance(cache, Windowed)


def _whole_windows(model: Model) -> Model:
    """TensorRT-LLM with one max_attention_window for all layers, its default: none has less than the whole request."""
    layers = (
        replace(layer, cache=FullAttention(**{name: getattr(layer.cache, name) for name in _HEADS}))
        if isinstance(layer.cache, Windowed)
        else layer
        for layer in model.layers
    )
    return replace(model, layers=tuple(layers))


def _alternatives(facts: LogFacts, started: Started) -> Iterator[tuple[str, Started]]:
    """The start as told, then with each value that it does not tell."""
    options, told = started.options, started.inputs
    policy = facts.flags.get("quant_policy", "0")
    if facts.engine == "lmdeploy" and policy not in _QUANT_POLICIES:
        raise KvtoolError(f"LMDeploy's quant_policy {policy} is not planned: only 0, 4 and 8 are")
    dtypes = _DTYPES[facts.engine]
    if told.get("kv_cache_dtype") or facts.engine == "lmdeploy":
        dtypes = (options.kv_cache_dtype if told.get("kv_cache_dtype") else _QUANT_POLICIES[policy],)
    blocks: tuple[int | None, ...] = (options.block_size,)
    if facts.engine == "lmdeploy" and options.block_size is None:
        blocks = _BLOCK_TOKENS
    for dtype in dtypes:
        for block in blocks:
            said = [f"a cache in {dtype}"] if dtype != dtypes[0] else []
            said += [f"blocks of {block} tokens"] if block != blocks[0] else []
            other = replace(options, kv_cache_dtype=dtype, block_size=block)
            yield " and ".join(said), replace(started, options=other)


def _rows(facts: LogFacts, started: Started) -> Iterator[VerifyRow]:
    each = bytes_per_token(started.model, started.options)
    dtype = started.options.kv_cache_dtype
    text = f"{each:,} B a token" + ("" if dtype == AUTO else f" in {dtype}")
    # TensorRT-LLM profiles with a small pool first, and its ranks have agreed on the blocks of the one that it keeps.
    told = facts.last if facts.engine == "tensorrt-llm" else facts.smallest
    blocks, tokens, pool = told("num_blocks"), told("tokens"), told("kv_pool")
    held = facts.last("block_tokens")
    if tokens is not None:
        predicted = None if blocks is None or held is None else exact(blocks.value * held.value)
        yield exact_row("tokens", TOKENS, tokens, predicted, "blocks x tokens of a block")
    if pool is not None:
        count = tokens.value if tokens is not None else blocks.value * held.value if blocks and held else None
        yield exact_row("KV cache pool", BYTES, pool, None if count is None else exact(count * each), text)
    if (block := facts.last("block")) is not None and started.options.block_size:
        size = started.options.block_size
        yield exact_row("bytes of a block", BYTES, block, exact(size * each), f"{size} tokens x {text}")
