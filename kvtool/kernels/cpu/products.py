"""Products with weights on a CPU, and the gate that follows two of them.

In bf16 a weight is also packed once into a layout that is read faster for few rows: the compiled kernels' own, which
reads weights as fast as memory gives them, or oneDNN's. Many rows, a prefill, run faster from the plain layout, so both
are kept: twice the memory of the weights, on CPUs alone. A weight that a file stores in 8 or 4 bits is packed as it is
stored: few rows are multiplied by what it stands for, many by that rounded to bf16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from kvtool.kernels import plain
from kvtool.kernels.blocks import Blocks, Saving
from kvtool.kernels.cpu import memory
from kvtool.kernels.cpu.memory import ROW
from kvtool.kernels.cpu.native import ACTIVATIONS, Native, native, serves
from kvtool.kernels.cpu.quantised import fits, packed_codes
from kvtool.kernels.weights import AnyWeight, ExpertWeights, Gate, GatedWeight, Weight

# Up to so many rows a packed layout is faster than the plain one, by what multiplies it. oneDNN chooses its layout for
# a number of them; this one serves fewer well. With AMX the plain one catches up late, as both then multiply alike.
ONEDNN_ROWS = VECTOR_ROWS = 64
TILE_ROWS = 256
CODES_ROWS = 16

# (post-op, its algorithm) of oneDNN.
_POST_OPS = {
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
}

Biases = tuple[Tensor | None, Tensor | None]


class Packed(Protocol):
    """A product by a layout of its own, for up to `most_rows` rows; `read` is what it reads of weights, in order, as
    far as others can read it too."""

    most_rows: int

    @property
    def read(self) -> tuple[Tensor, ...]: ...

    def __call__(self, x: Tensor) -> Tensor: ...


def prepare(weight: AnyWeight) -> AnyWeight:
    match weight:
        case Weight():
            packed = packed_linear(weight)
            return replace(weight, packed=packed, stored=None, saving=_saving(weight.weight, packed))
        case GatedWeight():
            packed = packed_gated_linear(weight)
            return replace(weight, packed=packed, stored=None, saving=_saving(weight.weight, packed))
        case _:
            parts = [plain.expert_weights(weight, number) for number in range(len(weight.down))]
            return replace(weight, packed=[Expert(prepare(inner), prepare(down)) for inner, down in parts])


def weight_copies(dtype: torch.dtype, device: torch.device) -> int:
    packs = device.type == "cpu" and dtype == torch.bfloat16 and (native() is not None or _onednn_has_bf16())
    return 2 if packs else 1


def linear(x: Tensor, weight: Weight) -> Tensor:
    if weight.packed is not None and len(x) <= weight.packed.most_rows:
        product: Tensor = weight.packed(x)
        return product
    return functional.linear(x, weight.weight, weight.bias)


def gated(x: Tensor, weight: GatedWeight) -> Tensor:
    """Two products: as halves of one they would be strided, which costs the activation more than it saves."""
    if weight.packed is not None and len(x) <= weight.packed.most_rows:
        product: Tensor = weight.packed(x)
        return product
    of_gate, up = (functional.linear(x, *half) for half in _halves(weight))
    kernels, activation = native(), weight.gate.activation
    if kernels is not None and activation in ACTIVATIONS and serves(of_gate, up):
        return kernels.gate_(of_gate, up, activation)
    return plain.gated(of_gate, up, weight.gate)


@dataclass(frozen=True, slots=True)
class Expert:
    """down(inner x)."""

    inner: GatedWeight
    down: Weight

    def __call__(self, x: Tensor) -> Tensor:
        return linear(gated(x, self.inner), self.down)


def experts(x: Tensor, weights: ExpertWeights, chosen: Tensor, shares: Tensor, plus: Tensor | None = None) -> Tensor:
    """One after another, of weights that were prepared."""

    def expert(number: int) -> Expert:
        of_all: list[Expert] | None = weights.packed
        return Expert(*plain.expert_weights(weights, number)) if of_all is None else of_all[number]

    return plain.experts_in_turn(x, expert, chosen, shares, plus)


class NativeLinear:
    """By the compiled kernels."""

    def __init__(self, kernels: Native, weight: Tensor, bias: Tensor | None) -> None:
        self.kernels, self.weight, self.bias = kernels, memory.packed(weight), bias
        self.most_rows, self.read = _most_rows(kernels), (self.weight,)

    def __call__(self, x: Tensor) -> Tensor:
        return self.kernels.linear(x, self.weight, self.bias)


class NativeGatedLinear:
    """By the compiled kernels, in one."""

    def __init__(self, kernels: Native, gate: Tensor, up: Tensor, biases: Biases, activation: str) -> None:
        self.kernels, self.gate, self.up = kernels, memory.packed(gate), memory.packed(up)
        self.biases, self.activation = biases, activation
        self.most_rows, self.read = _most_rows(kernels), (self.gate, self.up)

    def __call__(self, x: Tensor) -> Tensor:
        return self.kernels.gated_linear(x, self.gate, self.up, self.biases, self.activation)


class QuantisedLinear:
    """By the compiled kernels, out of 8 or 4 bits a weight."""

    most_rows = CODES_ROWS

    def __init__(self, kernels: Native, stored: Blocks, bias: Tensor | None) -> None:
        self.kernels, self.codes, self.bias = kernels, packed_codes(stored), bias
        self.nbytes, self.read = self.codes.nbytes, (self.codes.blocks,)

    def __call__(self, x: Tensor) -> Tensor:
        return self.kernels.quantised_linear(x, self.codes, self.bias)


class QuantisedGatedLinear:
    """By the compiled kernels, out of 8 or 4 bits a weight, in one."""

    most_rows = CODES_ROWS

    def __init__(self, kernels: Native, stored: Blocks, biases: Biases, activation: str) -> None:
        self.kernels, self.biases, self.activation = kernels, biases, activation
        half = len(stored.codes) // 2
        self.gate, self.up = packed_codes(stored.map(lambda x: x[:half])), packed_codes(stored.map(lambda x: x[half:]))
        self.nbytes, self.read = self.gate.nbytes + self.up.nbytes, (self.gate.blocks, self.up.blocks)

    def __call__(self, x: Tensor) -> Tensor:
        return self.kernels.quantised_gated_linear(x, self.gate, self.up, self.biases, self.activation)


class PackedGate:
    """A gate of its own after two packed products, where no kernel does both."""

    def __init__(self, of_gate: Packed, up: Packed, gate: Gate) -> None:
        self.of_gate, self.up, self.gate = of_gate, up, gate
        self.most_rows, self.read = min(of_gate.most_rows, up.most_rows), (*of_gate.read, *up.read)

    def __call__(self, x: Tensor) -> Tensor:
        return plain.gated(self.of_gate(x), self.up(x), self.gate)


class OneDnnLinear:
    """By oneDNN, in whose layout nothing else can read."""

    most_rows = ONEDNN_ROWS
    read: tuple[Tensor, ...] = ()

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = _reordered(weight), bias

    def __call__(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias, "none", "")


class OneDnnGatedLinear:
    """By oneDNN: the activation follows the first product, and the second is multiplied by it."""

    most_rows = ONEDNN_ROWS
    read: tuple[Tensor, ...] = ()

    def __init__(self, gate: Tensor, up: Tensor, biases: Biases, activation: str) -> None:
        self.gate, self.up, self.biases = _reordered(gate), _reordered(up), biases
        self.post_op = _POST_OPS[activation]

    def __call__(self, x: Tensor) -> Tensor:
        gated = _product(x, self.gate, self.biases[0], *self.post_op)
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gated, self.up, self.biases[1], "mul")
        return product


def packed_linear(weight: Weight) -> Packed | None:
    """The product for few rows, or None where torch's plain one is all there is."""
    if weight_copies(weight.weight.dtype, weight.weight.device) == 1:
        return None
    kernels = native()
    if kernels is not None and weight.stored is not None and _reads(kernels, weight.stored):
        return QuantisedLinear(kernels, weight.stored, weight.bias)
    if kernels is not None and _fits(weight.weight):
        return NativeLinear(kernels, weight.weight, weight.bias)
    return OneDnnLinear(weight.weight, weight.bias) if _onednn_has_bf16() else None


