"""FlashAttention's kernels for a paged cache: version 3 on Hopper where it is installed, else version 2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kvtool.bench.kernels.calls import Queries
from kvtool.bench.kernels.peers.peer import Prepared
from kvtool.bench.kernels.work import KernelWork
from kvtool.bench.peers import PeerError, distribution_version, imported, why_not_here, why_not_imported
from kvtool.kernels.pages import Pages
from kvtool.sizing.specs import LatentSpec, SlidingSpec

V3, V2 = ("flash_attn_interface", "flash_attn_3.flash_attn_interface"), ("flash_attn",)
HOPPER = 9
V2_PAGE = 256  # version 2 asks for pages of a multiple of this
MAX_HEAD_DIM = 256
DTYPES = ("bf16", "fp16")


def version() -> str | None:
    library = imported(*V3, *V2)
    names = ("flash-attn-3", "flash_attn_3") if library.__name__ in V3 else ("flash-attn",)
    told = distribution_version(*names) or getattr(library, "__version__", None)
    return None if told is None else str(told)


def why_not(work: KernelWork, device: torch.device) -> str | None:
    if work.dtype not in DTYPES or work.cache_dtype != work.dtype:
        return f"FlashAttention takes bf16 or fp16 queries and a cache of their dtype, not {_dtypes(work)}"
    if _is_newer(device):
        return None
    return why_not_here(device, *V2) or _not_by_v2(work)


def prepare(work: KernelWork, layer: Pages, scenes: Sequence[Queries]) -> Prepared:
    newer = _is_newer(layer.k.device)
    library = imported(*V3) if newer else imported(*V2)
    planned = newer and hasattr(library, "get_scheduler_metadata")
    plan = {"scheduler_metadata": _scheduled(library, work, scenes[0])} if planned else {}
    return Prepared(
        calls=[partial(_attend(library), **_arguments(work, layer, scene, newer=newer), **plan) for scene in scenes],
        output=_rows,
        note=("FlashAttention 3" if newer else "FlashAttention 2") + (", scheduled before" if planned else ""),
    )


def _scheduled(library: ModuleType, work: KernelWork, scene: Queries) -> Any:
    """What version 3 makes of the lengths, as engines have it made once for all layers: all scenes have the same."""
    is_latent = isinstance(work.spec, LatentSpec)
    rank = work.spec.kv_lora_rank if isinstance(work.spec, LatentSpec) else 0
    return library.get_scheduler_metadata(
        batch_size=work.batch_size,
        max_seqlen_q=work.query_len,
        max_seqlen_k=work.num_pages * work.block_size,
        num_heads_q=work.model.num_heads,
        num_heads_kv=1 if is_latent else work.spec.kv_heads,
        headdim=work.spec.k_head_dim - rank,
        headdim_v=rank if is_latent else work.spec.v_head_dim,
        cache_seqlens=scene.seq_lens,
        qkv_dtype=scene.q.dtype,
        page_size=work.block_size,
        causal=True,
        window_size=_window(work),
    )


def _window(work: KernelWork) -> tuple[int, int]:
    return (work.spec.window - 1, 0) if isinstance(work.spec, SlidingSpec) else (-1, -1)


def _is_newer(device: torch.device) -> bool:
    """Whether version 3 is here and this is a card for it."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == HOPPER
    return hopper and why_not_imported(*V3) is None


def _not_by_v2(work: KernelWork) -> str | None:
    if isinstance(work.spec, LatentSpec):
        return "FlashAttention 2 has no kernel for latents, and 3 is not here or not for this card"
    if work.block_size % V2_PAGE:
        return f"FlashAttention 2 takes pages of a multiple of {V2_PAGE} tokens: --block-size {V2_PAGE}"
    if work.spec.k_head_dim != work.spec.v_head_dim or work.spec.k_head_dim > MAX_HEAD_DIM:
        return f"FlashAttention 2 takes K and V heads of one size up to {MAX_HEAD_DIM}"
    return None


def _attend(library: ModuleType) -> Any:
    if not hasattr(library, "flash_attn_with_kvcache"):
        raise PeerError(f"{library.__name__} has no flash_attn_with_kvcache")
    return library.flash_attn_with_kvcache


def _arguments(work: KernelWork, layer: Pages, scene: Queries, *, newer: bool) -> dict[str, Any]:
    """q [S,Q,HQ,D], caches [P,B,HKV,D]. Latents are values, and `qv` their queries; the keys are the rotary columns."""
    q = scene.q.unflatten(0, (work.batch_size, work.query_len))
    shared = {
        "cache_seqlens": scene.seq_lens,
        "page_table" if newer else "block_table": scene.block_tables,
        "softmax_scale": work.spec.k_head_dim**-0.5,
        "causal": True,
        "window_size": _window(work),
    }
    if isinstance(work.spec, LatentSpec):
        rank = work.spec.kv_lora_rank
        latent, rotary = (part.unsqueeze(2) for part in (layer.k[..., :rank], layer.k[..., rank:]))
        return {"q": q[..., rank:], "qv": q[..., :rank], "k_cache": rotary, "v_cache": latent, **shared}
    return {"q": q, "k_cache": layer.k, "v_cache": layer.v, **shared}


def _dtypes(work: KernelWork) -> str:
    return f"{work.dtype} and {work.cache_dtype}"


def _rows(out: Any) -> Tensor:
    """[S,Q,HQ,DV] -> [S*Q,HQ,DV]."""
    rows: Tensor = out.flatten(0, 1)
    return rows
