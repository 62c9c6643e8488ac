"""The Triton kernels as functions of tensors: checks shapes and dtypes, picks a tile, sizes the grid, launches.

Scores are kept in base 2: exp(scale * s) = exp2(scale * log2(e) * s), so the scale, log2(e) and the keys'
dequantisation scale are one factor; the values' scale multiplies the normalised output.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kvtool.kernels import checks, configs
from kvtool.kernels.configs import Target, Tile, padded
from kvtool.kernels.triton.decode import decode_kernel, merge_kernel
from kvtool.kernels.triton.prefill import prefill_kernel
from kvtool.kernels.triton.store import store_kernel

NO_WINDOW = 2**31 - 1  # longer than any sequence


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """k [T,HKV,D] and v [T,HKV,DV] into slots [T] of [P,B,HKV,*], one launch each."""
    _store(k, k_cache, slots, k_scale)
    _store(v, v_cache, slots, v_scale)


def store_latent(latent: Tensor, cache: Tensor, slots: Tensor, *, scale: float = 1.0) -> None:
    """latent [T,R+E] into slots [T] of [P,B,R+E]: a row of one head."""
    _store(latent.unsqueeze(1), cache.unsqueeze(2), slots, scale)


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    window: int = 0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """q [S,HQ,D] -> [S,HQ,DV]: out = softmax(scale * k_scale * q K^T) V * v_scale, a KV head's query heads together."""
    checks.attention(q, k_cache, v_cache, block_tables, seq_lens, window)
    return _decode(q, _Keys(k_cache, v_cache), block_tables, seq_lens, scale * k_scale, v_scale, window)


def paged_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_starts: Tensor,
    *,
    scale: float,
    window: int = 0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    max_query_len: int | None = None,
) -> Tensor:
    """q [T,HQ,D] -> [T,HQ,DV]: as `paged_decode`, query i of q_len seeing keys 0 .. seq_len - q_len + i."""
    checks.attention(q, k_cache, v_cache, block_tables, seq_lens, window)
    checks.query_starts(query_starts, seq_lens)
    keys, longest = _Keys(k_cache, v_cache), _longest(query_starts, max_query_len)
    return _prefill(q, keys, block_tables, seq_lens, query_starts, longest, scale * k_scale, v_scale, window)


def mla_decode(
    q: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    latent_dim: int,
    scale: float,
    cache_scale: float = 1.0,
) -> Tensor:
    """q [S,H,R+E] absorbed -> [S,H,R]: `paged_decode` of H heads on one latent head, V = the first R columns of K."""
    keys = _latent_keys(cache, latent_dim)
    checks.attention(q, keys.k, keys.v, block_tables, seq_lens, window=0)
    return _decode(q, keys, block_tables, seq_lens, scale * cache_scale, cache_scale, window=0)


def mla_prefill(
    q: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_starts: Tensor,
    *,
    latent_dim: int,
    scale: float,
    cache_scale: float = 1.0,
    max_query_len: int | None = None,
) -> Tensor:
    """q [T,H,R+E] absorbed -> [T,H,R]: `paged_prefill` of H heads on one latent head."""
    keys = _latent_keys(cache, latent_dim)
    checks.attention(q, keys.k, keys.v, block_tables, seq_lens, window=0)
    checks.query_starts(query_starts, seq_lens)
    longest = _longest(query_starts, max_query_len)
    return _prefill(q, keys, block_tables, seq_lens, query_starts, longest, scale * cache_scale, cache_scale, window=0)


@dataclass(frozen=True)
class _Keys:
    """The pool as both attention kernels take it: k [P,B,HKV,D] and v [P,B,HKV,DV].

    With rope_dim > 0 a row of k is [latent | rotary key] and v its latent part, which the kernels then load once.
    """

    k: Tensor
    v: Tensor
    rope_dim: int = 0

    @property
    def head_dim(self) -> int:
        return self.k.shape[3] - self.rope_dim

    @property
    def num_heads(self) -> int:
        return self.k.shape[2]

    @property
    def bytes_per_key(self) -> int:
        """Read for one key of one head; a latent is read once for key and value."""
        values = 0 if self.rope_dim else self.v.shape[3]
        return (self.k.shape[3] + values) * self.k.element_size()

    def tile(self, q: Tensor, rows: int, target: Target) -> Tile:
        return configs.attention_tile(_dot_dim(self.head_dim), rows, q.element_size(), self.k.element_size(), target)

    def arguments(self) -> dict[str, object]:
        k, v, v_dim = self.k, self.v, self.v.shape[3]
        return {
            "k_ptr": k,
            "v_ptr": v,
            "k_page_stride": k.stride(0),
            "k_slot_stride": k.stride(1),
            "k_head_stride": k.stride(2),
            "v_page_stride": v.stride(0),
            "v_slot_stride": v.stride(1),
            "v_head_stride": v.stride(2),
            "HEAD_DIM": self.head_dim,
            "V_DIM": v_dim,
            "ROPE_DIM": self.rope_dim,
            "BLOCK_D": _dot_dim(self.head_dim),
            "BLOCK_DV": _dot_dim(v_dim),
            "BLOCK_ROPE": _dot_dim(self.rope_dim) if self.rope_dim else 0,
            "PAGE": k.shape[1],
        }


def _latent_keys(cache: Tensor, latent_dim: int) -> _Keys:
    checks.latent(cache, latent_dim)
    k = cache.unsqueeze(2)
    return _Keys(k, k[..., :latent_dim], rope_dim=cache.shape[2] - latent_dim)


