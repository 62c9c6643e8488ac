"""FlashInfer's wrappers of a paged cache. A wrapper holds one plan, which the host makes for each step: not timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvtool.bench.kernels.calls import Queries
from kvtool.bench.kernels.peers.peer import Prepared
from kvtool.bench.kernels.work import DECODE, KernelWork
from kvtool.bench.peers import distribution_version, imported, why_not_here
from kvtool.engine.loaded import TORCH_DTYPES
from kvtool.kernels.pages import Pages
from kvtool.sizing.specs import LatentSpec, SlidingSpec
from kvtool.units import MIB, ceil_div

NOTE = "plan() made before and not timed"
WORKSPACE_BYTES = 256 * MIB
MAX_PLANS = 16  # each keeps buffers of its own, on the device and pinned on the host
TENSOR_CORE_GROUP = 4  # query heads a KV head from which engines have its decode use tensor cores
QUERY_DTYPES = ("bf16", "fp16")
CACHE_DTYPES = ("bf16", "fp16", "fp8", "fp8_e5m2")


def version() -> str | None:
    return distribution_version("flashinfer-python", "flashinfer") or getattr(
        imported("flashinfer"), "__version__", None
    )


def why_not(work: KernelWork, device: torch.device) -> str | None:
    if work.dtype not in QUERY_DTYPES or work.cache_dtype not in CACHE_DTYPES:
        return f"FlashInfer takes bf16 or fp16 queries and no {work.cache_dtype} cache for {work.dtype} ones"
    if isinstance(work.spec, LatentSpec) and work.cache_dtype != work.dtype:
        return f"FlashInfer's MLA takes latents in the dtype of its queries: a {work.cache_dtype} cache is no such"
    return why_not_here(device, "flashinfer")


def prepare(work: KernelWork, layer: Pages, scenes: Sequence[Queries]) -> Prepared:
    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=layer.k.device)
    if isinstance(work.spec, LatentSpec):
        planned: Callable[..., Callable[[], Any]] = _mla
    else:
        planned = _decode if work.part == DECODE else _prefill
    return Prepared(
        calls=[planned(work, layer, scene, workspace) for scene in scenes[:MAX_PLANS]],
        output=_as_is,
        note=NOTE,
    )


def _decode(work: KernelWork, layer: Pages, scene: Queries, workspace: Tensor) -> Callable[[], Any]:
    grouped = work.model.num_heads // work.spec.kv_heads >= TENSOR_CORE_GROUP
    wrapper = imported("flashinfer").BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=grouped)
    wrapper.plan(
        **_pages(work, scene, prefix=""),
        num_qo_heads=work.model.num_heads,
        num_kv_heads=work.spec.kv_heads,
        head_dim=work.spec.k_head_dim,
        page_size=work.block_size,
        **_kinds(work, layer),
        window_left=_window_left(work),
    )
    return partial(wrapper.run, scene.q, (layer.k, layer.v))


def _prefill(work: KernelWork, layer: Pages, scene: Queries, workspace: Tensor) -> Callable[[], Any]:
    wrapper = imported("flashinfer").BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        qo_indptr=_starts(work, scene, work.query_len),
        **_pages(work, scene, prefix="paged_kv_"),
        num_qo_heads=work.model.num_heads,
        num_kv_heads=work.spec.kv_heads,
        head_dim_qk=work.spec.k_head_dim,
        head_dim_vo=work.spec.v_head_dim,
        page_size=work.block_size,
        causal=True,
        **_kinds(work, layer),
        window_left=_window_left(work),
    )
    return partial(wrapper.run, scene.q, (layer.k, layer.v))


def _mla(work: KernelWork, layer: Pages, scene: Queries, workspace: Tensor) -> Callable[[], Any]:
    assert isinstance(work.spec, LatentSpec)
    rank = work.spec.kv_lora_rank
    wrapper = imported("flashinfer.mla").BatchMLAPagedAttentionWrapper(workspace, backend="auto")
    pages = _pages(work, scene, prefix="kv_")
    wrapper.plan(
        qo_indptr=_starts(work, scene, work.query_len),
        kv_indptr=pages["kv_indptr"],
        kv_indices=pages["kv_indices"],
        kv_len_arr=scene.seq_lens,
        num_heads=work.model.num_heads,
        head_dim_ckv=rank,
        head_dim_kpe=work.spec.k_head_dim - rank,
        page_size=work.block_size,
        causal=True,
        **_kinds(work, layer),
    )
    return partial(
        wrapper.run,
        q_nope=scene.q[..., :rank],
        q_pe=scene.q[..., rank:],
        ckv_cache=layer.k[..., :rank],
        kpe_cache=layer.k[..., rank:],
    )


def _pages(work: KernelWork, scene: Queries, *, prefix: str) -> dict[str, Tensor]:
    """The pages of all sequences in a row, where each begins, and the tokens on the last one of each."""
    last = work.context - (ceil_div(work.context, work.block_size) - 1) * work.block_size
    return {
        f"{prefix}indptr": _starts(work, scene, work.num_pages),
        f"{prefix}indices": scene.block_tables.flatten(),
        f"{prefix}last_page_len": torch.full_like(scene.seq_lens, last),
    }


def _starts(work: KernelWork, scene: Queries, each: int) -> Tensor:
    return torch.arange(work.batch_size + 1, dtype=torch.int32, device=scene.q.device) * each


def _kinds(work: KernelWork, layer: Pages) -> dict[str, Any]:
    return {
        "sm_scale": work.spec.k_head_dim**-0.5,
        "q_data_type": TORCH_DTYPES[work.dtype],
        "kv_data_type": layer.k.dtype,
    }


def _window_left(work: KernelWork) -> int:
    """Keys before the current one that it sees; -1 for all."""
    return work.spec.window - 1 if isinstance(work.spec, SlidingSpec) else -1


def _as_is(out: Any) -> Tensor:
    rows: Tensor = out
    return rows
