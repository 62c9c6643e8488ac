"""Quest (arXiv 2406.10774): a query reads the newest page, and those whose keys may give the highest scores.

Beside each page stand the least and the largest value of every channel of its keys. No key of the page scores above the
sum over channels of the larger of q * least and q * largest; pages are ranked by that bound. Query heads that share a
KV head read the same pages: those where any of them may score highest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from kvtool.kernels.interface import Kernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows, Softmax
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
        places = [divmod(slot, self.block_size) for slot in slots.tolist() if slot >= 0]
        counts = Counter(page for page, _ in places)
        if len(counts) == len(places):
            self._join(places)
            return
        if whole := [page for page, count in counts.items() if count == self.block_size]:
            pages = torch.tensor(whole, device=self.k.device)
            keys = self.k[pages]
            self.bounds[pages] = torch.cat((keys.amax(1), -keys.amin(1)), dim=-1)
        rest = [place for place in places if counts[place[0]] < self.block_size]
        for offset in sorted({offset for _, offset in rest}):  # of one offset no two are of one page
            self._join([place for place in rest if place[1] == offset])

    def _join(self, places: list[tuple[int, int]]) -> None:
        """The keys at these places (page, offset), no two of one page, join its bounds."""
        if not places:
            return
        pages, offsets = torch.tensor(places, device=self.k.device).unbind(1)
        keys = self.k[pages, offsets]
        both = torch.cat((keys, -keys), dim=-1)
        self.bounds[pages] = torch.where(offsets.view(-1, 1, 1) == 0, both, self.bounds[pages].maximum(both))

    def of_heads(self) -> Pages:
        """The same memory as pages of one KV head each: page p of head h is number p * B * HKV + h there."""
        assert self.v is not None
        return Pages(_of_heads(self.k), _of_heads(self.v))


def _of_heads(cache: Tensor) -> Tensor:
    pages, block, heads, dim = cache.shape
    assert cache.is_contiguous()
    numbers = (pages - 1) * block * heads + heads
    return cache.as_strided((numbers, block, 1, dim), (dim, heads * dim, dim, 1))


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a decode does not hang on queries: of S sequences with N pages at most, each of HKV heads.

    - pages [S,N] int64, and numbers [S,HKV,N] int32 of the same in `QuestPages.of_heads`.
    - barred [S,1,N]: -inf for pages that are not to be chosen, the newest one, which is read anyhow, and those behind.
    - newest [S,HKV,1]: the place of the newest page in the table; `last` its place among those that are read.
    - rows: as attention reads them, but for the block tables.
    """

    pages: Tensor
    numbers: Tensor
    barred: Tensor
    newest: Tensor
    last: Tensor
    rows: Rows


def choice(rows: Rows, pages: QuestPages) -> Choice:
    """Of these rows."""
    block, heads, device = pages.block_size, pages.k.shape[2], pages.k.device
    tables, length = rows.block_tables.long().clamp(0, len(pages.k) - 1), rows.seq_lens.long()
    newest = (length - 1).clamp(min=0) // block
    last = newest.clamp(max=pages.read_pages - 1)
    places = torch.arange(tables.shape[1], device=device)
    read = torch.where(length > 0, last * block + length - newest * block, 0)
    by_head = tables[:, None] * block * heads + torch.arange(heads, device=device)[:, None]
    return Choice(
        pages=tables,
        numbers=by_head.int(),
        barred=torch.zeros(tables.shape, device=device).masked_fill_(places >= newest[:, None], NONE)[:, None],
        newest=newest.view(-1, 1, 1).expand(-1, heads, 1),
        last=last.view(-1, 1, 1).expand(-1, heads, 1),
        rows=Rows(block_tables=rows.block_tables, seq_lens=read.repeat_interleave(heads).int()),
    )


def quest_decode(q: Tensor, pages: QuestPages, rows: Rows, softmax: Softmax, base: Kernels) -> Tensor:
    """One query a sequence, q [S,HQ,D], by other kernels over the chosen pages: each KV head is a sequence to them."""
    if max(rows.lengths) <= pages.read_pages * pages.block_size:
        return base.decode(q, pages, rows, softmax)
    kind = pages.block_size, pages.k.shape[2], pages.read_pages, len(pages.k)
    made = rows.once(("quest", *kind), lambda: choice(rows, pages))
    grouped = q.unflatten(1, (pages.k.shape[2], -1))
    # [S,HKV,N,2D] x [S,HKV,2D,G]
    ranks = (pages.bounds[made.pages].transpose(1, 2).to(q.dtype) @ _features(grouped).transpose(2, 3)).amax(-1)
    chosen = (ranks + made.barred).topk(min(pages.read_pages, ranks.shape[-1]), dim=-1).indices
    numbers = made.numbers.gather(2, chosen.scatter_(2, made.last, made.newest))
    near = replace(made.rows, block_tables=numbers.flatten(0, 1))
    return base.decode(grouped.flatten(0, 1), pages.of_heads(), near, softmax).view(*q.shape[:2], -1)


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
    return torch.cat((q, -q), dim=-1).clamp_(min=0)
