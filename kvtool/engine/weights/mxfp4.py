"""MXFP4 (OCP Microscaling Formats 1.0): 4-bit floats, two a byte, with a power of two for each block of 32."""

from __future__ import annotations

import torch
from torch import Tensor

# E2M1 by its four bits, sign first.
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_EXPONENT_BIAS = 127


def dequantised(blocks: Tensor, scales: Tensor) -> Tensor:
    """blocks uint8 [rows, blocks, 16], low four bits first, and exponents uint8 [rows, blocks] -> bf16 [rows, columns].

    Exact: a value has two significant bits.
    """
    values = torch.tensor(_VALUES, dtype=torch.float32)
    pairs = torch.stack((values[(blocks & 15).int()], values[(blocks >> 4).int()]), dim=-1)  # [rows, blocks, 16, 2]
    exponents = (scales.int() - _EXPONENT_BIAS)[:, :, None, None]
    return torch.ldexp(pairs, exponents).flatten(1).to(torch.bfloat16)
