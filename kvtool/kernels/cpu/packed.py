"""Weights packed for few rows, with what follows the product done at once: a bias, a residual, a gate.

bf16 on CPUs: the compiled kernels' own layout, which reads weights as fast as memory gives them, or oneDNN's.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kvtool.kernels.cpu.native import ROW, Native, native, packed

# The products are for at most so many rows. oneDNN chooses its layout for a number of them; this one serves fewer well.
FEW_ROWS = 64

# (post-op, its algorithm) of oneDNN.
_POST_OPS = {
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
}

Biases = tuple[Tensor | None, Tensor | None]


class PackedLinear(Protocol):
    """x [T, in] -> x W^T + bias + plus [T, out]."""

    def __call__(self, x: Tensor, plus: Tensor | None) -> Tensor: ...


class PackedGatedLinear(Protocol):
    """x [T, in] -> activation(x Wg^T + bg) * (x Wu^T + bu) [T, out]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class NativeLinear:
    def __init__(self, kernels: Native, weight: Tensor, bias: Tensor | None) -> None:
        self.kernels, self.weight, self.bias = kernels, packed(weight), bias

    def __call__(self, x: Tensor, plus: Tensor | None) -> Tensor:
        return self.kernels.linear(x, self.weight, self.bias, plus)


class NativeGatedLinear:
    def __init__(self, kernels: Native, gate: Tensor, up: Tensor, biases: Biases, activation: str) -> None:
        self.kernels, self.gate, self.up = kernels, packed(gate), packed(up)
        self.biases, self.activation = biases, activation

    def __call__(self, x: Tensor) -> Tensor:
        return self.kernels.gated_linear(x, self.gate, self.up, self.biases, self.activation)


class OneDnnLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = _reordered(weight), bias

    def __call__(self, x: Tensor, plus: Tensor | None) -> Tensor:
        if plus is None:
            return _product(x, self.weight, self.bias, "none", "")
        return _product_then(x, plus, self.weight, self.bias, "add")


class OneDnnGatedLinear:
    def __init__(self, gate: Tensor, up: Tensor, biases: Biases, activation: str) -> None:
        self.gate, self.up, self.biases = _reordered(gate), _reordered(up), biases
        self.post_op = _POST_OPS[activation]

    def __call__(self, x: Tensor) -> Tensor:
        gated = _product(x, self.gate, self.biases[0], *self.post_op)
        return _product_then(x, gated, self.up, self.biases[1], "mul")


def packs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights are also kept packed."""
    return device.type == "cpu" and dtype == torch.bfloat16 and (native() is not None or _onednn_has_bf16())


def packed_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear | None:
    """The product with weight [out, in] for few rows, or None where torch's plain one is all there is."""
    if not packs_on(weight.device, weight.dtype):
        return None
    kernels = native()
    if kernels is not None and _fits(weight):
        return NativeLinear(kernels, weight, bias)
    return OneDnnLinear(weight, bias) if _onednn_has_bf16() else None


def packed_gated_linear(gate: Tensor, up: Tensor, biases: Biases, activation: str) -> PackedGatedLinear | None:
    """The gated product with weights [out, in] for few rows, or None."""
    if activation not in _POST_OPS or not packs_on(gate.device, gate.dtype):
        return None
    kernels = native()
    if kernels is not None and _fits(gate):
        return NativeGatedLinear(kernels, gate, up, biases, activation)
    return OneDnnGatedLinear(gate, up, biases, activation) if _onednn_has_bf16() else None


def _fits(weight: Tensor) -> bool:
    return weight.shape[0] % ROW == 0 and weight.shape[1] % ROW == 0


def _onednn_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _reordered(weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, FEW_ROWS)
    return found


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, post_op: str, algorithm: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, post_op, [], algorithm)
    return result


def _product_then(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None, post_op: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, post_op)
    return result
