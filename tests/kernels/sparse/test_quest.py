"""Quest's choice of pages beside one that is written out, and a text at once beside a token at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvtool.kernels import load_kernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows, Softmax
from kvtool.kernels.sparse.kernels import sparse
from kvtool.kernels.sparse.quest import QuestPages

BLOCK, READ_PAGES, HEADS, KV_HEADS, DIM = 4, 3, 4, 2, 32
LENGTHS = (37, 9, 24)
SOFTMAX = Softmax(scale=DIM**-0.5)


def chosen_pages(q: Tensor, k: Tensor) -> list[int]:
    """Of one KV head: q [G,D] of the last of k [L,D]. The newest page, and those of the highest bounds."""
    last = (len(k) - 1) // BLOCK
    bounds = []
    for page in range(last):
        keys = k[page * BLOCK : (page + 1) * BLOCK]
        least, largest = keys.amin(0), keys.amax(0)
        bounds.append(max(float(torch.maximum(one * least, one * largest).sum()) for one in q))
    return [*sorted(range(last), key=lambda page: -bounds[page])[: READ_PAGES - 1], last]


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q [HQ,D], the last of k and v [L,HKV,D]."""
    out = []
    for head in range(KV_HEADS):
        group = q.view(KV_HEADS, -1, DIM)[head]
        pages = chosen_pages(group, k[:, head])
        tokens = [token for token in range(len(k)) if token // BLOCK in pages]
        weights = (group @ k[tokens, head].T * SOFTMAX.scale).softmax(-1)
        out.append(weights @ v[tokens, head])
    return torch.cat(out)


def filled(dtype: torch.dtype) -> tuple[QuestPages, Rows, list[tuple[Tensor, Tensor]], Tensor]:
    """Three sequences in one pool whose unused slots are NaN, stored in two pieces each: a prompt, and a token."""
    generator = torch.Generator().manual_seed(4)
    counts = [-(-length // BLOCK) for length in LENGTHS]
    order = torch.randperm(sum(counts) + 2, generator=generator).tolist()
    nan = torch.full((len(order), BLOCK, KV_HEADS, DIM), torch.nan, dtype=dtype)
    pages = QuestPages(
        k=nan.clone(), v=nan.clone(), bounds=torch.full((len(order), KV_HEADS, 2 * DIM), 99.0, dtype=dtype),
        read_pages=READ_PAGES,
    )  # fmt: skip
    kernels = sparse(load_kernels("torch"), torch.zeros(DIM // 2))
    tables, tokens = torch.zeros(3, max(counts), dtype=torch.int32), []
    for row, (length, count) in enumerate(zip(LENGTHS, counts, strict=True)):
        tables[row, :count] = torch.tensor([order.pop() for _ in range(count)])
        k, v = (torch.randn(length, KV_HEADS, DIM, generator=generator).to(dtype) for _ in "kv")
        at = torch.arange(length)
        slots = tables[row].long()[at // BLOCK] * BLOCK + at % BLOCK
        for part in (slice(0, length - 1), slice(length - 1, length)):
            kernels.store(k[part], v[part], pages, slots[part])
        tokens.append((k, v))
    q = torch.randn(len(LENGTHS), HEADS, DIM, generator=generator).to(dtype)
    return pages, Rows(tables, torch.tensor(LENGTHS, dtype=torch.int32)), tokens, q


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_decode_reads_the_pages_that_may_score_highest(dtype: torch.dtype, near: float) -> None:
    """Heads of 32 in bf16 are what the compiled kernels take."""
    pages, rows, tokens, q = filled(dtype)
    found = sparse(load_kernels("torch"), torch.zeros(DIM // 2)).decode(q, pages, rows, SOFTMAX)
    expected = torch.stack([by_hand(one.float(), k.float(), v.float()) for one, (k, v) in zip(q, tokens, strict=True)])
    torch.testing.assert_close(found.float(), expected, atol=near, rtol=near)
    whole = load_kernels("torch").decode(q, Pages(pages.k, pages.v), rows, SOFTMAX)
    assert (found - whole)[0].abs().max() > near  # it is another sum
    assert torch.equal(found[1], whole[1]) or (found - whole)[1].abs().max() < near  # nine tokens are read whole


def test_a_text_at_once_reads_what_its_tokens_do() -> None:
    pages, rows, tokens, _ = filled(torch.float32)
    length, (k, v) = LENGTHS[0], tokens[0]
    q = torch.randn(length, HEADS, DIM, generator=torch.Generator().manual_seed(5))
    one = Rows(
        rows.block_tables[:1], rows.seq_lens[:1], torch.tensor([0, length], dtype=torch.int32), max_query_len=length
    )
    kernels = sparse(load_kernels("torch"), torch.zeros(DIM // 2), as_decoded=True)
    found = kernels.prefill(q, pages, one, SOFTMAX)
    expected = torch.stack([by_hand(q[t], k[: t + 1], v[: t + 1]) for t in range(length)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
