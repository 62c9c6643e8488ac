"""The gate of an MLP: what follows its first product, alone or at the end of that product."""

from __future__ import annotations

import triton
import triton.language as tl

from kvtool.kernels.triton.jit.early import wait_for_launches
from kvtool.kernels.triton.jit.paged import LOG2E, tanh

_ROOT_HALF = tl.constexpr(0.7071067811865476)
_ROOT_TWO_OVER_PI = tl.constexpr(0.7978845608028654)


@triton.jit
def sigmoid(x):
    small = tl.exp2(-tl.abs(x) * LOG2E)  # in (0, 1]: no exponential to overflow
    return tl.where(x < 0.0, small, 1.0) / (1.0 + small)


@triton.jit
def gated(gate, up, alpha, limit, ACTIVATION: tl.constexpr):
    """activation(gate) * up in fp32; "clamped_swiglu" is (up + 1) * gate * sigmoid(alpha * gate), clamped to limit."""
    if ACTIVATION == "silu":
        activated = gate * sigmoid(gate)
    elif ACTIVATION == "gelu":
        activated = 0.5 * gate * (1.0 + tl.erf(gate * _ROOT_HALF))
    elif ACTIVATION == "gelu_tanh":
        activated = 0.5 * gate * (1.0 + tanh((gate + 0.044715 * gate * gate * gate) * _ROOT_TWO_OVER_PI))
    else:
        tl.static_assert(ACTIVATION == "clamped_swiglu")
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit) + 1.0
        activated = gate * sigmoid(alpha * gate)
    return activated * up


@triton.jit
def gate_kernel(
    gate_ptr, up_ptr, out_ptr, gate_stride, up_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):
    """out [T, n] = activation(gate) * up, BLOCK columns of a row a program."""
    wait_for_launches(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    out = gated(gate, up, 0.0, 0.0, ACTIVATION)
    tl.store(out_ptr + row * SIZE + column, out.to(out_ptr.dtype.element_ty), mask=inside)
