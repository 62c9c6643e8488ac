"""How a cache of 8 bits holds vectors: the largest value of a dtype, a scale a vector, rounding to the nearest."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_LARGEST = 1e-30  # of a vector's elements: below, its scale would be 0, and 0 / 0 is no value


def largest(dtype: torch.dtype) -> float:
    """The largest magnitude that a cache of `dtype` stores; int8 is kept symmetric."""
    return 127.0 if dtype == torch.int8 else torch.finfo(dtype).max


def vector_scales(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """rows [..., D] -> fp32 [...]: what makes each row's largest element the largest of `dtype`."""
    amax = rows.float().abs().amax(dim=-1)
    return amax.clamp(SMALLEST_LARGEST, torch.finfo(torch.float32).max) / largest(dtype)


def stored(scaled: Tensor, dtype: torch.dtype) -> Tensor:
    """Values that were divided by their scale, as a cache of `dtype` holds them."""
    limit = largest(dtype)
    clamped = scaled.clamp(-limit, limit)
    return (clamped.round() if dtype == torch.int8 else clamped).to(dtype)
