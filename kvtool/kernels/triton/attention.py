"""Launch the attention kernels: pick a tile, divide sequences into splits or blocks, size the grid."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from kvtool.kernels.triton import gpu
from kvtool.kernels.triton.arguments import Keys, span
from kvtool.kernels.triton.jit.decode import decode_kernel, merge_kernel
from kvtool.kernels.triton.jit.prefill import prefill_kernel
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.rules import Target, Tile, padded

if TYPE_CHECKING:
    import triton

    from kvtool.kernels.rows import Rows, Softmax


class Attended(Protocol):
    """Keys and values as a decode kernel takes them."""

    @property
    def num_heads(self) -> int:
        """KV heads."""

    @property
    def value_dim(self) -> int:
        """Columns of a head's output."""

    @property
    def block_size(self) -> int:
        """Tokens of a page."""

    @property
    def bytes_per_key(self) -> int:
        """That a program holds of one key of one head and its value."""

    @property
    def has_vector_scales(self) -> bool:
        """Whether a scale lies beside each vector, in memory of its own."""

    def decode_tile(self, q: Tensor, rows: int, target: Target) -> Tile:
        """For so many query rows of a KV head."""

    def decode_arguments(
        self, q: Tensor, rows: Rows, softmax: Softmax, tile: Tile, target: Target
    ) -> dict[str, object]:
        """All that the kernel takes of them, and of what becomes of the scores."""


def decode(q: Tensor, keys: Keys, rows: Rows, softmax: Softmax) -> Tensor:
    """q [S*Q,HQ,D] -> [S*Q,HQ,DV]."""
    return in_splits(decode_kernel, q, keys, rows, softmax)


def in_splits(kernel: triton.JITFunction, q: Tensor, keys: Attended, rows: Rows, softmax: Softmax) -> Tensor:
    """Grid: (S, HKV x blocks of its rows, splits). The last program of a block to be done merges its splits, or, where
    that is much to read for one program, a launch more does. A tile that `lists` what there is to do has a grid of
    (items, HKV x blocks), whose programs divide the tokens of all sequences evenly."""
    num_tokens, num_heads, _ = q.shape
    num_seqs, v_dim, page = len(rows.seq_lens), keys.value_dim, keys.block_size
    out = q.new_empty(num_tokens, num_heads, v_dim)
    if out.numel() == 0:
        return out
    query_len, group, target = num_tokens // num_seqs, num_heads // keys.num_heads, gpu.target(q.device)
    tile = keys.decode_tile(q, rows=group * query_len, target=target)
    programs = keys.num_heads * math.ceil(group * query_len / tile.block_m)
    resident = tile.resident_programs(keys.bytes_per_key, target)
    splits = rules.num_splits(num_seqs * programs, rows.block_tables.shape[1] * page, resident)
    merged_rows = min(tile.block_m, group * query_len)
    items = rules.num_items(num_seqs, programs, resident) if tile.lists else num_seqs * splits
    is_split = items > num_seqs
    partial = lse = arrivals = None
    if is_split:
        partial = q.new_empty(items, programs, tile.block_m, v_dim, dtype=torch.float32)
        lse = q.new_empty(partial.shape[:-1], dtype=torch.float32)
        if tile.lists or rules.merges_alone(merged_rows, splits, v_dim):
            arrivals = gpu.arrivals(q.device, num_seqs * programs)
    kernel[(items, programs) if tile.lists else (num_seqs, programs, splits)](
        q_ptr=q,
        table_ptr=rows.block_tables,
        lens_ptr=rows.seq_lens,
        out_ptr=out,
        partial_ptr=partial,
        lse_ptr=lse,
        arrivals_ptr=arrivals,
        group=group,
        query_len=query_len,
        num_heads=num_heads,
        num_splits=splits,
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        table_stride=rows.block_tables.stride(0),
        SPLIT=is_split,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        MERGED_ROWS=padded(merged_rows),
        BLOCK_SPLITS=rules.merged_at_once(padded(merged_rows) * padded(v_dim), tile.num_warps),
        MIN_TILES=tile.min_tiles,
        PAGE=page,
        **keys.decode_arguments(q, rows, softmax, tile, target),
        **gpu.launched(q.device),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=tile.decode_registers(page, vector_scales=keys.has_vector_scales, split=is_split),
    )
    if partial is not None and lse is not None and arrivals is None:
        merge(partial, lse, rows.seq_lens, out, group, splits, tile, span(softmax))
    return out


def merge(
    partial: Tensor, lse: Tensor, seq_lens: Tensor, out: Tensor, group: int, splits: int, tile: Tile, window: int
) -> None:
    """partial of [S,HKV x row blocks,splits,BLOCK_M,DV] elements and lse -> out [T,HQ,DV]. Grid: (T, HQ)."""
    num_tokens, num_heads, v_dim = out.shape
    merge_kernel[(num_tokens, num_heads)](
        partial,
        lse,
        seq_lens,
        out,
        window=window,
        group=group,
        query_len=num_tokens // len(seq_lens),
        num_heads=num_heads,
        num_splits=splits,
        V_DIM=v_dim,
        BLOCK_M=tile.block_m,
        BLOCK_DV=padded(v_dim),
        BLOCK_SPLITS=rules.merged_at_once(padded(v_dim), num_warps=4),
        BLOCK_N=tile.block_n,
        MIN_TILES=tile.min_tiles,
        **gpu.launched(out.device),
        num_warps=4,
    )


def prefill(q: Tensor, keys: Keys, rows: Rows, softmax: Softmax) -> Tensor:
    """Grid: S x HKV x the blocks of the longest query, each sequence's last block first."""
    num_tokens, num_heads, _ = q.shape
    num_seqs = len(rows.seq_lens)
    out = q.new_empty(num_tokens, num_heads, keys.value_dim)
    if out.numel() == 0:
        return out
    group = num_heads // keys.num_heads
    query_rows = rows.longest * group
    target = gpu.target(q.device)
    tile = keys.prefill_tile(q, query_rows, target)
    prefill_kernel[(math.ceil(query_rows / tile.block_m) * num_seqs * keys.num_heads,)](
        q_ptr=q,
        table_ptr=rows.block_tables,
        lens_ptr=rows.seq_lens,
        starts_ptr=rows.query_starts,
        out_ptr=out,
        group=group,
        num_heads=num_heads,
        num_seqs=num_seqs,
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        table_stride=rows.block_tables.stride(0),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        PAGE=keys.block_size,
        **keys.arguments(softmax, tile, target),
        **gpu.launched(q.device),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=rules.MAX_REGISTERS,
    )
    return out
