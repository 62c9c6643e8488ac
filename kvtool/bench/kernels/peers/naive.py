"""Attention as textbooks write it, matrix after matrix: all scores go to memory, and their softmax, before V is read.

What flash tiling saves is seen beside it: tiles never write a score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from kvtool.bench.kernels.calls import Queries
from kvtool.bench.kernels.peers.peer import Prepared
from kvtool.bench.kernels.peers.sdpa import COPY_SHARE, contiguous, lower_right_mask, of_sequences, rows_of
from kvtool.bench.kernels.work import DECODE, KernelWork
from kvtool.bench.peers import PeerError
from kvtool.kernels.pages import Pages
from kvtool.machine.memory import available_bytes
from kvtool.sizing.dtypes import FLOAT_BYTES
from kvtool.sizing.specs import LatentSpec
from kvtool.units import format_bytes

NOTE = "scores and probabilities written out whole, over a contiguous copy of the cache, made before"
MATRICES, PASSES = 2, 2  # scores and probabilities, each written and read again


def version() -> str | None:
    return str(torch.__version__)


def why_not(work: KernelWork, device: torch.device) -> str | None:
    if work.cache_dtype != work.dtype:
        return f"its products take K and V in the dtype of the queries: a {work.cache_dtype} cache is no such"
    return "it is written for K and V heads, not for latents" if isinstance(work.spec, LatentSpec) else None


def prepare(work: KernelWork, layer: Pages, scenes: Sequence[Queries]) -> Prepared:
    room = COPY_SHARE * available_bytes(layer.k.device) - MATRICES * scores_bytes(work)
    fitting = int(room / work.kv_bytes)
    if fitting < 1:
        raise PeerError(f"no room for {format_bytes(MATRICES * scores_bytes(work))} of scores")
    mask = None if work.part == DECODE else lower_right_mask(work, layer.k.device)
    return Prepared(
        calls=[_call(work, layer, scene, mask) for scene in scenes[:fitting]],
        output=rows_of,
        note=NOTE,
        moved_bytes=work.bytes.moved + MATRICES * PASSES * scores_bytes(work),
    )


def scores_bytes(work: KernelWork) -> int:
    """Of one matrix of all queries against all keys, in the dtype of the queries."""
    pairs = work.batch_size * work.query_len * work.tokens_in_use
    return pairs * work.model.num_heads * FLOAT_BYTES[work.dtype]


def _call(work: KernelWork, layer: Pages, scene: Queries, mask: Tensor | None) -> Callable[[], Tensor]:
    """q [S,HKV,G*Q,D], k [S,HKV,D,L] and v [S,HKV,L,DV]: the G query heads of a KV head are so many rows."""
    assert layer.v is not None  # latents are refused
    kv_heads = work.spec.kv_heads
    q = of_sequences(work, scene).unflatten(1, (kv_heads, -1)).flatten(2, 3) * work.spec.k_head_dim**-0.5
    k, v = (contiguous(cache, work, scene).transpose(1, 2).contiguous() for cache in (layer.k, layer.v))
    if mask is not None:
        mask = mask.repeat(work.model.num_heads // kv_heads, 1)
    return partial(_attend, q.contiguous(), k.transpose(2, 3), v, mask, work.query_len)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_len: int) -> Tensor:
    """[S,HQ,Q,DV]."""
    scores = q @ k
    if mask is not None:
        scores = scores.masked_fill_(~mask, float("-inf"))
    out: Tensor = (scores.softmax(dim=-1) @ v).unflatten(2, (-1, query_len))
    return out.flatten(1, 2)
