"""The compiled kernels as an old gcc builds them, or a new one on an old CPU: without AVX-512, bf16, VNNI and AMX."""

from __future__ import annotations

import platform
import shutil

import pytest
import torch
from torch.nn.functional import linear, silu
from torch.nn.functional import scaled_dot_product_attention as sdpa

from kvtool.kernels.cpu.memory import packed
from kvtool.kernels.cpu.native import FLAGS, SOURCES, Native
from kvtool.kernels.cpu.quantised import packed_codes
from kvtool.system.compiled import load_library
from tests.kernels.cpu import test_quantised as quantised
from tests.kernels.cpu.test_native import assert_rounded, drawn

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or platform.machine() != "x86_64", reason="gcc can build for older CPUs of x86-64 alone"
)


@pytest.fixture(scope="module")
def old() -> Native:
    """Not optimised: it is built in a second, and kept as all libraries are."""
    compiled = load_library(SOURCES, (*FLAGS, "-march=haswell", "-O0"))
    assert compiled.handle is not None, compiled.reason
    return Native(compiled.handle)


def test_it_says_what_does_not_pay(old: Native) -> None:
    assert not old.prefill_pays
    assert not old.quantised_pays
    assert not old.has_tiles


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_products(old: Native, rows: int) -> None:
    x, weight, up = drawn(rows, 96), drawn(64, 96, seed=1), drawn(64, 96, seed=2)
    size = linear(x.double().abs(), weight.double().abs())
    assert_rounded(old.linear(x, packed(weight), None), linear(x.double(), weight.double()), size)
    found = old.gated_linear(x, packed(weight * 0.1), packed(up * 0.1), (None, None), "silu")
    exact = silu(linear(x.double(), (weight * 0.1).double())) * linear(x.double(), (up * 0.1).double())
    assert float((found.double() - exact).abs().max()) < 0.01 * float(exact.abs().max())


@pytest.mark.parametrize("kind", quantised.KINDS)
def test_weights_of_few_bits(old: Native, kind: str) -> None:
    x, blocks = quantised.drawn(3, 96), quantised.stored(kind, 64, 96)
    weight = quantised.weight_of(blocks)
    exact = linear(x.double(), weight)
    error = (old.quantised_linear(x, packed_codes(blocks), None).double() - exact).abs()
    assert bool((error <= quantised.allowed(x, weight, exact)).all())


@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("window", [0, 70])
def test_decode(old: Native, block: int, window: int) -> None:
    length, heads, kv_heads, dim = 150, 6, 2, 96
    k, v = (drawn(256 // block, block, kv_heads, dim, seed=seed) for seed in (1, 2))
    table = torch.randperm(256 // block, generator=torch.Generator().manual_seed(0)).int()[None]
    q, lengths = drawn(1, heads, dim), torch.tensor([length], dtype=torch.int32)
    found = old.paged_decode(q, k, v, table, lengths, 0.1, window)
    seen = slice(length - window if window else 0, length)
    keys, values = (x[table[0].long()].flatten(0, 1)[seen].transpose(0, 1).double() for x in (k, v))
    exact = sdpa(q.double().transpose(0, 1), *(x.repeat_interleave(3, dim=0) for x in (keys, values)), scale=0.1)
    assert_rounded(found, exact.transpose(0, 1), 1.0)
