"""Packed pages written and attended to where they lie, on every backend: the codec's own bytes, and fp64's sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvtool.engine.pool import codec
from kvtool.kernels.packed.codec import Codec
from kvtool.kernels.packed.pages import PackedPages, packed
from kvtool.kernels.packed.rotation import rotate_heads
from kvtool.kernels.pages import Pages
from kvtool.kernels.reference import attention as reference
from kvtool.sizing.formats import parse_cache_format
from tests.kernels.conftest import Backend
from tests.kernels.paged_case import TOLERANCE, Case, Pool, largest_error, lay_out, one_query_each

BF16, F16 = torch.bfloat16, torch.float16
NAN_BYTE = 255  # two of them are a NaN in fp16
RAGGED = (1, 17, 0, 70)


def codecs(name: str, k_dim: int, v_dim: int) -> tuple[Codec, Codec]:
    """Of K and V; both as KIVI's V, by token, for a name of KIVI. Calibrated ones reach 3.5."""
    found = parse_cache_format(name)
    k_format, v_format = found.value if name.startswith("kivi") else found.key, found.value
    assert k_format is not None
    assert v_format is not None
    amax = 3.5 if found.calibrated else None
    return codec(k_format, k_dim, amax), codec(v_format, v_dim, amax)


def packed_pages(pages: Pages, name: str, *, rotated: bool) -> PackedPages:
    """The vectors of a pool in that format; what is NaN in the pool stays so."""
    assert pages.v is not None
    key, value = codecs(name, pages.k.shape[3], pages.v.shape[3])
    stored = []
    for whole, one in ((pages.k, key), (pages.v, value)):
        there = ~whole.isnan().any(-1)
        room = torch.full((*whole.shape[:3], one.stored_bytes), NAN_BYTE, dtype=torch.uint8, device=whole.device)
        room[there] = one.encode(rotate_heads(whole[there]) if rotated else whole[there])
        stored.append(room)
    return PackedPages(k=stored[0], v=stored[1], key=key, value=value, rotated=rotated)


def exact(pages: PackedPages) -> Pages:
    """What the bytes stand for, in fp64."""
    assert pages.v is not None
    whole = (pages.key.decode(pages.k), pages.value.decode(pages.v))
    return Pages(*((rotate_heads(x) if pages.rotated else x).double() for x in whole))


FORMATS = (
    *("int4", "q4_1", "q4_0", "q5_0", "q5_1", "q8_0", "int4_per_token_head", "kivi_int2", "int8"),
    *("bf16/q8_0", "fp8/int4", "fp8_per_token_head/q5_1"),
)
READ_APART = ("int4", "q4_0", "q5_0", "q8_0", "int4_per_token_head", "kivi_int2", "int8", "bf16/q8_0")


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 16), (3, 64), (2, 128)])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_stored_is_what_the_codec_makes(backend: Backend, name: str, heads: int, head_dim: int) -> None:
    """Of values of many sizes, all alike and all 0, with two that are largest, of which the first counts."""
    slots = torch.tensor([37, 0, -1, 15, 16], device=backend.device)
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(5, heads, head_dim, generator=random) * torch.logspace(-3, 3, 5)[:, None, None]
    rows[1] = 0.25  # all alike: a step of 0
    rows[3] = 0.0
    rows[4, :, 5], rows[4, :, 8] = -9e3, 9e3
    rows = rows.to(backend.device)
    empty = Pages(*(torch.full((4, 16, heads, head_dim), float("nan"), device=backend.device) for _ in range(2)))
    found, expected = (packed_pages(empty, name, rotated=False) for _ in range(2))
    packed(backend.kernels).store(rows, rows.flip(0), found, slots)
    expected.write(rows, rows.flip(0), slots)
    for ours, theirs, one in zip(found.tensors, expected.tensors, (found.key, found.value), strict=True):
        if backend.interpreted and one.is_float:
            assert_one_step_apart(one, ours, theirs)
        else:
            assert torch.equal(ours, theirs)


