"""StreamingLLM's attention beside the paper's own way to compute it: keys kept unturned, and turned at each query to
the positions that they have inside the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.cache.window import SinkWindow
from kvtool.kernels import load_kernels
from kvtool.kernels.plain import rotate
from kvtool.kernels.rows import Rows, Softmax
from kvtool.kernels.sparse.kernels import sparse
from kvtool.kernels.sparse.streaming import StreamingPages

BLOCK, WINDOW_PAGES, HEADS, KV_HEADS, DIM, TOKENS = 4, 3, 4, 2, 8, 41
FREQUENCIES = 1.0 / 10000 ** (torch.arange(0, DIM, 2) / DIM)
SOFTMAX = Softmax(scale=DIM**-0.5)


def at_positions(x: Tensor, positions: Tensor) -> Tensor:
    angles = positions[:, None].to(x.dtype) * FREQUENCIES.to(x.dtype)
    cos, sin = torch.cat((angles.cos(),) * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1)
    return rotate(x, (cos.unsqueeze(1), sin.unsqueeze(1)))


def as_the_paper(q: Tensor, k: Tensor, v: Tensor, t: int) -> Tensor:
    """Attention of the unturned query of token t over the unturned keys that the cache still has, in fp64."""
    newest = t // BLOCK - WINDOW_PAGES + 1  # the oldest page of the window
    kept = [i for i in range(t + 1) if i < BLOCK or i >= newest * BLOCK]
    places = torch.arange(len(kept))
    keys = at_positions(k[kept].double(), places).repeat_interleave(HEADS // KV_HEADS, 1)
    query = at_positions(q[t : t + 1].double(), places[-1:])
    weights = (torch.einsum("qhd,khd->hqk", query, keys) * SOFTMAX.scale).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v[kept].double().repeat_interleave(HEADS // KV_HEADS, 1))[0]


def rows(table: list[int], length: int, queries: int) -> Rows:
    return Rows(
        block_tables=torch.tensor([table], dtype=torch.int32),
        seq_lens=torch.tensor([length], dtype=torch.int32),
        query_starts=torch.tensor([0, queries], dtype=torch.int32),
        max_query_len=queries,
    )


def test_prefill_and_decode_are_the_papers_and_read_no_page_that_was_let_go() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(TOKENS, heads, DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS))
    kernels = sparse(load_kernels("torch"), FREQUENCIES)
    table = torch.randperm(TOKENS // BLOCK + 1, generator=generator).tolist()
    stored_k, stored_v = (torch.full((len(table), BLOCK, KV_HEADS, DIM), torch.nan) for _ in "kv")
    pages = StreamingPages(k=stored_k, v=stored_v, window_pages=WINDOW_PAGES)
    window = SinkWindow(window_pages=WINDOW_PAGES, step_tokens=BLOCK)
    places = torch.arange(TOKENS)
    turned_q, turned_k = at_positions(q, places), at_positions(k, places)
    found, start = [], 0
    for size in (10, 7, *[1] * (TOKENS - 17)):  # a prompt in two pieces, then token after token
        for index in window.unread(start + 1, BLOCK):
            if table[index] >= 0:
                stored_k[table[index]] = stored_v[table[index]] = torch.nan
            table[index] = -1
        stop = start + size
        slots = torch.tensor([table[i // BLOCK] * BLOCK + i % BLOCK for i in range(start, stop)])
        kernels.store(turned_k[start:stop], v[start:stop], pages, slots)
        attend = kernels.prefill if size > 1 else kernels.decode
        found.append(attend(turned_q[start:stop], pages, rows(table[: -(-stop // BLOCK)], stop, size), SOFTMAX))
        start = stop
    expected = torch.stack([as_the_paper(q, k, v, t) for t in range(TOKENS)])
    torch.testing.assert_close(torch.cat(found).double(), expected, atol=2e-5, rtol=1e-4)
    assert table.count(-1) == TOKENS // BLOCK + 1 - 2 - WINDOW_PAGES
