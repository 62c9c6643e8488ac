"""Options of `kvtool size` that start an engine, by the engine's own names."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.sizing.drafts import DraftRequest
    from kvtool.sizing.engines.options import EngineOptions

ENGINE = "What an engine would allocate"
SWITCHES = "On and off, as in vLLM"
SGLANG = "Of SGLang"

EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="What would this engine allocate? vllm, sglang, or a release of one, as vllm==0.23.",
        rich_help_panel=ENGINE,
    ),
]
EngineBlockSizeOption = Annotated[
    int | None,
    typer.Option("--block-size", help="Tokens a page (default: 16; with --engine, what the engine chooses)."),
]
KvCacheMemoryBytesOption = Annotated[
    str | None,
    typer.Option(
        "--kv-cache-memory-bytes",
        metavar="SIZE",
        help="What a GPU has for the cache, as 40GiB.",
        rich_help_panel=ENGINE,
    ),
]
NumGpuBlocksOverrideOption = Annotated[
    int | None,
    typer.Option(
        "--num-gpu-blocks-override", help="Blocks of the engine's pool, whatever its memory.", rich_help_panel=ENGINE
    ),
]
AsyncSchedulingOption = Annotated[
    bool,
    typer.Option(
        "--async-scheduling/--no-async-scheduling",
        help="Schedule a step while one runs (the default).",
        show_default=False,
        rich_help_panel=SWITCHES,
    ),
]
PrefixCachingOption = Annotated[
    bool | None,
    typer.Option(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        help="Keep what prompts have in common (by default on; for hybrids since vLLM 0.26).",
        show_default=False,
        rich_help_panel=SWITCHES,
    ),
]
DisableHybridOption = Annotated[
    bool,
    typer.Option("--disable-hybrid-kv-cache-manager", help="Keep windows as full attention.", rich_help_panel=ENGINE),
]
MambaCacheModeOption = Annotated[
    str,
    typer.Option(
        "--mamba-cache-mode", help="Which recurrent states are kept: auto, none, align or all.", rich_help_panel=ENGINE
    ),
]
EnforceEagerOption = Annotated[
    bool, typer.Option("--enforce-eager", help="Run without CUDA graphs.", rich_help_panel=ENGINE)
]
LimitMmPerPromptOption = Annotated[
    str | None,
    typer.Option(
        "--limit-mm-per-prompt",
        metavar="JSON",
        help='Images and videos a prompt may bring, as {"image": 0, "video": 0}.',
        rich_help_panel=ENGINE,
    ),
]
MemFractionStaticOption = Annotated[
    float | None,
    typer.Option("--mem-fraction-static", help="Part of a GPU for weights and caches.", rich_help_panel=SGLANG),
]
ChunkedPrefillSizeOption = Annotated[
    int | None,
    typer.Option("--chunked-prefill-size", help="Tokens of a prefill that run at a time.", rich_help_panel=SGLANG),
]
MaxTotalTokensOption = Annotated[
    int | None,
    typer.Option("--max-total-tokens", help="Tokens of its pool, whatever its memory.", rich_help_panel=SGLANG),
]
MaxRunningRequestsOption = Annotated[
    int | None,
    typer.Option("--max-running-requests", help="Requests that run at a time.", rich_help_panel=SGLANG),
]
SwaFullTokensRatioOption = Annotated[
    float | None,
    typer.Option(
        "--swa-full-tokens-ratio", help="Tokens of windows to a token of full layers.", rich_help_panel=SGLANG
    ),
]
MambaFullMemoryRatioOption = Annotated[
    float | None,
    typer.Option("--mamba-full-memory-ratio", help="Bytes of states to a byte of tokens.", rich_help_panel=SGLANG),
]
MaxMambaCacheSizeOption = Annotated[
    int | None, typer.Option("--max-mamba-cache-size", help="Slots of recurrent state.", rich_help_panel=SGLANG)
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


def draft_request(
    draft: str | None, tokens: int, speculative_config: str | None, models: Path | None
) -> DraftRequest | None:
    """The draft asked for, by either way of saying it. Raises KvtoolError where both or half of one is given."""
    from kvtool.catalog.resolve import resolve_model
    from kvtool.sizing.drafts import EAGLE, DraftRequest, parse_speculative_config

    if speculative_config is not None:
        if draft is not None or tokens:
            raise KvtoolError("--speculative-config says it all: leave out --draft and --num-speculative-tokens")
        request = parse_speculative_config(speculative_config)
    elif tokens or draft is not None:
        if not tokens:
            raise KvtoolError(f"--draft {draft} needs --num-speculative-tokens")
        request = DraftRequest(tokens=tokens, name=draft)
    else:
        return None
    if request.name is None or request.method in ("mtp", "medusa"):
        return request
    try:
        return replace(request, model=resolve_model(request.name, models_path=models))
    except KvtoolError:
        like_eagle = (request.method or "").startswith(EAGLE) or EAGLE in request.name.lower()
        if like_eagle or "medusa" in request.name.lower():
            return request
        raise


def limits_of(text: str | None) -> tuple[tuple[str, int], ...]:
    """`{"image": 0}` -> (("image", 0),). Raises KvtoolError."""
    if text is None:
        return ()
    try:
        limits = json.loads(text)
    except ValueError:
        limits = None
    if not isinstance(limits, dict) or not all(isinstance(count, int) and count >= 0 for count in limits.values()):
        raise KvtoolError(f'--limit-mm-per-prompt {text[:40]!r} must be counts, as {{"image": 0, "video": 0}}')
    return tuple(limits.items())


_VLLM, _SGLANG = ("vllm",), ("sglang",)
# Field of EngineOptions -> (how it is given, the engines that have it).
_FLAGS = {
    "auto_fit": ("--max-model-len -1", _VLLM),
    "kv_cache_memory_bytes": ("--kv-cache-memory-bytes", _VLLM + _SGLANG),
    "enable_prefix_caching": ("--no-enable-prefix-caching", _VLLM + _SGLANG),
    "num_gpu_blocks_override": ("--num-gpu-blocks-override", _VLLM),
    "async_scheduling": ("--no-async-scheduling", _VLLM),
    "hybrid_kv_cache_manager": ("--disable-hybrid-kv-cache-manager", _VLLM),
    "mamba_cache_mode": ("--mamba-cache-mode", _VLLM),
    "enforce_eager": ("--enforce-eager", _VLLM),
    "limit_mm_per_prompt": ("--limit-mm-per-prompt", _VLLM),
    "mem_fraction_static": ("--mem-fraction-static", _SGLANG),
    "chunked_prefill_size": ("--chunked-prefill-size", _SGLANG),
    "max_total_tokens": ("--max-total-tokens", _SGLANG),
    "max_running_requests": ("--max-running-requests", _SGLANG),
    "swa_full_tokens_ratio": ("--swa-full-tokens-ratio", _SGLANG),
    "mamba_full_memory_ratio": ("--mamba-full-memory-ratio", _SGLANG),
    "max_mamba_cache_size": ("--max-mamba-cache-size", _SGLANG),
}
