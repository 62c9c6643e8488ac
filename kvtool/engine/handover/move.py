"""A rank's own heads of some pages, into what is staged for a hand-over or out of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from kvtool.catalog.model import FullAttention
from kvtool.engine.handover.staging import Heads, Piece, export_layer, import_layer, plan, planned_bytes, staged
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import KvPool, pool_specs
from kvtool.machine.ranks.layout import kv_head_range
from kvtool.sizing.layers import layer_specs


def whole_plan(loaded: LoadedModel, num_pages: int) -> list[list[Piece]]:
    """The pieces of so many pages of all heads."""
    specs = pool_specs(layer_specs(loaded.model, loaded.cache_format))
    return plan(specs, num_pages, loaded.config.block_size)


def heads_of(loaded: LoadedModel, layer: int, index: int) -> Heads:
    """Of tensor rank `index`: a latent is one head, which every rank has."""
    cache, tp = loaded.model.layers[layer].cache, loaded.part.tensor_ranks
    kv_heads = cache.kv_heads if isinstance(cache, FullAttention) else 1
    copies = max(1, tp // kv_heads)
    return Heads(kv_head_range(kv_heads, tp, index), is_copy=index % copies > 0)


def export_pages(loaded: LoadedModel, pool: KvPool, page_ids: list[int], path: Path, index: int) -> None:
    """All layers of the pages of this rank's heads into the file."""
    pieces = whole_plan(loaded, len(page_ids))
    memory, ids = staged(path, planned_bytes(pieces)), _ids(page_ids, loaded)
    for layer, (pages, own) in enumerate(zip(pool.layers, pieces, strict=True)):
        export_layer(pages, ids, own, memory, heads_of(loaded, layer, index))


def import_pages(loaded: LoadedModel, pool: KvPool, page_ids: list[int], path: Path, index: int, skip: int = 0) -> None:
    """The other way round; the first `skip` pages of the file are left out."""
    pieces = whole_plan(loaded, len(page_ids) + skip)
    memory, ids = staged(path, planned_bytes(pieces)), _ids(page_ids, loaded)
    for layer, (pages, own) in enumerate(zip(pool.layers, pieces, strict=True)):
        import_layer(pages, ids, [_without(piece, skip) for piece in own], memory, heads_of(loaded, layer, index))


def _without(piece: Piece, skip: int) -> Piece:
    """A piece without its first pages."""
    pages, *rest = piece.shape
    return Piece(piece.offset + skip * (piece.bytes // pages), (pages - skip, *rest), piece.dtype)


def _ids(page_ids: list[int], loaded: LoadedModel) -> Tensor:
    return torch.tensor(page_ids, dtype=torch.int64, device=loaded.device)


def path_as_tensor(path: Path) -> Tensor:
    """How the first rank tells others of a file."""
    return torch.tensor(list(str(path).encode()), dtype=torch.int64)


def path_of(told: Tensor) -> Path:
    return Path(bytes(told.tolist()).decode())