def assert_one_step_apart(one: Codec, ours: Tensor, theirs: Tensor) -> None:
    """The interpreter rounds halves to narrow floats up, and loses the carry where that gives a power of two."""
    found, expected = one.decode(ours), one.decode(theirs)
    assert torch.equal(found.isnan(), expected.isnan())
    least = 2e-3 + 1e-5 * expected.nan_to_num().abs().amax(-1, keepdim=True)  # of subnormal floats
    apart = (found - expected).nan_to_num().abs()
    close = apart <= torch.finfo(one.dtype).eps * expected.nan_to_num().abs() + least
    assert (close | (2 * found == expected)).all()


CASES = {
    "heads of one group": Case(RAGGED, one_query_each(RAGGED)),
    "heads of two groups": Case(RAGGED, one_query_each(RAGGED), head_dim=128, v_dim=128, dtype=BF16),
    "heads of a quarter of a group": Case(RAGGED, one_query_each(RAGGED), head_dim=16, v_dim=16, heads=8),
    "keys of 128, values of 64": Case((1, 40), (1, 1), head_dim=128, dtype=F16),
    "splits": Case((300, 5, 129), (1, 1, 1), page=64, heads=2, kv_heads=1, dtype=F16),
    "window and splits": Case((300, 60), (1, 1), window=200, heads=2, kv_heads=1),
    "softcap and sinks": Case((300, 0, 33), (1, 1, 1), softcap=5.0, sinks=True, heads=8, kv_heads=1),
    "4 queries": Case((70, 4, 0, 33), (4, 4, 4, 4), heads=7, kv_heads=1, dtype=BF16),
}


def pool_of(backend: Backend, case: Case, name: str = "int4", *, rotated: bool = False) -> tuple[Pool, PackedPages]:
    """Pages before a window are kept, as in an engine's pool of packed pages."""
    pool = lay_out(replace(case, window=0, device=backend.device))
    pool = replace(pool, softmax=replace(pool.softmax, window=case.window))
    return pool, packed_pages(pool.pages, name, rotated=rotated)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_decode(backend: Backend, case: Case) -> None:
    pool, pages = pool_of(backend, case)
    found = packed(backend.kernels).decode(pool.q, pages, replace(pool.rows, query_starts=None), pool.softmax)
    expected = reference.decode(pool.q.double(), exact(pages), pool.rows, pool.softmax)
    assert (found.dtype, found.shape) == (case.dtype, expected.shape)
    assert largest_error(found, expected) < TOLERANCE[case.dtype]


@pytest.mark.parametrize(
    ("name", "head_dim", "rotated"),
    [
        *((name, 64, False) for name in READ_APART),
        *(("int4", 80, False), ("q5_1", 96, True)),
    ],
)
def test_formats(backend: Backend, name: str, head_dim: int, rotated: bool) -> None:
    """Read where they lie, and unpacked for a prefill. Heads of 80 in groups of 64 and of 16 go by torch."""
    case = Case((20, 3), (1, 1), dtype=F16, head_dim=head_dim, v_dim=head_dim)
    pool, pages = pool_of(backend, case, name, rotated=rotated)
    expected = reference.decode(pool.q.double(), exact(pages), pool.rows, pool.softmax)
    kernels = packed(backend.kernels)
    found = kernels.decode(pool.q, pages, replace(pool.rows, query_starts=None), pool.softmax)
    assert largest_error(found, expected) < TOLERANCE[F16]
    assert largest_error(kernels.prefill(pool.q, pages, pool.rows, pool.softmax), expected) < TOLERANCE[F16]


@pytest.mark.parametrize("rotated", [False, True])
def test_prefill(backend: Backend, rotated: bool) -> None:
    """Chunks behind what is cached, a whole prompt, and nothing."""
    pool, pages = pool_of(backend, Case((70, 9, 0), (20, 9, 0), window=50), rotated=rotated)
    found = packed(backend.kernels).prefill(pool.q, pages, pool.rows, pool.softmax)
    expected = reference.prefill(pool.q.double(), exact(pages), pool.rows, pool.softmax)
    assert largest_error(found, expected) < TOLERANCE[torch.float32]
