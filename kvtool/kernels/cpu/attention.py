"""The fast torch path, for CPUs: index_copy into pages, then SDPA over the tokens of each sequence.

In bf16 the compiled kernels of `native` and `eight` write the pages and attend over them in place, where this machine
can build them.

Consecutive pages are read in place; only pages that lie apart are copied together first. In decode the query heads of
a group are packed as rows of one attention, so that K and V are read once a group. Runs on any device torch runs on.

Between two layers' weights every operation runs with cold caches, so what depends on the rows alone is worked out once
a step and shared by all layers (`Rows.once`), and small operations are avoided.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kvtool.kernels.cpu import eight
from kvtool.kernels.cpu.dense import capped_attention, causal_attention, tokens_of
from kvtool.kernels.cpu.memory import ROW
from kvtool.kernels.cpu.native import native, serves
from kvtool.kernels.quantise import largest, stored, vector_scales

if TYPE_CHECKING:
    from kvtool.kernels.pages import Pages, Scale
    from kvtool.kernels.rows import Rows, Softmax

# Up to this many tokens a sequence, one attention over all sequences padded to the longest beats one a sequence, in
# spite of the copy out of the pages; beyond, reading pages in place wins.
_BATCHED_DECODE_TOKENS = 1024
_FEW_SLOTS = 16


def store(k: Tensor, v: Tensor | None, pages: Pages, slots: Tensor) -> None:
    kernels = native()
    written = ((k, pages.k),) if v is None or pages.v is None else ((k, pages.k), (v, pages.v))
    are_rows = serves if v is None else _whole_rows
    if kernels is not None and _are_one(pages) and all(are_rows(tensor) for pair in written for tensor in pair):
        for rows, cache in written:
            kernels.store_rows(rows, cache, slots)
        return
    if v is not None and eight.takes(k, pages) and eight.takes(v, pages):
        eight.store(k, pages.k, slots, pages.k_scale)
        assert pages.v is not None
        eight.store(v, pages.v, slots, pages.v_scale)
        return
    if _has_padding(slots):
        kept = slots >= 0
        k, v, slots = k[kept], None if v is None else v[kept], slots[kept]
    if v is None:
        _store_latents(k, pages, slots)
        return
    assert pages.v is not None
    _store(k, pages.k, slots, pages.k_scale)
    _store(v, pages.v, slots, pages.v_scale)


def decode(q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
    if len(q) > len(rows.seq_lens) or not _is_plain(softmax):
        return prefill(q, pages, rows.with_starts(len(q)), softmax)
    kernels = native()
    if kernels is not None and _are_one(pages) and pages.value_dim % ROW == 0 and serves(q, *pages.tensors):
        return kernels.paged_decode(q, *_heads(pages), rows.block_tables, rows.seq_lens, softmax.scale, softmax.window)
    if eight.takes(q, pages):
        return eight.decode(q, pages, rows, softmax)
    if pages.v is None:
        return _decode_latents(q, pages, rows, softmax)
    if isinstance(pages.k_scale, Tensor):
        return prefill(q, pages, rows.with_starts(len(q)), softmax)
    # [S, HKV, G, D]: the queries of one group are rows over the same keys.
    grouped = q.unflatten(1, (pages.k.shape[2], -1))
    longest = max(rows.lengths)
    if not softmax.window and len(q) > 1 and min(rows.lengths) > 0 and longest <= _BATCHED_DECODE_TOKENS:
        return _decode_padded(grouped, pages, rows, softmax.scale)
    return _decode_each(grouped, pages, rows, softmax)


def prefill(q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
    if pages.k_rope is not None:  # to each head its whole keys
        rope = pages.k_rope.unsqueeze(2).expand(-1, -1, pages.k.shape[2], -1)
        pages = replace(pages, k=torch.cat((pages.k, rope), dim=-1), k_rope=None)
    kernels = native() if _is_plain(softmax) and _are_one(pages) and pages.v is not None else None
    if kernels is not None and kernels.prefill_pays and serves(q, *pages.tensors):
        assert rows.query_starts is not None
        indices = (rows.block_tables.int(), rows.seq_lens.int(), rows.query_starts.int())
        return kernels.paged_prefill(q, *_heads(pages), *indices, softmax.scale, softmax.window, rows.longest)
    out = q.new_zeros(*q.shape[:2], pages.value_dim)
    for table, seq_len, (start, stop) in zip(rows.tables, rows.lengths, pairwise(rows.starts), strict=True):
        if seq_len == 0 or start == stop:
            continue
        first = max(0, seq_len - (stop - start) - softmax.window + 1) if softmax.window else 0
        k, v = _tokens(pages, table, first, seq_len, q.dtype)
        attend = causal_attention if _is_plain(softmax) else capped_attention
        out[start:stop] = attend(q[start:stop], k, v, softmax)
    return out


def gather(pages: Pages, chosen: Tensor, dtype: torch.dtype) -> Tensor:
    table = chosen.tolist()
    rows = _latents(pages, table, len(table) * pages.block_size, dtype)
    return rows.view(len(table), pages.block_size, -1)


def _decode_padded(grouped: Tensor, pages: Pages, rows: Rows, scale: float) -> Tensor:
    """One attention of grouped [S, HKV, G, D] over all sequences, padded to the longest."""
    assert pages.v is not None
    kind = pages.block_size, grouped.dtype
    padding = rows.once(("padding", *kind), partial(_padding, rows, *kind))
    k = _padded(pages.k, padding, grouped.dtype, pages.k_scale)
    v = _padded(pages.v, padding, grouped.dtype, pages.v_scale)
    return scaled_dot_product_attention(grouped, k, v, attn_mask=padding.mask, scale=scale).flatten(1, 2)


def _decode_each(grouped: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
    """One attention a sequence, of grouped [S, HKV, G, D]."""
    found = []
    for query, table, seq_len in zip(grouped, rows.tables, rows.lengths, strict=True):
        if seq_len == 0:
            found.append(query.new_zeros(1, *query.shape[:2], pages.value_dim))
            continue
        first = max(0, seq_len - softmax.window) if softmax.window else 0
        k, v = (tokens.transpose(0, 1) for tokens in _tokens(pages, table, first, seq_len, grouped.dtype))
        found.append(scaled_dot_product_attention(query[None], k[None], v[None], scale=softmax.scale))
    return (found[0] if len(found) == 1 else torch.cat(found)).flatten(1, 2)


def _decode_latents(q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
    """q [S, H, R+E] over latents, whose values begin their keys -> [S, H, R]."""
    out = q.new_zeros(*q.shape[:2], pages.latent_dim)
    for row, (table, seq_len) in enumerate(zip(rows.tables, rows.lengths, strict=True)):
        if seq_len > 0:
            latents = _latents(pages, table, seq_len, q.dtype)
            weights = torch.softmax((q[row] @ latents.T).float() * softmax.scale, dim=-1).to(q.dtype)
            out[row] = weights @ latents[:, : pages.latent_dim]
    return out


def _heads(pages: Pages) -> tuple[Tensor, Tensor]:
    """k [P, B, HKV, D] and v [P, B, HKV, DV]; latents are one head, whose values begin its keys."""
    if pages.v is not None:
        return pages.k, pages.v
    k = pages.k.unsqueeze(2)
    return k, k[..., : pages.latent_dim]


def _tokens(pages: Pages, table: list[int], first: int, last: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """k [L, HKV, D] and v [L, HKV, DV] of tokens first .. last-1 of a sequence."""
    if pages.v is None:
        latents = _latents(pages, table, last, dtype)[first:].unsqueeze(1)
        return latents, latents[..., : pages.latent_dim]
    k = tokens_of(pages.k, table, first, last, dtype=dtype, scale=pages.k_scale)
    return k, tokens_of(pages.v, table, first, last, dtype=dtype, scale=pages.v_scale)


def _latents(pages: Pages, table: list[int], length: int, dtype: torch.dtype) -> Tensor:
    """Rows [L, R+E] of a sequence; the latent and the rotary key have a scale of their own where rows have any."""
    cache, scale, rank = pages.k, pages.k_scale, pages.latent_dim
    if not isinstance(scale, Tensor):
        return tokens_of(cache, table, 0, length, dtype=dtype, scale=scale)
    parts = ((cache[..., :rank], scale[..., 0]), (cache[..., rank:], scale[..., 1]))
    return torch.cat([tokens_of(part, table, 0, length, dtype=dtype, scale=one) for part, one in parts], dim=-1)


@dataclass(frozen=True, slots=True)
class Padding:
    """All sequences of a decode padded to the longest: `pages` [S * N], the mask [S, 1, 1, N * B], and the rows [n] of
    [S * N * B] that lie past the end of a sequence."""

    num_seqs: int
    pages: Tensor
    mask: Tensor
    past_end: Tensor


def _padding(rows: Rows, block_size: int, dtype: torch.dtype) -> Padding:
    slots = torch.arange(rows.block_tables.shape[1] * block_size, device=rows.seq_lens.device)
    past_end = slots >= rows.seq_lens[:, None]
    return Padding(
        num_seqs=len(rows.seq_lens),
        pages=rows.block_tables.masked_fill(
            past_end[:, ::block_size], 0
        ).flatten(),  # past the end an entry is anything
        mask=torch.zeros(past_end.shape, dtype=dtype).masked_fill_(past_end, float("-inf"))[:, None, None],
        past_end=past_end.flatten().nonzero().flatten(),
    )


def _padded(cache: Tensor, padding: Padding, dtype: torch.dtype, scale: Scale) -> Tensor:
    """All sequences out of their pages, padded to the longest: [S, heads, N * B, D]."""
    rows = cache.index_select(0, padding.pages).flatten(0, 1)
    if rows.dtype != dtype:
        rows = rows.to(dtype)
    # Unused slots may hold NaN, which a weight of zero does not stop.
    rows.index_fill_(0, padding.past_end, 0.0)
    if scale != 1.0:
        rows *= scale
    return rows.view(padding.num_seqs, -1, *rows.shape[1:]).transpose(1, 2)


def _has_padding(slots: Tensor) -> bool:
    """Whether a slot is -1. At a few the host looks itself, which takes less time than an operation."""
    return min(slots.tolist(), default=0) < 0 if len(slots) <= _FEW_SLOTS else int(slots.amin()) < 0


def _whole_rows(tensor: Tensor) -> bool:
    """Whether [T, heads, dim] or pages [P, B, heads, dim] are bf16 on the CPU with all of a token's heads together."""
    return serves(tensor) and tensor.stride(-2) == tensor.shape[-1]


