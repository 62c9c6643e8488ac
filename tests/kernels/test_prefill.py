"""Prefill over pages against the fp64 reference, on every backend: plain, chunked, prefix-cached and mixed batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtool.kernels.reference import attention as reference
from tests.kernels.conftest import Backend
from tests.kernels.paged_case import TOLERANCE, Case, largest_error, lay_out

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def prefill(lens: tuple[int, ...], query_lens: tuple[int, ...], **shape: object) -> Case:
    half = {"dtype": F16, "cache_dtype": F16, "head_dim": 16, "v_dim": 16}
    return Case(lens, query_lens, **(half | shape))


def compiled(lens: tuple[int, ...], query_lens: tuple[int, ...], **shape: object) -> Case:
    """bf16, which the CPU's compiled kernels take."""
    return prefill(lens, query_lens, **({"dtype": BF16, "cache_dtype": BF16, "head_dim": 64, "v_dim": 64} | shape))


CASES = {
    "plain": prefill((1, 15, 16, 17, 70), (1, 15, 16, 17, 70)),
    "plain, one long": prefill((200,), (200,), heads=2, kv_heads=2),
    "chunk": prefill((100, 65), (30, 1)),
    "behind a prefix of whole pages": prefill((48, 80), (16, 16), page=16),
    "mixed with decodes and padding rows": prefill((5, 0, 130, 64, 33), (1, 0, 40, 1, 33)),
    "mha": prefill((70,), (70,), heads=3, kv_heads=3),
    "gqa7": prefill((40, 9), (40, 3), heads=7, kv_heads=1),
    "mqa71": prefill((9,), (9,), heads=71, kv_heads=1),
    "page 64": prefill((63, 64, 65, 140), (63, 64, 1, 100), page=64),
    "page 48": prefill((47, 100), (47, 60), page=48),
    "page 1": prefill((37,), (20,), page=1),
    "fp32": prefill((33, 70), (33, 10), dtype=F32, cache_dtype=F32),
    "bf16": prefill((33, 70), (33, 50), dtype=BF16, cache_dtype=BF16, head_dim=64, v_dim=64),
    "fp8 e4m3": prefill((70,), (50,), dtype=BF16, cache_dtype=E4M3, k_scale=0.5, v_scale=2.0),
    "fp8 e5m2": prefill((70,), (50,), cache_dtype=E5M2, k_scale=2.0, v_scale=0.5),
    "head 80": prefill((40,), (30,), head_dim=80, v_dim=80),
    "head 112 in fp32": prefill((20,), (20,), head_dim=112, v_dim=112, dtype=F32, cache_dtype=F32),
    "head 192, values 128": prefill((40,), (30,), head_dim=192, v_dim=128),
    "head 256": prefill((40,), (40,), head_dim=256, v_dim=256),
    "window within a tile": prefill((100, 9), (100, 9), window=5),
    "window over tiles": prefill((200, 70), (60, 70), window=70),
    "window over whole tiles": prefill((300,), (60,), window=150),
    "window of one": prefill((40,), (20,), window=1),
    "window of pages": prefill((200,), (70,), window=64, page=64),
    "softcap": prefill((70, 9), (40, 9), softcap=1.5),
    "softcap, window": prefill((70, 9), (70, 9), softcap=30.0, window=20, dtype=F32, cache_dtype=F32),
    "sinks": prefill((70, 0, 9), (40, 0, 9), sinks=True),
    "sinks, window": prefill((200,), (60,), sinks=True, window=70, heads=8, kv_heads=1),
    "int8": prefill((70,), (50,), dtype=BF16, cache_dtype=torch.int8, k_scale=0.02, v_scale=0.03),
    "int8, a scale a vector": prefill(
        (200, 3), (50, 3), cache_dtype=torch.int8, k_scale=0.02, v_scale=0.03, vector_scales=True
    ),
    "fp8, a scale a vector, sinks, softcap": prefill(
        (100,), (70,), dtype=BF16, cache_dtype=E4M3, vector_scales=True, sinks=True, softcap=9.0, page=64
    ),
    "head 96": prefill((40,), (30,), head_dim=96, v_dim=96, dtype=BF16, cache_dtype=BF16),
    "head 112": prefill((70,), (30,), head_dim=112, v_dim=112, page=64),
    "head 192": prefill((40,), (30,), head_dim=192, v_dim=192),
    "window longer than everything": prefill((70,), (70,), window=1000),
    "compiled, over tiles": compiled((300, 129, 128, 1), (300, 129, 1, 1), heads=3, kv_heads=1),
    "compiled, chunks and padding rows": compiled((300, 0, 130), (70, 0, 9), heads=4, kv_heads=4, page=64),
    "compiled, heads in two shares": compiled((140,), (140,), heads=12, kv_heads=2, page=1),
    "compiled, window over tiles": compiled((600, 9), (200, 9), window=150, page=24),
    "compiled, window of one": compiled((200,), (90,), window=1),
    "compiled, narrow values": compiled((150,), (40,), head_dim=96, v_dim=32),
    "compiled, latents": compiled((150,), (20,), heads=9, kv_heads=1, head_dim=288, v_dim=256),
}


def check(backend: Backend, case: Case, seed: int = 0, *, max_query_len: int | None = None) -> None:
    pool = lay_out(replace(case, device=backend.device), seed)
    rows = replace(pool.rows, max_query_len=max_query_len)
    actual = backend.kernels.prefill(pool.q, pool.pages, rows, pool.softmax)
    expected = reference.prefill(*pool.exact)
    assert (actual.dtype, actual.shape) == (case.dtype, expected.shape)
    assert largest_error(actual, expected) < TOLERANCE[case.dtype] * max(1.0, case.v_scale)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_the_reference(backend: Backend, case: Case) -> None:
    check(backend, case)


@given(
    lens=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)).map(sorted), min_size=1, max_size=3),
    page=st.sampled_from([1, 8, 16, 24, 64]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 5),
    dtypes=st.sampled_from([(F32, F32), (BF16, BF16), (F16, F16), (BF16, E4M3), (F16, E5M2)]),
    window=st.integers(0, 100),
    softcap=st.sampled_from([0.0, 2.0]),
    sinks=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(backend, lens, page, kv_heads, group, dtypes, window, softcap, sinks, seed) -> None:
    query_lens, seq_lens = zip(*lens, strict=True)
    case = prefill(
        seq_lens,
        query_lens,
        page=page,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        dtype=dtypes[0],
        cache_dtype=dtypes[1],
        window=window,
        softcap=softcap,
        sinks=sinks,
    )
    check(backend, case, seed)


def test_max_query_len_may_be_generous(backend: Backend) -> None:
    check(backend, CASES["chunk"], max_query_len=77)
