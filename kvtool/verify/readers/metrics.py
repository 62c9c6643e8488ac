"""The text of an engine's /metrics: what vLLM's cache_config_info labels and SGLang's constant gauges say."""

from __future__ import annotations

from collections.abc import Iterable

from kvtool.verify.facts import LogFacts
from kvtool.verify.patterns import Pattern, collect, facts, pattern

_CONFIG = "vllm:cache_config_info{"
_SGLANG_NAME = r"^sglang[:_]"


def _label(label: str, group: str, value: str) -> Pattern:
    return pattern(_CONFIG, rf'vllm:cache_config_info\{{(?:.*[,{{ ])?{label}="(?P<{group}>{value})"')


def _gauge(name: str, group: str) -> Pattern:
    value = r"[\d.]+(?:e[+-]?\d+)?"
    return pattern(name, rf"{_SGLANG_NAME}{name}(?:\{{.*\}})? (?P<{group}>{value})")


def _model(engine: str) -> Pattern:
    return pattern("model_name=", rf'^{engine}[:_]\w+\{{.*?\bmodel_name="(?P<model_text>[^"]+)"')


VLLM = (
    _model("vllm"),
    _label("num_gpu_blocks", "num_blocks_count", r"\d+"),
    _label("kv_cache_size_tokens", "tokens_count", r"\d+"),
    _label("kv_cache_max_concurrency", "max_concurrency_ratio", r"[\d.]*\d"),
    _label("cache_dtype", "kv_cache_dtype_flag", r"\w+"),
    _label("gpu_memory_utilization", "gpu_memory_utilization_flag", r"[\d.]*\d"),
    _label("enable_prefix_caching", "enable_prefix_caching_flag", r"\w+"),
    _label("kv_cache_memory_bytes", "kv_cache_memory_bytes_flag", r"\d+"),
    _label("num_gpu_blocks_override", "num_gpu_blocks_override_flag", r"\d+"),
    _label("mamba_ssm_cache_dtype", "mamba_ssm_cache_dtype_flag", r"\w+"),
    _label("mamba_cache_mode", "mamba_cache_mode_flag", r"\w+"),
)
SGLANG = (
    _model("sglang"),
    _gauge("max_total_num_tokens", "tokens_number"),
    _gauge("max_total_num_tokens_swa", "swa_tokens_number"),
    _gauge("weight_memory_usage_gb", "weights_gib"),
    _gauge("kv_cache_memory_usage_gb", "kv_bytes_gib"),
    _gauge("graph_memory_usage_gb", "graphs_gib"),
    _gauge("context_len", "context_length_flag"),
    _gauge("page_size", "page_size_flag"),
)


def read_vllm_metrics(windows: Iterable[tuple[str, str]]) -> LogFacts | None:
    """What vLLM's /metrics says; None where it has no cache configuration."""
    return facts("vllm", collect(windows, VLLM), model_flags=())


def read_sglang_metrics(windows: Iterable[tuple[str, str]]) -> LogFacts | None:
    """What SGLang's /metrics says; None where it has none of its memory gauges."""
    return facts("sglang", collect(windows, SGLANG), model_flags=())
