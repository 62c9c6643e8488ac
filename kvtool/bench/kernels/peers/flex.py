"""torch's FlexAttention, compiled, with the block table as a BlockMask: a page is a block of keys.

The mask's blocks name physical pages, and its `mask_mod` maps a physical key back to its place in the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvtool.bench.kernels.calls import Queries
from kvtool.bench.kernels.peers.peer import Prepared
from kvtool.bench.kernels.work import KernelWork
from kvtool.bench.peers import PeerError
from kvtool.kernels.pages import Pages
from kvtool.sizing.specs import LatentSpec, SlidingSpec
from kvtool.units import ceil_div

NOTE = "compiled; the BlockMask of each block table made before"
QUERY_BLOCK = 128
MAX_ELEMENTS = 2**31  # FlexAttention computes offsets into K and V as int32, in torch up to 2.13 at least
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def version() -> str | None:
    return str(torch.__version__)


def why_not(work: KernelWork, device: torch.device) -> str | None:
    if work.cache_dtype != work.dtype:
        return f"FlexAttention takes K and V in the dtype of its queries: a {work.cache_dtype} cache is no such"
    if isinstance(work.spec, LatentSpec) and device.type == "cuda":
        return "FlexAttention has no kernel for latents: heads of 576 do not fit its tiles"
    return None


def prepare(work: KernelWork, layer: Pages, scenes: Sequence[Queries]) -> Prepared:
    k, v = layer.k, layer.v
    if isinstance(work.spec, LatentSpec):
        k, v = layer.k.unsqueeze(2), layer.k[..., : work.spec.kv_lora_rank].unsqueeze(2)
    assert v is not None  # only a latent has no V of its own
    if k.numel() > MAX_ELEMENTS:
        raise PeerError(f"FlexAttention's int32 offsets do not reach {k.numel()} elements: at most 2^31")
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()  # each case compiles anew, and a function may be compiled only a few times
    attend = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return Prepared(calls=[_call(attend, work, k, v, scene) for scene in scenes], output=_rows, note=NOTE)


def _call(attend: Callable[..., Any], work: KernelWork, k: Tensor, v: Tensor, scene: Queries) -> Callable[[], Any]:
    """q [S,HQ,Q,D] over all slots of the pool, k [1,HKV,P*B,D]: strides make that view, nothing is copied."""
    q = scene.q.unflatten(0, (work.batch_size, work.query_len)).transpose(1, 2)
    keys, values = (cache.flatten(0, 1).transpose(0, 1).unsqueeze(0) for cache in (k, v))
    mask = block_mask(work, scene.block_tables, num_pages=len(k))
    # Triton's tile of keys must divide a page, which the tiles that torch would choose do only for large ones.
    options = {"BLOCK_N": work.block_size} if k.is_cuda and work.block_size < QUERY_BLOCK else None
    scale = work.spec.k_head_dim**-0.5
    return partial(attend, q, keys, values, block_mask=mask, scale=scale, enable_gqa=True, kernel_options=options)


def block_mask(work: KernelWork, tables: Tensor, *, num_pages: int) -> Any:
    """The BlockMask of block tables [S,N] into a pool of `num_pages`: which pages each block of queries sees."""
    from torch.nn.attention.flex_attention import BlockMask

    some, whole = visible_pages(work, tables.device)
    kv_num_blocks, kv_indices = _listed(some, tables, num_pages)
    full_num_blocks, full_indices = _listed(whole, tables, num_pages)
    return BlockMask.from_kv_blocks(
        kv_num_blocks,
        kv_indices,
        full_num_blocks,
        full_indices,
        BLOCK_SIZE=(QUERY_BLOCK, work.block_size),
        mask_mod=physical_mask(work, tables, num_pages),
        seq_lengths=(work.query_len, num_pages * work.block_size),
    )


def visible_pages(work: KernelWork, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of logical pages, for each block of queries, [blocks, N]: those it sees some of, and those all of it sees all of.

    A page is in one of the two, or unseen.
    """
    blocks = torch.arange(ceil_div(work.query_len, QUERY_BLOCK), device=device)[:, None]
    first_query = work.context - work.query_len + blocks * QUERY_BLOCK
    last_query = (first_query + QUERY_BLOCK - 1).clamp(max=work.context - 1)
    first_key = torch.arange(work.num_pages, device=device) * work.block_size
    last_key = first_key + work.block_size - 1
    seen = first_key <= last_query
    whole = last_key <= first_query
    if isinstance(work.spec, SlidingSpec):
        seen = seen & (last_key > first_query - work.spec.window)
        whole = whole & (first_key > last_query - work.spec.window)
    return seen & ~whole, whole


def physical_mask(work: KernelWork, tables: Tensor, num_pages: int) -> MaskMod:
    """Whether query `q` of sequence `b` sees the slot `kv` of the pool."""
    logical = torch.full((len(tables), num_pages), -1, dtype=torch.int32, device=tables.device)
    order = torch.arange(work.first_page, work.num_pages, dtype=torch.int32, device=tables.device)
    logical.scatter_(1, tables[:, work.first_page :].long(), order.expand(len(tables), -1))
    page_size, last = work.block_size, work.context - work.query_len
    window = work.spec.window if isinstance(work.spec, SlidingSpec) else work.context

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        page = logical[b, kv // page_size]
        age = last + q - (page * page_size + kv % page_size)
        return (page >= 0) & (age >= 0) & (age < window)

    return mask_mod


def _listed(chosen: Tensor, tables: Tensor, num_pages: int) -> tuple[Tensor, Tensor]:
    """Counts [S,1,blocks] and physical pages [S,1,blocks,P] of the logical pages chosen [blocks,N]."""
    counts = chosen.sum(dim=1, dtype=torch.int32)
    logical = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)  # the chosen ones first, in order
    physical = torch.zeros(len(tables), 1, len(chosen), num_pages, dtype=torch.int32, device=tables.device)
    physical[..., : chosen.shape[1]] = tables[:, logical].unsqueeze(1)
    return counts.expand(len(tables), 1, -1).contiguous(), physical


def _rows(out: Any) -> Tensor:
    """[S,HQ,Q,DV] -> [S*Q,HQ,DV]."""
    rows: Tensor = out.transpose(1, 2).flatten(0, 1)
    return rows
