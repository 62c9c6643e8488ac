"""A paged cache as bad as the contract allows: pages in random order, every slot that is not a token's holds NaN, and
block-table entries that no one may follow point far outside the pool."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from kvtool.kernels.pages import Pages
from kvtool.kernels.quantise import stored
from kvtool.kernels.rows import Rows, Softmax
from kvtool.kernels.triton.checks import FP8_CAPABILITY, FP8_DTYPES

FAR_OUTSIDE = 2**30

# Largest |kernel - fp64 reference| allowed, by the dtype of the queries, for values of order 1.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    """Sequences of `lens` cached tokens; the last `query_lens` of each are this step's."""

    lens: tuple[int, ...]
    query_lens: tuple[int, ...]
    page: int = 16
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    v_dim: int = 64
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype = torch.float32
    window: int = 0
    k_scale: float = 1.0
    v_scale: float = 1.0
    vector_scales: bool = False  # a scale beside each vector, of the order of k_scale and v_scale
    softcap: float = 0.0
    sinks: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Pool:
    """A case laid out: caches [P,B,HKV,*], block_tables [S,N], seq_lens [S], query_starts [S+1], queries [T,HQ,D]."""

    pages: Pages
    rows: Rows
    q: Tensor
    softmax: Softmax

    @property
    def call(self) -> tuple[Tensor, Pages, Rows, Softmax]:
        """The arguments of `decode` and `prefill`."""
        return self.q, self.pages, self.rows, self.softmax

    @property
    def exact(self) -> tuple[Tensor, Pages, Rows, Softmax]:
        """The same in fp64, exact for every cache dtype."""
        return self.q.double(), exact(self.pages), self.rows, self.softmax

    @property
    def latents(self) -> Pool:
        """The pages of one KV head as latents, whose first columns, as many as V has, are the values."""
        pages, scale, other = self.pages, self.pages.k_scale, self.pages.v_scale
        assert pages.v is not None
        both = torch.cat((scale, other), dim=2) if isinstance(scale, Tensor) else scale
        return replace(self, pages=Pages(pages.k.squeeze(2), k_scale=both, latent_dim=pages.v.shape[3]))


def exact(pages: Pages) -> Pages:
    """Pages in fp64."""
    return pages.map(lambda tensor: tensor.double())


def skip_unless_held(dtype: torch.dtype, device: str) -> None:
    """fp8 is refused by cards that have none."""
    if dtype in FP8_DTYPES and device != "cpu" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        pytest.skip("this card has no fp8")


def lay_out(case: Case, seed: int = 0) -> Pool:
    skip_unless_held(case.cache_dtype, case.device)
    random = torch.Generator().manual_seed(seed)
    pages_of = [-(-length // case.page) for length in case.lens]
    width = max(pages_of) + 1
    num_pages = sum(pages_of) + 2
    order = torch.randperm(num_pages, generator=random)
    shape = (num_pages, case.page, case.kv_heads)
    k_cache, v_cache = (_poison(*shape, dim, dtype=case.cache_dtype) for dim in (case.head_dim, case.v_dim))
    scales = {name: _poison(*shape) if case.vector_scales else getattr(case, name) for name in ("k_scale", "v_scale")}
    tables = torch.full((len(case.lens), width), FAR_OUTSIDE, dtype=torch.int32)
    for row, (length, query_len, pages) in enumerate(zip(case.lens, case.query_lens, pages_of, strict=True)):
        mine, order = order[:pages], order[pages:]
        tables[row, :pages] = mine
        lowest = max(0, length - query_len - case.window + 1) if case.window else 0
        tables[row, : lowest // case.page] = FAR_OUTSIDE  # these pages were given back
        token = torch.arange(lowest, length)
        page, slot = mine[token // case.page], token % case.page
        for cache in (k_cache, v_cache):
            values = _values(random, len(token), case.kv_heads, cache.shape[-1])
            cache[page, slot] = stored(values * (40 if case.cache_dtype == torch.int8 else 1), case.cache_dtype)
        for name, scale in scales.items():
            if case.vector_scales:
                factors = torch.rand(len(token), case.kv_heads, generator=random) + 0.5
                scale[page, slot] = factors * getattr(case, name)
    starts = torch.tensor([0, *case.query_lens]).cumsum(0).to(torch.int32)
    q = _values(random, int(starts[-1]), case.heads, case.head_dim).to(case.dtype)
    lens = torch.tensor(case.lens, dtype=torch.int32)
    sinks = (2 * _values(random, case.heads)).to(case.device) if case.sinks else None
    pages = Pages(k_cache, v_cache, scales["k_scale"], scales["v_scale"]).map(lambda tensor: tensor.to(case.device))
    return Pool(
        pages,
        Rows(*(tensor.to(case.device) for tensor in (tables, lens, starts))),
        q.to(case.device),
        Softmax(case.head_dim**-0.5, case.window, case.softcap, sinks),
    )


def one_query_each(lens: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * len(lens)


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """NaN anywhere is an infinite error."""
    difference = (actual.double() - expected).abs()
    return float("inf") if difference.isnan().any() else float(difference.max()) if difference.numel() else 0.0


def _poison(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """NaN, or the loudest value of a dtype that has none."""
    return torch.full(shape, 127 if dtype == torch.int8 else float("nan")).to(dtype)


def _values(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=random)
