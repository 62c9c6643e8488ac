"""The same step on every rank: compute a part, and give its logits to the first rank."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.transformer import Transformer
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.ranks.sharded import RankPart, ReplicaRanks
from kvtool.engine.ranks.step import LocalStep, local_step
from kvtool.kernels.pages import Pages
from kvtool.machine.ranks.crew import Seat
from kvtool.machine.ranks.layout import RankLayout, even_part


@torch.inference_mode()
def run_part(transformer: Transformer, loaded: LoadedModel, whole: StepBatch, layers: list[Pages]) -> Tensor:
    """Logits [sampled rows, vocab] on the first rank; on others they are a part, and of no use."""
    assert isinstance(loaded.part, RankPart)
    seat = loaded.part.seat
    step = local_step(whole, seat, loaded.device)
    logits = transformer(step.batch, layers, loaded.kernels)
    return _gathered(logits, step, whole, seat, loaded.vocab_size)


@torch.inference_mode()
def run_replica(
    transformer: Transformer, loaded: LoadedModel, batches: list[StepBatch], layers: list[Pages]
) -> list[Tensor]:
    """Of the steps of all replicas this rank's. On the first rank the logits [sampled rows, vocab] of each of them."""
    assert isinstance(loaded.part, RankPart)
    assert isinstance(loaded.part.communicator, ReplicaRanks)
    seat = loaded.part.seat
    loaded.part.communicator.batches = batches
    logits = transformer(batches[seat.rank], layers, loaded.kernels).contiguous()
    if not seat.leads:
        seat.everyone.swap({0: logits}, {})()
        return []
    counts = [len(b.token_ids) if b.sample_rows is None else len(b.sample_rows) for b in batches]
    coming = {rank: logits.new_empty(count, logits.shape[1]) for rank, count in enumerate(counts) if rank}
    seat.everyone.swap({}, coming)()
    return [logits, *(coming[rank] for rank in sorted(coming))]


def _gathered(logits: Tensor, step: LocalStep, whole: StepBatch, seat: Seat, vocab_size: int) -> Tensor:
    """All rows of the step and all of the vocabulary, on the first rank."""
    layout = seat.layout
    sends = has_logits(layout, seat.rank) and len(logits) > 0
    if not seat.leads:
        if sends:
            seat.everyone.swap({0: logits.contiguous()}, {})()
        return logits
    parts = {0: logits} if sends else {}
    for rank in range(1, layout.ranks):
        rows = len(step.sampled[layout.cp_index(rank) % len(step.sampled)])
        if rows and has_logits(layout, rank):
            width = len(vocabulary_of(layout, rank, vocab_size))
            parts[rank] = logits.new_empty(rows, width)
    seat.everyone.swap({}, {rank: part for rank, part in parts.items() if rank})()
    by_cp = [_columns(parts, layout, c) for c in range(layout.cp)]
    found = [part for part in by_cp if part is not None]
    if not found:
        return logits.new_empty(0, vocab_size)
    if len(step.sampled) == 1:
        return found[0]
    order = [row for rows in step.sampled for row in rows]
    return torch.cat(found)[torch.tensor(order, device=logits.device).argsort()]


def _columns(parts: dict[int, Tensor], layout: RankLayout, cp_index: int) -> Tensor | None:
    """The rows of one place in cp, with the columns of all its tensor ranks."""
    found = [parts[rank] for rank in sorted(parts) if layout.cp_index(rank) == cp_index and has_logits(layout, rank)]
    return torch.cat(found, dim=-1) if found else None


def has_logits(layout: RankLayout, rank: int) -> bool:
    """Whether nobody else has what this rank knows of the logits."""
    return layout.shares_vocabulary or layout.tp_index(rank) == 0


def vocabulary_of(layout: RankLayout, rank: int, vocab_size: int) -> range:
    """The tokens whose logits the rank has."""
    if not layout.shares_vocabulary:
        return range(vocab_size)
    return even_part(vocab_size, layout.tp, layout.tp_index(rank))
