"""vLLM's Triton kernel for a paged cache, called as its attention backend calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from kvtool.bench.kernels.calls import Queries
from kvtool.bench.kernels.peers.peer import Prepared
from kvtool.bench.kernels.work import PREFILL, KernelWork
from kvtool.bench.peers import distribution_version, imported, why_not_here
from kvtool.kernels.pages import Pages
from kvtool.sizing.specs import LatentSpec, SlidingSpec

MODULES = (
    "vllm.v1.attention.ops.triton_unified_attention",
    "vllm.attention.ops.triton_unified_attention",
)
# Of its attention backend: how far it splits the keys of a decode, and up to which batch size.
SEGMENTS = 16
SMALLEST_UNSPLIT_GRID = 128
# Its KVQuantMode, by our names of cache formats.
QUANT_MODES = {"fp8": 1, "fp8_e5m2": 1, "int8_per_token_head": 2, "fp8_per_token_head": 3}


def version() -> str | None:
    return distribution_version("vllm")


def why_not(work: KernelWork, device: torch.device) -> str | None:
    if isinstance(work.spec, LatentSpec):
        return "vLLM's Triton kernel is not for latents"
    if work.spec.k_head_dim != work.spec.v_head_dim:
        return "vLLM's Triton kernel takes K and V heads of one size"
    if reason := why_not_here(device, *MODULES):
        return reason
    if work.cache_dtype in QUANT_MODES and "kv_quant_mode" not in _parameters():
        return f"this version of vLLM's Triton kernel knows no {work.cache_dtype} cache"
    return None


def prepare(work: KernelWork, layer: Pages, scenes: Sequence[Queries]) -> Prepared:
    constant = {**_shape(work, layer), **_quantised(work, layer), **_splits(work, layer.k.device)}
    return Prepared(calls=[_call(work, layer, scene, constant) for scene in scenes], output=_as_is)


def _call(work: KernelWork, layer: Pages, scene: Queries, constant: dict[str, Any]) -> Callable[[], Tensor]:
    attend = imported(*MODULES).unified_attention
    starts = torch.arange(work.batch_size + 1, dtype=torch.int32, device=scene.q.device) * work.query_len
    fill = partial(
        attend,
        q=scene.q,
        k=layer.k,
        v=layer.v,
        cu_seqlens_q=starts,
        seqused_k=scene.seq_lens,
        block_table=scene.block_tables,
        **constant,
    )

    def call() -> Tensor:
        out = torch.empty_like(scene.q)
        fill(out=out)
        return out

    return call


def _shape(work: KernelWork, layer: Pages) -> dict[str, Any]:
    ones = torch.ones(1, dtype=torch.float32, device=layer.k.device)
    scales = ones.expand(work.batch_size, work.spec.kv_heads)
    return {
        "max_seqlen_q": work.query_len,
        "max_seqlen_k": work.context,
        "softmax_scale": work.spec.k_head_dim**-0.5,
        "causal": True,
        "window_size": (work.spec.window - 1, 0) if isinstance(work.spec, SlidingSpec) else (-1, -1),
        "softcap": 0,
        "q_descale": None,
        "k_descale": scales,
        "v_descale": scales,
    }


def _quantised(work: KernelWork, layer: Pages) -> dict[str, Any]:
    if work.cache_dtype not in QUANT_MODES:
        return {}
    modes = type(_parameters()["kv_quant_mode"].default)
    beside = isinstance(layer.k_scale, Tensor)
    scales = {"k_scale_cache": layer.k_scale, "v_scale_cache": layer.v_scale} if beside else {}
    return {"kv_quant_mode": modes(QUANT_MODES[work.cache_dtype]), **scales}


def _splits(work: KernelWork, device: torch.device) -> dict[str, Any]:
    """Scratch for the split keys of a decode; older versions make it themselves and know no such arguments."""
    if work.part == PREFILL or "softmax_segm_output" not in _parameters():
        return {}
    heads, width = work.model.num_heads, 1 << (work.spec.k_head_dim - 1).bit_length()
    shape = (work.new_tokens, heads, SEGMENTS)
    return {
        "seq_threshold_3D": SMALLEST_UNSPLIT_GRID // work.spec.kv_heads,
        "num_par_softmax_segments": SEGMENTS,
        "softmax_segm_output": torch.empty(*shape, width, dtype=torch.float32, device=device),
        "softmax_segm_max": torch.empty(shape, dtype=torch.float32, device=device),
        "softmax_segm_expsum": torch.empty(shape, dtype=torch.float32, device=device),
    }


def _parameters() -> Any:
    return signature(imported(*MODULES).unified_attention).parameters


def _as_is(out: Any) -> Tensor:
    rows: Tensor = out
    return rows
