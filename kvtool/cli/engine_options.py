"""Options of `kvtool size` that start an engine, by the engine's own names."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.sizing.engines.options import EngineOptions

EngineOption = Annotated[
    str | None,
    typer.Option("--engine", metavar="NAME[==VERSION]", help="What would this engine allocate? vllm (0.33)."),
]
EngineBlockSizeOption = Annotated[
    int | None,
    typer.Option("--block-size", help="Tokens a page (default: 16; with --engine, what the engine chooses)."),
]
KvCacheMemoryBytesOption = Annotated[
    str | None,
    typer.Option("--kv-cache-memory-bytes", metavar="SIZE", help="What a GPU has for the cache, as 40GiB."),
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


def engine_options(engine: str | None, **flags: Any) -> EngineOptions | None:
    """The engine's start, or None without an engine. Raises KvtoolError for an unknown engine, and for its flags where
    there is none.
    """
    from kvtool.sizing.engines.options import EngineOptions
    from kvtool.sizing.engines.run import parse_engine

    defaults = {field.name: field.default for field in fields(EngineOptions)}
    if engine is None:
        for name in _ONLY_WITH_ENGINE:
            if flags.get(name) != defaults[name]:
                raise KvtoolError(f"{_ONLY_WITH_ENGINE[name]} needs --engine vllm")
        return None
    name, version = parse_engine(engine)
    return EngineOptions(name=name, version=version, **flags)


_ONLY_WITH_ENGINE = {
    "auto_fit": "--max-model-len -1",
    "kv_cache_memory_bytes": "--kv-cache-memory-bytes",
    "num_gpu_blocks_override": "--num-gpu-blocks-override",
    "async_scheduling": "--no-async-scheduling",
    "enable_prefix_caching": "--no-enable-prefix-caching",
    "hybrid_kv_cache_manager": "--disable-hybrid-kv-cache-manager",
    "mamba_cache_mode": "--mamba-cache-mode",
}