def _store(rows: Tensor, cache: Tensor, slots: Tensor, scale: float) -> None:
    """rows [T,H,D] into slots [T] of cache [P,B,H,D]. Grid: (T, blocks of a row)."""
    checks.store(rows, cache, slots)
    num_tokens, num_heads, head_dim = rows.shape
    if num_tokens == 0:
        return
    block = min(padded(num_heads * head_dim), configs.STORE_BLOCK)
    store_kernel[(num_tokens, math.ceil(num_heads * head_dim / block))](
        rows,
        cache,
        slots,
        scale,
        rows.stride(0),
        rows.stride(1),
        cache.stride(0),
        cache.stride(1),
        cache.stride(2),
        ROW=num_heads * head_dim,
        HEAD_DIM=head_dim,
        PAGE=cache.shape[1],
        MAX=torch.finfo(cache.dtype).max,
        BLOCK=block,
        num_warps=4,
    )


def _decode(
    q: Tensor,
    keys: _Keys,
    block_tables: Tensor,
    seq_lens: Tensor,
    qk_scale: float,
    v_scale: float,
    window: int,
) -> Tensor:
    """Grid: (S, HKV x blocks of a group, splits); with several splits their partial outputs are merged."""
    num_seqs, num_heads, _ = q.shape
    v_dim = keys.v.shape[3]
    out = q.new_empty(num_seqs, num_heads, v_dim)
    if out.numel() == 0:
        return out
    group, target = num_heads // keys.num_heads, _target(q.device)
    tile = keys.tile(q, rows=group, target=target)
    programs = keys.num_heads * math.ceil(group / tile.block_m)
    page = keys.k.shape[1]
    max_context = block_tables.shape[1] * page
    resident = tile.resident_programs(keys.bytes_per_key, target)
    splits = configs.num_splits(num_seqs * programs, max_context, resident)
    partial = q.new_empty(num_seqs, num_heads, splits, v_dim, dtype=torch.float32) if splits > 1 else out
    lse = q.new_empty(num_seqs, num_heads, splits, dtype=torch.float32)
    decode_kernel[(num_seqs, programs, splits)](
        q_ptr=q,
        table_ptr=block_tables,
        lens_ptr=seq_lens,
        out_ptr=partial,
        lse_ptr=lse,
        qk_scale=qk_scale * math.log2(math.e),
        v_scale=v_scale,
        window=window or NO_WINDOW,
        group=group,
        num_heads=num_heads,
        num_splits=splits,
        q_seq_stride=q.stride(0),
        q_head_stride=q.stride(1),
        table_stride=block_tables.stride(0),
        SPLIT=splits > 1,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        MIN_TILES=tile.min_tiles,
        **keys.arguments(),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=tile.decode_registers(page),
    )
    if splits > 1:
        _merge(partial, lse, seq_lens, out, tile, window)
    return out


def _merge(partial: Tensor, lse: Tensor, seq_lens: Tensor, out: Tensor, tile: Tile, window: int) -> None:
    """partial [S,HQ,splits,DV] and lse [S,HQ,splits] -> out [S,HQ,DV]. Grid: (S, HQ, blocks of DV)."""
    num_seqs, num_heads, splits, v_dim = partial.shape
    block_dv = min(padded(v_dim), configs.MERGE_BLOCK_DV)
    merge_kernel[(num_seqs, num_heads, math.ceil(v_dim / block_dv))](
        partial,
        lse,
        seq_lens,
        out,
        window=window or NO_WINDOW,
        num_splits=splits,
        num_heads=num_heads,
        V_DIM=v_dim,
        BLOCK_DV=block_dv,
        BLOCK_SPLITS=padded(splits),
        BLOCK_N=tile.block_n,
        MIN_TILES=tile.min_tiles,
        num_warps=4,
    )


def _prefill(
    q: Tensor,
    keys: _Keys,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_starts: Tensor,
    longest: int,
    qk_scale: float,
    v_scale: float,
    window: int,
) -> Tensor:
    """Grid: S x HKV x the blocks of the `longest` query, each sequence's last block first."""
    num_tokens, num_heads, _ = q.shape
    num_seqs = len(seq_lens)
    out = q.new_empty(num_tokens, num_heads, keys.v.shape[3])
    if out.numel() == 0:
        return out
    group = num_heads // keys.num_heads
    rows = longest * group
    tile = keys.tile(q, rows, _target(q.device))
    prefill_kernel[(math.ceil(rows / tile.block_m) * num_seqs * keys.num_heads,)](
        q_ptr=q,
        table_ptr=block_tables,
        lens_ptr=seq_lens,
        starts_ptr=query_starts,
        out_ptr=out,
        qk_scale=qk_scale * math.log2(math.e),
        v_scale=v_scale,
        window=window or NO_WINDOW,
        group=group,
        num_heads=num_heads,
        num_seqs=num_seqs,
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        table_stride=block_tables.stride(0),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        **keys.arguments(),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=configs.MAX_REGISTERS,
    )
    return out


def _longest(query_starts: Tensor, max_query_len: int | None) -> int:
    if max_query_len is not None:
        return max_query_len
    return int(query_starts.diff().max()) if len(query_starts) > 1 else 0


def _dot_dim(dim: int) -> int:
    """A dimension padded for `tl.dot`, which needs at least 16."""
    return max(16, padded(dim))


@functools.cache
def _target(device: torch.device) -> Target:
    """The GPU; for the interpreter a device of a few multiprocessors, so that there are splits."""
    if device.type != "cuda":
        return Target(capability=90, multiprocessors=4, shared_bytes=227 * 1024)
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    major, minor = torch.cuda.get_device_capability(device)
    return Target(10 * major + minor, properties["multiprocessor_count"], properties["max_shared_mem"])
