"""Attention over tokens that several ranks share: keys and values go round (pass-KV), or queries do (pass-Q).

Token p of a sequence lies with shard p mod C (striped: causal work is even). Context parallelism of the prompt
(arXiv 2411.01783) and of decode (DCP, Helix) are the same call: in one the ranks have queries of different tokens, in
the other of different heads. What is sent goes on while what is there is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from kvtool.engine.ranks.partial import finished, merged, partial_attention
from kvtool.kernels.interface import Kernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows, Softmax
from kvtool.machine.ranks.group import Group
from kvtool.machine.ranks.layout import tokens_of_shard
from kvtool.sizing.speed.exchange import RingShape, passes_kv


@dataclass(frozen=True, eq=False)
class ContextRows(Rows):
    """Rows of a step whose tokens are shared. `seq_lens` count the tokens of all shards; `queries` are, of each member
    of the group, the positions of its queries in each sequence."""

    queries: tuple[tuple[range, ...], ...] = ()

    def query_tokens(self) -> list[int]:
        """Of each member."""
        return [sum(map(len, own)) for own in self.queries]

    def key_tokens(self, shards: int) -> list[int]:
        """In the cache of each shard."""
        return [sum(tokens_of_shard(length, shard, shards) for length in self.lengths) for shard in range(shards)]


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys [M,HKV,D] and values [M,HKV,DV] of all sequences of a step, those of one shard, sequence after sequence.
    Latents are both: their values begin their keys."""

    k: Tensor
    v: Tensor
    are_latents: bool
    shard: int
    shards: int
    lengths: list[int]

    def attended(self, q: Tensor, queries: tuple[range, ...], softmax: Softmax) -> Tensor:
        """q [n,HQ,D], sequence after sequence, over these keys: parts fp32 [n,HQ,DV+1]."""
        ends, at, key = [], 0, 0
        for length, positions in zip(self.lengths, queries, strict=True):
            keys = range(self.shard, length, self.shards)
            rows, held = slice(at, at + len(positions)), slice(key, key + len(keys))
            ends.append(partial_attention(q[rows], self.k[held], self.v[held], positions, keys, softmax))
            at, key = rows.stop, held.stop
        return torch.cat(ends)


