"""Products with weights of 8 and 4 bits against fp64 ones with what the bits stand for."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from kvtool.kernels.blocks import Blocks, stacked
from kvtool.kernels.cpu.native import Native, native
from kvtool.kernels.cpu.quantised import fits, packed_codes

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the compiled kernels need gcc")
KINDS = {"Q8_0": (8, False), "Q4_0": (4, False), "Q4_1": (4, True), "int8 rows": (8, False)}
each_kind = pytest.mark.parametrize("kind", KINDS)
HALF_ULP = 1.02 * 2.0**-8
DIGITS_EPS = 2.0**-14  # half a step of the digits over the largest of 32


@pytest.fixture
def kernels() -> Native:
    found = native()
    assert found is not None
    return found


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of sizes that differ a hundredfold."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.empty(shape).uniform_(-2, 2, generator=generator)
    return (torch.randn(shape, generator=generator) * 10**sizes).bfloat16()


def stored(kind: str, rows: int, columns: int, seed: int = 1) -> Blocks:
    bits, has_least = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, columns), dtype=torch.uint8, generator=generator)
    scale, least = (torch.randn(rows, columns // 32, generator=generator).half() * size for size in (0.01, 0.1))
    scale[0, 0] = 3e-6  # less than fp16 has at full width
    if kind == "int8 rows":
        scale = scale[:, :1].float() * 1.001  # no number of fp16
    return Blocks(codes, bits, scale, least if has_least else None)


def weight_of(blocks: Blocks) -> Tensor:
    """What the codes stand for, in fp64."""
    scale = blocks.scale.double().repeat_interleave(blocks.codes.shape[1] // blocks.scale.shape[1], dim=1)
    if blocks.least is None:
        return scale * (blocks.codes.double() - 2 ** (blocks.bits - 1))
    return scale * blocks.codes.double() + blocks.least.double().repeat_interleave(32, dim=1)


def allowed(x: Tensor, weight: Tensor, exact: Tensor) -> Tensor:
    """One rounding to bf16, that of the digits of x, and fp32's in adding up."""
    largest = x.double().abs().unflatten(1, (-1, 32)).amax(dim=2).repeat_interleave(32, dim=1)
    added = 1e-6 * linear(x.double().abs(), weight.abs()) + DIGITS_EPS * linear(largest, weight.abs())
    return HALF_ULP * exact.abs() + added


@each_kind
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 12])
@pytest.mark.parametrize("columns", [32, 96, 576])
def test_a_product(kernels: Native, kind: str, rows: int, columns: int) -> None:
    x, blocks, bias = drawn(rows, columns + 32)[:, 32:], stored(kind, 96, columns), drawn(96, seed=2)
    weight, codes = weight_of(blocks), packed_codes(blocks)
    for one in (None, bias):
        exact = linear(x.double(), weight, None if one is None else one.double())
        error = (kernels.quantised_linear(x, codes, one).double() - exact).abs()
        assert bool((error <= allowed(x, weight, exact)).all())


@each_kind
def test_elements_near_the_largest_are_exact(kernels: Native, kind: str) -> None:
    x = torch.linspace(1, 63, 64).bfloat16()[None]
    blocks = stored(kind, 64, 64)
    exact = linear(x.double(), weight_of(blocks))
    error = (kernels.quantised_linear(x, packed_codes(blocks), None).double() - exact).abs()
    assert bool((error <= HALF_ULP * exact.abs() + 1e-6 * linear(x.double(), weight_of(blocks).abs())).all())


@each_kind
def test_a_gate(kernels: Native, kind: str) -> None:
    x, gate, up = drawn(3, 96) * 0.05, stored(kind, 64, 96), stored("Q8_0", 64, 96, seed=3)
    found = kernels.quantised_gated_linear(x, packed_codes(gate), packed_codes(up), (None, None), "silu")
    exact = silu(linear(x.double(), weight_of(gate))) * linear(x.double(), weight_of(up))
    assert float((found.double() - exact).abs().max()) < 0.02 * float(exact.abs().max())


@each_kind
def test_what_is_no_number_stays_none_and_nothing_is_nothing(kernels: Native, kind: str) -> None:
    x = drawn(4, 64)
    x[0, 3], x[1, 40], x[2] = float("nan"), float("inf"), 0.0
    x[3] = 1e-36
    found = kernels.quantised_linear(x, packed_codes(stored(kind, 32, 64)), None)
    assert bool(found[:2].isnan().all())
    assert bool((found[2:] == 0).all())


def test_weights_that_are_stored_alike_stand_over_each_other() -> None:
    first, second = stored("Q4_1", 32, 64), stored("Q4_1", 64, 64, seed=5)
    both = stacked([first, second])
    assert both is not None
    assert torch.equal(weight_of(both), torch.cat((weight_of(first), weight_of(second))))
    assert stacked([first, stored("Q4_0", 32, 64)]) is None
    assert stacked([first, None]) is None
    assert stacked([stored("int8 rows", 32, 32), stored("Q8_0", 32, 32)]) is None
    assert fits(both)
    assert not fits(stored("Q4_1", 40, 64))
