"""Multi-head latent attention over pages of latents against the fp64 reference, on every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from kvtool.kernels.pages import Pages
from kvtool.kernels.reference import attention as reference
from kvtool.kernels.rows import Rows, Softmax
from tests.kernels.conftest import Backend
from tests.kernels.paged_case import TOLERANCE, Case, exact, largest_error, lay_out, one_query_each

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
E4M3 = torch.float8_e4m3fn


def latent(lens: tuple[int, ...], query_lens: tuple[int, ...] | None = None, **shape: object) -> Case:
    """head_dim is the stored row, latent and rotary key; v_dim is the latent dimension."""
    small = {"dtype": F16, "cache_dtype": F16, "head_dim": 80, "v_dim": 64, "kv_heads": 1}
    return Case(lens, query_lens or one_query_each(lens), **(small | shape))


DECODE = {
    "ragged": latent((1, 15, 16, 17, 0, 200)),
    "splits": latent((300, 5), page=64, heads=16),
    "heads past a tile": latent((40, 3), heads=72),
    "DeepSeek-V3": latent((1, 70), page=64, heads=16, head_dim=576, v_dim=512, dtype=BF16, cache_dtype=BF16),
    "64 heads to a tile": latent((130, 3), page=64, heads=72, head_dim=576, v_dim=512, dtype=BF16, cache_dtype=BF16),
    "a tiny model": latent((33, 5), head_dim=40, v_dim=32, dtype=F32, cache_dtype=F32),
    "fp8": latent((70,), dtype=BF16, cache_dtype=E4M3, k_scale=0.5, v_scale=0.5),
    "int8, a scale a vector": latent((70, 5), cache_dtype=torch.int8, k_scale=0.02, vector_scales=True),
    "3 queries": latent((200, 0, 3), (3, 3, 3), heads=16),
    "2 queries, a scale a vector": latent((70,), (2,), dtype=BF16, cache_dtype=E4M3, vector_scales=True),
}
PREFILL = {
    "plain": latent((1, 16, 40), (1, 16, 40)),
    "chunk": latent((70, 9), (20, 1), page=64),
    "DeepSeek-V3": latent((20,), (5,), page=64, heads=16, head_dim=576, v_dim=512, dtype=BF16, cache_dtype=BF16),
    "a tiny model": latent((33, 0), (33, 0), head_dim=40, v_dim=32, dtype=F32, cache_dtype=F32),
    "fp8": latent((40,), (30,), dtype=BF16, cache_dtype=E4M3, k_scale=0.5, v_scale=0.5),
    "fp8, a scale a vector": latent((40,), (30,), dtype=BF16, cache_dtype=E4M3, vector_scales=True),
}


@pytest.mark.parametrize("case", DECODE.values(), ids=DECODE.keys())
def test_decode_equals_the_reference(backend: Backend, case: Case) -> None:
    pool = lay_out(replace(case, device=backend.device)).latents
    actual = backend.kernels.decode(pool.q, pool.pages, replace(pool.rows, query_starts=None), pool.softmax)
    expected = reference.decode(*pool.exact)
    assert (actual.dtype, actual.shape) == (case.dtype, expected.shape)
    assert largest_error(actual, expected) < TOLERANCE[case.dtype]


@pytest.mark.parametrize("case", PREFILL.values(), ids=PREFILL.keys())
def test_prefill_equals_the_reference(backend: Backend, case: Case) -> None:
    pool = lay_out(replace(case, device=backend.device)).latents
    actual = backend.kernels.prefill(*pool.call)
    expected = reference.prefill(*pool.exact)
    assert (actual.dtype, actual.shape) == (case.dtype, expected.shape)
    assert largest_error(actual, expected) < TOLERANCE[case.dtype]


GATHERED = {
    "fp16": latent((40,), page=16),
    "fp8": latent((70,), page=64, dtype=BF16, cache_dtype=E4M3, k_scale=0.5),
    "int8, two scales a row": latent(
        (60,), page=48, cache_dtype=torch.int8, k_scale=0.02, v_scale=0.01, vector_scales=True
    ),
    "DeepSeek-V3": latent((70,), page=64, head_dim=576, v_dim=512, dtype=BF16, cache_dtype=BF16),
}


@pytest.mark.parametrize("case", GATHERED.values(), ids=GATHERED.keys())
def test_gathered_pages_equal_the_reference(backend: Backend, case: Case) -> None:
    """In any order, more than once, with room for what lies in unused slots."""
    pool = lay_out(replace(case, device=backend.device)).latents
    chosen = pool.rows.block_tables[0, [0, -2, 0]]
    actual = backend.kernels.gather(pool.pages, chosen, case.dtype)
    expected = reference.gather(exact(pool.pages), chosen, torch.float64)
    assert (actual.dtype, actual.shape) == (case.dtype, (3, case.page, case.head_dim))
    used = ~expected.isnan()
    assert used[0].all()
    assert largest_error(actual[used], expected[used]) < TOLERANCE[case.dtype]


SHARED_KEYS = {
    "plain": Case((1, 16, 40), (1, 16, 40), heads=4, kv_heads=4, dtype=F16, cache_dtype=F16),
    "chunk": Case((130, 9), (20, 1), page=64, heads=2, kv_heads=2, head_dim=24, v_dim=16),
    "a padding row": Case((33, 0), (33, 0), heads=4, kv_heads=4, head_dim=16, v_dim=12),
    "DeepSeek": Case((70,), (9,), 64, 2, 2, 128, 128, BF16, BF16),
}


@pytest.mark.parametrize("case", SHARED_KEYS.values(), ids=SHARED_KEYS.keys())
def test_heads_share_the_rotary_part_of_their_keys(backend: Backend, case: Case) -> None:
    """K and V are halves of wider rows, and so is the part that all heads share."""
    pool, rope = lay_out(replace(case, device=backend.device)), 32 if case.head_dim == 128 else 24
    shared = lay_out(replace(case, device=backend.device, kv_heads=1, head_dim=rope + 8), seed=0)
    both = torch.cat((pool.pages.k, pool.pages.v), dim=3)
    k, v = both.split((case.head_dim, case.v_dim), dim=3)
    pages = Pages(k, v, k_rope=shared.pages.k.squeeze(2)[..., 8:])
    q = torch.cat((pool.q, shared.q[..., :rope]), dim=2)
    actual = backend.kernels.prefill(q, pages, pool.rows, Softmax(0.2))
    wide = torch.cat((k, pages.k_rope.unsqueeze(2).expand(-1, -1, case.kv_heads, -1)), dim=3)
    expected = reference.prefill(q.double(), exact(Pages(wide, v)), pool.rows, Softmax(0.2))
    assert (actual.dtype, actual.shape) == (case.dtype, expected.shape)
    assert largest_error(actual, expected) < TOLERANCE[case.dtype]
    again = reference.prefill(q.double(), exact(pages), pool.rows, Softmax(0.2))
    assert largest_error(again, expected) < 1e-12


@dataclass(frozen=True)
class Uncompressed:
    """One sequence of L tokens as the model states MLA: per-head projections of a latent, and a shared rotary key."""

    latents: Tensor  # [L, R]
    rope_keys: Tensor  # [L, E]
    q_nope: Tensor  # [H, N]
    q_rope: Tensor  # [H, E]
    w_uk: Tensor  # [H, N, R]: key of a head = w_uk @ latent
    w_uv: Tensor  # [H, V, R]: value of a head = w_uv @ latent

    def attention(self, scale: float) -> Tensor:
        """[H, V], with keys and values decompressed."""
        keys = torch.einsum("hnr,lr->hln", self.w_uk, self.latents)
        scores = torch.einsum("hn,hln->hl", self.q_nope, keys) + self.q_rope @ self.rope_keys.T
        values = torch.einsum("hvr,lr->hlv", self.w_uv, self.latents)
        return torch.einsum("hl,hlv->hv", torch.softmax(scores * scale, dim=-1), values)


def test_absorbed_weights_give_the_uncompressed_attention(backend: Backend) -> None:
    """q_nope W_UK on the latents, then W_UV, is attention of dimension N + E: the scale is 1/sqrt(N + E), not R + E."""
    length, heads, nope, rope, latent_dim, v_dim = 21, 4, 24, 16, 32, 24
    random = torch.Generator().manual_seed(0)
    shapes = ((length, latent_dim), (length, rope), (heads, nope), (heads, rope))
    shapes += ((heads, nope, latent_dim), (heads, v_dim, latent_dim))
    model = Uncompressed(*(torch.randn(shape, generator=random, dtype=torch.float64) / 2 for shape in shapes))
    scale = 1 / math.sqrt(nope + rope)

    absorbed = torch.cat([torch.einsum("hn,hnr->hr", model.q_nope, model.w_uk), model.q_rope], dim=1)
    rows = torch.cat([model.latents, model.rope_keys], dim=1)
    pages = Pages(torch.zeros(2, 16, latent_dim + rope, device=backend.device), latent_dim=latent_dim)
    slots = torch.arange(length, device=backend.device)
    backend.kernels.store(rows.float().to(backend.device), None, pages, slots)
    where = (torch.tensor(x, dtype=torch.int32, device=backend.device) for x in ([[0, 1]], [length]))
    attended = backend.kernels.decode(absorbed.float().to(backend.device)[None], pages, Rows(*where), Softmax(scale))
    out = torch.einsum("hr,hvr->hv", attended[0].double().cpu(), model.w_uv)
    assert largest_error(out, model.attention(scale)) < 1e-5
