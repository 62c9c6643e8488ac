"""What SGLang chooses by card and model before it sizes anything: attention backend, page size, cache dtype."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import FullAttention, LatentAttention, Model, RecurrentLayer
from kvtool.sizing.dtypes import AUTO, canonical_dtype
from kvtool.sizing.engines.sglang.refusal import RefusedError
from kvtool.sizing.engines.sglang.versions import SglangRules, rules_at

NEWEST = rules_at(None)
SM90, SM100, SM120, CUDA, ROCM = "sm90", "sm100", "sm120", "cuda", "rocm"
_PLATFORMS = {"Hopper": SM90, "Blackwell": SM100, "Blackwell Ultra": SM100, "Blackwell GB202": SM120}
# model_type of the text model -> what arg_groups/model_overrides/ sets on sm100 instead of the general default.
_SM100_BACKENDS = {
    "falcon_h1": "triton",
    "granitemoehybrid": "flashinfer",
    "lfm2": "flashinfer",
    "lfm2_moe": "flashinfer",
    "mimo_v2": "fa4",
    "mimo_v2_flash": "fa4",
    "minimax_m3": "fa4",
}
_SM100_TRTLLM_MLA = ("deepseek_v3", "kimi_k2", "kimi_k25", "kimi_k3", "longcat_flash", "mistral_large_3")
_TRITON_WITHOUT_SM100 = ("gemma4_text",)
# Pages that a backend takes, its choice first (overrides.py: _mla_backend_page_constraints, _fa4_page_constraint).
_PAGE_SIZES = {"trtllm_mha": (64, 16, 32, 128), "trtllm_mla": (64, 32), "fa4": (128,), "dsa": (64,)}
_TORCH_NAMES = {
    "bf16": "torch.bfloat16",
    "fp16": "torch.float16",
    "fp8": "torch.float8_e4m3fn",
    "fp8_e5m2": "torch.float8_e5m2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The resolved start. `cache_dtype` is kvtool's name; `scaled_rows`: fp8 rows of sparse MLA carry their scales."""

    platform: str
    attention: str
    page_size: int
    cache_dtype: str
    scaled_rows: bool

    @property
    def element_bytes(self) -> int:
        return 1 if self.cache_dtype.startswith("fp8") else 2

    @property
    def torch_dtype(self) -> str:
        return _TORCH_NAMES[self.cache_dtype]


def choose_backend(
    model: Model, gpu: Gpu | None, *, cache_dtype: str, page_size: int | None, rules: SglangRules = NEWEST
) -> Backend:
    """The defaults of SGLang (arg_groups/overrides.py and model_overrides/); without a card those of Hopper.

    Raises RefusedError for a card or a cache dtype that SGLang does not take.
    """
    platform = _platform(gpu)
    dtype = _cache_dtype(model, platform, cache_dtype)
    attention = _attention_backend(model, platform, dtype)
    return Backend(
        platform=platform,
        attention=attention,
        page_size=_page_size(model, platform, attention, page_size),
        cache_dtype=dtype,
        scaled_rows=is_sparse_mla(model) and dtype == "fp8" and _has_scaled_rows(model, platform, rules),
    )


def is_mla(model: Model) -> bool:
    return any(isinstance(layer.cache, LatentAttention) for layer in model.layers)


def is_sparse_mla(model: Model) -> bool:
    """DeepSeek sparse attention (DSA): MLA with an indexer."""
    return is_mla(model) and any(layer.indexer for layer in model.layers)


def is_hybrid(model: Model) -> bool:
    return any(isinstance(layer.cache, RecurrentLayer) for layer in model.layers)


def _platform(gpu: Gpu | None) -> str:
    if gpu is None:
        return SM90
    if gpu.vendor == "AMD":
        return ROCM
    if gpu.vendor != "NVIDIA":
        raise RefusedError(f"the planner knows SGLang on NVIDIA and AMD cards, not on {gpu.name}")
    return _PLATFORMS.get(gpu.arch or "", CUDA)


def _cache_dtype(model: Model, platform: str, asked: str) -> str:
    sparse = is_sparse_mla(model)
    if asked == AUTO:
        if sparse:
            return "fp8" if platform in (SM100, SM120) else "bf16"
        dtype = canonical_dtype(model.dtype or "bf16")
        return "fp16" if dtype == "fp32" else dtype  # SGLang serves fp32 checkpoints in fp16
    dtype = canonical_dtype(asked)
    if dtype not in _TORCH_NAMES or dtype == "fp16":
        raise RefusedError(f"SGLang has no {asked} KV cache that kvtool plans: use auto, bf16, fp8 or fp8_e5m2")
    if sparse and dtype == "fp8_e5m2":
        raise RefusedError("SGLang keeps sparse MLA in bf16 or fp8 (e4m3), not in fp8_e5m2")
    return dtype


def _attention_backend(model: Model, platform: str, dtype: str) -> str:
    architecture, mla = model.architecture or "", is_mla(model)
    if is_sparse_mla(model):
        return "dsa"
    if platform == ROCM:
        return "aiter"
    if platform == SM100:
        return _sm100_backend(model, dtype)
    if architecture in _TRITON_WITHOUT_SM100:
        return "triton"
    if platform == SM90:
        return "triton" if dtype == "fp8_e5m2" else "fa3"
    return "triton" if mla or architecture == "gpt_oss" else "flashinfer"


def _sm100_backend(model: Model, dtype: str) -> str:
    architecture = model.architecture or ""
    if architecture == "minimax_m3" and dtype == "fp8":
        return "trtllm_mha"
    if architecture in _SM100_BACKENDS and (architecture != "granitemoehybrid" or is_hybrid(model)):
        return _SM100_BACKENDS[architecture]
    if is_mla(model):
        return "trtllm_mla" if architecture in _SM100_TRTLLM_MLA else "flashinfer"
    caches = [layer.cache for layer in model.layers if isinstance(layer.cache, FullAttention)]
    return "fa4" if any(cache.k_head_dim != cache.v_head_dim for cache in caches) else "trtllm_mha"


def _page_size(model: Model, platform: str, attention: str, asked: int | None) -> int:
    if model.architecture == "minimax_m3" and platform in (SM90, SM100):
        return asked or 128
    sizes = _PAGE_SIZES.get(attention)
    if sizes is None:
        return asked or 1
    return asked if asked in sizes else sizes[0]


def _has_scaled_rows(model: Model, platform: str, rules: SglangRules) -> bool:
    """flashmla_kv (Hopper) and flashinfer_sparse_mla (GLM on sm120) keep scales in the row; trtllm and ROCm do not."""
    if platform == SM120:
        return model.architecture == "glm_moe_dsa"
    return platform in (SM90, CUDA) or (platform == SM100 and rules.blackwell_scaled_rows)
