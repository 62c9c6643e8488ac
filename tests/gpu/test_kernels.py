"""What only a GPU can show of the kernels: hardware rounding, long contexts, many splits, CUDA graphs, large pools.

The shapes of tests/kernels run compiled on CUDA too, wherever there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kvtool.kernels import load_kernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.reference import attention as reference
from kvtool.kernels.rows import Rows, Softmax
from kvtool.kernels.triton.checks import FP8_DTYPES
from tests.kernels.paged_case import TOLERANCE, Case, exact, largest_error, lay_out, one_query_each, skip_unless_held
from tools.gpu.pieces import race
from tools.gpu.pieces.variants import pointers

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


@pytest.mark.parametrize("lens", [(1,), (8191,), (32768,), (4096,) * 16, (1, 100, 16000, 0)], ids=str)
def test_long_contexts(lens: tuple[int, ...]) -> None:
    case = decode_case(lens)
    pool = lay_out(case)
    actual = load_kernels("triton").decode(*pool.call)
    expected = reference.decode(*pool.exact)
    assert largest_error(actual, expected) < TOLERANCE[BF16]


def test_long_chunk_behind_a_long_prefix() -> None:
    case = Case((4096, 700), (1000, 700), 64, 8, 2, 128, 128, BF16, BF16, device=DEVICE)
    pool = lay_out(case)
    actual = load_kernels("triton").prefill(*pool.call)
    expected = reference.prefill(*pool.exact)
    assert largest_error(actual, expected) < TOLERANCE[BF16]


@pytest.mark.parametrize("heads", [16, 128])
def test_deepseek_decode(heads: int) -> None:
    lens = (4097, 3, 64)
    pool = lay_out(decode_case(lens, heads=heads, kv_heads=1, head_dim=576, v_dim=512)).latents
    actual = load_kernels("triton").decode(*pool.call)
    expected = reference.decode(*pool.exact)
    assert largest_error(actual, expected) < TOLERANCE[BF16]


@pytest.mark.parametrize("dtype", [F16, BF16, *FP8], ids=str)
def test_stored_values_are_rounded_to_the_nearest(dtype: torch.dtype) -> None:
    skip_unless_held(dtype, DEVICE)
    rows = torch.randn(512, 8, 128, device=DEVICE) * torch.logspace(-6, 4, 128, device=DEVICE)
    actual, expected = (torch.zeros(32, 16, 8, 128, dtype=dtype, device=DEVICE) for _ in range(2))
    slots = torch.randperm(512, device=DEVICE)
    for kernels, cache in ((load_kernels("triton"), actual), (reference, expected)):
        kernels.store(rows, rows, Pages(cache, cache.clone(), k_scale=0.7), slots)
    assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))


def test_a_captured_graph_follows_the_lengths() -> None:
    """One capture, replayed as sequences grow and end: shapes choose the splits, lengths on the device their work."""
    kernels = load_kernels("triton")
    pool = lay_out(decode_case((5000, 3000, 1, 700)))
    kernels.decode(*pool.call)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.decode(*pool.call)
    for lens in ((5000, 3000, 1, 700), (17, 0, 1, 65), (4999, 2000, 0, 1)):
        pool.rows.seq_lens.copy_(torch.tensor(lens, dtype=torch.int32))
        graph.replay()
        q, pages, rows, softmax = pool.exact
        expected = reference.decode(q, pages, replace(rows), softmax)  # rows that have seen no length before
        assert largest_error(out, expected) < TOLERANCE[BF16], lens


def test_a_pool_of_more_than_two_to_the_31_elements() -> None:
    """The last of 20,000 pages begins 2.6e9 elements into the pool."""
    skip_unless_held(FP8[1], DEVICE)
    heads, head_dim, num_pages = 16, 128, 20_000
    cache = torch.zeros(num_pages, 64, heads, head_dim, dtype=torch.float8_e5m2, device=DEVICE)
    pages, softmax = Pages(cache, cache.clone()), Softmax(0.088)
    last = torch.full((1, 1), num_pages - 1, dtype=torch.int32, device=DEVICE)
    slots = torch.arange(64, device=DEVICE) + (num_pages - 1) * 64
    rows = torch.randn(64, heads, head_dim, device=DEVICE, dtype=F16)
    kernels = load_kernels("triton")
    kernels.store(rows, rows, pages, slots)
    q = torch.randn(1, heads, head_dim, device=DEVICE, dtype=F16)
    lens = torch.full((1,), 64, dtype=torch.int32, device=DEVICE)
    actual = kernels.decode(q, pages, Rows(last, lens), softmax)
    first = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE)
    alone = exact(pages.map(lambda tensor: tensor[-1:]))
    expected = reference.decode(q.double(), alone, Rows(first, lens), softmax)
    assert largest_error(actual, expected) < TOLERANCE[F16]


def test_equal_calls_give_equal_bits() -> None:
    """A split's partial is merged in a fixed order, not by atomics."""
    pool = lay_out(decode_case((9000, 64)))
    first, second = (load_kernels("triton").decode(*pool.call) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("lens", [(9000, 64), (300, 17) * 40], ids=["split", "whole"])
@pytest.mark.parametrize("cache_dtype", [BF16, FP8[0]], ids=str)
def test_boxes_of_tma_hold_what_pointers_load(lens: tuple[int, ...], cache_dtype: torch.dtype) -> None:
    """Descriptors that a program builds may go wrong on a card alone; other tests see one of the two ways."""
    pool = lay_out(decode_case(lens, cache_dtype=cache_dtype))
    kernels = load_kernels("triton")
    by_boxes = kernels.decode(*pool.call)
    with pointers():
        by_pointers = kernels.decode(*pool.call)
    assert largest_error(by_boxes, by_pointers.double()) < TOLERANCE[BF16]


@pytest.mark.parametrize("case", [race.decode_of_llama, race.mla, race.experts], ids=lambda case: case.__name__)
def test_graphs_replayed_with_other_inputs_give_the_same_bits(case: Callable[[], dict | None]) -> None:
    """Ten thousand times each. Raises for other bits, for NaN, and for counters that are not zero."""
    assert case() is not None
