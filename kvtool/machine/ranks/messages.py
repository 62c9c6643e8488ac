"""What the first rank tells the others: a kind and some tensors of integers, as one tensor. No pickle."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

NO_TENSOR = -1


def packed(kind: int, tensors: Sequence[Tensor | None]) -> Tensor:
    """int64 [kind, count, then dimensions and sizes of each, then their elements]."""
    header = [kind, len(tensors)]
    for tensor in tensors:
        header += [NO_TENSOR] if tensor is None else [tensor.dim(), *tensor.shape]
    data = [tensor.reshape(-1).to("cpu", torch.int64) for tensor in tensors if tensor is not None]
    return torch.cat([torch.tensor(header, dtype=torch.int64), *data])


def unpacked(message: Tensor) -> tuple[int, list[Tensor | None]]:
    """The kind, and the tensors as int64."""
    numbers = message[:2].tolist()
    at, shapes = 2, []
    for _ in range(numbers[1]):
        dimensions = int(message[at])
        shape = None if dimensions == NO_TENSOR else message[at + 1 : at + 1 + dimensions].tolist()
        shapes.append(shape)
        at += 1 + max(0, dimensions)
    found: list[Tensor | None] = []
    for shape in shapes:
        if shape is None:
            found.append(None)
            continue
        found.append(message[at : at + prod(shape)].view(shape))
        at += prod(shape)
    return numbers[0], found
