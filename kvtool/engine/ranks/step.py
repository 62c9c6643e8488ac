"""One step of the engine as the first rank tells it, and what of it another rank computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kvtool.engine.batch import StepBatch, to_device
from kvtool.engine.ranks.context import ContextRows, queries_of
from kvtool.kernels.rows import Rows
from kvtool.machine.ranks.crew import Seat
from kvtool.machine.ranks.layout import RankLayout
from kvtool.units import ceil_div

Told = list[Tensor | None]


@dataclass(frozen=True, slots=True)
class LocalStep:
    """A rank's part of a step. Of the sampled rows, `sampled` says for each rank of cp which they are, in the order of
    the whole step; `rows` are this rank's, by their place in its own batch."""

    batch: StepBatch
    sampled: tuple[list[int], ...]


def told(batch: StepBatch) -> Told:
    """The tensors that say all of a step."""
    tokens = torch.stack((batch.token_ids, batch.positions, batch.slots))
    found: Told = [tokens, batch.sample_rows]
    for rows in (batch.decode, batch.prefill):
        found += [None] * 3 if rows is None else [rows.block_tables, rows.seq_lens, rows.query_starts]
    return found


TOLD = 8  # tensors that say a step


def told_all(batches: Sequence[StepBatch | None]) -> Told:
    """The tensors that say the steps of all replicas, in the order of their ranks."""
    return [tensor for batch in batches for tensor in ([None] * TOLD if batch is None else told(batch))]


def replica_batches(message: Told, device: torch.device, page_tokens: int) -> list[StepBatch]:
    """The steps that `told_all` said; a replica without work has a token of padding, since others wait for it."""
    parts = [message[at : at + TOLD] for at in range(0, len(message), TOLD)]
    return [padding(device) if part[0] is None else whole_batch(part, device, page_tokens) for part in parts]


def padding(device: torch.device) -> StepBatch:
    """One token that belongs to nobody: it is stored nowhere, and nothing of it is sampled."""
    zero, one = to_device(device, [0], torch.int64), to_device(device, [0], torch.int32)
    rows = Rows(block_tables=one.view(1, 1), seq_lens=one)
    return StepBatch(token_ids=zero, positions=zero, slots=zero - 1, decode=rows, prefill=None, sample_rows=zero[:0])


def whole_batch(message: Told, device: torch.device, page_tokens: int) -> StepBatch:
    """The step that `told` said, on this rank's device; pages of `page_tokens`."""
    tokens, sample_rows = message[:2]
    assert tokens is not None
    prefill = _rows(message[5:8], device)
    return StepBatch(
        token_ids=tokens[0].to(device),
        positions=tokens[1].to(device),
        slots=tokens[2].to(device),
        decode=_rows(message[2:5], device),
        prefill=prefill,
        sample_rows=None if sample_rows is None else sample_rows.to(device),
        prefill_pages=() if prefill is None else _used_pages(prefill, page_tokens),
    )


def _rows(message: Told, device: torch.device) -> Rows | None:
    tables, lengths, starts = message
    if tables is None or lengths is None:
        return None
    longest = None if starts is None else int((starts[1:] - starts[:-1]).max())
    return Rows(
        block_tables=tables.to(device, torch.int32),
        seq_lens=lengths.to(device, torch.int32),
        query_starts=None if starts is None else starts.to(device, torch.int32),
        max_query_len=longest,
    )


def _used_pages(rows: Rows, page_tokens: int) -> tuple[list[int], ...]:
    return tuple(
        table[: ceil_div(length, page_tokens)] for table, length in zip(rows.tables, rows.lengths, strict=True)
    )


def local_step(whole: StepBatch, seat: Seat, device: torch.device) -> LocalStep:
    """What this rank computes of a step: all of it unless tokens are shared."""
    layout = seat.layout
    count = len(whole.token_ids)
    rows = list(range(count)) if whole.sample_rows is None else whole.sample_rows.tolist()
    if layout.token_shards == 1:
        return LocalStep(whole, (rows,))
    positions = whole.positions.tolist()
    mine = [place for place in range(count) if positions[place] % layout.cp == layout.cp_index(seat.rank)]
    sampled = tuple([row for row in rows if positions[row] % layout.cp == c] for c in range(layout.cp))
    return LocalStep(_shared_batch(whole, seat, mine, sampled, device), sampled)


def _shared_batch(
    whole: StepBatch, seat: Seat, mine: list[int], sampled: tuple[list[int], ...], device: torch.device
) -> StepBatch:
    """This rank's tokens, all as decode rows: they attend over keys that lie elsewhere too. A rank without a token
    computes one of padding, since others wait for it."""
    layout = seat.layout
    shards, shard = layout.token_shards, layout.shard(seat.rank)
    chosen = torch.tensor(mine, dtype=torch.int64, device=device)
    slots, ids, positions = (x[chosen] for x in (whole.slots, whole.token_ids, whole.positions))
    # A page of the cache manager holds `shards` times as many tokens as one here: slot s is s // shards of s % shards.
    slots = torch.where((slots >= 0) & (slots % shards == shard), slots // shards, -1)
    if not mine:
        ids, positions, slots = (to_device(device, [value], torch.int64) for value in (0, 0, -1))
    own = {place: index for index, place in enumerate(mine)}
    samples = [own[row] for row in sampled[layout.cp_index(seat.rank)]]
    return StepBatch(
        token_ids=ids,
        positions=positions,
        slots=slots,
        decode=_context_rows(whole, layout, seat, device),
        prefill=None,
        sample_rows=to_device(device, samples, torch.int64),
    )


def _context_rows(whole: StepBatch, layout: RankLayout, seat: Seat, device: torch.device) -> ContextRows:
    """Decode rows, then prefill rows, as one set."""
    both = [rows for rows in (whole.decode, whole.prefill) if rows is not None]
    tables, lengths, spans = [], [], []
    for rows in both:
        tables += rows.tables
        lengths += rows.lengths
        starts = range(len(rows.lengths) + 1) if rows is whole.decode else rows.starts
        spans += [stop - start for start, stop in pairwise(starts)]
    width = max(map(len, tables))
    queries = tuple(
        tuple(
            queries_of(length - span, length, layout.cp_index(member), layout.cp)
            for length, span in zip(lengths, spans, strict=True)
        )
        for member in seat.tokens.members
    )
    return ContextRows(
        block_tables=to_device(device, [table + [0] * (width - len(table)) for table in tables], torch.int32),
        seq_lens=to_device(device, lengths, torch.int32),
        queries=queries,
    )
