"""Pages copied into one matrix first, then torch's SDPA over it: what pages cost without a kernel that follows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kvtool.bench.kernels.calls import Queries
from kvtool.bench.kernels.peers import naive
from kvtool.bench.kernels.peers.peer import Prepared
from kvtool.bench.kernels.peers.sdpa import COPY_SHARE, lower_right_mask, of_sequences, rows_of
from kvtool.bench.kernels.work import DECODE, KernelWork
from kvtool.bench.peers import PeerError
from kvtool.kernels.pages import Pages
from kvtool.machine.memory import available_bytes
from kvtool.units import format_bytes

NOTE = "copies the pages of every call into one matrix, then SDPA over it"
COPIES = 2  # of the cache: written, and read again, besides being read from its pages

version, why_not = naive.version, naive.why_not


def prepare(work: KernelWork, layer: Pages, scenes: Sequence[Queries]) -> Prepared:
    if work.kv_bytes > COPY_SHARE * available_bytes(layer.k.device):
        raise PeerError(f"no room for a copy of {format_bytes(work.kv_bytes)}")
    mask = None if work.part == DECODE else lower_right_mask(work, layer.k.device)
    return Prepared(
        calls=[_call(work, layer, scene, mask) for scene in scenes],
        output=rows_of,
        note=NOTE,
        moved_bytes=work.bytes.moved + COPIES * work.kv_bytes,
    )


def _call(work: KernelWork, layer: Pages, scene: Queries, mask: Tensor | None) -> Callable[[], Tensor]:
    """q [S,HQ,Q,D]; `pages` [S,N] are the physical ones from `first_page` on, `rows` their tokens in the window."""
    pages = scene.block_tables.long()[:, work.first_page : work.num_pages].contiguous()
    start = work.context - work.tokens_in_use - work.first_page * work.block_size
    rows = slice(start, start + work.tokens_in_use)
    return partial(_attend, of_sequences(work, scene), layer, pages, rows, mask, work.spec.k_head_dim**-0.5)


def _attend(q: Tensor, layer: Pages, pages: Tensor, rows: slice, mask: Tensor | None, scale: float) -> Any:
    assert layer.v is not None  # latents are refused
    k, v = (gathered(cache, pages)[:, rows].transpose(1, 2) for cache in (layer.k, layer.v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def gathered(cache: Tensor, pages: Tensor) -> Tensor:
    """cache [P,B,H,D] -> [S,N*B,H,D]: whole pages, in the order of each sequence."""
    return cache.index_select(0, pages.flatten()).view(*pages.shape, *cache.shape[1:]).flatten(1, 2)