def packed_gated_linear(weight: GatedWeight) -> Packed | None:
    """The gated product for few rows, or None."""
    if weight_copies(weight.weight.dtype, weight.weight.device) == 1:
        return None
    (gate, gate_bias), (up, up_bias) = _halves(weight)
    biases, activation = (gate_bias, up_bias), weight.gate.activation
    kernels = native()
    if activation not in _POST_OPS:
        of_gate, of_up = packed_linear(Weight(gate, gate_bias)), packed_linear(Weight(up, up_bias))
        return None if of_gate is None or of_up is None else PackedGate(of_gate, of_up, weight.gate)
    if kernels is not None and weight.stored is not None and _reads(kernels, weight.stored) and _fits(gate):
        return QuantisedGatedLinear(kernels, weight.stored, biases, activation)
    if kernels is not None and _fits(gate):
        return NativeGatedLinear(kernels, gate, up, biases, activation)
    return OneDnnGatedLinear(gate, up, biases, activation) if _onednn_has_bf16() else None


def _halves(weight: GatedWeight) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
    """Weight and bias of the gate, and of what it gates."""
    gate, up = weight.weight.chunk(2)
    gate_bias, up_bias = (None, None) if weight.bias is None else weight.bias.chunk(2)
    return (gate, gate_bias), (up, up_bias)


def _saving(weight: Tensor, packed: Packed | None) -> Saving | None:
    if not isinstance(packed, QuantisedLinear | QuantisedGatedLinear):
        return None
    return Saving(packed.most_rows, weight.nbytes - packed.nbytes)


def _reads(kernels: Native, stored: Blocks) -> bool:
    return kernels.quantised_pays and fits(stored)


def _most_rows(kernels: Native) -> int:
    return TILE_ROWS if kernels.has_tiles else VECTOR_ROWS


def _fits(weight: Tensor) -> bool:
    return weight.shape[0] % ROW == 0 and weight.shape[1] % ROW == 0


def _onednn_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _reordered(weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ONEDNN_ROWS)
    return found


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, post_op: str, algorithm: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, post_op, [], algorithm)
    return result
