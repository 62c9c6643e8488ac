"""Pages of packed vectors, and what a decoder step calls of them: encoded on the way in, decoded before attention.

Correct first: a step decodes all that it attends to, so a packed cache is smaller but not faster. Triton has kernels of
its own for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kvtool.kernels.packed.codec import Codec
from kvtool.kernels.packed.rotation import rotate_heads
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows

if TYPE_CHECKING:
    from kvtool.kernels.interface import Kernels, Rotation
    from kvtool.kernels.rows import Softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPages(Pages):
    """k and v are uint8 [P,B,HKV,bytes]: what `key` and `value` make of each vector, turned first where `rotated`."""

    key: Codec
    value: Codec
    rotated: bool = False

    @property
    def value_dim(self) -> int:
        return self.value.elements

    def map(self, function: Callable[[Tensor], Tensor]) -> Pages:
        assert self.v is not None
        return replace(self, k=function(self.k), v=function(self.v))

    def write(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """k [T,HKV,D] and v [T,HKV,DV] to slots [T]; slot -1 writes nothing."""
        assert self.v is not None
        kept = slots >= 0
        for rows, codec, stored in ((k, self.key, self.k), (v, self.value, self.v)):
            turned = rotate_heads(rows[kept]) if self.rotated else rows[kept]
            stored[slots[kept] // self.block_size, slots[kept] % self.block_size] = codec.encode(turned)

    def read(self, table: Tensor, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """k [L,HKV,D] and v [L,HKV,DV] of a sequence's first `tokens`, by its block table [N]."""
        assert self.v is not None
        at = torch.arange(tokens, device=self.k.device)
        where = table[at // self.block_size].long(), at % self.block_size
        k, v = self.key.decode(self.k[where]), self.value.decode(self.v[where])
        return tuple((rotate_heads(x) if self.rotated else x).to(dtype) for x in (k, v))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class PackedKernels:
    """Other kernels, which also take packed pages: those of each layer say whether they are."""

    base: Kernels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def write(self, pages: PackedPages, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """k [T,HKV,D] and v [T,HKV,DV] to slots [T]."""
        pages.write(k, v, slots)

    def store(self, k: Tensor, v: Tensor | None, pages: Pages, slots: Tensor) -> None:
        if isinstance(pages, PackedPages):
            assert v is not None
            self.write(pages, k, v, slots)
        else:
            self.base.store(k, v, pages, slots)

    def split_qkv(
        self, qkv: Tensor, norms: Tensor | None, eps: float, rotation: Rotation | None, pages: Pages, slots: Tensor
    ) -> Tensor:
        if not isinstance(pages, PackedPages):
            return self.base.split_qkv(qkv, norms, eps, rotation, pages, slots)
        kv_heads = pages.k.shape[2]
        qk, v = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
        qk = qk if norms is None else self.base.rms_norm(qk, norms, eps)
        qk = qk if rotation is None else self.base.rotate(qk, rotation)
        self.write(pages, qk[:, -kv_heads:], v, slots)
        return qk[:, :-kv_heads]

    def decode(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        if isinstance(pages, PackedPages):
            return self.prefill(q, pages, rows.with_starts(len(q)), softmax)
        return self.base.decode(q, pages, rows, softmax)

    def prefill(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        if not isinstance(pages, PackedPages):
            return self.base.prefill(q, pages, rows, softmax)
        out = q.new_zeros(*q.shape[:2], pages.value_dim)
        bounds = pairwise(rows.starts)
        for table, length, (start, stop) in zip(rows.block_tables, rows.lengths, bounds, strict=True):
            if length and start < stop:
                k, v = pages.read(table, length, q.dtype)
                whole = Pages(k.unsqueeze(0), v.unsqueeze(0))
                out[start:stop] = self.base.prefill(
                    q[start:stop], whole, lone_rows(length, stop - start, q.device), softmax
                )
        return out


def packed(base: Kernels) -> Kernels:
    """The kernels that also take packed pages, by their own way where they have one."""
    own = getattr(base, "packed", None)
    return cast("Kernels", PackedKernels(base) if own is None else own(base))


def lone_rows(length: int, num_queries: int, device: torch.device) -> Rows:
    """One sequence of `length` tokens in the one page that there is, with queries at its end."""
    return Rows(
        block_tables=torch.zeros(1, 1, dtype=torch.int32, device=device),
        seq_lens=torch.tensor([length], dtype=torch.int32, device=device),
        query_starts=torch.tensor([0, num_queries], dtype=torch.int32, device=device),
        max_query_len=num_queries,
    )
