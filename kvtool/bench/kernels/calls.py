"""The tensors of one kernel measurement: a pool of random values, pages in random order, calls on pages of their own.

Each call of a pass has its own block tables into the one pool, so that a pass streams through more memory than the
last-level cache holds. The outputs of one call are compared with the reference kernels on the same pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from kvtool.bench.kernels.work import DECODE, STORE, KernelWork
from kvtool.engine.decoder.gathered import gathered
from kvtool.engine.decoder.latent_attention import decompressed_prefill
from kvtool.engine.loaded import TORCH_DTYPES
from kvtool.engine.pool import KvPool, pool_specs
from kvtool.kernels import load_kernels
from kvtool.kernels.interface import Kernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.quantise import stored
from kvtool.kernels.rows import Rows, Softmax
from kvtool.machine.timers import Call
from kvtool.results import KernelCheck
from kvtool.sizing.specs import SlidingSpec

# Share of the largest output that rounding may move an output by.
ROUNDING = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 2e-2}
CHECKED_SEQUENCES = 4
CHECKED_QUERIES = 16  # of the first and of the last queries of a chunk
CHECKED_ROWS = 64
INT8_UNIT = 30  # what int8 holds random values of order 1 times
TILE_ELEMENTS = 4_194_301  # prime: repeated through a pool, it never puts the same values into two pages


@dataclass(frozen=True, slots=True)
class Queries:
    """q [T,HQ,D] of some rows; a decode's have no query_starts. `up` [HQ,N+V,R] is there where latents are
    decompressed."""

    q: Tensor
    rows: Rows
    up: Tensor | None = None

    @property
    def block_tables(self) -> Tensor:
        """[S,N] int32."""
        return self.rows.block_tables

    @property
    def seq_lens(self) -> Tensor:
        """[S] int32."""
        return self.rows.seq_lens


def filled_pool(work: KernelWork, num_pages: int, device: torch.device, random: torch.Generator) -> KvPool:
    """A pool of one layer with random values of order 1 in every slot."""
    pool = KvPool(pool_specs((work.spec,)), num_pages, work.block_size, device)
    layer = pool.layers[0]
    unit = INT8_UNIT if layer.k.dtype == torch.int8 else 1
    flat = [(tensor.view(-1), tensor is layer.k_scale or tensor is layer.v_scale) for tensor in layer.tensors]
    tile = torch.randn(min(TILE_ELEMENTS, max(len(tensor) for tensor, _ in flat)), device=device, generator=random)
    for tensor, is_scale in flat:
        values = stored((1 + tile.abs() / 10) / unit if is_scale else tile * unit, tensor.dtype)
        for start in range(0, len(tensor), TILE_ELEMENTS):
            tensor[start : start + TILE_ELEMENTS].copy_(values[: len(tensor) - start])
    return pool


class Measurement:
    """The calls of one pass through the working set, and the check of one of them."""

    def __init__(
        self, work: KernelWork, kernels: Kernels, pool: KvPool, num_calls: int, random: torch.Generator
    ) -> None:
        self.work, self.kernels, self.pool, self.random = work, kernels, pool, random
        self.layer = pool.layers[0]
        self.device = self.layer.k.device
        self.scenes: list[Queries] = []  # the queries of each call, none of a store
        self.calls: list[Callable[[], Any]]
        tables = self._block_tables(num_calls)
        if work.part == STORE:
            self.rows = self._normal(num_calls, work.new_tokens, work.row_elements)
            slots = self._slots(tables)
            self.calls = [
                store_call(work, kernels, self.layer, rows, to) for rows, to in zip(self.rows, slots, strict=True)
            ]
        else:
            self.queries = self._queries(tables[0])
            rows = self.queries.rows
            self.scenes = [replace(self.queries, rows=replace(rows, block_tables=table)) for table in tables]
            self.calls = [attention_call(work, kernels, self.layer, scene) for scene in self.scenes]

    def check(self) -> KernelCheck:
        """One call against the reference kernels."""
        return self._check_store() if self.work.part == STORE else self.check_output(self.calls[0]())

    def _block_tables(self, num_calls: int) -> Tensor:
        """[calls, S, N] int32: no page twice; entries before `first_page`, which nobody follows, are 0."""
        work = self.work
        used = work.num_pages - work.first_page
        order = torch.randperm(self.pool.num_pages, device=self.device, generator=self.random)
        tables = torch.zeros(num_calls, work.batch_size, work.num_pages, dtype=torch.int32, device=self.device)
        tables[..., work.first_page :] = order[: num_calls * work.call_pages].view(num_calls, -1, used)
        return tables

    def _slots(self, tables: Tensor) -> Tensor:
        """[calls, T] int64: `query_len` slots in a row of logical pages, sequence after sequence."""
        token = torch.arange(self.work.query_len, device=self.device)
        pages = tables.long()[..., token // self.work.block_size]
        return (pages * self.work.block_size + token % self.work.block_size).flatten(1)

    def _queries(self, table: Tensor) -> Queries:
        work = self.work
        q = self._normal(work.new_tokens, work.model.num_heads, work.head_dims[0])
        lens = torch.full((work.batch_size,), work.context, dtype=torch.int32, device=self.device)
        if work.part == DECODE:
            return Queries(q, Rows(table, lens))
        starts = torch.arange(work.batch_size + 1, dtype=torch.int32, device=self.device) * work.query_len
        up = self._normal(*work.up_shape).mul_(work.out_dim**-0.5) if work.decompressed else None
        return Queries(q, Rows(table, lens, starts, work.query_len), up)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=TORCH_DTYPES[self.work.dtype], device=self.device, generator=self.random)

    def check_output(self, ran: Tensor) -> KernelCheck:
        """What anybody's kernel made of the first scene, [T,HQ,DV], against the reference kernels."""
        rows, expected = self._expected
        what = f"{len(rows.unique())} of {len(self.queries.q)} queries, all heads"
        return compared(ran[rows].float(), expected, dtype=self.work.dtype, what=what)

    @cached_property
    def _expected(self) -> tuple[Tensor, Tensor]:
        """Some rows of the first scene's output, and the reference's fp32 values of them."""
        work, heads, reference = self.work, self.queries.q.shape[1], load_kernels("reference")
        queries, rows = decode_sample(self.queries) if work.part == DECODE else prefill_sample(self.queries)
        # A head at a time, so that the reference's fp32 copies of long contexts stay small.
        outputs = [_head_call(work, reference, self.layer, queries, head=head, of=heads) for head in range(heads)]
        return rows, torch.cat(outputs, dim=1).float()

    def _check_store(self) -> KernelCheck:
        """The first rows into two pools of zeros: every slot of both must hold the same."""
        work = self.work
        count = min(CHECKED_ROWS, work.new_tokens)
        slots = torch.randperm(2 * count, device=self.device, generator=self.random)[:count]
        rows = self.rows[0, :count]
        pools = []
        for kernels in (self.kernels, load_kernels("reference")):
            pool = KvPool(pool_specs((work.spec,)), -(-2 * count // work.block_size), work.block_size, self.device)
            store_call(work, kernels, pool.layers[0], rows, slots)()
            pools.append(torch.cat([t.float().flatten() for t in pool.layers[0].tensors]))
        return compared(*pools, dtype=work.dtype, what=f"{count} rows")


def attention_call(work: KernelWork, kernels: Kernels, pages: Pages, queries: Queries) -> Callable[[], Tensor]:
    """The kernel bound to its arguments. Random queries suit any scale: this one keeps scores of order 1."""
    window = work.spec.window if isinstance(work.spec, SlidingSpec) else 0
    softmax = Softmax(work.head_dims[0] ** -0.5, window)
    if queries.up is not None:
        tables = tuple(queries.rows.tables)
        copied = gathered(tables, pages.block_size, kernels.tile_tokens, queries.q.device)
        return partial(decompressed_prefill, queries.q, queries.up, queries.rows, copied, pages, softmax, kernels)
    attend = kernels.decode if work.part == DECODE else kernels.prefill
    return partial(attend, queries.q, pages, queries.rows, softmax)


def store_call(work: KernelWork, kernels: Kernels, pages: Pages, rows: Tensor, slots: Tensor) -> Call:
    """rows [T, elements of a token] into slots [T]."""
    if pages.v is None:
        return partial(kernels.store, rows, None, pages, slots)
    heads, k_dim, v_dim = work.spec.kv_heads, work.spec.k_head_dim, work.spec.v_head_dim
    k, v = rows.split((heads * k_dim, heads * v_dim), dim=1)
    return partial(kernels.store, k.unflatten(1, (heads, k_dim)), v.unflatten(1, (heads, v_dim)), pages, slots)


def decode_sample(queries: Queries) -> tuple[Queries, Tensor]:
    """Sequences from the first to the last, evenly, and the output rows that are theirs."""
    last = len(queries.q) - 1
    rows = torch.linspace(0, last, min(CHECKED_SEQUENCES, last + 1)).round().long().to(queries.q.device)
    return Queries(queries.q[rows], Rows(queries.block_tables[rows], queries.seq_lens[rows])), rows


def prefill_sample(queries: Queries) -> tuple[Queries, Tensor]:
    """The first and the last queries of a chunk of one sequence, as two sequences on the same pages."""
    num_queries, device = len(queries.q), queries.q.device
    count = min(CHECKED_QUERIES, num_queries)
    rows = torch.cat((torch.arange(count), torch.arange(num_queries - count, num_queries))).to(device)
    shorter = torch.tensor([num_queries - count, 0], dtype=torch.int32, device=device)
    starts = torch.tensor([0, count, 2 * count], dtype=torch.int32, device=device)
    halves = Rows(queries.block_tables.repeat(2, 1), queries.seq_lens - shorter, starts, count)
    return Queries(queries.q[rows], halves, queries.up), rows


def _head_call(work: KernelWork, kernels: Kernels, pages: Pages, queries: Queries, *, head: int, of: int) -> Tensor:
    """The reference for one query head, on the KV head that it shares."""
    if pages.v is not None:
        shared = head // (of // work.spec.kv_heads)
        pages = pages.map(lambda tensor: tensor[:, :, shared : shared + 1])
    up = None if queries.up is None else queries.up[head : head + 1]
    return attention_call(work, kernels, pages, Queries(queries.q[:, head : head + 1], queries.rows, up))()


def compared(ran: Tensor, expected: Tensor, *, dtype: str, what: str) -> KernelCheck:
    difference = float((ran - expected).abs().max())
    tolerance = ROUNDING[dtype] * float(expected.abs().max())
    equal = difference <= tolerance
    verdict = "equal" if equal else "NOT equal"
    return KernelCheck(
        outputs_equal=equal,
        max_abs_diff=difference if difference < float("inf") else None,
        text=f"{what}, against the reference kernels: {verdict} within {tolerance:.2g}",
    )
