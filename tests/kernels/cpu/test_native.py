"""The compiled kernels: that they are there where gcc is, and round as they say.

Attention and storing are tested with all other backends in test_decode.py, test_mla.py and test_store.py.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, silu
from torch.nn.functional import scaled_dot_product_attention as sdpa

from kvtool.kernels.cpu.memory import huge_pages, packed
from kvtool.kernels.cpu.native import ACTIVATIONS, Native, native, serves

BF16_EPS = 2.0**-8  # half a unit in the last place, relative
ROUNDS_ONCE = 1.02 * BF16_EPS

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="the compiled kernels need gcc")


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def assert_rounded(found: Tensor, exact: Tensor, sum_of: Tensor | float = 0.0) -> None:
    """One rounding to bf16 away, and fp32's error in adding up terms of size `sum_of`."""
    assert found.dtype == torch.bfloat16
    error = (found.double() - exact).abs()
    assert bool((error <= ROUNDS_ONCE * exact.abs() + 2e-6 * torch.as_tensor(sum_of) + 1e-6).all()), error.max()


@pytest.fixture
def kernels() -> Native:
    found = native()
    assert found is not None, "gcc is here, but the kernels were not built"
    return found


@needs_gcc
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31, 32, 33, 70])
@pytest.mark.parametrize("inputs", [32, 96, 576])
@pytest.mark.parametrize("tiles", [False, True])
def test_a_product_rounds_once(
    kernels: Native, monkeypatch: pytest.MonkeyPatch, rows: int, inputs: int, tiles: bool
) -> None:
    if tiles and not kernels.has_tiles:
        pytest.skip("this CPU has no AMX")
    monkeypatch.setattr(kernels, "has_tiles", tiles)
    x, weight = drawn(rows, inputs + 32)[:, 32:], drawn(96, inputs, seed=1)
    bias = drawn(96, seed=2)
    size = linear(x.double().abs(), weight.double().abs())
    exact = linear(x.double(), weight.double())
    assert_rounded(kernels.linear(x, packed(weight), None), exact, size)
    assert_rounded(kernels.linear(x, packed(weight), bias), exact + bias.double(), size)


@needs_gcc
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_a_gate_at_both_ends_of_the_numbers(kernels: Native, activation: str) -> None:
    gate = torch.cat(
        (drawn(96), drawn(32, scale=30), torch.tensor([0.0, -0.0, 1e30, -1e30, 88.0, -88.0, 1e-30, -200.0] * 4))
    )
    gate, up = gate.bfloat16(), drawn(160, seed=1)
    exact = {
        "silu": silu,
        "gelu": gelu,
        "gelu_new": lambda x: gelu(x, approximate="tanh"),
        "gelu_pytorch_tanh": lambda x: gelu(x, approximate="tanh"),
    }[activation](gate.double())
    found = kernels.gate_(gate.clone(), up, activation)
    assert_rounded(found, exact * up.double(), sum_of=1.0)


@needs_gcc
def test_nan_stays_nan(kernels: Native) -> None:
    x, weight = drawn(2, 64), drawn(32, 64, seed=1)
    x[1, 5] = float("nan")
    found = kernels.linear(x, packed(weight), None)
    assert found[1].isnan().all()
    assert not found[0].isnan().any()
    assert kernels.gate_(x[1].clone(), x[0], "silu")[5].isnan()
    assert kernels.rms_norm(x, drawn(64), 1e-5)[1].isnan().all()


@needs_gcc
@pytest.mark.parametrize("rows", [1, 100])
def test_a_norm_over_rows_of_a_wider_tensor(kernels: Native, rows: int) -> None:
    x, weight = drawn(rows, 700, scale=7)[:, 60:636], drawn(576, seed=1)
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_rounded(kernels.rms_norm(x, weight, 1e-5), exact)


@needs_gcc
@pytest.mark.parametrize("by_head", [False, True])
def test_a_norm_of_each_head(kernels: Native, by_head: bool) -> None:
    x, weight = drawn(5, 9, 64, scale=7)[:, 2:7], drawn(5, 64, seed=1)
    weight = weight if by_head else weight[0]
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_rounded(kernels.rms_norm(x, weight, 1e-5), exact)


