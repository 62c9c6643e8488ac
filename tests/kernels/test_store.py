"""Storing rows into pages: where they land, what they become, and that nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvtool.kernels.pages import Pages
from kvtool.kernels.quantise import largest
from kvtool.kernels.reference import attention as reference
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.sizing.specs import FullSpec, LatentSpec
from tests.kernels.conftest import Backend
from tests.kernels.paged_case import skip_unless_held

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
SLOTS = (
    37,
    0,
    -1,
    15,
    16,
    5,
    -1,
)  # in pages of 16: the last of a page, the first of the next, and two that are not stored


def bits(tensor: Tensor) -> Tensor:
    """NaN-proof: equal bits are equal values."""
    return tensor.cpu().contiguous().view(torch.uint8)


def eighths(*shape: int, seed: int = 0) -> Tensor:
    """Random multiples of 1/8 from -1 to 1: exact in every cache dtype, so that a store must not change them."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)) / 8


def poisoned(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    skip_unless_held(dtype, device)
    return torch.full(shape, float("nan")).to(dtype).to(device)


def slots(device: str) -> Tensor:
    return torch.tensor(SLOTS, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kv_heads", "head_dim", "v_dim"), [(1, 64, 64), (3, 80, 16), (8, 192, 128)])
def test_rows_land_in_their_slots(
    backend: Backend, dtype: torch.dtype, kv_heads: int, head_dim: int, v_dim: int
) -> None:
    k = eighths(len(SLOTS), kv_heads, head_dim).to(backend.device)
    v = eighths(len(SLOTS), kv_heads, v_dim, seed=1).to(backend.device)
    caches = [
        [poisoned(4, 16, kv_heads, dim, dtype=dtype, device=backend.device) for dim in (head_dim, v_dim)]
        for _ in range(2)
    ]
    for kernels, both in zip((backend.kernels, reference), caches, strict=True):
        kernels.store(k, v, Pages(*both, k_scale=0.5, v_scale=4.0), slots(backend.device))
    for actual, expected in zip(*caches, strict=True):
        assert torch.equal(bits(actual), bits(expected))
    stored = caches[0][0].flatten(0, 1)
    assert torch.equal(stored[37].float() * 0.5, k[0])
    assert stored.float().isnan().all(dim=(1, 2)).sum() == 64 - 5  # the five rows with a slot, and nothing more


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_latent_rows(backend: Backend, dtype: torch.dtype) -> None:
    latent = eighths(len(SLOTS), 64 + 16).to(backend.device)
    actual, expected = (poisoned(4, 16, 80, dtype=dtype, device=backend.device) for _ in range(2))
    for kernels, cache in ((backend.kernels, actual), (reference, expected)):
        kernels.store(latent, None, Pages(cache, k_scale=2.0, latent_dim=64), slots(backend.device))
    assert torch.equal(bits(actual), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_what_the_dtype_cannot_hold_is_clamped(backend: Backend, dtype: torch.dtype) -> None:
    skip_unless_held(dtype, backend.device)
    largest = torch.finfo(dtype).max
    row = torch.tensor([largest * 4, -largest * 4, float("inf"), -float("inf")] * 4, device=backend.device)
    cache = torch.zeros(1, 1, 1, 16, dtype=dtype, device=backend.device)
    row = row.view(1, 1, 16)
    backend.kernels.store(row, row, Pages(cache, cache.clone()), slots(backend.device)[1:2])
    assert cache.float().flatten().tolist() == [largest, -largest, largest, -largest] * 4


BYTE_DTYPES = {"fp8_per_token_head": torch.float8_e4m3fn, "int8_per_token_head": torch.int8}


@pytest.mark.parametrize("name", BYTE_DTYPES)
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 64), (3, 80), (8, 128)])
def test_a_scale_beside_each_vector(backend: Backend, name: str, kv_heads: int, head_dim: int) -> None:
    """The largest element becomes the largest of the dtype, the rest is right to half a step, and the bytes of a page
    are those that sizing counts."""
    dtype = BYTE_DTYPES[name]
    random = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(len(SLOTS), kv_heads, head_dim, generator=random) * torch.logspace(-5, 5, len(SLOTS))[:, None, None]
    )
    rows[1] = 0  # a vector of zeros stays one
    rows = rows.to(backend.device)
    stores = []
    for kernels in (backend.kernels, reference):
        cache = torch.zeros(4, 16, kv_heads, head_dim, dtype=dtype, device=backend.device)
        scales = poisoned(4, 16, kv_heads, dtype=torch.float32, device=backend.device)
        pages = Pages(cache, cache.clone(), scales, scales.clone())
        kernels.store(rows, rows, pages, slots(backend.device))
        stores.append((cache, scales))
    (cache, scales), (expected_cache, expected_scales) = stores
    if backend.interpreted:  # it loses the carry where fp8 is rounded up to a power of two
        cache = torch.where(2 * cache.float() == expected_cache.float(), expected_cache.float(), cache.float()).to(
            dtype
        )
    assert torch.equal(bits(cache), bits(expected_cache))
    assert torch.equal(bits(scales), bits(expected_scales))
    kept = slots(backend.device) >= 0
    where = slots(backend.device)[kept]
    stored = cache.flatten(0, 1)[where].float()
    vectors = scales.flatten(0, 1)[where].unsqueeze(-1)
    step = vectors * (1.0 if dtype == torch.int8 else 32.0)  # between 256 and 448 an e4m3 step is 32
    assert ((stored * vectors - rows[kept]).abs() <= 0.51 * step).all()
    amax = stored.abs().amax(dim=-1)
    assert (amax[amax > 0] == largest(dtype)).all()
    spec = FullSpec(kv_heads=kv_heads, k_head_dim=head_dim, v_head_dim=head_dim, cache_format=CACHE_FORMATS[name])
    assert 2 * (cache[0].nbytes + scales[0].nbytes) == spec.page_bytes(16)


