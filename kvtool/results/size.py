"""What `kvtool size` answers: a row for every model, context, batch size and cache dtype."""

from __future__ import annotations

from typing import Any

from kvtool.results.document import Struct
from kvtool.units import format_bytes

FITS, FITS_WITHIN_MARGIN, NO = "fits", "fits, within the margin", "no"
FIRST_NODE = "FIRST_NODE"  # in a command: the address of the node that the others connect to
ENGINE_NAMES = {"vllm": "vLLM", "sglang": "SGLang"}  # that serve, as their makers write them
PLANNED_NAMES = ENGINE_NAMES | {
    "tensorrt-llm": "TensorRT-LLM",
    "lmdeploy": "LMDeploy",
    "llama.cpp": "llama.cpp",
    "ollama": "Ollama",
}


class SizeModel(Struct, frozen=True, kw_only=True):
    id: str
    source: str
    attention: str
    num_layers: int
    params_total: int | None


class SizeInputs(Struct, frozen=True, kw_only=True):
    context: int
    batch_size: int
    kv_cache_dtype: str
    weight_dtype: str
    block_size: int
    tp: int
    pp: int
    dp: int
    dcp: int
    ep: int
    gpu: str | None
    num_gpus: int
    shared_prefix: int
    engine: str | None
    num_speculative_tokens: int = 0
    enable_dp_attention: bool = False


class SizeLayers(Struct, frozen=True, kw_only=True):
    """A group of equal layers. `bytes_per_token` is what one more token adds before any cap; `bits_per_element` counts
    scales and padding too.
    """

    kind: str
    count: int
    kv_heads: int | None
    k_head_dim: int | None
    v_head_dim: int | None
    window: int | None
    bytes_per_token: int
    bytes_per_sequence: int
    bits_per_element: float | None = None


class SizeKv(Struct, frozen=True, kw_only=True):
    bytes_per_token: int
    indexer_bytes_per_token: int
    window_bytes_per_token: int
    window_cap_bytes_per_sequence: int
    state_bytes_per_sequence: int
    bytes_per_sequence: int
    allocated_bytes_per_sequence: int
    fixed_bytes_per_sequence: int
    slope_bytes_per_token: int
    bytes_total: int
    bytes_per_gpu: int


class SizeWeights(Struct, frozen=True, kw_only=True):
    bytes: int | None
    bytes_per_gpu: int | None
    source: str


class SizeDecode(Struct, frozen=True, kw_only=True):
    kv_read_bytes_per_step: int
    weights_read_bytes_per_step: int | None
    flops_per_step: int | None
    ideal_tpot_ms: float | None
    bound: str | None


class SizeFit(Struct, frozen=True, kw_only=True):
    """`margin_bytes`: by how much the estimates among the terms may be off; `measured`: the terms that are none.
    `verdict` is `fits`, `fits, within the margin`, or `no`; `fits` is false for a no alone.
    """

    memory_bytes: int | None = None
    usable_bytes: int | None = None
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    reserve_bytes: int | None = None
    kv_pool_bytes: int | None = None
    margin_bytes: int | None = None
    fits: bool | None = None
    missing_bytes: int | None = None
    max_batch_size: int | None = None
    max_context: int | None = None
    limited_by: str | None = None
    measured: list[str] | None = None
    verdict: str | None = None
    activation_margin_bytes: int | None = None
    reserve_margin_bytes: int | None = None


class SizeEngine(Struct, frozen=True, kw_only=True):
    """What an engine would allocate on every GPU. `fixed_bytes_per_request`, `slope_bytes_per_token`: what a request is
    charged on one GPU in the long run. Terms of the `ledger` are bytes of one request on all GPUs of a replica for
    vLLM; for SGLang, whose pools are apart, they are those of a GPU's memory for caches. `standing` is how far the
    rules of `version` were held against the engine: exact, checked or extrapolated.
    """

    name: str | None = None
    version: str | None = None
    block_size: int | None = None
    bytes_per_block: int | list[int] | None = None
    num_blocks: int | None = None
    blocks_per_request: int | None = None
    max_concurrency: float | None = None
    gpu_kv_cache_tokens: int | None = None
    log_line: str | None = None
    groups: list[dict[str, Any]] | None = None
    refusal: str | None = None
    ledger: list[dict[str, Any]] | None = None
    exact_given_pool: bool | None = None
    scheduler_block_size: int | None = None
    max_model_len: int | None = None
    estimated_max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    kv_tp_replicas: int | None = None
    pool_bytes: int | None = None
    bytes_needed: int | list[int] | None = None
    fixed_bytes_per_request: int | None = None
    slope_bytes_per_token: int | None = None
    standing: str | None = None