@needs_gcc
@pytest.mark.parametrize("rows", [1, 100])
def test_a_sum_is_rounded_and_then_normalised(kernels: Native, rows: int) -> None:
    x, residual, weight = drawn(rows, 700)[:, 60:636], drawn(rows, 600, seed=1, scale=7)[:, :576], drawn(576, seed=2)
    before = residual.clone()
    normed, added = kernels.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(added, x + residual)
    assert torch.equal(normed, kernels.rms_norm(added, weight, 1e-5))
    assert torch.equal(residual, before)


@needs_gcc
@pytest.mark.parametrize("rows", [1, 100])
def test_a_rotation_turns_halves(kernels: Native, rows: int) -> None:
    x, cos, sin = drawn(rows, 9, 128)[:, 2:7], drawn(rows, 1, 128, seed=1), drawn(rows, 1, 128, seed=2)
    exact = x.double() * cos.double() + x.double().roll(64, dims=-1) * sin.double()
    assert_rounded(kernels.rotate(x, cos, sin), exact, sum_of=1.0)


@needs_gcc
@pytest.mark.parametrize("megabytes", [0.004, 1, 5])
def test_a_stream_reads_every_word(kernels: Native, megabytes: float) -> None:
    words = torch.randint(-(2**31), 2**31 - 1, (int(megabytes * 256) * 1024,), dtype=torch.int32)
    assert kernels.read_all(words) == int(words.sum()) % 2**32


@needs_gcc
def test_a_prefill_is_as_near_to_the_truth_as_torchs(kernels: Native) -> None:
    q, k, v = (drawn(300, 2, 64, seed=seed) for seed in range(3))
    indices = [torch.tensor(values, dtype=torch.int32) for values in ([[0]], [300], [0, 300])]
    found = kernels.paged_prefill(q, k[None], v[None], *indices, 0.125, 0, 300)
    heads = [x.transpose(0, 1)[None] for x in (q, k, v)]
    exact = sdpa(*(x.double() for x in heads), is_causal=True, scale=0.125)[0].transpose(0, 1)
    of_torch = sdpa(*heads, is_causal=True, scale=0.125)[0].transpose(0, 1)
    error, of_torchs = ((x.double() - exact).square().mean().sqrt() for x in (found, of_torch))
    assert error < 1.2 * of_torchs


@needs_gcc
@pytest.mark.parametrize("token", [0, 37, 38, 90])
def test_a_key_that_is_nan_reaches_the_queries_that_see_it(kernels: Native, token: int) -> None:
    q, k, v = (drawn(100, 2, 64, seed=seed) for seed in range(3))
    k[token] = float("nan")
    table, lengths, starts = (torch.tensor(x, dtype=torch.int32) for x in ([[0]], [100], [0, 100]))
    found = kernels.paged_prefill(q, k[None], v[None], table, lengths, starts, 0.125, 0, 100)
    assert found[token:].isnan().all()
    assert not found[:token].isnan().any()
    assert kernels.paged_decode(q[-1:], k[None], v[None], table, lengths, 0.125, 0).isnan().all()


def test_huge_pages_change_no_contents_and_take_what_is_too_small() -> None:
    for size in (1, 100, 3 << 20, (4 << 20) + 5):
        tensor = torch.empty(size, dtype=torch.uint8)
        assert huge_pages(tensor).fill_(7).data_ptr() == tensor.data_ptr()
        assert bool((tensor == 7).all())


def test_only_whole_rows_of_bf16_are_served() -> None:
    assert serves(drawn(3, 64))
    assert serves(drawn(3, 128)[:, 64:])
    assert not serves(drawn(3, 64).float())
    assert not serves(drawn(3, 80))
    assert not serves(drawn(64, 64).t())
    assert not serves(drawn(3, 64), drawn(3, 64).half())


def test_a_machine_without_gcc_has_none(without_compiler: None) -> None:
    assert native() is None
