"""StreamingLLM in pages (arXiv 2309.17453): attention to the first page and the newest ones, at the positions that they
have inside the cache.

             page 0    1    ..    p-w+1  ..   p          w = window_pages; p is the page of the query
    before   sinks     gone, gone  newest ..  query      the cache closes up where pages are gone, so that
    read as            sinks       newest ..  query      the sinks are (number gone) * B positions nearer

Rotary positions count by their difference. So the newest keys stay as they were turned, and only the sinks are turned
on: into the second page of the sequence, which nobody else reads once it is gone, and which stands in for the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from kvtool.kernels.pages import Pages
from kvtool.kernels.plain import rotate
from kvtool.kernels.rows import Rows, Softmax
from kvtool.units import ceil_div

QUERIES_AT_ONCE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingPages(Pages):
    """Of each sequence the first page and the newest `window_pages` are read, the one of the query included. Entries of
    a block table between them may be anything but the second, where the sinks are turned to."""

    window_pages: int

    def passed(self, length: int) -> int:
        """Pages that are gone for the last of so many tokens."""
        return max(0, ceil_div(length, self.block_size) - 1 - self.window_pages)


@dataclass(frozen=True, slots=True)
class Streamed:
    """The rows of a decode as attention reads them, and the sinks to turn first: pages `source` to `target` [n], by so
    many positions each."""

    rows: Rows
    source: Tensor
    target: Tensor
    positions: Tensor


def streamed(rows: Rows, pages: StreamingPages) -> Streamed:
    """Sinks are turned by the step that begins a page, as it takes the place of one more."""
    block_size, device = pages.block_size, pages.k.device
    tables, lengths, turned = [], [], []
    for table, length in zip(rows.tables, rows.lengths, strict=True):
        gone = pages.passed(length)
        kept = table[: ceil_div(length, block_size)]
        tables.append([kept[1], *kept[1 + gone :]] if gone else kept)
        lengths.append(length - gone * block_size)
        if gone and length % block_size == 1:
            turned.append((table[0], table[1], gone * block_size))
    width = max(1, *map(len, tables))
    source, target, positions = torch.tensor(turned, dtype=torch.int64, device=device).view(-1, 3).unbind(1)
    near = replace(
        rows,
        block_tables=torch.tensor([table + [0] * (width - len(table)) for table in tables], dtype=torch.int32).to(
            device
        ),
        seq_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
    )
    return Streamed(near, source, target, positions)


def turn_sinks(pages: StreamingPages, turn: Streamed, frequencies: Tensor) -> None:
    """Write the sinks to where the cache has them."""
    assert pages.v is not None
    keys = pages.k[turn.source]
    angles = turn.positions[:, None] * frequencies
    flat = turned(keys.flatten(0, 1), angles.repeat_interleave(pages.block_size, dim=0))
    pages.k[turn.target] = flat.view(keys.shape)
    pages.v[turn.target] = pages.v[turn.source]


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """x [T,heads,D] turned by angles fp32 [T,E/2] more."""
    cos, sin = angles.cos(), angles.sin()
    rotation = (torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1))
    return rotate(x.float(), rotation).to(x.dtype)


def streaming_prefill(q: Tensor, pages: StreamingPages, rows: Rows, softmax: Softmax, frequencies: Tensor) -> Tensor:
    """Every query sees what a decode of its token would; then the sinks are turned for the token behind the last."""
    out = q.new_empty(*q.shape[:2], pages.value_dim)
    for table, length, (start, stop) in zip(rows.tables, rows.lengths, pairwise(rows.starts), strict=True):
        for at in range(start, stop, QUERIES_AT_ONCE):
            to = min(at + QUERIES_AT_ONCE, stop)
            first = length - (stop - at)
            out[at:to] = _attend(q[at:to], pages, table, first, softmax, frequencies)
        if gone := pages.passed(length):
            turn = torch.tensor([[table[0], table[1], gone * pages.block_size]], device=q.device).unbind(1)
            turn_sinks(pages, Streamed(rows, *turn), frequencies)
    return out


def _attend(
    q: Tensor, pages: StreamingPages, table: list[int], first: int, softmax: Softmax, frequencies: Tensor
) -> Tensor:
    """Queries q [Q,HQ,D] at positions first .. first+Q-1. To the sinks they are turned back, which is the same as to
    turn each query's sinks on."""
    assert pages.v is not None
    block, device = pages.block_size, q.device
    positions = torch.arange(first, first + len(q), device=device)
    gone = (positions // block - pages.window_pages).clamp(min=0)
    oldest = max(1, int(gone[0]) + 1)  # page of the window that the first query reads
    chosen = torch.tensor([table[0], *table[oldest : ceil_div(first + len(q), block)]], device=device)
    k, v = (tensor[chosen].flatten(0, 1) for tensor in (pages.k, pages.v))
    keys = torch.arange(len(k), device=device)
    keys = torch.where(keys < block, keys, keys + (oldest - 1) * block)  # their positions in the sequence
    grouped = q.unflatten(1, (k.shape[1], -1))
    back = turned(q, -(gone * block)[:, None] * frequencies).unflatten(1, (k.shape[1], -1))
    scores = torch.cat((_scores(back, k[:block]), _scores(grouped, k[block:])), dim=-1) * softmax.scale
    is_sink = keys < block
    seen = (keys <= positions[:, None]) & (is_sink | (keys >= (gone[:, None] + 1) * block))
    weights = scores.masked_fill_(~seen, float("-inf")).softmax(dim=-1)
    # Slots past the end may hold NaN, which a weight of zero does not stop.
    v = v.masked_fill((keys > positions[-1])[:, None, None], 0.0)
    return torch.einsum("hgqk,khd->qhgd", weights.to(v.dtype), v).flatten(1, 2).to(q.dtype)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q [Q,HKV,G,D] and k [L,HKV,D] -> fp32 [HKV,G,Q,L]."""
    return torch.einsum("qhgd,khd->hgqk", q, k.to(q.dtype)).float()
