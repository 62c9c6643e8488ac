"""Residual and norm, QKV to query and cache, SiLU gate: each against its fp64 twin."""

from __future__ import annotations

import pytest
import torch

from kvtool.kernels.pages import Pages
from kvtool.kernels.reference import step as step_reference
from kvtool.kernels.triton.checks import FP8_DTYPES
from kvtool.kernels.weights import Gate
from tests.kernels.conftest import Backend
from tests.kernels.paged_case import TOLERANCE, largest_error, skip_unless_held

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
EPS = 1e-5


@pytest.fixture
def step(backend: Backend):
    return backend.kernels


def values(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize(("tokens", "size"), [(1, 64), (5, 576), (3, 4096), (0, 64)])
def test_residual_and_norm(backend: Backend, step, dtype: torch.dtype, tokens: int, size: int) -> None:
    where = {"dtype": dtype, "device": backend.device}
    x, residual = values(tokens, size, **where), 3 * values(tokens, 2 * size, seed=1, **where)[:, :size]
    weight = values(size, seed=2, **where)
    normed, added = step.add_rms_norm(x, residual, weight, eps=EPS)
    assert (normed.dtype, added.dtype) == (dtype, dtype)
    exact = x.double() + residual.double()
    assert ((added.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs()).all()
    nothing = torch.zeros_like(added).double()
    expected, _ = step_reference.add_rms_norm(added.double(), nothing, weight.double(), eps=EPS)
    assert largest_error(normed, expected) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("normed_after", [True, False], ids=["Gemma", "OLMo 2"])
def test_a_branch_with_a_norm_of_its_own(backend: Backend, step, dtype: torch.dtype, normed_after: bool) -> None:
    """Weights in fp32, as Gemma's are; without a second norm the sum is what the next product reads."""
    where = {"device": backend.device}
    x, residual = (values(5, 96, dtype=dtype, seed=seed, **where) for seed in (0, 1))
    x_weight, weight = (1 + 0.3 * values(96, dtype=F32, seed=seed, **where) for seed in (2, 3))
    weight = weight if normed_after else None
    normed, added = step.add_rms_norm(x, residual, weight, x_weight, eps=EPS)
    wide = None if weight is None else weight.double()
    expected = step_reference.add_rms_norm(x.double(), residual.double(), wide, x_weight.double(), eps=EPS)
    for found, exact in zip((normed, added), expected, strict=True):
        assert found.dtype == dtype
        assert largest_error(found, exact) < 2 * TOLERANCE[dtype]
    assert normed_after or torch.equal(normed, added)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize(("tokens", "size"), [(1, 96), (3, 1500), (0, 64)])
def test_gate(backend: Backend, dtype: torch.dtype, tokens: int, size: int, activation: str) -> None:
    both = 4 * values(tokens, 2 * size, dtype=dtype, device=backend.device)
    both[:1, :2] = torch.tensor([-200.0, 200.0])
    gate, up = both.chunk(2, dim=1)
    if backend.device == "cpu" and not backend.interpreted:
        pytest.skip("a CPU's gates are part of its products")
    from kvtool.kernels.triton.rows import gate as gate_by_triton

    kind = Gate(activation)
    expected = step_reference.gate(gate.double(), up.double(), kind)
    error = (gate_by_triton(gate, up, kind).double() - expected).abs() / (1 + expected.abs())
    assert tokens == 0 or float(error.max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "qk norm"])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "vector_scales", "head_dim", "rotary"),
    [
        (F32, F32, False, 24, 24),
        (BF16, BF16, False, 64, 48),
        (F16, torch.int8, True, 80, 80),
        (BF16, torch.float8_e5m2, False, 16, 0),
        (F32, torch.int8, False, 64, 64),
    ],
    ids=str,
)
def test_qkv_becomes_query_and_cache(
    backend: Backend, step, normed, dtype, cache_dtype, vector_scales, head_dim, rotary
) -> None:
    """Rows are slices of a wider product, one token has no slot, and what no token owns keeps its bits. Heads are
    turned whole, in part, or not at all."""
    heads, kv_heads, tokens = 6, 2, 5
    where = {"dtype": dtype, "device": backend.device}
    qkv = values(tokens, (heads + 2 * kv_heads + 1) * head_dim, **where)[:, : (heads + 2 * kv_heads) * head_dim]
    qkv = qkv.unflatten(1, (-1, head_dim))
    norms = 1 + 0.3 * values(heads + kv_heads, head_dim, seed=1, **where) if normed else None
    angles = 3 * values(tokens, 1, rotary // 2, dtype=F32, device=backend.device, seed=2)
    rotation = (torch.cat([angles.cos()] * 2, -1).to(dtype), torch.cat([-angles.sin(), angles.sin()], -1).to(dtype))
    slots = torch.tensor([33, 0, -1, 15, 16], device=backend.device)
    results = []
    for kernels, wide in ((step, False), (step_reference, True)):
        k_cache, v_cache = (torch.zeros(3, 16, kv_heads, head_dim, device=backend.device).to(cache_dtype) for _ in "kv")
        scales = [torch.zeros(3, 16, kv_heads, device=backend.device) if vector_scales else 0.05 for _ in "kv"]
        if cache_dtype.is_floating_point:
            scales = [0.5, 2.0]
        up = (lambda x: x if x is None else x.double()) if wide else (lambda x: x)
        turn = (up(rotation[0]), up(rotation[1])) if rotary else None
        q = kernels.split_qkv(up(qkv), up(norms), EPS, turn, Pages(k_cache, v_cache, *scales), slots)
        stored = [
            cache.double() * (scale.unsqueeze(-1) if vector_scales else scale)
            for cache, scale in zip((k_cache, v_cache), scales, strict=True)
        ]
        results.append((q, *stored))
    (q, *caches), (expected_q, *expected_caches) = results
    assert (q.dtype, q.shape) == (dtype, (tokens, heads, head_dim))
    assert largest_error(q, expected_q) < 2 * TOLERANCE[dtype]
    for cache, expected in zip(caches, expected_caches, strict=True):
        step_size = {torch.int8: 0.06, torch.float8_e5m2: 2.1}.get(cache_dtype, 3 * TOLERANCE[dtype])
        assert largest_error(cache, expected) < step_size
        owned = torch.zeros(48, dtype=torch.bool)
        owned[slots[slots >= 0].cpu()] = True
        assert not cache.flatten(0, 1)[~owned].any()
        assert cache.flatten(0, 1)[owned].any(dim=-1).all()


@pytest.mark.parametrize("num_absorbed", [0, 3, 5], ids=["prefill", "mixed", "decode"])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "vector_scales", "shape"),
    [
        (F32, F32, False, (4, 16, 32, 8)),
        (BF16, BF16, False, (18, 16, 64, 16)),
        (F16, torch.int8, True, (3, 8, 48, 12)),
        (BF16, torch.float8_e5m2, False, (4, 8, 32, 16)),
        (F16, torch.float8_e4m3fn, True, (2, 8, 512, 64)),
    ],
    ids=str,
)
def test_latents_are_stored_and_queries_turned(
    backend: Backend, step, num_absorbed, dtype, cache_dtype, vector_scales, shape
) -> None:
    """Rows are slices of wider products, one token has no slot; the queries' first columns keep their bits."""
    skip_unless_held(cache_dtype, backend.device)
    heads, nope, rank, rope = shape
    tokens, where = 5, {"dtype": dtype, "device": backend.device}
    queries = values(tokens, heads, nope + rope + 8, **where)[..., : nope + rope]
    latent = values(tokens, rank + rope + 8, seed=1, **where)[:, : rank + rope]
    norm = 1 + 0.3 * values(rank, seed=2, **where)
    angles = 3 * values(tokens, 1, rope // 2, dtype=F32, device=backend.device, seed=3)
    rotation = (torch.cat([angles.cos()] * 2, -1).to(dtype), torch.cat([-angles.sin(), angles.sin()], -1).to(dtype))
    slots = torch.tensor([33, 0, -1, 15, 16], device=backend.device)
    results = []
    for kernels, widened in ((step, lambda x: x), (step_reference, lambda x: x.double())):
        cache = torch.zeros(3, 16, rank + rope, device=backend.device).to(cache_dtype)
        scale = torch.zeros(3, 16, 2, device=backend.device) if vector_scales else 0.5
        q = widened(queries).clone()
        turn = (widened(rotation[0]), widened(rotation[1]))
        pages = Pages(cache, k_scale=scale, latent_dim=rank)
        absorbed = kernels.split_latent(q, widened(latent), widened(norm), EPS, turn, pages, slots, num_absorbed)
        factors = scale.repeat_interleave(torch.tensor([rank, rope]).to(scale.device), 2) if vector_scales else scale
        results.append((q, absorbed[..., rank:], cache.double() * factors))
    (q, absorbed, cache), expected = results
    assert (absorbed.dtype, absorbed.shape) == (dtype, (num_absorbed, heads, rope))
    assert torch.equal(q[..., :nope], queries[..., :nope])
    assert torch.equal(q[:num_absorbed], queries[:num_absorbed])
    assert largest_error(q[num_absorbed:], expected[0][num_absorbed:]) < 2 * TOLERANCE[dtype]
    assert largest_error(absorbed, expected[1]) < 2 * TOLERANCE[dtype]
    if backend.interpreted and cache_dtype in FP8_DTYPES:
        # The interpreter loses the carry where fp8 is rounded up to a power of two.
        cache = torch.where((2 * cache - expected[2]).abs() < (cache - expected[2]).abs(), 2 * cache, cache)
    step_size = {torch.int8: 0.06, torch.float8_e5m2: 0.6, torch.float8_e4m3fn: 0.2}.get(cache_dtype, TOLERANCE[dtype])
    assert largest_error(cache, expected[2]) < 2 * step_size
    owned = torch.zeros(48, dtype=torch.bool)
    owned[slots[slots >= 0].cpu()] = True
    assert not cache.flatten(0, 1)[~owned].any()
    assert cache.flatten(0, 1)[owned].any(dim=-1).all()


def test_what_does_not_fit_is_refused() -> None:
    from kvtool.kernels.triton import step
    from kvtool.kernels.triton.rows import gate

    with pytest.raises(ValueError, match=r"rows \[2, 4\] and \[2, 8\]"):
        gate(torch.zeros(2, 8), torch.zeros(2, 4), Gate("silu"))
    with pytest.raises(ValueError, match="a norm is not 8 weights"):
        step.add_rms_norm(torch.zeros(2, 8), torch.zeros(2, 8), torch.zeros(16)[::2], eps=EPS)
    qkv, pages = torch.zeros(1, 6, 8), Pages(torch.zeros(1, 16, 2, 8), torch.zeros(1, 16, 2, 8))
    turn, slots = torch.zeros(1, 1, 8), torch.zeros(1, dtype=torch.int64)
    wide = torch.zeros(1, 1, 12)
    with pytest.raises(ValueError, match=r"rotation \[1, 1, 12\]"):
        step.split_qkv(qkv, None, EPS, (wide, wide), pages, slots)
    with pytest.raises(ValueError, match="norms are not contiguous"):
        step.split_qkv(qkv, torch.zeros(6, 8), EPS, (turn, turn), pages, slots)
    q, latents = torch.zeros(1, 2, 8), torch.zeros(1, 16, 20)
    with pytest.raises(ValueError, match=r"rows \[1, 20\] are not 16 \+ 8"):
        step.split_latent(q, latents[:, 0], torch.zeros(16), EPS, (turn, turn), Pages(latents, latent_dim=16), slots, 1)
    with pytest.raises(ValueError, match="no rotary part of 8"):
        step.split_latent(q, latents[:, 0], torch.zeros(12), EPS, (turn, turn), Pages(latents, latent_dim=12), slots, 1)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("size", [96, 4096, 6176, 50257])
def test_the_likeliest_token_is_the_first_of_equals(step, backend: Backend, dtype: torch.dtype, size: int) -> None:
    """In rows of a wider tensor: at both ends, across stretches, among equals of either zero, beside nothing finite."""
    logits = values(9, size + 32, dtype=dtype, device=backend.device)[:, :size]
    largest = {0: [0], 1: [size - 1], 2: [size // 2, size - 1], 3: [5, 6, size - 2], 4: list(range(size))}
    for row, places in largest.items():
        logits[row, places] = 9.0
    logits[5], logits[5, 3], logits[5, 2] = -1.0, 0.0, -0.0
    logits[6] = float("-inf")
    logits[7], logits[7, size - 3] = float("-inf"), -3e38
    logits[8, [size // 3, size - 1]] = float("nan")  # larger than all
    expected = [int(row.double().argmax()) for row in logits.cpu()]
    assert expected == [0, size - 1, size // 2, 5, 0, 2, 0, size - 3, size // 3]
    found = step.likeliest(logits)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


@pytest.mark.parametrize("num_rows", [1, 5, 33, 100])
@pytest.mark.parametrize("block_size", [16, 24])
def test_where_decode_rows_stand(backend: Backend, step, num_rows: int, block_size: int) -> None:
    """At both ends of pages, with padding between; pages so far out that a slot is no int32; no entry past a row's."""
    drawn = torch.Generator().manual_seed(num_rows)
    pages = torch.randint(2**31 - 1, (num_rows, 6), generator=drawn, dtype=torch.int32)
    positions = torch.randint(-1, 5 * block_size, (num_rows,), generator=drawn)
    positions[0], pages[0, 4] = 5 * block_size - 1, 2**31 - 1
    expected = [int(p) // block_size if p >= 0 else None for p in positions]
    slots = [-1 if i is None else int(pages[r, i]) * block_size + int(positions[r]) % block_size
             for r, i in enumerate(expected)]  # fmt: skip
    rows = positions.to(backend.device, copy=True)
    at, found, seq_lens = step.place(rows, pages.to(backend.device)[:, :5], block_size)
    assert at.tolist() == positions.clamp(min=0).tolist()
    assert found.tolist() == slots
    assert (found.dtype, seq_lens.dtype) == (torch.int64, torch.int32)
    assert seq_lens.tolist() == (positions + 1).tolist()
    assert rows.tolist() == [int(p) + 1 if p >= 0 else -1 for p in positions]
