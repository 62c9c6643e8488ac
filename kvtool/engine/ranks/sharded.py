"""A rank's part of a model, and what its decoder asks of the others."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import embedding

from kvtool.catalog.model import Model
from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.part import Communicator, Whole
from kvtool.engine.ranks.context import context_kernels
from kvtool.engine.ranks.shards import ShardedWeights, shard_of
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.interface import Kernels
from kvtool.machine.ranks.crew import Seat
from kvtool.machine.ranks.layout import RankLayout, check_ranks, even_part


class TensorRanks:
    """Sums over the ranks that share heads; a table of embeddings of which each has some rows."""

    def __init__(self, seat: Seat, vocabulary: range) -> None:
        """`vocabulary` are the tokens whose rows this rank has."""
        self._group, self._vocabulary = seat.tensor, vocabulary
        self._shared = seat.layout.shares_vocabulary

    def attended(self, x: Tensor) -> Tensor:
        return self._group.all_reduce(x)

    def gathered(self, x: Tensor) -> Tensor:
        return x

    def tokens(self, batch: StepBatch) -> StepBatch:
        return batch

    def reduced(self, x: Tensor) -> Tensor:
        return self._group.all_reduce(x)

    def embedded(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        if not self._shared:
            return embedding(token_ids, rows)
        local = token_ids - self._vocabulary.start
        elsewhere = (local < 0) | (local >= len(rows))
        found = embedding(local.masked_fill(elsewhere, 0), rows).masked_fill_(elsewhere[:, None], 0.0)
        return self._group.all_reduce(found)


class ReplicaRanks:
    """Each rank attends for tokens of its own; the MLP's rows are shared, and it is computed for the tokens of all.

    `batches` are what the ranks compute in the step at hand, in their order, padding of those without work included.
    """

    def __init__(self, seat: Seat) -> None:
        self._group = seat.tensor
        self.batches: list[StepBatch] = []

    def attended(self, x: Tensor) -> Tensor:
        return x

    def embedded(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        return embedding(token_ids, rows)

    def tokens(self, batch: StepBatch) -> StepBatch:
        ids, positions, slots = (
            torch.cat([getattr(one, name) for one in self.batches]) for name in ("token_ids", "positions", "slots")
        )
        return replace(batch, token_ids=ids, positions=positions, slots=slots)

    def gathered(self, x: Tensor) -> Tensor:
        """[tokens of all ranks, hidden]: everybody tells everybody."""
        x, group = x.contiguous(), self._group
        parts = {place: x if place == group.index else x.new_empty(n, x.shape[1]) for place, n in self._counts()}
        others = [place for place in parts if place != group.index]
        group.swap(dict.fromkeys(others, x), {place: parts[place] for place in others})()
        return torch.cat([parts[place] for place in sorted(parts)])

    def reduced(self, x: Tensor) -> Tensor:
        """[own tokens, hidden]: everybody gets what others computed of his tokens, and adds it up in their order."""
        group = self._group
        parts = dict(enumerate(x.split([count for _, count in self._counts()])))
        mine = parts[group.index].contiguous()
        others = [place for place in parts if place != group.index]
        coming = {place: torch.empty_like(mine) for place in others}
        group.swap({place: parts[place].contiguous() for place in others}, coming)()
        coming[group.index] = mine
        total = coming[0].clone()
        for place in range(1, group.size):
            total += coming[place]
        return total

    def _counts(self) -> list[tuple[int, int]]:
        return [(place, len(batch.token_ids)) for place, batch in enumerate(self.batches)]


class OneRank(Whole):
    """All of a model in one process, whose weights are counted as ranks count theirs."""

    def weights(self, source: WeightSource, model: Model) -> WeightSource:
        self.sharded = ShardedWeights(source, model, RankLayout(), 0)
        return self.sharded


class RankPart:
    """The part of one seat. `weights` remembers what it gave out, so that bytes can be asked for."""

    def __init__(self, seat: Seat, model: Model) -> None:
        check_ranks(model, seat.layout)
        layout = seat.layout
        self.seat = seat
        self.ranks, self.tensor_ranks, self.token_shards = layout.ranks, layout.heads_tp, layout.token_shards
        self.index = layout.tp_index(seat.rank)
        assert model.vocab_size is not None
        self.vocabulary = even_part(model.vocab_size, layout.tp, self.index)
        self.communicator: Communicator = TensorRanks(seat, self.vocabulary)
        if layout.dp > 1:
            self.communicator = ReplicaRanks(seat)
        self.sharded: ShardedWeights | None = None

    def model(self, model: Model) -> Model:
        return shard_of(model, self.seat.layout, self.index)

    def weights(self, source: WeightSource, model: Model) -> WeightSource:
        self.sharded = ShardedWeights(source, model, self.seat.layout, self.index)
        return self.sharded

    def kernels(self, kernels: Kernels) -> Kernels:
        if self.token_shards == 1:
            return kernels
        return context_kernels(kernels, self.seat.tokens, self.seat.layout.ring)

    def device(self, device: torch.device) -> torch.device:
        """With several GPUs, one a rank: by its place on this machine."""
        if device.type != "cuda":
            return device
        return torch.device("cuda", self.seat.rank % torch.cuda.device_count())
