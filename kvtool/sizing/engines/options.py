"""What an engine is started with, by the names of its own flags."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.engines.versions import parse_release
from kvtool.sizing.parallel import Parallel

if TYPE_CHECKING:
    from kvtool.catalog.gpus import Gpu
from kvtool.system.errors import KvtoolError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Flags of one start of an engine on one layout; None where the engine itself chooses. Each has a row in flags.py.

    `name` is one of sizing.engines.run.ENGINES, `version` the one asked for (None: the one modelled), `rules` those to
    plan by in place of that release's own. `auto_fit` is --max-model-len -1: the longest sequence that fits.
    `kv_cache_memory_bytes` is what one GPU has for the cache, where it is given and not estimated. `gpu` decides what
    depends on the card: block sizes and default batched tokens. `limit_mm_per_prompt` is JSON, how many items of each
    modality a prompt may bring; `dtype` is that of weights and activations. From `mem_fraction_static` on they are
    SGLang's own; it calls `block_size` --page-size, `max_model_len` --context-length, `mamba_ssm_cache_dtype`
    --mamba-ssm-dtype, and no prefix caching --disable-radix-cache. From `slots` on they are llama.cpp's, whose -c is
    `max_model_len`; `windows` is off with --swa-full. `free_memory_fraction` is TensorRT-LLM's and LMDeploy's.
    """

    name: str
    version: str | None = None
    rules: object | None = None
    parallel: Parallel = field(default_factory=Parallel)
    gpu: Gpu | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_dtype: str = AUTO
    block_size: int | None = None
    max_model_len: int | None = None
    auto_fit: bool = False
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    async_scheduling: bool = True
    enable_prefix_caching: bool | None = None
    hybrid_kv_cache_manager: bool = True
    mamba_ssm_cache_dtype: str = AUTO
    mamba_cache_mode: str = AUTO
    num_speculative_tokens: int = 0
    dtype: str = AUTO
    cuda_graphs: bool = True
    limit_mm_per_prompt: str = AUTO
    mem_fraction_static: float | None = None
    chunked_prefill_size: int | None = None
    max_total_tokens: int | None = None
    max_running_requests: int | None = None
    swa_full_tokens_ratio: float | None = None
    mamba_full_memory_ratio: float | None = None
    max_mamba_cache_size: int | None = None
    slots: int | None = None
    ubatch: int | None = None
    windows: bool = True
    cache_type_k: str = AUTO
    cache_type_v: str = AUTO
    flash_attn: str = AUTO
    n_gpu_layers: int | None = None
    tensor_split: str = AUTO
    free_memory_fraction: float | None = None

    @property
    def profiles_images(self) -> bool:
        """Whether any image or video may come: not where all that is limited is limited to none. Raises KvtoolError."""
        if self.limit_mm_per_prompt == AUTO:
            return True
        try:
            limits = json.loads(self.limit_mm_per_prompt)
        except (ValueError, RecursionError):
            limits = None
        # A count may stand among other options: {"video": {"count": 1, "num_frames": 32}}.
        counts = [it.get("count") if isinstance(it, dict) else it for it in getattr(limits, "values", list)()]
        if not isinstance(limits, dict) or not all(isinstance(count, int) for count in counts):
            text = self.limit_mm_per_prompt[:40]
            raise KvtoolError(f'--limit-mm-per-prompt {text!r} must be counts, as {{"image": 0, "video": 0}}')
        return any(counts)

    def is_of(self, releases: Iterable[str]) -> bool:
        """Whether a release asked for is one of those, or a patch of one."""
        wanted = {parse_release(release)[:2] for release in releases}
        return self.version is not None and parse_release(self.version)[:2] in wanted
