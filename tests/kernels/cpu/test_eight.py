"""The compiled kernels of caches of 8 bits: the very bytes that torch rounds to, and attention beside fp64."""

from __future__ import annotations

import pytest
import torch

from kvtool.kernels.cpu import attention, eight
from kvtool.kernels.pages import Pages
from kvtool.kernels.reference import reference
from kvtool.kernels.rows import Rows, Softmax

KINDS = [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2]
BLOCK, KV_HEADS, HEADS, DIM = 8, 2, 6, 64
LENGTHS = (300, 0, 1, 128, 17)


def pages_of(dtype: torch.dtype, num_pages: int, *, vector_scales: bool) -> Pages:
    k, v = (torch.zeros(num_pages, BLOCK, KV_HEADS, DIM, dtype=dtype) for _ in "kv")
    if not vector_scales:
        return Pages(k, v, 0.25, 0.03)
    k_scale, v_scale = (torch.full((num_pages, BLOCK, KV_HEADS), torch.nan) for _ in "kv")
    return Pages(k, v, k_scale, v_scale)


@pytest.mark.parametrize("vector_scales", [True, False])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_what_is_stored_is_what_torch_rounds_to(dtype: torch.dtype, vector_scales: bool) -> None:
    """Of every magnitude down to the subnormal, of ties, of what is beyond the range, and of nothing but zeros."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-7, 4, 40).view(-1, 1, 1)
    k, v = ((torch.randn(40, KV_HEADS, DIM, generator=generator) * sizes).bfloat16() for _ in "kv")
    k[3], k[4] = 0, torch.arange(KV_HEADS * DIM).view(KV_HEADS, DIM) / 8
    slots = torch.randperm(48, generator=generator)[:40]
    slots[7] = -1
    ours, theirs = (pages_of(dtype, 6, vector_scales=vector_scales) for _ in range(2))
    assert eight.takes(k, ours)
    attention.store(k, v, ours, slots)
    reference.store(k, v, theirs, slots)
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        if mine.dtype == torch.float32:
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=0, equal_nan=True)
        else:
            # A scale one unit in the last place apart moves a tie: one value of ten thousand at most.
            assert (mine.view(torch.uint8) != other.view(torch.uint8)).float().mean() <= (1e-3 if vector_scales else 0)


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("vector_scales", [True, False])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_decode_is_attention_over_what_is_stored(dtype: torch.dtype, vector_scales: bool, window: int) -> None:
    generator = torch.Generator().manual_seed(1)
    counts = [-(-length // BLOCK) for length in LENGTHS]
    pages = pages_of(dtype, sum(counts) + 1, vector_scales=vector_scales)
    order = torch.randperm(sum(counts), generator=generator).tolist()
    tables = torch.full((len(LENGTHS), max(counts)), len(order), dtype=torch.int32)
    for row, (length, count) in enumerate(zip(LENGTHS, counts, strict=True)):
        tables[row, :count] = torch.tensor([order.pop() for _ in range(count)])
        at = torch.arange(length)
        k, v = (torch.randn(length, KV_HEADS, DIM, generator=generator).bfloat16() for _ in "kv")
        attention.store(k, v, pages, tables[row].long()[at // BLOCK] * BLOCK + at % BLOCK)
    rows = Rows(tables, torch.tensor(LENGTHS, dtype=torch.int32))
    softmax = Softmax(scale=DIM**-0.5, window=window)
    q = torch.randn(len(LENGTHS), HEADS, DIM, generator=generator).bfloat16()
    assert eight.takes(q, pages)
    found = attention.decode(q, pages, rows, softmax)
    expected = reference.decode(q.double(), pages, rows, softmax)
    torch.testing.assert_close(found.double(), expected, atol=1e-2, rtol=1e-2)
    assert found[1].eq(0).all()


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_every_code_is_widened_to_what_it_stands_for(dtype: torch.dtype) -> None:
    """What is alone in its sequence comes out as it is: subnormal floats, both zeros and the largest."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes[~codes.view(dtype).float().isfinite()] = 0
    values = codes.view(dtype).view(2, 1, KV_HEADS, DIM)
    rows = Rows(torch.tensor([[0], [1]], dtype=torch.int32), torch.tensor([1, 1], dtype=torch.int32))
    q = torch.ones(2, KV_HEADS, DIM, dtype=torch.bfloat16)
    found = eight.decode(q, Pages(torch.zeros_like(values), values), rows, Softmax(1.0))
    assert torch.equal(found.float(), values.float().squeeze(1))
