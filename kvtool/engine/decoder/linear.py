"""Matrix products with weights, and what follows them at once.

On a CPU with bf16 the weights are also packed once into a layout that is read faster for few rows. Many rows, a
prefill, run faster from the plain layout, so both are kept: twice the memory of the weights, on CPUs alone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import gelu, linear, relu, silu

from kvtool.catalog.decoder import ClampedSwiglu
from kvtool.errors import KvtoolError
from kvtool.kernels.cpu.native import ACTIVATIONS, native, serves
from kvtool.kernels.cpu.packed import FEW_ROWS, Biases, packed_gated_linear, packed_linear
from kvtool.kernels.interface import GATES, StepKernels

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_new": lambda x: gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": relu,
}


class Linear:
    """x [T, in] -> x W^T + b [T, out] for a weight [out, in]; `plus` [T, out] is added to it."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.packed = packed_linear(weight, bias)

    def __call__(self, x: Tensor, plus: Tensor | None = None, fused: StepKernels | None = None) -> Tensor:
        if fused is not None:
            return fused.linear(x, self.weight, self.bias, plus)
        if self.packed is not None and len(x) <= FEW_ROWS:
            return self.packed(x, plus)
        product = linear(x, self.weight, self.bias)
        return product if plus is None else product.add_(plus)


class GatedLinear:
    """x [T, in] -> activation(x Wg^T + bg) * (x Wu^T + bu): weight [2 out, in] is gate over up, and so is its bias.

    On CPUs two products: as halves of one they would be strided, which costs the activation more than it saves. Fused
    kernels make it one, of a weight so large that it is read nearer to the memory's speed. Raises KvtoolError for an
    unknown activation.
    """

    def __init__(self, weight: Tensor, activation: str, bias: Tensor | None = None) -> None:
        self.activation = activation
        self.activated = _activation(activation)
        self.weight, self.bias = weight, bias
        gate, up = weight.chunk(2)
        self.halves = (gate, up)
        self.biases: Biases = (None, None)
        if bias is not None:
            gate_bias, up_bias = bias.chunk(2)
            self.biases = (gate_bias, up_bias)
        self.packed = packed_gated_linear(gate, up, self.biases, activation)

    def __call__(self, x: Tensor, fused: StepKernels | None = None) -> Tensor:
        if fused is not None and self.activation in GATES:
            gate, up = fused.linear(x, self.weight, self.bias).chunk(2, dim=1)
            return fused.gated(gate, up, self.activation)
        if self.packed is not None and len(x) <= FEW_ROWS:
            return self.packed(x)
        gate, up = (linear(x, weight, bias) for weight, bias in zip(self.halves, self.biases, strict=True))
        kernels = native()
        if kernels is not None and self.activation in ACTIVATIONS and serves(gate, up):
            return kernels.gate_(gate, up, self.activation)
        return self.activated(gate).mul_(up)


class ClampedGatedLinear:
    """x [T, in] -> (up + 1) * gate * sigmoid(alpha * gate) of gate and up products clamped to `limit` (gpt-oss)."""

    def __init__(self, gate: Linear, up: Linear, swiglu: ClampedSwiglu) -> None:
        self.gate, self.up, self.swiglu = gate, up, swiglu

    def __call__(self, x: Tensor, fused: StepKernels | None = None) -> Tensor:
        limit = self.swiglu.limit
        gate = self.gate(x, fused=fused).clamp(max=limit)
        up = self.up(x, fused=fused).clamp(-limit, limit)
        return (up + 1) * (gate * (gate * self.swiglu.alpha).sigmoid())


class ActivatedLinear:
    """x [T, in] -> activation(x W^T + b). Raises KvtoolError for an unknown activation."""

    def __init__(self, product: Linear, activation: str) -> None:
        self.product, self.activated = product, _activation(activation)

    def __call__(self, x: Tensor, fused: StepKernels | None = None) -> Tensor:
        return self.activated(self.product(x, fused=fused))


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        raise KvtoolError(f"activation {name!r} is not one the engine runs: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
