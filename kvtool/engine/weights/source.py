"""The one question a decoder asks of its weights, and the random answer."""

from __future__ import annotations

from typing import Protocol
from zlib import crc32

import torch
from torch import Tensor

from kvtool.kernels.blocks import Blocks
from kvtool.system.errors import KvtoolError


class WeightSource(Protocol):
    """Tensors by HF name. `even_routing` says that routers were not learned: experts are then drawn evenly."""

    description: str
    even_routing: bool

    def tensor(self, name: str, *shape: int) -> Tensor:
        """The tensor that Llama would call `name`, on the device and in the dtype of the run; norm weights that are
        stored less one come in fp32. Raises KvtoolError when it is missing or of another shape."""

    def blocks(self, name: str) -> Blocks | None:
        """What that tensor was made of, where it is stored in blocks of few bits that kernels may read as they are."""


def finite(name: str, tensor: Tensor) -> Tensor:
    """`tensor`, as it will be used. Raises KvtoolError where it has a NaN or an infinity: no output would mean a thing.

    Its least and its greatest element are asked, which are NaN where any element is: no copy of its size is made.
    """
    if tensor.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise KvtoolError(
            f"tensor {name!r} has NaN or infinite elements in {kind}: the weights are damaged, or --dtype is too narrow"
        )
    return tensor


class RandomWeights:
    """Seeded normal weights of variance 1/fan-in, drawn on the device itself; norms are ones.

    Each tensor has its own stream, so that a model cut to N layers has the same first N layers.
    """

    description = "random"
    even_routing = True

    def __init__(self, *, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._seed = seed
        self._dtype = dtype
        self._device = device

    def blocks(self, name: str) -> Blocks | None:
        return None

    def tensor(self, name: str, *shape: int) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        generator = torch.Generator(self._device).manual_seed(crc32(f"{self._seed} {name}".encode()))
        drawn = torch.empty(shape, dtype=self._dtype, device=self._device)
        return drawn.normal_(std=shape[-1] ** -0.5, generator=generator)
