"""The Triton kernels as functions of tensors: checks shapes and dtypes, picks a tile, sizes the grid, launches.

Scores are kept in base 2: exp(scale * s) = exp2(scale * log2(e) * s), so the scale, log2(e) and the keys'
dequantisation scale are one factor; the values' scale multiplies the normalised output. A scale beside each vector
multiplies a key's scores and a value's weights instead.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from kvtool.kernels import checks, configs, step
from kvtool.kernels.configs import Target, Tile, padded
from kvtool.kernels.quantise import largest
from kvtool.kernels.triton.decode import decode_kernel, merge_kernel
from kvtool.kernels.triton.prefill import prefill_kernel
from kvtool.kernels.triton.store import store_kernel

if TYPE_CHECKING:
    from kvtool.kernels import Scale, StepKernels

fused: StepKernels | None = step
MAX_ARRIVALS = 1024  # more than the sequences x KV heads that are ever split: they and their splits are all resident
GRAPHS = -1  # in the place of a stream
NO_WINDOW = 2**30  # longer than any sequence, and a few queries more are still an int32


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
) -> None:
    """k [T,HKV,D] and v [T,HKV,DV] into slots [T] of [P,B,HKV,*], one launch each."""
    _store(k, k_cache, slots, k_scale)
    _store(v, v_cache, slots, v_scale)


def store_latent(latent: Tensor, cache: Tensor, slots: Tensor, *, scale: Scale = 1.0) -> None:
    """latent [T,R+E] into slots [T] of [P,B,R+E]: a row of one head."""
    _store(latent.unsqueeze(1), cache.unsqueeze(2), slots, _of_one_head(scale))


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
) -> Tensor:
    """q [S*Q,HQ,D] -> [S*Q,HQ,DV]: softmax(scale * k_scale * q K^T) V * v_scale, the rows of a KV head together."""
    checks.attention(q, k_cache, v_cache, block_tables, seq_lens, window)
    checks.queries(q, seq_lens)
    softmax = _Softmax(scale, window, softcap, sinks)
    return _decode(q, _Keys(k_cache, v_cache, k_scale, v_scale), block_tables, seq_lens, softmax)


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
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
    max_query_len: int | None = None,
) -> Tensor:
    """q [T,HQ,D] -> [T,HQ,DV]: as `paged_decode`, query i of q_len seeing keys 0 .. seq_len - q_len + i."""
    checks.attention(q, k_cache, v_cache, block_tables, seq_lens, window)
    checks.query_starts(query_starts, seq_lens)
    keys, softmax = _Keys(k_cache, v_cache, k_scale, v_scale), _Softmax(scale, window, softcap, sinks)
    longest = _longest(query_starts, max_query_len)
    return _prefill(q, keys, block_tables, seq_lens, query_starts, longest, softmax)


def mla_decode(
    q: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    latent_dim: int,
    scale: float,
    cache_scale: Scale = 1.0,
) -> Tensor:
    """q [S*Q,H,R+E] absorbed -> [S*Q,H,R]: `paged_decode` of H heads on one latent head, V = K's first R columns."""
    keys = _latent_keys(cache, latent_dim, cache_scale)
    checks.attention(q, keys.k, keys.v, block_tables, seq_lens, window=0)
    checks.queries(q, seq_lens)
    return _decode(q, keys, block_tables, seq_lens, _Softmax(scale))


def mla_prefill(
    q: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_starts: Tensor,
    *,
    latent_dim: int,
    scale: float,
    cache_scale: Scale = 1.0,
    max_query_len: int | None = None,
) -> Tensor:
    """q [T,H,R+E] absorbed -> [T,H,R]: `paged_prefill` of H heads on one latent head."""
    keys = _latent_keys(cache, latent_dim, cache_scale)
    checks.attention(q, keys.k, keys.v, block_tables, seq_lens, window=0)
    checks.query_starts(query_starts, seq_lens)
    longest = _longest(query_starts, max_query_len)
    return _prefill(q, keys, block_tables, seq_lens, query_starts, longest, _Softmax(scale))


@dataclass(frozen=True)
class _Softmax:
    """What happens to the scores of a row: scaled, capped, hidden behind a window, joined by the sink of its head."""

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: Tensor | None = None

    def arguments(self, keys: _Keys, num_heads: int) -> dict[str, object]:
        """qk_scale and cap in base 2: s -> s * qk_scale, or -> cap * tanh(s * qk_scale)."""
        checks.softmax(self.softcap, self.sinks, num_heads)
        scale = self.scale if isinstance(keys.k_scale, Tensor) else self.scale * keys.k_scale
        return {
            "sinks_ptr": self.sinks,
            "qk_scale": scale / self.softcap if self.softcap else scale * math.log2(math.e),
            "cap": self.softcap * math.log2(math.e),
            "window": self.span,
            "CAPPED": self.softcap > 0,
        }

    @property
    def span(self) -> int:
        """Keys that one query sees at most."""
        return self.window or NO_WINDOW


