"""The Hadamard matrix that spreads an outlier of a head over all its channels before it is quantised."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def rotate_heads(rows: Tensor) -> Tensor:
    """rows [..., D] times an orthonormal, symmetric matrix, so that a second time gives the rows again.

    A head size that is no power of two is turned in blocks of the largest one that divides it.
    """
    size = rows.shape[-1] & -rows.shape[-1]
    turned: Tensor = rows.float().unflatten(-1, (-1, size)) @ _hadamard(size, rows.device)
    return turned.flatten(-2)


@cache
def _hadamard(size: int, device: torch.device) -> Tensor:
    """Sylvester's matrix [size, size] of a power of two, over its square root; kept where it is used."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix.div(size**0.5).to(device)
