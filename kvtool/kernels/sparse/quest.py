"""Quest (arXiv 2406.10774): a query reads the newest page, and those whose keys may give the highest scores.

Beside each page stand the least and the largest value of every channel of its keys. No key of the page scores above the
sum over channels of the larger of q * least and q * largest; pages are ranked by that bound. Query heads that share a
KV head read the same pages: those where any of them may score highest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from kvtool.kernels.interface import Kernels, Pages, Rows, Softmax
from kvtool.units import ceil_div

QUERIES_AT_ONCE = 128
NONE = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestPages(Pages):
    """bounds [P,HKV,2D]: of each page's keys the largest of every channel, then the least, negated. A query reads at
    most `read_pages`."""

    bounds: Tensor
    read_pages: int

    @property
    def tensors(self) -> list[Tensor]:
        return [*super(QuestPages, self).tensors, self.bounds]

    def map(self, function: Callable[[Tensor], Tensor]) -> Pages:
        assert self.v is not None
        return replace(self, k=function(self.k), v=function(self.v), bounds=function(self.bounds))

    def note(self, slots: Tensor) -> None:
        """Keys were stored to slots [T]; slot -1 is none. The first key of a page begins its bounds anew."""
        offsets = slots % self.block_size
        for offset in offsets[slots >= 0].unique().tolist():
            pages = slots[(offsets == offset) & (slots >= 0)] // self.block_size  # each once
            keys = self.k[pages, offset]
            both = torch.cat((keys, -keys), dim=-1)
            self.bounds[pages] = torch.maximum(self.bounds[pages], both) if offset else both

    def of_heads(self) -> tuple[Pages, Tensor]:
        """The same memory as pages of one KV head each, and [HKV]: page p of head h is number p * B * HKV + h there."""
        assert self.v is not None
        k, v = (_of_heads(tensor) for tensor in (self.k, self.v))
        return Pages(k, v), torch.arange(self.k.shape[2], device=self.k.device)


def _of_heads(cache: Tensor) -> Tensor:
    pages, block, heads, dim = cache.shape
    assert cache.is_contiguous()
    numbers = (pages - 1) * block * heads + heads
    return cache.as_strided((numbers, block, 1, dim), (dim, heads * dim, dim, 1))


def quest_decode(q: Tensor, pages: QuestPages, rows: Rows, softmax: Softmax, base: Kernels) -> Tensor:
    """One query a sequence, q [S,HQ,D], by other kernels over the chosen pages: each KV head is a sequence to them."""
    block, heads = pages.block_size, pages.k.shape[2]
    if max(rows.lengths) <= pages.read_pages * block:
        return base.decode(q, pages, rows, softmax)
    length = rows.seq_lens.long()
    last = (length - 1).clamp(min=0) // block  # [S]
    grouped = q.unflatten(1, (heads, -1))
    bounds = pages.bounds[rows.block_tables.long().clamp(0, len(pages.k) - 1)]  # [S,N,HKV,2D]
    ranks = torch.einsum("shgd,snhd->shgn", _features(grouped), bounds.to(q.dtype)).amax(2)
    places = torch.arange(bounds.shape[1], device=q.device)
    ranks = ranks.masked_fill((places >= last[:, None])[:, None], NONE)
    chosen = ranks.topk(min(pages.read_pages, bounds.shape[1]), dim=-1).indices  # [S,HKV,n]
    count = torch.minimum(last, torch.full_like(last, pages.read_pages - 1))  # whole pages read
    chosen = chosen.scatter(2, count[:, None, None].expand(-1, heads, 1), last[:, None, None].expand(-1, heads, 1))
    of_heads, head = pages.of_heads()
    physical = rows.block_tables.long().unsqueeze(1).expand(-1, heads, -1).gather(2, chosen)
    numbers = (physical * block * heads + head[:, None]).flatten(0, 1).int()
    read = torch.where(length > 0, count * block + length - last * block, 0)
    near = Rows(block_tables=numbers, seq_lens=read.repeat_interleave(heads).int())
    return base.decode(grouped.flatten(0, 1), of_heads, near, softmax).view(*q.shape[:2], -1)


def quest_prefill(q: Tensor, pages: QuestPages, rows: Rows, softmax: Softmax) -> Tensor:
    """Every query reads what a decode of its token would: what a text costs, told without decoding it."""
    out = q.new_empty(*q.shape[:2], pages.value_dim)
    for table, length, (start, stop) in zip(rows.tables, rows.lengths, pairwise(rows.starts), strict=True):
        for at in range(start, stop, QUERIES_AT_ONCE):
            to = min(at + QUERIES_AT_ONCE, stop)
            out[at:to] = _attend(q[at:to], pages, table, length - (stop - at), softmax)
    return out


def _attend(q: Tensor, pages: QuestPages, table: list[int], first: int, softmax: Softmax) -> Tensor:
    """Queries q [Q,HQ,D] at positions first .. first+Q-1. Pages behind a query's own may be of later tokens; those
    before it are full, and so are their bounds."""
    assert pages.v is not None
    block, last = pages.block_size, first + len(q)
    chosen = torch.tensor(table[: ceil_div(last, block)], device=q.device)
    k, v = (tensor[chosen].flatten(0, 1)[:last] for tensor in (pages.k, pages.v))
    grouped = q.unflatten(1, (k.shape[1], -1))
    positions = torch.arange(first, last, device=q.device)
    own = positions // block  # [Q]
    ranks = torch.einsum("qhgd,nhd->hgqn", _features(grouped), pages.bounds[chosen].to(q.dtype)).amax(1)
    places = torch.arange(len(chosen), device=q.device)
    ranks = ranks.masked_fill(places >= own[:, None], NONE)  # [HKV,Q,N]
    best = ranks.topk(min(pages.read_pages - 1, len(chosen)), dim=-1).indices
    read = torch.zeros_like(ranks, dtype=torch.bool).scatter_(2, best, True) | (places == own[:, None])
    keys = torch.arange(last, device=q.device)
    seen = read.repeat_interleave(block, dim=-1)[..., :last] & (keys <= positions[:, None])
    scores = torch.einsum("qhgd,khd->hgqk", grouped, k.to(q.dtype)).float() * softmax.scale
    weights = scores.masked_fill_(~seen.unsqueeze(1), NONE).softmax(dim=-1)
    return torch.einsum("hgqk,khd->qhgd", weights.to(v.dtype), v).flatten(1, 2).to(q.dtype)


def _features(q: Tensor) -> Tensor:
    """q [...,D] -> [...,2D], whose product with bounds is the most that a key of the page can score."""
    return torch.cat((q.clamp(min=0), (-q).clamp(min=0)), dim=-1)
