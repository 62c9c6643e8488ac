"""Decode over pages against the fp64 reference, on every backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtool.kernels.pages import Pages
from kvtool.kernels.reference import attention as reference
from kvtool.kernels.rows import Rows, Softmax
from tests.kernels.conftest import Backend
from tests.kernels.paged_case import TOLERANCE, Case, exact, largest_error, lay_out, one_query_each

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
RAGGED = (1, 15, 16, 17, 0, 200)


def decode(lens: tuple[int, ...] = RAGGED, **shape: object) -> Case:
    return Case(lens, one_query_each(lens), **shape)


def guesses(lens: tuple[int, ...], queries: int, **shape: object) -> Case:
    """The last `queries` tokens of each sequence at once, as when guessed tokens are verified."""
    return Case(lens, (queries,) * len(lens), **shape)


CASES = {
    "mha": decode(heads=2, kv_heads=2),
    "gqa4": decode(heads=8, kv_heads=2),
    "gqa7": decode(heads=7, kv_heads=1),
    "gqa8": decode(heads=8, kv_heads=1),
    "mqa32": decode((1, 0, 70), heads=32, kv_heads=1),
    "mqa71": decode((3, 65), heads=71, kv_heads=1, head_dim=16, v_dim=16, dtype=BF16, cache_dtype=BF16),
    "page 64": decode((1, 63, 64, 65, 130), page=64),
    "page 48": decode((47, 48, 49, 130), page=48, dtype=F16, cache_dtype=F16),
    "page 1": decode((1, 2, 37), page=1, dtype=F16, cache_dtype=F16),
    "splits of 64": decode((300, 5, 129), page=64, dtype=F16, cache_dtype=F16, heads=2, kv_heads=1),
    "no sequence has tokens": decode((0, 0)),
    "many sequences": decode(tuple(range(24)), heads=2, kv_heads=1),
    "head 80": decode((1, 40), head_dim=80, v_dim=80, dtype=BF16, cache_dtype=BF16),
    "head 96": decode((1, 40), head_dim=96, v_dim=96),
    "head 112": decode((1, 40), head_dim=112, v_dim=112),
    "head 192, values 128": decode((1, 40), head_dim=192, v_dim=128, dtype=F16, cache_dtype=F16),
    "head 256": decode((1, 70), head_dim=256, v_dim=256, dtype=BF16, cache_dtype=BF16),
    "window within a tile": decode((3, 60, 100), window=5),
    "window over tiles": decode((3, 60, 200), window=37, dtype=BF16, cache_dtype=BF16),
    "window of one": decode((1, 60), window=1),
    "window of pages": decode((64, 65, 200), window=64, page=64, dtype=F16, cache_dtype=F16),
    "window and splits": decode((300,), window=280, heads=2, kv_heads=1),
    "bf16": decode(dtype=BF16, cache_dtype=BF16),
    "fp16": decode(dtype=F16, cache_dtype=F16),
    "fp8 e4m3": decode(dtype=BF16, cache_dtype=E4M3, k_scale=0.5, v_scale=2.0),
    "head 192": decode((1, 70), head_dim=192, v_dim=192, dtype=BF16, cache_dtype=BF16, page=64),
    "fp8 e5m2": decode(dtype=F16, cache_dtype=E5M2, k_scale=2.0, v_scale=0.25),
    "fp8 e4m3 under fp32": decode((40,), cache_dtype=E4M3, k_scale=0.5, v_scale=2.0),
    "bf16 under fp32": decode((40,), cache_dtype=BF16),
    "fp32 under bf16": decode((40,), dtype=BF16),
    "int8": decode(dtype=BF16, cache_dtype=torch.int8, k_scale=0.02, v_scale=0.03),
    "int8, a scale a vector": decode(dtype=F16, cache_dtype=torch.int8, k_scale=0.02, v_scale=3e-5, vector_scales=True),
    "fp8, a scale a vector": decode(dtype=BF16, cache_dtype=E4M3, k_scale=0.5, v_scale=2.0, vector_scales=True),
    "a scale a vector, window and splits": decode(
        (300, 17), window=200, cache_dtype=E4M3, page=64, vector_scales=True, heads=2, kv_heads=1
    ),
    "softcap": decode(softcap=1.5),
    "softcap, bf16": decode(dtype=BF16, cache_dtype=BF16, softcap=30.0, window=50),
    "sinks": decode(sinks=True),
    "sinks and splits": decode((300, 0, 129, 1), sinks=True, heads=8, kv_heads=1, page=64, dtype=F16, cache_dtype=F16),
    "sinks and window, as gpt-oss": decode((300, 5), sinks=True, window=128, heads=8, kv_heads=1, page=64),
    "2 queries": guesses((2, 17, 0, 200), 2),
    "3 queries, mqa8": guesses((3, 66), 3, heads=8, kv_heads=1, dtype=BF16, cache_dtype=BF16),
    "8 queries over splits": guesses((300, 8, 130), 8, page=64, heads=4, kv_heads=1),
    "8 queries, 7 heads: rows past a tile": guesses((70, 9), 8, heads=7, kv_heads=1, dtype=F16, cache_dtype=F16),
    "5 queries behind a window": guesses((200, 5, 64), 5, window=37),
    "4 queries, everything": guesses(
        (300, 4, 0, 33),
        4,
        window=150,
        softcap=5.0,
        sinks=True,
        cache_dtype=torch.int8,
        k_scale=0.02,
        v_scale=0.02,
        vector_scales=True,
        heads=4,
        kv_heads=1,
    ),
}


def check(backend: Backend, case: Case, seed: int = 0) -> None:
    pool = lay_out(replace(case, device=backend.device), seed)
    rows = replace(pool.rows, query_starts=None)
    actual = backend.kernels.decode(pool.q, pool.pages, rows, pool.softmax)
    expected = reference.decode(*pool.exact)
    assert (actual.dtype, actual.shape) == (case.dtype, expected.shape)
    assert largest_error(actual, expected) < TOLERANCE[case.dtype] * max(1.0, case.v_scale)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_the_reference(backend: Backend, case: Case) -> None:
    check(backend, case)


@given(
    lens=st.lists(st.integers(0, 80), min_size=1, max_size=4).map(tuple),
    page=st.sampled_from([1, 8, 16, 24, 64]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    head_dim=st.sampled_from([16, 24, 64]),
    dtypes=st.sampled_from([(F32, F32), (BF16, BF16), (F16, F16), (BF16, E4M3), (F16, E5M2)]),
    window=st.integers(0, 90),
    queries=st.integers(1, 8),
    softcap=st.sampled_from([0.0, 2.0]),
    sinks=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(
    backend, lens, page, kv_heads, group, head_dim, dtypes, window, queries, softcap, sinks, seed
) -> None:
    case = guesses(
        tuple(length and max(length, queries) for length in lens),
        queries,
        page=page,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_dim=head_dim,
        dtype=dtypes[0],
        cache_dtype=dtypes[1],
        window=window,
        softcap=softcap,
        sinks=sinks,
    )
    check(backend, case, seed)


@pytest.mark.parametrize("splits", [1, 5])
def test_a_sink_enters_a_sequence_once(backend: Backend, splits: int) -> None:
    """Equal scores and values of one: out = n / (n + exp(sink)), however many splits share the n keys."""
    tokens = 128 * splits
    ones = torch.ones(splits, 128, 1, 16, device=backend.device)
    rows = Rows(
        torch.arange(splits, dtype=torch.int32, device=backend.device)[None],
        torch.full((1,), tokens, dtype=torch.int32, device=backend.device),
    )
    q, sinks = torch.zeros(1, 2, 16, device=backend.device), torch.tensor([5.0, -1.0], device=backend.device)
    out = backend.kernels.decode(q, Pages(ones, ones), rows, Softmax(1.0, sinks=sinks))
    expected = tokens / (tokens + sinks.double().exp())
    assert largest_error(out, expected[None, :, None].expand(1, 2, 16)) < 1e-5


def test_a_large_score_is_capped_not_nan(backend: Backend) -> None:
    case = decode((20,), softcap=50.0, device=backend.device)
    pool = lay_out(case)
    out = backend.kernels.decode(1e6 * pool.q, pool.pages, pool.rows, pool.softmax)
    assert torch.isfinite(out).all()


MERGED: dict[str, object] = {"heads": 4, "kv_heads": 2, "page": 64, "head_dim": 24, "v_dim": 16, "sinks": True}


@pytest.mark.parametrize("queries", [1, 3])
def test_the_last_program_to_arrive_merges(backend: Backend, monkeypatch, queries: int) -> None:
    """And the counters are zero again, so that a graph can be replayed."""
    if not backend.interpreted:
        pytest.skip("only Triton's programs arrive, and on CUDA every test of splits has them do so")
    from kvtool.kernels.triton import attention, gpu

    arrivals = torch.zeros(64, dtype=torch.int32)
    monkeypatch.setattr(gpu, "arrivals", lambda device, count: arrivals[:count])
    monkeypatch.setattr(attention, "merge", None)
    for lens in ((300, 0, 129), (3, 300, 200)):
        check(backend, guesses(lens, queries, **MERGED))
        assert not arrivals.any()


@pytest.mark.parametrize("queries", [1, 3])
def test_much_to_merge_is_merged_by_a_launch_of_its_own(backend: Backend, monkeypatch, queries: int) -> None:
    """As the many rows of MLA are."""
    if backend.device == "cpu" and not backend.interpreted:
        pytest.skip("only Triton's programs share a sequence")
    from kvtool.kernels.triton import attention
    from kvtool.kernels.triton.tiles import rules

    monkeypatch.setattr(rules, "MERGED_BYTES", 0)
    merge, merged = attention.merge, []
    monkeypatch.setattr(attention, "merge", lambda *given: merged.append(merge(*given)))
    check(backend, guesses((300, 0, 129), queries, **MERGED))
    assert merged == [None]


LISTED = {
    "ragged": decode((300, 1, 0, 40, 700), page=64, heads=2, kv_heads=1, dtype=F16, cache_dtype=F16),
    "several KV heads": decode((5, 400), heads=6, kv_heads=3, head_dim=24, v_dim=16, sinks=True),
    "window": decode((5, 400, 100), page=64, window=150, cache_dtype=E4M3, vector_scales=True, heads=2, kv_heads=1),
    "3 queries": guesses((70, 300, 3), 3, heads=2, kv_heads=1, softcap=2.0),
    "alone": decode((200,), heads=2, kv_heads=1),
    "nobody": decode((0, 0)),
}


@pytest.mark.parametrize("case", LISTED.values(), ids=LISTED.keys())
def test_long_sequences_get_more_of_a_list(backend: Backend, monkeypatch, case: Case) -> None:
    """Whose programs divide all tokens among themselves, whatever the lengths; the counters are zero again."""
    if backend.device == "cpu" and not backend.interpreted:
        pytest.skip("only Triton's programs share a sequence")
    from kvtool.kernels.triton import gpu

    arrivals = torch.zeros(64, dtype=torch.int32, device=backend.device)
    monkeypatch.setattr(gpu, "arrivals", lambda device, count: arrivals[:count])
    with gpu.trying(Changed(lists=True)):
        check(backend, case)
    assert not arrivals.any()


INTEGERS: dict[str, object] = {"dtype": F16, "cache_dtype": torch.int8, "heads": 4, "kv_heads": 1}


@pytest.mark.parametrize(
    "case",
    [
        decode((70, 5), k_scale=0.02, v_scale=3e-5, vector_scales=True, **INTEGERS),
        decode((300, 1, 0), k_scale=0.02, v_scale=0.03, page=64, head_dim=128, v_dim=128, **INTEGERS),
        guesses((130, 33), 3, k_scale=0.02, v_scale=0.02, vector_scales=True, page=64, window=90, **INTEGERS),
    ],
    ids=["a scale a vector", "one scale, splits", "3 queries behind a window, by descriptor"],
)
def test_an_int8_cache_is_multiplied_as_it_lies(backend: Backend, case: Case) -> None:
    """Queries and weights are rounded to 127 steps of their row's largest; outputs move by as much of the values'
    largest at most. Without it the difference is that of fp16."""
    if backend.device == "cpu" and not backend.interpreted:
        pytest.skip("only Triton has the choice")
    from kvtool.kernels.triton import gpu

    pool = lay_out(replace(case, device=backend.device))
    rows = replace(pool.rows, query_starts=None)
    expected = reference.decode(*pool.exact)
    errors = []
    for integers in (True, False):
        with gpu.trying(Changed(integers=integers)):
            errors.append(largest_error(backend.kernels.decode(pool.q, pool.pages, rows, pool.softmax), expected))
    unit = float(expected.abs().max())
    assert errors[1] < TOLERANCE[F16] * max(unit, 1e-3)
    assert errors[1] < errors[0] < 0.03 * unit


class Changed:
    """Tiles of the rules, but for some of their fields."""

    def __init__(self, **fields: object) -> None:
        self.fields = fields

    def get(self, shape: object, rule: Any) -> Any:
        return replace(rule, **self.fields)


@pytest.mark.parametrize(("page", "descriptors"), [(16, False), (64, True)])
def test_tiles_within_a_page_are_read_by_descriptor(backend: Backend, monkeypatch, page, descriptors) -> None:
    if not backend.interpreted:
        pytest.skip("a GPU decides by its capability")
    from kvtool.kernels.triton.arguments import Keys

    seen = []
    original = Keys.arguments
    monkeypatch.setattr(Keys, "arguments", lambda *a: seen.append(original(*a)) or seen[-1])
    check(backend, decode((130, 64, 1), page=page, dtype=F16, cache_dtype=F16))
    assert [arguments["TMA"] for arguments in seen] == [descriptors]


def test_queries_and_pool_may_be_strided(backend: Backend) -> None:
    """q as a slice of a fused projection, the caches as one layer of a pool [P, 2, B, HKV, D]."""
    case = decode((17, 40), dtype=F16, cache_dtype=F16, device=backend.device)
    pool = lay_out(case)
    fused = torch.cat([pool.q, pool.q], dim=1)[:, : case.heads]
    both = torch.stack([pool.pages.k, pool.pages.v], dim=1)
    actual = backend.kernels.decode(fused, Pages(both[:, 0], both[:, 1]), pool.rows, pool.softmax)
    expected = reference.decode(*pool.exact)
    assert largest_error(actual, expected) < TOLERANCE[F16]


@pytest.mark.parametrize(("page", "dtype"), [(16, F32), (64, F16)], ids=["by pointer", "by descriptor"])
def test_a_pool_of_more_than_two_to_the_31_elements(backend: Backend, page: int, dtype: torch.dtype) -> None:
    """Three pages 2**30 elements apart; the memory between them is never touched, so it costs nothing."""
    stride, shape = 2**30, (3, page, 1, 16)
    memory = torch.empty(2 * stride + page * 16, dtype=E5M2, device=backend.device)
    cache = memory.as_strided(shape, (stride, 16, 16, 1))
    near = lay_out(
        decode(
            (page,), page=page, kv_heads=1, head_dim=16, v_dim=16, dtype=dtype, cache_dtype=E5M2, device=backend.device
        )
    )
    cache[2] = near.pages.k[near.rows.block_tables[0, 0]]
    rows = Rows(torch.tensor([[2]], dtype=torch.int32, device=backend.device), near.rows.seq_lens)
    actual = backend.kernels.decode(near.q, Pages(cache, cache), rows, near.softmax)
    near_pages = exact(replace(near.pages, v=near.pages.k))
    expected = reference.decode(near.q.double(), near_pages, near.rows, near.softmax)
    assert largest_error(actual, expected) < TOLERANCE[dtype]
