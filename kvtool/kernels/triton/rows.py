"""What lies between products as launches of their own, where many rows make it worth one: norms, sums, gates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.kernels import plain
from kvtool.kernels.triton import checks, gpu
from kvtool.kernels.triton.experts import KERNEL_GATES
from kvtool.kernels.triton.jit.gate import gate_kernel
from kvtool.kernels.triton.jit.step import add_rms_norm_kernel
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.rules import padded

if TYPE_CHECKING:
    from kvtool.kernels.weights import Gate

_DENSE_GATES = KERNEL_GATES.keys() - {plain.CLAMPED}  # of two tensors; products clamp what they gate


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, x_weight: Tensor | None = None, *, eps: float
) -> tuple[Tensor, Tensor]:
    """x and residual [T,n], weights [n] -> (norm of their sum, their sum). One program a row."""
    checks.rows(x, residual)
    num_tokens, size = x.shape
    checks.norms(size, weight, x_weight)
    added = x.new_empty(num_tokens, size)
    normed = added if weight is None else torch.empty_like(added)
    if num_tokens == 0:
        return normed, added
    block = padded(size)
    strides = x.stride(0), residual.stride(0)
    warps = 8 if block > 2048 else 4
    add_rms_norm_kernel[(num_tokens,)](
        x,
        residual,
        weight,
        x_weight,
        normed,
        added,
        eps,
        *strides,
        SIZE=size,
        BLOCK=block,
        num_warps=warps,
        **gpu.launched(x.device),
    )
    return normed, added


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T,n] through RMSNorm by weight [n]. One program a row."""
    checks.rows(x)
    num_tokens, size = x.shape
    checks.norms(size, weight)
    normed = x.new_empty(num_tokens, size)
    if num_tokens == 0:
        return normed
    block = padded(size)
    warps = 8 if block > 2048 else 4
    add_rms_norm_kernel[(num_tokens,)](
        x,
        None,
        weight,
        None,
        normed,
        None,
        eps,
        x.stride(0),
        0,
        SIZE=size,
        BLOCK=block,
        num_warps=warps,
        **gpu.launched(x.device),
    )
    return normed


def gate_halves(both: Tensor, kind: Gate) -> Tensor:
    """both [T,2n], the gate beside what comes up -> [T,n]."""
    of_gate, up = both.chunk(2, dim=1)
    return gate(of_gate, up, kind) if kind.activation in _DENSE_GATES else plain.gated(of_gate, up, kind)


def gate(of_gate: Tensor, up: Tensor, kind: Gate) -> Tensor:
    """Both [T,n] -> activation(of_gate) * up. Grid: (T, blocks of a row)."""
    checks.rows(of_gate, up)
    num_tokens, size = of_gate.shape
    out = torch.empty_like(of_gate, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    block = min(padded(size), rules.STORE_BLOCK)
    constants = {"SIZE": size, "BLOCK": block, "ACTIVATION": KERNEL_GATES[kind.activation]}
    constants |= gpu.launched(out.device)
    gate_kernel[(num_tokens, math.ceil(size / block))](
        of_gate, up, out, of_gate.stride(0), up.stride(0), **constants, num_warps=4
    )
    return out
