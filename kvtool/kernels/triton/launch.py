"""The operations of `Kernels` by Triton, as functions of tensors: what is wrong with these is refused here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.kernels.plain import likeliest, record, rms_norm, rotate
from kvtool.kernels.triton import attention, checks, fused
from kvtool.kernels.triton.arguments import keys_of
from kvtool.kernels.triton.groups import packed
from kvtool.kernels.triton.sample import nucleus
from kvtool.kernels.triton.step import (
    add_rms_norm,
    experts,
    gated,
    linear,
    place,
    prepare,
    split_latent,
    split_qkv,
    weight_copies,
)
from kvtool.kernels.triton.store import gather_rows, store_rows

if TYPE_CHECKING:
    from kvtool.kernels.pages import Pages
    from kvtool.kernels.rows import Rows, Softmax

__all__ = [
    "add_rms_norm",
    "decode",
    "experts",
    "fused",
    "gated",
    "gather",
    "likeliest",
    "linear",
    "nucleus",
    "packed",
    "place",
    "prefill",
    "prepare",
    "record",
    "rms_norm",
    "rotate",
    "split_latent",
    "split_qkv",
    "store",
    "tile_tokens",
    "weight_copies",
]

tile_tokens = 64  # of a prefill's tile over keys of DeepSeek's heads


def store(k: Tensor, v: Tensor | None, pages: Pages, slots: Tensor) -> None:
    """One launch for K and one for V, or for each part of a latent that has a scale of its own."""
    checks.layer(pages)
    if v is not None and pages.v is not None:
        store_rows(k, pages.k, slots, pages.k_scale)
        store_rows(v, pages.v, slots, pages.v_scale)
        return
    scale, rank = pages.k_scale, pages.latent_dim
    rows, cache = k.unsqueeze(1), pages.k.unsqueeze(2)
    if not isinstance(scale, Tensor):
        store_rows(rows, cache, slots, scale)
        return
    for part, one in ((slice(rank), scale[..., :1]), (slice(rank, None), scale[..., 1:])):
        store_rows(rows[..., part], cache[..., part], slots, one)


def decode(q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
    """q [S*Q,HQ,D] -> [S*Q,HQ,DV]: softmax(scale * k_scale * q K^T) V * v_scale, the rows of a KV head together."""
    checks.attention(q, pages, rows, softmax)
    checks.queries(q, rows.seq_lens)
    return attention.decode(q, keys_of(pages), rows, softmax)


def prefill(q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
    """q [T,HQ,D] -> [T,HQ,DV]: as `decode`, query i of q_len seeing keys 0 .. seq_len - q_len + i."""
    checks.attention(q, pages, rows, softmax)
    checks.query_starts(rows.query_starts, rows.seq_lens)
    return attention.prefill(q, keys_of(pages), rows, softmax)


def gather(pages: Pages, chosen: Tensor, dtype: torch.dtype) -> Tensor:
    """Latents [P,B,R+E] at pages [n] -> [n,B,R+E] in dtype, times their scales."""
    checks.latents(pages)
    checks.indices(chosen, "the pages to gather", torch.int32, ndim=1)
    return gather_rows(pages, chosen, dtype)
