"""A rank's part of a model, and what its decoder asks of the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding

from kvtool.catalog.model import Model
from kvtool.engine.part import Whole
from kvtool.engine.ranks.context import context_kernels
from kvtool.engine.ranks.shards import ShardedWeights, shard_of
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.interface import Kernels
from kvtool.ranks.crew import Seat
from kvtool.ranks.layout import RankLayout, check_ranks, even_part


class TensorRanks:
    """Sums over the ranks that share heads; a table of embeddings of which each has some rows."""

    def __init__(self, seat: Seat, vocabulary: range) -> None:
        """`vocabulary` are the tokens whose rows this rank has."""
        self._group, self._vocabulary = seat.tensor, vocabulary
        self._shared = seat.layout.tp > 1 and not seat.layout.replicated_head

    def reduced(self, x: Tensor) -> Tensor:
        return self._group.all_reduce(x)

    def embedded(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        if not self._shared:
            return embedding(token_ids, rows)
        local = token_ids - self._vocabulary.start
        elsewhere = (local < 0) | (local >= len(rows))
        found = embedding(local.masked_fill(elsewhere, 0), rows).masked_fill_(elsewhere[:, None], 0.0)
        return self._group.all_reduce(found)


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
        self.ranks, self.tensor_ranks, self.token_shards = layout.ranks, layout.tp, layout.token_shards
        self.index = layout.tp_index(seat.rank)
        assert model.vocab_size is not None
        self.vocabulary = even_part(model.vocab_size, layout.tp, self.index)
        self.communicator = TensorRanks(seat, self.vocabulary)
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
