"""GGUF's simple blocks taken apart: 32 weights of a row, a scale, and a least value in some (ggml-common.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels.blocks import GROUP, Blocks

# Bits of a code, and how many fp16 numbers stand before the codes.
KINDS = {"Q8_0": (8, 1), "Q4_0": (4, 1), "Q4_1": (4, 2)}


def blocks_of(kind: str, data: Tensor) -> Blocks | None:
    """A tensor of type `kind`, uint8 [rows, bytes] as the file has it; None for types of other blocks."""
    if kind not in KINDS:
        return None
    bits, numbers = KINDS[kind]
    blocks = data.unflatten(1, (-1, 2 * numbers + GROUP * bits // 8))
    halves = blocks[..., : 2 * numbers].contiguous().view(torch.float16)
    codes = blocks[..., 2 * numbers :]
    # Q8_0 has signed bytes; of 4 bits the low ones are the first 16 weights.
    codes = codes ^ 128 if bits == 8 else torch.cat((codes & 15, codes >> 4), dim=-1)
    return Blocks(
        codes.flatten(1), bits, halves[..., 0].contiguous(), halves[..., 1].contiguous() if numbers == 2 else None
    )