@pytest.mark.parametrize("name", BYTE_DTYPES)
def test_two_scales_beside_each_latent(backend: Backend, name: str) -> None:
    """The latent has its own, and so has the rotary key, which is of another size; their bytes are those counted."""
    dtype, rank, rope = BYTE_DTYPES[name], 64, 16
    rows = eighths(len(SLOTS), rank + rope) * torch.tensor([1.0] * rank + [100.0] * rope)
    stores = []
    for kernels in (backend.kernels, reference):
        cache = torch.zeros(4, 16, rank + rope, dtype=dtype, device=backend.device)
        scales = poisoned(4, 16, 2, dtype=torch.float32, device=backend.device)
        pages = Pages(cache, k_scale=scales, latent_dim=rank)
        kernels.store(rows.to(backend.device), None, pages, slots(backend.device))
        stores.append((cache, scales))
    (cache, scales), (_, expected_scales) = stores
    assert torch.equal(bits(scales), bits(expected_scales))
    kept = slots(backend.device)[slots(backend.device) >= 0]
    largest_stored = cache.flatten(0, 1)[kept].float().abs()
    assert (largest_stored[:, :rank].amax(1) == largest(dtype)).all()
    assert (largest_stored[:, rank:].amax(1) == largest(dtype)).all()
    spec = LatentSpec(kv_lora_rank=rank, qk_rope_head_dim=rope, cache_format=CACHE_FORMATS[name])
    assert cache[0].nbytes + scales[0].nbytes == spec.page_bytes(16)


def test_int8_rounds_to_the_nearest(backend: Backend) -> None:
    row = torch.tensor([0.5, 1.5, -0.5, -2.5, 126.6, 300.0, -300.0, 0.49] * 2, device=backend.device).view(1, 1, 16)
    cache = torch.zeros(1, 1, 1, 16, dtype=torch.int8, device=backend.device)
    backend.kernels.store(row, row, Pages(cache, cache.clone()), slots(backend.device)[1:2])
    assert cache.flatten().tolist() == [0, 2, 0, -2, 127, 127, -127, 0] * 2


def test_rows_may_be_slices_of_a_fused_projection(backend: Backend) -> None:
    fused = eighths(len(SLOTS), 3, 64).to(backend.device)
    actual, expected = (poisoned(4, 16, 1, 64, dtype=torch.float16, device=backend.device) for _ in range(2))
    for kernels, cache in ((backend.kernels, actual), (reference, expected)):
        kernels.store(fused[:, 1:2], fused[:, 2:], Pages(cache, cache.clone()), slots(backend.device))
    assert torch.equal(bits(actual), bits(expected))


def test_a_pool_of_more_than_two_to_the_31_elements(backend: Backend) -> None:
    """Three pages 2**30 elements apart; the memory between them is never touched, so it costs nothing."""
    stride = 2**30
    skip_unless_held(torch.float8_e5m2, backend.device)
    memory = torch.empty(2 * stride + 16 * 16, dtype=torch.float8_e5m2, device=backend.device)
    cache = memory.as_strided((3, 16, 1, 16), (stride, 16, 16, 1))
    row = eighths(1, 1, 16).to(backend.device)
    backend.kernels.store(row, row, Pages(cache, cache), torch.tensor([2 * 16 + 3], device=backend.device))
    assert torch.equal(cache[2, 3].float().cpu(), row[0].cpu())


def test_nothing_to_store(backend: Backend) -> None:
    cache = poisoned(1, 16, 2, 16, dtype=torch.float32, device=backend.device)
    rows = torch.empty(0, 2, 16, device=backend.device)
    none = torch.empty(0, dtype=torch.int64, device=backend.device)
    backend.kernels.store(rows, rows, Pages(cache, cache.clone()), none)
    assert cache.isnan().all()
