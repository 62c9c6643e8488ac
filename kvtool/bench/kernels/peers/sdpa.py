"""torch's scaled_dot_product_attention over a contiguous copy of each sequence's cache, which is made beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from kvtool.bench.kernels.calls import Queries
from kvtool.bench.kernels.peers.peer import Prepared
from kvtool.bench.kernels.work import DECODE, KernelWork
from kvtool.bench.peers import PeerError
from kvtool.kernels.pages import Pages
from kvtool.machine.memory import available_bytes
from kvtool.sizing.specs import LatentSpec, SlidingSpec
from kvtool.units import format_bytes

NOTE = "over a contiguous copy of the cache, made before"
COPY_SHARE = 0.5  # of the memory that is free: the rest is for outputs and, where torch makes them, scores


def version() -> str | None:
    return str(torch.__version__)


def why_not(work: KernelWork, device: torch.device) -> str | None:
    if work.cache_dtype != work.dtype:
        return f"SDPA takes K and V in the dtype of its queries: a {work.cache_dtype} cache is no such"
    if isinstance(work.spec, LatentSpec) and work.part != DECODE:
        return "SDPA has no kernel for a chunk over latents: it would hold the scores of all heads"
    return None


def prepare(work: KernelWork, layer: Pages, scenes: Sequence[Queries]) -> Prepared:
    fitting = int(COPY_SHARE * available_bytes(layer.k.device) / work.kv_bytes)
    if not fitting:
        raise PeerError(f"no room for a contiguous copy of {format_bytes(work.kv_bytes)}")
    mask = None if work.part == DECODE else _mask(work, layer.k.device)
    return Prepared(
        calls=[_call(work, layer, scene, mask) for scene in scenes[:fitting]],
        output=_latent_rows if isinstance(work.spec, LatentSpec) else rows_of,
        note=NOTE,
    )


def _call(work: KernelWork, layer: Pages, scene: Queries, mask: Tensor | None) -> Callable[[], Tensor]:
    """q [S,HQ,Q,D] over k [S,HKV,L,D] and v [S,HKV,L,DV]."""
    q = of_sequences(work, scene)
    scale = work.spec.k_head_dim**-0.5
    k = contiguous(layer.k, work, scene)
    if isinstance(work.spec, LatentSpec):
        # All heads share the latents: they are so many queries of one head.
        k, v, q = k.unsqueeze(1), k[..., : work.spec.kv_lora_rank].unsqueeze(1), q.transpose(1, 2)
        return partial(scaled_dot_product_attention, q, k, v, scale=scale)
    assert layer.v is not None  # only a latent has no V of its own
    k, v = (rows.transpose(1, 2).contiguous() for rows in (k, contiguous(layer.v, work, scene)))
    return partial(scaled_dot_product_attention, q.contiguous(), k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def of_sequences(work: KernelWork, scene: Queries) -> Tensor:
    """The queries by sequence, [S,HQ,Q,D]."""
    q: Tensor = scene.q.unflatten(0, (work.batch_size, work.query_len))
    return q.transpose(1, 2)


def contiguous(cache: Tensor, work: KernelWork, scene: Queries) -> Tensor:
    """The rows in use of every sequence, in order: cache [P,B,...] -> [S,L,...]."""
    tokens = torch.arange(work.context - work.tokens_in_use, work.context, device=cache.device)
    pages = scene.block_tables.long()[:, tokens // work.block_size]
    return cache[pages, tokens % work.block_size]


def _mask(work: KernelWork, device: torch.device) -> Tensor:
    """Of a chunk at the end of its context. torch's lower-right causal mask, where a GPU has kernels that know it."""
    if device.type == "cuda" and not isinstance(work.spec, SlidingSpec):
        return causal_lower_right(work.query_len, work.tokens_in_use)
    return lower_right_mask(work, device)


def lower_right_mask(work: KernelWork, device: torch.device) -> Tensor:
    """Which keys each query of a chunk at the end of its context sees, [Q,L]."""
    last = work.tokens_in_use - work.query_len  # the key that the first query sits at
    ages = torch.arange(work.query_len, device=device)[:, None] + last
    ages = ages - torch.arange(work.tokens_in_use, device=device)
    return (ages >= 0) & (ages < work.spec.window) if isinstance(work.spec, SlidingSpec) else ages >= 0


def rows_of(out: Any) -> Tensor:
    """[S,HQ,Q,DV] -> [S*Q,HQ,DV]."""
    rows: Tensor = out.transpose(1, 2).flatten(0, 1)
    return rows


def _latent_rows(out: Any) -> Tensor:
    """[S,1,H,R] -> [S,H,R]."""
    rows: Tensor = out[:, 0]
    return rows
