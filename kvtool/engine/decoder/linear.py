"""Matrix products with weights, and what follows them at once.

On a CPU with bf16 the weights are also packed once into the layout oneDNN reads fastest for few rows, and the operation
after the product (a residual, an activation, a gate) is done before the result leaves the core. Many rows, a prefill,
run faster from the plain layout, so both are kept: twice the memory of the weights, on CPUs alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, silu

from kvtool.errors import KvtoolError
from kvtool.kernels import StepKernels

# oneDNN chooses its packed layout for a number of rows; the one for 64 serves single rows as fast as any.
_PACKED_ROWS = 64

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_new": lambda x: gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: gelu(x, approximate="tanh"),
}
# (post-op, its algorithm) of oneDNN.
_POST_OPS = {
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
}


class Linear:
    """x [T, in] -> x W^T + b [T, out] for a weight [out, in]; `plus` [T, out] is added to it."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.packed = _pack(weight) if packs_on(weight.device, weight.dtype) else None

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        if self.packed is None or len(x) > _PACKED_ROWS:
            product = linear(x, self.weight, self.bias)
            return product if plus is None else product.add_(plus)
        if plus is None:
            return _product(x, self.packed, self.bias, "none", "")
        return _product_then(x, plus, self.packed, self.bias, "add")


class GatedLinear:
    """x [T, in] -> activation(x Wg^T + bg) * (x Wu^T + bu) for gate and up weights [out, in] and, if any, biases.

    Two products: as halves of one wide product they would be strided, which costs the activation more than it saves.
    Raises KvtoolError for an unknown activation.
    """

    def __init__(self, gate: Tensor, up: Tensor, activation: str, biases: tuple[Tensor, Tensor] | None = None) -> None:
        if activation not in _ACTIVATIONS:
            raise KvtoolError(f"activation {activation!r} is not one the engine runs: {', '.join(_ACTIVATIONS)}")
        self.activation = activation
        self.weights = (gate, up)
        self.biases: tuple[Tensor | None, Tensor | None] = biases or (None, None)
        self.packed = (_pack(gate), _pack(up)) if packs_on(gate.device, gate.dtype) else None

    def __call__(self, x: Tensor, fused: StepKernels | None = None) -> Tensor:
        gate_bias, up_bias = self.biases
        if self.packed is None or len(x) > _PACKED_ROWS:
            gate, up = (linear(x, weight, bias) for weight, bias in zip(self.weights, self.biases, strict=True))
            if fused is not None and self.activation == "silu":
                return fused.silu_mul(gate, up)
            return _ACTIVATIONS[self.activation](gate).mul_(up)
        packed_gate, packed_up = self.packed
        gated = _product(x, packed_gate, gate_bias, *_POST_OPS[self.activation])
        return _product_then(x, gated, packed_up, up_bias, "mul")


def packs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights are also kept in oneDNN's packed layout."""
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS)
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None, post_op: str, algorithm: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, post_op, [], algorithm)
    return result


def _product_then(x: Tensor, other: Tensor, packed: Tensor, bias: Tensor | None, post_op: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, bias, post_op)
    return result