@dataclass(frozen=True)
class _Keys:
    """The pool as both attention kernels take it: k [P,B,HKV,D] and v [P,B,HKV,DV], with their scales.

    With rope_dim > 0 a row of k is [latent | rotary key] and v its latent part, which the kernels then load once.
    """

    k: Tensor
    v: Tensor
    k_scale: Scale
    v_scale: Scale
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

    def arguments(self, tile: Tile, target: Target) -> dict[str, object]:
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
            "TMA": self._by_descriptor(tile, target),
            "num_pages": len(k),
        } | self._scale_arguments()

    def _by_descriptor(self, tile: Tile, target: Target) -> bool:
        """Whether TMA loads the tiles: where rows and pages begin at multiples of its 16 bytes."""
        starts: list[int] = [self.head_dim if self.rope_dim else 0]
        for tensor in (self.k, self.v):
            starts += [int(tensor.storage_offset()), *tensor.stride()[:3]]
        aligned = all(start * self.k.element_size() % configs.TMA_ALIGNMENT == 0 for start in starts)
        has_scales = isinstance(self.k_scale, Tensor)
        shape = _dot_dim(self.head_dim), self.k.shape[1], self.k.element_size()
        uses_tma = aligned and tile.uses_tma(*shape, target, vector_scales=has_scales)
        if uses_tma:
            triton.set_allocator(_descriptor_memory)
        return uses_tma

    def _scale_arguments(self) -> dict[str, object]:
        """With scales of their own, values are taken times the largest of the dtype, which v_scale takes out again."""
        checks.scales(self.k_scale, self.v_scale, self.k)
        k_scale = self.k_scale if isinstance(self.k_scale, Tensor) else None
        v_scale = self.v_scale if isinstance(self.v_scale, Tensor) else None
        return {
            "k_scale_ptr": k_scale,
            "v_scale_ptr": v_scale,
            "v_scale": self.v_scale if v_scale is None else 1.0 / largest(self.v.dtype),
            **_scale_strides(k_scale),
        }


def _latent_keys(cache: Tensor, latent_dim: int, scale: Scale) -> _Keys:
    checks.latent(cache, latent_dim)
    k, scale = cache.unsqueeze(2), _of_one_head(scale)
    return _Keys(k, k[..., :latent_dim], scale, scale, rope_dim=cache.shape[2] - latent_dim)


def _of_one_head(scale: Scale) -> Scale:
    return scale.unsqueeze(2) if isinstance(scale, Tensor) else scale


def _scale_strides(scales: Tensor | None) -> dict[str, object]:
    page, slot, head = (0, 0, 0) if scales is None else scales.stride()
    return {"scale_page_stride": page, "scale_slot_stride": slot, "scale_head_stride": head}