def _is_plain(softmax: Softmax) -> bool:
    """Whether torch's SDPA and the compiled kernels know it."""
    return not softmax.softcap and softmax.sinks is None


def _are_one(pages: Pages) -> bool:
    """Whether what is stored are the values themselves."""
    scales = (pages.k_scale, pages.v_scale)
    return all(not isinstance(scale, Tensor) and scale == 1.0 for scale in scales)


def _store_latents(rows: Tensor, pages: Pages, slots: Tensor) -> None:
    """rows [T, R+E]; the latent and the rotary key have a scale of their own where rows have any."""
    cache, scale, rank = pages.k, pages.k_scale, pages.latent_dim
    if not isinstance(scale, Tensor):
        _store(rows, cache, slots, scale)
        return
    _store(rows[:, :rank], cache[..., :rank], slots, scale[..., 0])
    _store(rows[:, rank:], cache[..., rank:], slots, scale[..., 1])


def _store(rows: Tensor, cache: Tensor, slots: Tensor, scale: Scale) -> None:
    """rows [T, ...] to the slots [T] of cache [P, B, ...]."""
    if isinstance(scale, Tensor):
        vectors = vector_scales(rows, cache.dtype)
        _store(vectors, scale, slots, 1.0)
        rows, scale = rows.float() / vectors.unsqueeze(-1), 1.0
    if scale != 1.0:
        rows = rows / scale
    if largest(cache.dtype) < torch.finfo(rows.dtype).max:
        rows = stored(rows.float(), cache.dtype)
    rows = rows.to(cache.dtype)
    if cache.dtype.itemsize == 1:  # index_copy_ has no fp8: the same bytes as uint8
        cache, rows = cache.view(torch.uint8), rows.view(torch.uint8)
    page_size = cache.shape[1]
    if cache.stride(0) == page_size * cache.stride(1):
        cache.flatten(0, 1).index_copy_(0, slots, rows)
    else:  # pages lie apart, as in a pool [P, 2, B, ...]: flattening would write to a copy
        cache[slots // page_size, slots % page_size] = rows
