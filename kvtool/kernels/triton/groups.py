"""Pages of packed vectors, of any codec that reads in pairs, written and attended to where they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeGuard, TypeVar, cast

import torch
from torch import Tensor

from kvtool.kernels.packed.codec import Codec
from kvtool.kernels.packed.kivi import KiviPages
from kvtool.kernels.packed.pages import PackedKernels, PackedPages
from kvtool.kernels.packed.rotation import rotate_heads
from kvtool.kernels.pages import Pages
from kvtool.kernels.triton import checks, gpu
from kvtool.kernels.triton.arguments import softmax_arguments
from kvtool.kernels.triton.attention import in_splits
from kvtool.kernels.triton.jit.groups import decode_groups_kernel, store_groups_kernel, unpack_groups_kernel
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.rules import Target, Tile, padded

if TYPE_CHECKING:
    from kvtool.kernels.interface import Kernels
    from kvtool.kernels.rows import Rows, Softmax

ROWS = 32  # vectors that one program unpacks
AnyPages = TypeVar("AnyPages", bound=Pages)


@dataclass(frozen=True, slots=True)
class GroupKernels(PackedKernels):
    """Packed pages by Triton, where their vectors are `in_pairs`; others as torch does it."""

    def write(self, pages: PackedPages, k: Tensor, v: Tensor, slots: Tensor) -> None:
        if not _is_paged(pages):
            _by_triton(pages).write(k, v, slots)
            return
        assert pages.v is not None
        for rows, cache, codec in ((k, pages.k, pages.key), (v, pages.v, pages.value)):
            store_groups(rotate_heads(rows) if pages.rotated else rows, cache, slots, codec)

    def decode(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        """Of pages turned by an orthonormal matrix the queries are turned too, and what comes out is turned back."""
        if not _is_paged(pages):
            return PackedKernels.decode(self, q, _by_triton(pages), rows, softmax)
        if not pages.rotated:
            return decode_groups(q, pages, rows, softmax)
        return rotate_heads(decode_groups(rotate_heads(q).to(q.dtype), pages, rows, softmax)).to(q.dtype)

    def prefill(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        """Over a copy of the sequences' pages of this layer, in the queries' dtype."""
        if not _is_paged(pages):
            return PackedKernels.prefill(self, q, _by_triton(pages), rows, softmax)
        assert pages.v is not None
        chosen = rows.block_tables.flatten()
        k = unpack_groups(pages.k, chosen, pages.key, q.dtype)
        v = unpack_groups(pages.v, chosen, pages.value, q.dtype)
        if pages.rotated:
            k, v = (rotate_heads(x).to(q.dtype) for x in (k, v))
        places = torch.arange(len(chosen), dtype=torch.int32, device=q.device).view_as(rows.block_tables)
        return self.base.prefill(q, Pages(k, v), replace(rows, block_tables=places), softmax)


@dataclass(frozen=True, slots=True)
class TritonCodec(Codec):
    """The same vectors by the kernels below: of a cache that grows without pages."""

    def encode(self, rows: Tensor) -> Tensor:
        """rows [N, ..., elements] -> uint8 [N, ..., stored_bytes]."""
        vectors = rows.flatten(1, -2).contiguous()
        out = torch.empty(*rows.shape[:-1], self.stored_bytes, dtype=torch.uint8, device=rows.device)
        slots = torch.arange(len(rows), device=rows.device)
        store_groups(vectors, out.flatten(1, -2).unsqueeze(1), slots, self)
        return out

    def decode(self, stored: Tensor) -> Tensor:
        """uint8 [N, ..., stored_bytes] -> fp32 [N, ..., elements]."""
        chosen = torch.arange(len(stored), dtype=torch.int32, device=stored.device)
        found = unpack_groups(stored.flatten(1, -2).unsqueeze(1), chosen, self, torch.float32)
        return found.view(*stored.shape[:-1], self.elements)


def packed(base: Kernels) -> Kernels:
    """The kernels that also take packed pages."""
    return cast("Kernels", GroupKernels(base))


def _is_paged(pages: Pages) -> TypeGuard[PackedPages]:
    """Whether vectors lie in pages, as the kernels read them."""
    return isinstance(pages, PackedPages) and not isinstance(pages, KiviPages) and _in_pairs(pages)


def _in_pairs(pages: PackedPages) -> bool:
    return pages.key.in_pairs and pages.value.in_pairs


def _by_triton(pages: AnyPages) -> AnyPages:
    """The same cache with codecs of these kernels, where it has any that they take; other pages are as they are."""
    if not isinstance(pages, PackedPages) or not _in_pairs(pages):
        return pages
    key, value = (
        TritonCodec(**{each.name: getattr(one, each.name) for each in fields(one)}) for one in (pages.key, pages.value)
    )
    return replace(pages, key=key, value=value)


def store_groups(rows: Tensor, cache: Tensor, slots: Tensor, codec: Codec) -> None:
    """rows [T,H,D] packed into slots [T] of cache uint8 [P,B,H,bytes]. Grid: (T, blocks of groups)."""
    checks.indices(slots, "slots", torch.int64, ndim=1)
    checks.require(rows.stride(-1) == 1, "the last dimension of the rows must be contiguous")
    num_tokens, num_heads, _ = rows.shape
    if num_tokens == 0:
        return
    units, block_g = num_heads * codec.groups, padded(codec.half_group)
    block_u = max(1, min(padded(units), rules.STORE_BLOCK // (2 * block_g)))
    store_groups_kernel[(num_tokens, math.ceil(units / block_u))](
        x_ptr=rows,
        **_memory("cache_ptr", "scales_ptr", cache, codec),
        slots_ptr=slots,
        gain=codec.gain,
        x_token_stride=rows.stride(0),
        x_head_stride=rows.stride(1),
        page_stride=cache.stride(0),
        slot_stride=cache.stride(1),
        head_stride=cache.stride(2),
        CODEC=_compiled(codec),
        UNITS=units,
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
        **_memory("cache_ptr", "scales_ptr", cache, codec),
        pages_ptr=chosen,
        out_ptr=out,
        gain=codec.gain,
        num_pages=num_pages,
        page_stride=cache.stride(0),
        slot_stride=cache.stride(1),
        head_stride=cache.stride(2),
        CODEC=_compiled(codec),
        HEADS=heads,
        PAGE=page,
        BLOCK_R=ROWS,
        BLOCK=padded(codec.half),
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
        """Both caches, as codes and as scales, and what they are made of."""
        assert self.pages.v is not None
        found = softmax_arguments(softmax)
        parts = (("k", self.pages.k, self.pages.key), ("v", self.pages.v, self.pages.value))
        for name, cache, codec in parts:
            found |= _memory(f"{name}_ptr", f"{name}_scales_ptr", cache, codec)
            found |= {f"{name}_{dim}_stride": cache.stride(at) for at, dim in enumerate(("page", "slot", "head"))}
            found |= {f"{name}_gain": codec.gain, f"{name.upper()}_CODEC": _compiled(codec)}
            found |= {f"BLOCK_{name.upper()}": max(16, padded(codec.half))}
        return found


def decode_groups(q: Tensor, pages: PackedPages, rows: Rows, softmax: Softmax) -> Tensor:
    """q [S*Q,HQ,D] -> [S*Q,HQ,DV]."""
    checks.queries(q, rows.seq_lens)
    checks.sequences(rows.block_tables, rows.seq_lens)
    checks.scores(softmax, num_heads=q.shape[1])
    checks.require(q.stride(2) == 1, "the last dimension of q must be contiguous")
    return in_splits(decode_groups_kernel, q, GroupKeys(pages, q.element_size()), rows, softmax)


def _compiled(codec: Codec) -> Codec:
    """What of it a kernel is compiled for: a scale that was measured is not."""
    return replace(codec, static_scale=1.0)


def _memory(codes_name: str, scales_name: str, cache: Tensor, codec: Codec) -> dict[str, Tensor | None]:
    """The pages as codes are read, and the same memory as scales are, where there are any."""
    if codec.is_float:
        checks.fp8(codec.dtype, cache)
    scales = None if codec.scale_dtype is None else cache.view(codec.scale_dtype)
    return {codes_name: cache.view(codec.dtype), scales_name: scales}
