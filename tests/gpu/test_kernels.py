"""What only a GPU can show of the kernels: hardware rounding, long contexts, many splits, CUDA graphs, large pools.

The shapes of tests/kernels run compiled on CUDA too, wherever there is one.
"""

from __future__ import annotations

import pytest
import torch

from kvtool.kernels import load_kernels
from kvtool.kernels.reference import attention as reference
from kvtool.kernels.triton.checks import FP8_DTYPES
from tests.kernels.paged_case import TOLERANCE, Case, Pool, largest_error, lay_out, one_query_each, skip_unless_held

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
FP8 = FP8_DTYPES
DEVICE = "cuda:0"


def decode_case(lens: tuple[int, ...], **shape: object) -> Case:
    bf16 = {"heads": 32, "kv_heads": 8, "head_dim": 128, "v_dim": 128, "dtype": BF16, "cache_dtype": BF16}
    return Case(lens, one_query_each(lens), page=64, device=DEVICE, **(bf16 | shape))


def decode_arguments(pool: Pool) -> tuple[torch.Tensor, ...]:
    return pool.q, pool.k_cache, pool.v_cache, pool.block_tables, pool.seq_lens


@pytest.mark.parametrize("lens", [(1,), (8191,), (32768,), (4096,) * 16, (1, 100, 16000, 0)], ids=str)
def test_long_contexts(lens: tuple[int, ...]) -> None:
    case = decode_case(lens)
    pool = lay_out(case)
    actual = load_kernels("triton").paged_decode(*decode_arguments(pool), scale=0.088)
    expected = reference.paged_decode(*pool.reference_arguments(), scale=0.088)
    assert largest_error(actual, expected) < TOLERANCE[BF16]


def test_long_chunk_behind_a_long_prefix() -> None:
    case = Case((4096, 700), (1000, 700), 64, 8, 2, 128, 128, BF16, BF16, device=DEVICE)
    pool = lay_out(case)
    actual = load_kernels("triton").paged_prefill(*decode_arguments(pool), pool.query_starts, scale=0.088)
    expected = reference.paged_prefill(*pool.reference_arguments(), pool.query_starts, scale=0.088)
    assert largest_error(actual, expected) < TOLERANCE[BF16]


@pytest.mark.parametrize("heads", [16, 128])
def test_deepseek_decode(heads: int) -> None:
    lens = (4097, 3, 64)
    pool = lay_out(decode_case(lens, heads=heads, kv_heads=1, head_dim=576, v_dim=512))
    cache, where = pool.k_cache.squeeze(2), (pool.block_tables, pool.seq_lens)
    actual = load_kernels("triton").mla_decode(pool.q, cache, *where, latent_dim=512, scale=0.072)
    expected = reference.mla_decode(pool.q.double(), cache.double(), *where, latent_dim=512, scale=0.072)
    assert largest_error(actual, expected) < TOLERANCE[BF16]


@pytest.mark.parametrize("dtype", [F16, BF16, *FP8], ids=str)
def test_stored_values_are_rounded_to_the_nearest(dtype: torch.dtype) -> None:
    skip_unless_held(dtype, DEVICE)
    rows = torch.randn(512, 8, 128, device=DEVICE) * torch.logspace(-6, 4, 128, device=DEVICE)
    actual, expected = (torch.zeros(32, 16, 8, 128, dtype=dtype, device=DEVICE) for _ in range(2))
    slots = torch.randperm(512, device=DEVICE)
    load_kernels("triton").store_kv(rows, rows, actual, actual.clone(), slots, k_scale=0.7)
    reference.store_kv(rows, rows, expected, expected.clone(), slots, k_scale=0.7)
    assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))


def test_a_captured_graph_follows_the_lengths() -> None:
    """One capture, replayed as sequences grow and end: shapes choose the splits, lengths on the device their work."""
    kernels = load_kernels("triton")
    pool = lay_out(decode_case((5000, 3000, 1, 700)))
    arguments = decode_arguments(pool)
    kernels.paged_decode(*arguments, scale=0.088)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.paged_decode(*arguments, scale=0.088)
    for lens in ((5000, 3000, 1, 700), (17, 0, 1, 65), (4999, 2000, 0, 1)):
        pool.seq_lens.copy_(torch.tensor(lens, dtype=torch.int32))
        graph.replay()
        expected = reference.paged_decode(*pool.reference_arguments(), scale=0.088)
        assert largest_error(out, expected) < TOLERANCE[BF16], lens


def test_a_pool_of_more_than_two_to_the_31_elements() -> None:
    """The last of 20,000 pages begins 2.6e9 elements into the pool."""
    skip_unless_held(FP8[1], DEVICE)
    heads, head_dim, num_pages = 16, 128, 20_000
    k_cache = torch.zeros(num_pages, 64, heads, head_dim, dtype=torch.float8_e5m2, device=DEVICE)
    v_cache = k_cache.clone()
    last = torch.full((1, 1), num_pages - 1, dtype=torch.int32, device=DEVICE)
    slots = torch.arange(64, device=DEVICE) + (num_pages - 1) * 64
    rows = torch.randn(64, heads, head_dim, device=DEVICE, dtype=F16)
    kernels = load_kernels("triton")
    kernels.store_kv(rows, rows, k_cache, v_cache, slots)
    q = torch.randn(1, heads, head_dim, device=DEVICE, dtype=F16)
    lens = torch.full((1,), 64, dtype=torch.int32, device=DEVICE)
    actual = kernels.paged_decode(q, k_cache, v_cache, last, lens, scale=0.088)
    first = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE)
    page = slice(num_pages - 1, num_pages)
    expected = reference.paged_decode(
        q.double(), k_cache[page].double(), v_cache[page].double(), first, lens, scale=0.088
    )
    assert largest_error(actual, expected) < TOLERANCE[F16]


def test_equal_calls_give_equal_bits() -> None:
    """A split's partial is merged in a fixed order, not by atomics."""
    pool = lay_out(decode_case((9000, 64)))
    first, second = (load_kernels("triton").paged_decode(*decode_arguments(pool), scale=0.088) for _ in range(2))
    assert torch.equal(first, second)