class SizeSharing(Struct, frozen=True, kw_only=True):
    """What storing a common prefix once saves, over one copy of the model: `ratio` is without / with sharing."""

    shared_bytes: int
    unshared_bytes: int
    saved_bytes: int
    ratio: float

    @property
    def words(self) -> str:
        """`shared 1.28 GiB, unshared 25.8 GiB: saved 24.5 GiB (20.1 x)`."""
        shared, unshared, saved = map(format_bytes, (self.shared_bytes, self.unshared_bytes, self.saved_bytes))
        return f"shared {shared}, unshared {unshared}: saved {saved} ({self.ratio:.1f} x)"


class SizeTier(Struct, frozen=True, kw_only=True):
    """One place where the cache could live. `scope`: gpu (one GPU and its part of the cache) or node (the whole cache,
    once). `tokens`: of one sequence, None where it stops growing; `sequences`: at the row's context. `reload_ms` brings
    one sequence back into HBM at `reload_gbps`.
    """

    name: str
    scope: str
    capacity_bytes: int | None
    batch_bytes: int
    batch_share: float | None
    tokens: int | None
    sequences: int | None
    reload_gbps: float | None
    reload_ms: float | None


class SizeLengths(Struct, frozen=True, kw_only=True):
    """How many requests of a length distribution fit at once, on all GPUs: on average, with `probability`, and if every
    one were as long as the longest.
    """

    source: str
    requests: int | None
    mean_tokens: float
    p50_tokens: int
    p95_tokens: int
    max_tokens: int
    probability: float
    expected_requests: int
    likely_requests: int
    worst_case_requests: int
    method: str


class SizeSetting(Struct, frozen=True, kw_only=True):
    """A layout, a cache dtype and a format of weights that were tried."""

    num_gpus: int
    tp: int
    pp: int
    dp: int
    dcp: int
    enable_dp_attention: bool
    kv_cache_dtype: str
    weight_dtype: str


class SizeSolution(SizeSetting, frozen=True, kw_only=True):
    """A way to serve `users` sequences of `context` tokens. `vllm_users` and `sglang_users`: how many such sequences
    the pools of that engine's start hold, None where it would not start; `page_users`: how many whole pages of the
    formula would; `gpu_memory_utilization` and `max_num_batched_tokens` are those of the start that serves most.
    Commands are None with the reason where none would do.
    """

    nodes: int
    users: int
    context: int
    kv_bytes_per_gpu: int
    kv_pool_bytes: int
    margin_bytes: int
    page_users: int
    vllm_users: float | None
    sglang_users: float | None
    gpu_memory_utilization: float | None
    max_num_batched_tokens: int | None
    vllm: str | None
    sglang: str | None
    reason: str | None


class SizeRejected(SizeSetting, frozen=True, kw_only=True):
    """A setting that no engine asked for serves, and why."""

    reason: str


class SizeRow(Struct, frozen=True, kw_only=True):
    model: SizeModel
    inputs: SizeInputs
    layers: list[SizeLayers]
    kv: SizeKv
    weights: SizeWeights
    decode: SizeDecode
    fit: SizeFit
    engine: SizeEngine
    sharing: SizeSharing | None = None
    tiers: list[SizeTier] | None = None
    lengths: SizeLengths | None = None


class SizeDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.size/1"
    rows: list[SizeRow]
    solutions: list[SizeSolution] | None = None
    rejected: list[SizeRejected] | None = None
    assumptions: list[str]