class ContextKernels:
    """Other kernels, but attention asks all members of a group: each has every `group.size`-th token."""

    def __init__(self, base: Kernels, group: Group, ring: str) -> None:
        self.base, self._group, self._ring = base, group, ring

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def decode(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        """Of all rows of a step, prompts too: q [n,HQ,D] of this rank's tokens, and padding behind them."""
        assert isinstance(rows, ContextRows)
        mine = rows.queries[self._group.index]
        count = sum(map(len, mine))
        keys = self._own_keys(pages, rows, q.dtype)
        if self.sends_keys(q, pages, rows):
            parts = self._pass_kv(q[:count], mine, keys, rows, softmax)
        else:
            parts = self._pass_q(q[:count], mine, keys, rows, softmax)
        out = q.new_zeros(*q.shape[:2], pages.value_dim)
        out[:count] = finished(parts, softmax, q.dtype)
        return out

    def sends_keys(self, q: Tensor, pages: Pages, rows: ContextRows) -> bool:
        """Whether keys go round: as asked for, else where they are fewer bytes, or sooner over the measured link."""
        if self._ring in ("pass-kv", "pass-q"):
            return self._ring == "pass-kv"
        link = self._group.measured_link(q.device) if self._ring == "measured" else None
        return rows.once(
            "sends_keys",
            lambda: passes_kv(ring_shape(q, pages), rows.key_tokens(self._group.size), rows.query_tokens(), link),
        )

    def _own_keys(self, pages: Pages, rows: ContextRows, dtype: torch.dtype) -> Keys:
        k, v = rows_of_shard(pages, rows, self._group.index, self._group.size, dtype)
        return Keys(k, v, pages.v is None, self._group.index, self._group.size, rows.lengths)

    def _pass_kv(self, q: Tensor, mine: tuple[range, ...], keys: Keys, rows: ContextRows, softmax: Softmax) -> Tensor:
        group, tokens = self._group, rows.key_tokens(self._group.size)
        is_latent = keys.are_latents
        block = keys.k if is_latent else torch.cat((keys.k, keys.v), dim=-1)
        key_dim, value_dim = keys.k.shape[-1], keys.v.shape[-1]
        parts: Tensor | None = None
        for step in range(group.size):
            shard, after = (group.index - step) % group.size, (group.index - step - 1) % group.size
            last = step == group.size - 1
            coming = block.new_empty(0 if last else tokens[after], *block.shape[1:])
            wait = None if last else group.shift(block, coming)
            k, v = block[..., :key_dim], block[..., :value_dim] if is_latent else block[..., key_dim:]
            found = Keys(k, v, is_latent, shard, group.size, rows.lengths).attended(q, mine, softmax)
            parts = found if parts is None else merged(parts, found)
            if wait is not None:
                wait()
                block = coming
        assert parts is not None
        return parts

    def _pass_q(self, q: Tensor, mine: tuple[range, ...], keys: Keys, rows: ContextRows, softmax: Softmax) -> Tensor:
        """Queries go round; each rank answers those that visit it, straight to whom they belong."""
        group, tokens = self._group, rows.query_tokens()
        parts: Tensor | None = None
        answers: dict[int, Tensor] = {}
        visitor, answer_dim = q.contiguous(), keys.v.shape[-1] + 1
        for step in range(group.size):
            owner, after = (group.index - step) % group.size, (group.index - step - 1) % group.size
            last = step == group.size - 1
            coming = visitor.new_empty(0 if last else tokens[after], *visitor.shape[1:])
            wait = None if last else group.shift(visitor, coming)
            found = keys.attended(visitor, rows.queries[owner], softmax)
            if step == 0:
                parts = found
            else:
                answers[owner] = found
            if wait is not None:
                wait()
                visitor = coming
        coming_back = {
            place: q.new_empty(len(q), q.shape[1], answer_dim, dtype=torch.float32)
            for place in range(group.size)
            if place != group.index
        }
        group.swap(answers, coming_back)()
        assert parts is not None
        for place in sorted(coming_back):
            parts = merged(parts, coming_back[place])
        return parts


def context_kernels(base: Kernels, group: Group, ring: str) -> Kernels:
    """The kernels whose attention asks the group."""
    return cast("Kernels", ContextKernels(base, group, ring))


def ring_shape(q: Tensor, pages: Pages) -> RingShape:
    """What goes round of one layer's attention, with queries [n,HQ,D]."""
    is_latent = pages.v is None
    return RingShape(
        heads=q.shape[1],
        kv_heads=1 if is_latent else pages.k.shape[2],
        key_dim=pages.k.shape[-1],
        value_dim=0 if is_latent else pages.value_dim,
        out_dim=pages.value_dim,
        element_bytes=q.element_size(),
    )


def rows_of_shard(pages: Pages, rows: Rows, shard: int, shards: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys [M,HKV,D] and values [M,HKV,DV] that this rank has of each sequence, out of their pages."""
    slots = rows.once(("slots", shard, shards), lambda: _slots(pages, rows, shard, shards))

    def taken(cache: Tensor, scale: float | Tensor) -> Tensor:
        found = cache.flatten(0, 1)[slots].to(dtype)
        return found if isinstance(scale, float) and scale == 1.0 else found * scale

    if pages.v is None:
        latents = taken(pages.k, pages.k_scale).unsqueeze(1)
        return latents, latents[..., : pages.latent_dim]
    return taken(pages.k, pages.k_scale), taken(pages.v, pages.v_scale)


def _slots(pages: Pages, rows: Rows, shard: int, shards: int) -> Tensor:
    size, found = pages.block_size, []
    for table, length in zip(rows.tables, rows.lengths, strict=True):
        own = tokens_of_shard(length, shard, shards)
        found += [table[at // size] * size + at % size for at in range(own)]
    return torch.tensor(found, dtype=torch.int64, device=pages.k.device)


def queries_of(start: int, stop: int, cp_index: int, cp: int) -> range:
    """Of the positions start .. stop-1 those that rank `cp_index` of `cp` computes: p mod cp = cp_index."""
    first = start + (cp_index - start) % cp
    return range(min(first, stop), stop, cp)
