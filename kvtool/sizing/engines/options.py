"""What an engine is started with, by the names of its own flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.parallel import Parallel

if TYPE_CHECKING:
    from kvtool.catalog.gpus import Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Flags of one start of an engine on one layout; None where the engine itself chooses. Each has a row in flags.py.

    `name` is vllm or sglang, `version` the one asked for (None: the one modelled). `auto_fit` is --max-model-len -1:
    the longest sequence that fits. `kv_cache_memory_bytes` is what one GPU has for the cache, where it is given and not
    estimated. `gpu` decides what depends on the card: block sizes and default batched tokens. The last fields are
    SGLang's own; it calls `block_size` --page-size, `max_model_len` --context-length, `mamba_ssm_cache_dtype`
    --mamba-ssm-dtype, and no prefix caching --disable-radix-cache.
    """

    name: str
    version: str | None = None
    parallel: Parallel = field(default_factory=Parallel)
    gpu: Gpu | None = None
    gpu_memory_utilization: float = 0.92
    kv_cache_dtype: str = AUTO
    block_size: int | None = None
    max_model_len: int | None = None
    auto_fit: bool = False
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    async_scheduling: bool = True
    enable_prefix_caching: bool = True
    hybrid_kv_cache_manager: bool = True
    mamba_ssm_cache_dtype: str = AUTO
    mamba_cache_mode: str = AUTO
    num_speculative_tokens: int = 0
    mem_fraction_static: float | None = None
    chunked_prefill_size: int | None = None
    max_total_tokens: int | None = None
    max_running_requests: int | None = None
    swa_full_tokens_ratio: float | None = None
    mamba_full_memory_ratio: float | None = None
    max_mamba_cache_size: int | None = None

    def asks_other_than(self, modelled: str) -> bool:
        """Whether another release than `modelled` was asked for; 0.33 is 0.33.0."""
        return self.version is not None and _release(self.version) != _release(modelled)


def _release(version: str) -> str:
    while version.endswith(".0"):
        version = version.removesuffix(".0")
    return version