def _store(rows: Tensor, cache: Tensor, slots: Tensor, scale: Scale) -> None:
    """rows [T,H,D] into slots [T] of cache [P,B,H,D]. Grid: (T, blocks of heads)."""
    checks.store(rows, cache, slots)
    checks.scales(scale, scale, cache)
    num_tokens, num_heads, head_dim = rows.shape
    if num_tokens == 0:
        return
    block_d = padded(head_dim)
    block_h = max(1, min(padded(num_heads), configs.STORE_BLOCK // block_d))
    scales = scale if isinstance(scale, Tensor) else None
    store_kernel[(num_tokens, math.ceil(num_heads / block_h))](
        x_ptr=rows,
        cache_ptr=cache,
        scales_ptr=scales,
        slots_ptr=slots,
        scale=1.0 if isinstance(scale, Tensor) else scale,
        x_token_stride=rows.stride(0),
        x_head_stride=rows.stride(1),
        page_stride=cache.stride(0),
        slot_stride=cache.stride(1),
        head_stride=cache.stride(2),
        **_scale_strides(scales),
        HEADS=num_heads,
        HEAD_DIM=head_dim,
        PAGE=cache.shape[1],
        MAX=largest(cache.dtype),
        BLOCK_H=block_h,
        BLOCK_D=block_d,
        num_warps=4,
    )


def _decode(q: Tensor, keys: _Keys, block_tables: Tensor, seq_lens: Tensor, softmax: _Softmax) -> Tensor:
    """Grid: (S, HKV x blocks of its rows, splits); with several splits their partial outputs are merged."""
    num_tokens, num_heads, _ = q.shape
    num_seqs, v_dim = len(seq_lens), keys.v.shape[3]
    out = q.new_empty(num_tokens, num_heads, v_dim)
    if out.numel() == 0:
        return out
    query_len, group, target = num_tokens // num_seqs, num_heads // keys.num_heads, _target(q.device)
    tile = keys.tile(q, rows=group * query_len, target=target)
    programs = keys.num_heads * math.ceil(group * query_len / tile.block_m)
    page = keys.k.shape[1]
    max_context = block_tables.shape[1] * page
    resident = tile.resident_programs(keys.bytes_per_key, target)
    splits = configs.num_splits(num_seqs * programs, max_context, resident)
    partial = lse = arrivals = None
    if splits > 1:
        partial = q.new_empty(num_tokens, num_heads, splits, v_dim, dtype=torch.float32)
        lse = q.new_empty(num_tokens, num_heads, splits, dtype=torch.float32)
        arrivals = _arrivals(q.device, num_seqs * programs)
    decode_kernel[(num_seqs, programs, splits)](
        q_ptr=q,
        table_ptr=block_tables,
        lens_ptr=seq_lens,
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
        table_stride=block_tables.stride(0),
        SPLIT=splits > 1,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_SPLITS=configs.merged_at_once(padded(v_dim), tile.num_warps),
        MIN_TILES=tile.min_tiles,
        **keys.arguments(tile, target),
        **softmax.arguments(keys, num_heads),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=tile.decode_registers(page, vector_scales=isinstance(keys.k_scale, Tensor)),
    )
    if partial is not None and lse is not None and arrivals is None:
        _merge(partial, lse, seq_lens, out, tile, softmax.span)
    return out


def _merge(partial: Tensor, lse: Tensor, seq_lens: Tensor, out: Tensor, tile: Tile, window: int) -> None:
    """partial [T,HQ,splits,DV] and lse [T,HQ,splits] -> out [T,HQ,DV]. Grid: (T, HQ)."""
    num_tokens, num_heads, splits, v_dim = partial.shape
    merge_kernel[(num_tokens, num_heads)](
        partial,
        lse,
        seq_lens,
        out,
        window=window,
        query_len=num_tokens // len(seq_lens),
        num_heads=num_heads,
        num_splits=splits,
        V_DIM=v_dim,
        BLOCK_DV=padded(v_dim),
        BLOCK_SPLITS=configs.merged_at_once(padded(v_dim), num_warps=4),
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
    softmax: _Softmax,
) -> Tensor:
    """Grid: S x HKV x the blocks of the `longest` query, each sequence's last block first."""
    num_tokens, num_heads, _ = q.shape
    num_seqs = len(seq_lens)
    out = q.new_empty(num_tokens, num_heads, keys.v.shape[3])
    if out.numel() == 0:
        return out
    group = num_heads // keys.num_heads
    rows = longest * group
    target = _target(q.device)
    tile = keys.tile(q, rows, target)
    prefill_kernel[(math.ceil(rows / tile.block_m) * num_seqs * keys.num_heads,)](
        q_ptr=q,
        table_ptr=block_tables,
        lens_ptr=seq_lens,
        starts_ptr=query_starts,
        out_ptr=out,
        group=group,
        num_heads=num_heads,
        num_seqs=num_seqs,
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        table_stride=block_tables.stride(0),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        **keys.arguments(tile, target),
        **softmax.arguments(keys, num_heads),
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


def _arrivals(device: torch.device, count: int) -> Tensor | None:
    """At least [count] int32 zeros for a decode kernel to count in, which leaves them zero, for the next one.

    Each stream has its own, and all graphs of a device share one, as they share memory: they are replayed in turn.
    None for the interpreter, which runs one program after another and merges in a kernel of its own.
    """
    if device.type == "cpu":
        return None
    if device.type != "cuda" or count > MAX_ARRIVALS:
        return torch.zeros(count, dtype=torch.int32, device=device)
    of_graphs = _kept_arrivals(device, GRAPHS)  # made by the call that compiles, before any capture
    if torch.cuda.is_current_stream_capturing():
        return of_graphs
    return _kept_arrivals(device, torch.cuda.current_stream(device).cuda_stream)


@functools.cache
def _kept_arrivals(device: torch.device, stream: int) -> Tensor:
    return torch.zeros(MAX_ARRIVALS, dtype=torch.int32, device=device)


def _descriptor_memory(size: int, alignment: int, stream: int | None) -> Tensor:
    """Where a launch's programs build their TMA descriptors."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


@functools.cache
def _target(device: torch.device) -> Target:
    """The GPU; for the interpreter a device of a few multiprocessors, so that there are splits."""
    if device.type != "cuda":
        return Target(capability=90, multiprocessors=4, shared_bytes=227 * 1024)
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    major, minor = torch.cuda.get_device_capability(device)
    return Target(10 * major + minor, properties["multiprocessor_count"], properties["max_shared_mem"])
