"""llama.cpp's log, its older forms, and Ollama's: the cells and bytes of every cache, and what it was started with.

Texts as in llama.cpp's src/llama-context.cpp, llama-kv-cache*.cpp and llama-memory-recurrent.cpp, and in Ollama's
llm/server.go and ml/device.go; "KV self size" is llama.cpp's before mid 2025.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kvtool.verify.facts import LogFacts
from kvtool.verify.patterns import Pattern, collect, facts, pattern, template

_MIB = r"\s*(?P<{}_mib>[\d.]+) MiB"
_SIZES = r"K \((?P<cache_type_k_flag>\w+)\):" + _MIB.format("k_size") + r", V \((?P<cache_type_v_flag>\w+)\):"
_CELLS = r"\(\s*(?P<{}_count>\d+) cells,\s*(?P<{}_count>\d+) layers,\s*(?P<seqs_count>\d+)(?:/\s*\d+)? seqs"


def _setting(name: str, kind: str, value: str = r"\d+") -> Pattern:
    """A line of what a context was made with: `n_ctx         = 8192`."""
    return pattern(name, rf"\b{name}\s+= (?P<{name}_{kind}>{value})")


PATTERNS = (
    _setting("n_seq_max", "count"),
    _setting("n_ctx", "count"),
    _setting("n_ubatch", "count"),
    _setting("kv_unified", "flag", "true|false"),
    pattern("kv_size = ", r"\bkv_size = (?P<kv_size_count>\d+)"),
    pattern("flash_attn", r"\bflash_attn\s+= (?P<flash_attn_flag>\w+)"),
    pattern(
        "cells,",
        r"size ="
        + _MIB.format("cache")
        + " "
        + _CELLS.format("cells", "layers")
        + r"[^)]*\), "
        + _SIZES
        + _MIB.format("v_size"),
    ),
    pattern("KV self size", r"KV self size\s+=" + _MIB.format("self") + ", " + _SIZES + _MIB.format("v_size")),
    pattern(
        "llama_memory_recurrent: size",
        r"MiB "
        + _CELLS.format("states", "state_layers")
        + r"[^)]*\), R \(f32\):"
        + _MIB.format("conv_state")
        + r", S \(f32\):"
        + _MIB.format("ssm_state"),
    ),
    # Ollama's own.
    pattern("Listening on", r"Listening on .*\(version (?P<version_text>[\d.]+\d)"),
    pattern("--ctx-size", r"--ctx-size (?P<ctx_size_count>\d+)"),
    pattern("--ctx-size", r"--parallel (?P<parallel_count>\d+)"),
    pattern("KvSize:", r"\bKvSize:(?P<ctx_size_count>\d+)"),
    pattern("KvSize:", r"\bParallel:(?P<parallel_count>\d+)"),
    pattern("KvSize:", r"\bKvCacheType:(?P<kv_cache_type_flag>\w+)"),
    template('memory.required.kv="{required:size}"'),
    pattern('"kv cache"', r'msg="kv cache" device=\S+ size="(?P<on_device_size>[\d.]+ [KMGT]?i?B)"'),
)
_OLLAMA = ("required", "on_device", "ctx_size")


def read_llama_cpp_log(windows: Iterable[tuple[str, str]]) -> LogFacts | None:
    """What llama.cpp logged, by itself or under Ollama; None where no line is its own."""
    found = facts("llama.cpp", collect(windows, PATTERNS), model_flags=())
    by_ollama = found is not None and (found.version or any(found.of(term) for term in _OLLAMA))
    return replace(found, engine="ollama") if found is not None and by_ollama else found
