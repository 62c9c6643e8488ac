"""The compiled attention at any shape that it takes, against fp64: pages of 1 to 256 tokens, windows, caches of 16 and
of 8 bits; every slot that is no token's holds NaN."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.kernels.cpu import attention, eight
from kvtool.kernels.cpu.native import native, serves
from kvtool.kernels.reference import attention as reference
from tests.kernels.paged_case import TOLERANCE, Case, Pool, largest_error, lay_out, one_query_each

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the compiled kernels need gcc")
BF16 = torch.bfloat16
EIGHT = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
shapes = {
    "page": st.sampled_from([1, 2, 16, 24, 64, 256]),
    "kv_heads": st.integers(1, 3),
    "group": st.integers(1, 9),
    "dims": st.tuples(*[st.sampled_from([32, 64, 96, 128, 256])] * 2),
    "window": st.one_of(st.just(0), st.integers(1, 320)),
    "seed": st.integers(0, 2**16),
}


def laid_out(lens, query_lens, kv_heads, group, dims, seed, **others) -> Pool:
    shape = {"heads": kv_heads * group, "kv_heads": kv_heads, "head_dim": dims[0], "v_dim": dims[1]}
    return lay_out(Case(lens, query_lens, dtype=BF16, **shape, **others), seed)


@given(
    lens=st.lists(st.integers(0, 300), min_size=1, max_size=4).map(tuple),
    cache_dtype=st.sampled_from([BF16, *EIGHT]),
    vector_scales=st.booleans(),
    **shapes,
)
@settings(max_examples=40, deadline=None)
def test_a_decode(lens, page, kv_heads, group, dims, window, seed, cache_dtype, vector_scales) -> None:
    is_eight = cache_dtype in EIGHT
    scales = {"k_scale": 0.02, "v_scale": 0.02} if cache_dtype == torch.int8 else {}
    case = {"page": page, "window": window, "cache_dtype": cache_dtype, "vector_scales": is_eight and vector_scales}
    pool = laid_out(lens, one_query_each(lens), kv_heads, group, dims, seed, **case, **scales)
    assert eight.takes(pool.q, pool.pages) if is_eight else serves(pool.q, *pool.pages.tensors)
    found = attention.decode(*pool.call)
    assert found.dtype == BF16
    assert largest_error(found, reference.decode(*pool.exact)) < TOLERANCE[BF16]


@given(
    lens=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)).map(sorted), min_size=1, max_size=3),
    **shapes,
)
@settings(max_examples=25, deadline=None)
def test_a_prefill(lens, page, kv_heads, group, dims, window, seed) -> None:
    query_lens, seq_lens = zip(*lens, strict=True)
    case = {"page": page, "window": window, "cache_dtype": BF16}
    pool = laid_out(seq_lens, query_lens, kv_heads, group, dims, seed, **case)
    kernels = native()
    assert kernels is not None
    k, v, rows = pool.pages.k, pool.pages.v, pool.rows
    assert v is not None
    indices = rows.block_tables, rows.seq_lens, rows.query_starts
    found = kernels.paged_prefill(pool.q, k, v, *indices, pool.softmax.scale, window, rows.longest)
    assert largest_error(found, reference.prefill(*pool.exact)) < TOLERANCE[BF16]
