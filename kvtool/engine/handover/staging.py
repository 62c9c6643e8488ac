"""Pages on their way: the pages of a prompt, whole heads and layer after layer, in a file that processes share.

The order is the model's and not of its ranks, so that each rank of either side writes or reads its own heads: pages
are re-sharded where two layouts meet.

    layer 0: k [pages, B, HKV, D], v [pages, B, HKV, DV]; layer 1: ...        of latents k [pages, B, R+E] alone
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from kvtool.engine.pool import layer_pages
from kvtool.kernels.pages import Pages
from kvtool.sizing.specs import CacheSpec


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a tensor of the pages of a layer lies."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def plan(specs: tuple[CacheSpec, ...], num_pages: int, block_size: int) -> list[list[Piece]]:
    """The pieces of each layer, by the `specs` of the whole model."""
    found: list[list[Piece]] = []
    offset = 0
    for spec in specs:
        own = []
        for tensor in layer_pages(spec, num_pages, block_size, torch.device("meta")).tensors:
            own.append(Piece(offset, tuple(tensor.shape), tensor.dtype))
            offset += own[-1].bytes
        found.append(own)
    return found


def planned_bytes(pieces: list[list[Piece]]) -> int:
    """Of all layers."""
    return sum(piece.bytes for layer in pieces for piece in layer)


def layer_span(layer: list[Piece]) -> tuple[int, int]:
    """First byte of a layer, and how many it has."""
    return layer[0].offset, sum(piece.bytes for piece in layer)


def staged(path: Path, count: int) -> Tensor:
    """uint8 [count] that all who open `path` share; made where it is not there."""
    if not path.exists():
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(descriptor, count)
        os.close(descriptor)
    return torch.from_file(str(path), shared=True, size=count, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class Heads:
    """The KV heads of a rank, out of all; one that only has copies of what another has writes nothing."""

    own: range
    is_copy: bool = False


def export_layer(pages: Pages, page_ids: Tensor, layer: list[Piece], memory: Tensor, heads: Heads) -> None:
    """Pages `page_ids` [n] of a rank's layer into its place in `memory`."""
    if heads.is_copy:
        return
    for tensor, piece in zip(pages.tensors, layer, strict=True):
        _place(memory, piece, heads, pages).copy_(tensor.index_select(0, page_ids))


def import_layer(pages: Pages, page_ids: Tensor, layer: list[Piece], memory: Tensor, heads: Heads) -> None:
    """The other way round."""
    for tensor, piece in zip(pages.tensors, layer, strict=True):
        tensor.index_copy_(0, page_ids, _place(memory, piece, heads, pages).to(tensor.device))


def _place(memory: Tensor, piece: Piece, heads: Heads, pages: Pages) -> Tensor:
    whole = memory[piece.offset : piece.offset + piece.bytes].view(piece.dtype).view(piece.shape)
    if pages.v is None:  # latents have no heads
        return whole
    return whole.narrow(2, heads.own.start, len(heads.own))
