"""Products through the packed layouts against plain ones, for few rows and many, with biases and what follows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, relu, silu

from kvtool.kernels.cpu import products
from kvtool.kernels.cpu.native import native
from kvtool.kernels.weights import Gate, GatedWeight, Weight
from kvtool.system.errors import KvtoolError

ACTIVATIONS = {
    "silu": silu,
    "gelu": gelu,
    "gelu_new": lambda x: gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": relu,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROWS = (1, 2, 8, 63, 64, 65, 200)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
each_count = pytest.mark.parametrize("rows", ROWS)


@pytest.fixture(params=["gcc", "no gcc"], autouse=True)
def compiler(request: pytest.FixtureRequest) -> None:
    """With the compiled kernels, where this machine has gcc, and with oneDNN's."""
    if request.param == "no gcc":
        request.getfixturevalue("without_compiler")


def drawn(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """Equal but for a few roundings of the dtype, on the scale of the largest value."""
    assert found.dtype != torch.float64
    allowed = 4 * torch.finfo(found.dtype).eps * float(exact.abs().max()) + 1e-5
    assert float((found.double() - exact).abs().max()) < allowed


@each_dtype
@each_count
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_product_with_its_bias(dtype: torch.dtype, rows: int, has_bias: bool, is_prepared: bool) -> None:
    x = drawn(rows, 96, dtype=dtype, seed=0)
    weight = Weight(drawn(64, 96, dtype=dtype, seed=1) * 0.1, drawn(64, dtype=dtype, seed=2) if has_bias else None)
    exact = linear(x.double(), weight.weight.double(), None if weight.bias is None else weight.bias.double())
    assert_rounded(products.linear(x, products.prepare(weight) if is_prepared else weight), exact)


@each_dtype
@each_count
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biased", [False, True])
def test_a_gated_product(dtype: torch.dtype, rows: int, activation: str, biased: bool) -> None:
    x = drawn(rows, 96, dtype=dtype, seed=0)
    gate, up = (drawn(64, 96, dtype=dtype, seed=seed) * 0.1 for seed in (1, 2))
    biases = (drawn(64, dtype=dtype, seed=3), drawn(64, dtype=dtype, seed=4)) if biased else None
    gate_bias, up_bias = (bias.double() for bias in biases) if biases else (None, None)
    gated = ACTIVATIONS[activation](linear(x.double(), gate.double(), gate_bias))
    exact = gated * linear(x.double(), up.double(), up_bias)
    weight = GatedWeight(torch.cat((gate, up)), torch.cat(biases) if biases else None, Gate(activation))
    assert_rounded(products.gated(x, products.prepare(weight)), exact)
    assert_rounded(products.gated(x, weight), exact)


def test_rows_of_a_wider_tensor_are_read_where_they_lie() -> None:
    wide = drawn(9, 124, dtype=torch.bfloat16, seed=0)
    weight = drawn(64, 96, dtype=torch.bfloat16, seed=1) * 0.1
    x = wide[:, 28:]
    assert_rounded(products.linear(x, products.prepare(Weight(weight))), linear(x.double(), weight.double()))


def test_bf16_on_a_cpu_is_packed_and_fp32_is_not() -> None:
    cpu, by_onednn = torch.device("cpu"), torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert products.weight_copies(torch.float32, cpu) == 1
    assert products.prepare(Weight(torch.ones(64, 96))).packed is None
    assert products.weight_copies(torch.bfloat16, cpu) == (2 if native() is not None or by_onednn else 1)


def test_a_weight_of_odd_shape_is_left_to_onednn() -> None:
    x, weight = drawn(3, 72, dtype=torch.bfloat16, seed=0), drawn(40, 72, dtype=torch.bfloat16, seed=1) * 0.1
    prepared = products.prepare(Weight(weight))
    assert not isinstance(prepared.packed, products.NativeLinear)
    assert_rounded(products.linear(x, prepared), linear(x.double(), weight.double()))


def test_an_unknown_activation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(KvtoolError, match=r"activation 'relu2' is not one the engine runs: silu, gelu, gelu_new"):
        products.gated(torch.ones(1, 4), GatedWeight(torch.ones(8, 4), None, Gate("relu2")))
