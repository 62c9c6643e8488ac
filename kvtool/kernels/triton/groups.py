"""Pages of four bits an element, a step and a minimum a group, written and attended to where they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from kvtool.kernels.interface import Pages
from kvtool.kernels.packed.pages import PackedKernels, PackedPages
from kvtool.kernels.packed.rotation import rotate_heads
from kvtool.kernels.triton import checks, gpu
from kvtool.kernels.triton.arguments import softmax_arguments
from kvtool.kernels.triton.attention import in_splits
from kvtool.kernels.triton.jit.groups import decode_groups_kernel, store_groups_kernel, unpack_groups_kernel
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.rules import Target, Tile, padded

if TYPE_CHECKING:
    from kvtool.kernels.interface import Kernels, Rows, Softmax
    from kvtool.kernels.packed.codec import Codec

ROWS = 32  # vectors that one program unpacks


@dataclass(frozen=True, slots=True)
class GroupKernels(PackedKernels):
    """Packed pages by Triton, where their format is one of `suits`; others as torch does it."""

    def write(self, pages: PackedPages, k: Tensor, v: Tensor, slots: Tensor) -> None:
        if not (suits(pages.key) and suits(pages.value)):
            pages.write(k, v, slots)
            return
        assert pages.v is not None
        for rows, cache, codec in ((k, pages.k, pages.key), (v, pages.v, pages.value)):
            store_groups(rotate_heads(rows) if pages.rotated else rows, cache, slots, codec)

    def decode(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        """Of pages turned by an orthonormal matrix the queries are turned too, and what comes out is turned back."""
        if not (isinstance(pages, PackedPages) and suits(pages.key) and suits(pages.value)):
            return PackedKernels.decode(self, q, pages, rows, softmax)
        if not pages.rotated:
            return decode_groups(q, pages, rows, softmax)
        return rotate_heads(decode_groups(rotate_heads(q).to(q.dtype), pages, rows, softmax)).to(q.dtype)

    def prefill(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        """Over a copy of the sequences' pages of this layer, in the queries' dtype."""
        if not (isinstance(pages, PackedPages) and suits(pages.key) and suits(pages.value)):
            return PackedKernels.prefill(self, q, pages, rows, softmax)
        assert pages.v is not None
        chosen = rows.block_tables.flatten()
        k = unpack_groups(pages.k, chosen, pages.key, q.dtype)
        v = unpack_groups(pages.v, chosen, pages.value, q.dtype)
        if pages.rotated:
            k, v = (rotate_heads(x).to(q.dtype) for x in (k, v))
        places = torch.arange(len(chosen), dtype=torch.int32, device=q.device).view_as(rows.block_tables)
        return self.base.prefill(q, Pages(k, v), replace(rows, block_tables=places), softmax)


def packed(base: Kernels) -> Kernels:
    """The kernels that also take packed pages."""
    return cast("Kernels", GroupKernels(base))


def suits(codec: Codec) -> bool:
    """Whether vectors are of four bits, in groups of one size that each keep a step and a minimum."""
    return (codec.scheme, codec.bits, codec.scale_bytes) == ("minimum", 4, 4) and not codec.has_odd_groups


def store_groups(rows: Tensor, cache: Tensor, slots: Tensor, codec: Codec) -> None:
    """rows [T,H,D] packed into slots [T] of cache uint8 [P,B,H,bytes]. Grid: (T, blocks of groups)."""
    checks.indices(slots, "slots", torch.int64, ndim=1)
    checks.require(rows.stride(-1) == 1, "the last dimension of the rows must be contiguous")
    num_tokens, num_heads, _ = rows.shape
    if num_tokens == 0:
        return
    units, block_g = num_heads * _groups(codec), padded(_half_group(codec))
    block_u = max(1, min(padded(units), rules.STORE_BLOCK // (2 * block_g)))
    store_groups_kernel[(num_tokens, math.ceil(units / block_u))](
        x_ptr=rows,
        **_memory("cache_ptr", "scales_ptr", cache),
        slots_ptr=slots,
        x_token_stride=rows.stride(0),
        x_head_stride=rows.stride(1),
        page_stride=cache.stride(0),
        slot_stride=cache.stride(1),
        head_stride=cache.stride(2),
        UNITS=units,
        GROUPS=_groups(codec),
        GROUP_HALF=_half_group(codec),
        PAGE=cache.shape[1],
        BLOCK_U=block_u,
        BLOCK_G=block_g,
        **gpu.launched(rows.device),
        num_warps=4,
    )


def unpack_groups(cache: Tensor, chosen: Tensor, codec: Codec, dtype: torch.dtype) -> Tensor:
    """cache uint8 [P,B,H,bytes] at pages [n] -> [n,B,H,D] in dtype. Grid: (n, blocks of vectors)."""
    checks.indices(chosen, "the pages to unpack", torch.int32, ndim=1)
    num_pages, page, heads, _ = cache.shape
    out = torch.empty(len(chosen), page, heads, codec.elements, dtype=dtype, device=cache.device)
    if out.numel() == 0:
        return out
    unpack_groups_kernel[(len(chosen), math.ceil(page * heads / ROWS))](
        **_memory("cache_ptr", "scales_ptr", cache),
        pages_ptr=chosen,
        out_ptr=out,
        num_pages=num_pages,
        page_stride=cache.stride(0),
        slot_stride=cache.stride(1),
        head_stride=cache.stride(2),
        HEADS=heads,
        HALF=codec.elements // 2,
        GROUP_HALF=_half_group(codec),
        PAGE=page,
        BLOCK_R=ROWS,
        BLOCK=padded(codec.elements // 2),
        **gpu.launched(cache.device),
        num_warps=4,
        maxnreg=rules.MAX_REGISTERS,
    )
    return out


@dataclass(frozen=True, slots=True)
class GroupKeys:
    """Packed pages as `attention.Attended`: once unpacked, an element is as wide as one of the queries."""

    pages: PackedPages
    query_bytes: int

    @property
    def num_heads(self) -> int:
        return self.pages.k.shape[2]

    @property
    def value_dim(self) -> int:
        return self.pages.value_dim

    @property
    def block_size(self) -> int:
        return self.pages.block_size

    @property
    def bytes_per_key(self) -> int:
        return (self.pages.key.elements + self.value_dim) * self.query_bytes

    @property
    def has_vector_scales(self) -> bool:
        return False

    def decode_tile(self, q: Tensor, rows: int, target: Target) -> Tile:
        """Half the keys of a 16-bit cache's tile, and a quarter beside many rows that sit in registers too: what is
        unpacked takes registers beside what it is unpacked from."""
        head_dim = max(self.pages.key.elements, self.value_dim)
        whole = rules.attention_tile(head_dim, min(rows, 64), self.query_bytes, 2, target)
        part = 4 if whole.block_m > 16 and not target.multiplies_from_shared_memory else 2
        return replace(whole, block_n=max(16, whole.block_n // part), num_stages=2)

    def decode_arguments(
        self, q: Tensor, rows: Rows, softmax: Softmax, tile: Tile, target: Target
    ) -> dict[str, object]:
        """Both caches, as bytes and in fp16, and how long their vectors and groups are."""
        assert self.pages.v is not None
        found = softmax_arguments(softmax)
        parts = (("k", self.pages.k, self.pages.key), ("v", self.pages.v, self.pages.value))
        for name, cache, codec in parts:
            found |= _memory(f"{name}_ptr", f"{name}_scales_ptr", cache)
            found |= {f"{name}_{dim}_stride": cache.stride(at) for at, dim in enumerate(("page", "slot", "head"))}
            half = codec.elements // 2
            lengths = {"HALF": half, "GROUP": _half_group(codec), "BLOCK": max(16, padded(half))}
            found |= {f"{what}_{name.upper()}": length for what, length in lengths.items()}
        return found


def decode_groups(q: Tensor, pages: PackedPages, rows: Rows, softmax: Softmax) -> Tensor:
    """q [S*Q,HQ,D] -> [S*Q,HQ,DV]."""
    checks.queries(q, rows.seq_lens)
    checks.sequences(rows.block_tables, rows.seq_lens)
    checks.scores(softmax, num_heads=q.shape[1])
    checks.require(q.stride(2) == 1, "the last dimension of q must be contiguous")
    return in_splits(decode_groups_kernel, q, GroupKeys(pages, q.element_size()), rows, softmax)


def _groups(codec: Codec) -> int:
    """Of a vector."""
    return codec.elements // (2 * _half_group(codec))


def _half_group(codec: Codec) -> int:
    """Bytes of a group's codes."""
    return min(codec.group or codec.elements, codec.elements) // 2


def _memory(bytes_name: str, scales_name: str, cache: Tensor) -> dict[str, Tensor]:
    """The pages as bytes, and the same memory in fp16, which scales are read in."""
    return {bytes_name: cache, scales_name: cache.view(torch.float16)}
