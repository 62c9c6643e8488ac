"""Matrix products with weights, and what follows them at once.

On a CPU with bf16 the weights are packed once into the layout oneDNN multiplies from, and the operation after the
product (a residual, an activation, a gate) is done before the result leaves the core.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, silu

from kvtool.errors import KvtoolError

# oneDNN chooses its packed layout for a number of rows. The one for 64 also serves single rows as fast as any.
_PACK_FOR_ROWS = 64

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
        self.bias = bias
        self.packed = packs(weight)
        self.weight = _pack(weight) if self.packed else weight

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        if not self.packed:
            product = linear(x, self.weight, self.bias)
            return product if plus is None else product + plus
        if plus is None:
            return _product(x, self.weight, self.bias, "none", "")
        return _product_then(x, plus, self.weight, self.bias, "add")


class GatedLinear:
    """x [T, in] -> activation(x Wg^T) * (x Wu^T) for gate and up weights [out, in]. Raises KvtoolError for an unknown
    activation."""

    def __init__(self, gate: Tensor, up: Tensor, activation: str) -> None:
        if activation not in _ACTIVATIONS:
            raise KvtoolError(f"activation {activation!r} is not one the engine runs: {', '.join(_ACTIVATIONS)}")
        self.activation = activation
        self.packed = packs(gate)
        self.weights = [_pack(gate), _pack(up)] if self.packed else [torch.cat((gate, up))]

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            gate, up = self.weights
            gated = _product(x, gate, None, *_POST_OPS[self.activation])
            return _product_then(x, gated, up, None, "mul")
        gate_rows, up_rows = linear(x, self.weights[0]).chunk(2, dim=-1)
        return _ACTIVATIONS[self.activation](gate_rows) * up_rows


def packs(weight: Tensor) -> bool:
    """Whether products with this weight go through oneDNN's packed layout."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_FOR_ROWS)
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None, post_op: str, algorithm: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, post_op, [], algorithm)
    return result


def _product_then(x: Tensor, other: Tensor, packed: Tensor, bias: Tensor | None, post_op: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, bias, post_op)
    return result
