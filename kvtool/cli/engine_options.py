"""Options of `kvtool size` that start an engine, by the engine's own names."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.errors import KvtoolError
from kvtool.units import parse_size

if TYPE_CHECKING:
    from kvtool.sizing.engines.options import EngineOptions

EngineOption = Annotated[
    str | None,
    typer.Option("--engine", metavar="NAME[==VERSION]", help="What would this engine allocate? vllm, sglang."),
]
EngineBlockSizeOption = Annotated[
    int | None,
    typer.Option("--block-size", help="Tokens a page (default: 16; with --engine, what the engine chooses)."),
]
KvCacheMemoryBytesOption = Annotated[
    str | None,
    typer.Option("--kv-cache-memory-bytes", metavar="SIZE", help="What a GPU has for the cache, as 40GiB."),
]
MaxNumBatchedTokensOption = Annotated[
    int | None, typer.Option("--max-num-batched-tokens", help="Tokens that the engine runs in a step.")
]
MaxNumSeqsOption = Annotated[
    int | None, typer.Option("--max-num-seqs", help="Sequences that the engine runs at a time.")
]
NumGpuBlocksOverrideOption = Annotated[
    int | None, typer.Option("--num-gpu-blocks-override", help="Blocks of the engine's pool, whatever its memory.")
]
AsyncSchedulingOption = Annotated[
    bool, typer.Option("--async-scheduling/--no-async-scheduling", help="Schedule a step while one runs.")
]
PrefixCachingOption = Annotated[
    bool, typer.Option("--enable-prefix-caching/--no-enable-prefix-caching", help="Keep what prompts have in common.")
]
DisableHybridOption = Annotated[
    bool, typer.Option("--disable-hybrid-kv-cache-manager", help="Keep windows as full attention.")
]
MambaCacheModeOption = Annotated[
    str, typer.Option("--mamba-cache-mode", help="Which recurrent states are kept: auto, none, align or all.")
]
MemFractionStaticOption = Annotated[
    float | None, typer.Option("--mem-fraction-static", help="SGLang: part of a GPU for weights and caches.")
]
ChunkedPrefillSizeOption = Annotated[
    int | None, typer.Option("--chunked-prefill-size", help="SGLang: tokens of a prefill that run at a time.")
]
MaxTotalTokensOption = Annotated[
    int | None, typer.Option("--max-total-tokens", help="SGLang: tokens of its pool, whatever its memory.")
]
MaxRunningRequestsOption = Annotated[
    int | None, typer.Option("--max-running-requests", help="SGLang: requests that run at a time.")
]
SwaFullTokensRatioOption = Annotated[
    float | None, typer.Option("--swa-full-tokens-ratio", help="SGLang: tokens of windows to a token of full layers.")
]
MambaFullMemoryRatioOption = Annotated[
    float | None, typer.Option("--mamba-full-memory-ratio", help="SGLang: bytes of states to a byte of tokens.")
]
MaxMambaCacheSizeOption = Annotated[
    int | None, typer.Option("--max-mamba-cache-size", help="SGLang: slots of recurrent state.")
]
EnableDpAttentionOption = Annotated[
    bool, typer.Option("--enable-dp-attention", help="SGLang: --dp replicas of attention share the experts.")
]


def engine_options(engine: str | None, **flags: Any) -> EngineOptions | None:
    """The engine's start, or None without an engine. Raises KvtoolError for an unknown engine, and for its flags where
    there is none.
    """
    from kvtool.sizing.engines.options import EngineOptions
    from kvtool.sizing.engines.run import parse_engine

    name, version = (None, None) if engine is None else parse_engine(engine)
    defaults = {field.name: field.default for field in fields(EngineOptions)}
    for field, (flag, engines) in _FLAGS.items():
        if flags.get(field, defaults[field]) != defaults[field] and name not in engines:
            raise KvtoolError(f"{flag} needs --engine {' or '.join(engines)}")
    return None if name is None else EngineOptions(name=name, version=version, **flags)


_VLLM, _SGLANG = ("vllm",), ("sglang",)
# Field of EngineOptions -> (how it is given, the engines that have it).
_FLAGS = {
    "auto_fit": ("--max-model-len -1", _VLLM),
    "kv_cache_memory_bytes": ("--kv-cache-memory-bytes", _VLLM + _SGLANG),
    "enable_prefix_caching": ("--no-enable-prefix-caching", _VLLM + _SGLANG),
    "max_num_batched_tokens": ("--max-num-batched-tokens", _VLLM),
    "max_num_seqs": ("--max-num-seqs", _VLLM),
    "num_gpu_blocks_override": ("--num-gpu-blocks-override", _VLLM),
    "async_scheduling": ("--no-async-scheduling", _VLLM),
    "hybrid_kv_cache_manager": ("--disable-hybrid-kv-cache-manager", _VLLM),
    "mamba_cache_mode": ("--mamba-cache-mode", _VLLM),
    "mem_fraction_static": ("--mem-fraction-static", _SGLANG),
    "chunked_prefill_size": ("--chunked-prefill-size", _SGLANG),
    "max_total_tokens": ("--max-total-tokens", _SGLANG),
    "max_running_requests": ("--max-running-requests", _SGLANG),
    "swa_full_tokens_ratio": ("--swa-full-tokens-ratio", _SGLANG),
    "mamba_full_memory_ratio": ("--mamba-full-memory-ratio", _SGLANG),
    "max_mamba_cache_size": ("--max-mamba-cache-size", _SGLANG),
    "enable_dp_attention": ("--enable-dp-attention", _SGLANG),
}


def memory_bytes(text: str | None) -> int | None:
    """Bytes of --kv-cache-memory-bytes, None where it was not given. Raises KvtoolError, for nothing at all too."""
    size = None if text is None else parse_size(text, "kv cache memory bytes")
    if size == 0:
        raise KvtoolError(f"--kv-cache-memory-bytes {text!r} is no memory: write a size as 40GiB")
    return size
