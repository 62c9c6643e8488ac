"""TensorRT-LLM's log: the blocks, tokens and bytes of its paged cache.

Texts as in cpp/tensorrt_llm/batch_manager/kvCacheManager.cpp; "Allocate N bytes" and "Using N tokens" are those of
0.8 and before.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvtool.verify.facts import LogFacts
from kvtool.verify.patterns import collect, facts, template

PATTERNS = (
    template("[TensorRT-LLM] TensorRT-LLM version: {version:text}", starts=True),
    template("Number of blocks in KV cache primary pool: {num_blocks:count}"),
    template(" primary blocks={num_blocks:count}"),
    template("Number of tokens per block: {block_tokens:count}"),
    template("Allocated {kv_pool:gib} GiB for max tokens in paged KV cache ({tokens:count})"),
    template("Adjusted max_attention_window_vec to [{max_attention_window:flag}]"),
    template("Allocate {kv_pool:count} bytes for k/v cache"),
    template("Using {tokens:count} tokens in paged KV cache"),
)


def read_tensorrt_llm_log(windows: Iterable[tuple[str, str]]) -> LogFacts | None:
    """What TensorRT-LLM logged; None where no line is its own."""
    return facts("tensorrt-llm", collect(windows, PATTERNS), model_flags=())
