"""What of a model this process has: all of it, unless ranks share it (`engine.ranks`)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding

from kvtool.catalog.model import Model
from kvtool.engine.batch import StepBatch
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.interface import Kernels


class Communicator(Protocol):
    """What a decoder asks of the others, where its weights are a part of the model's."""

    def attended(self, x: Tensor) -> Tensor:
        """What attention gave, x [T, hidden], of all heads; x may be overwritten."""

    def gathered(self, x: Tensor) -> Tensor:
        """What the MLP is to compute: x [T, hidden], and where attention is in replicas the tokens of others too."""

    def reduced(self, x: Tensor) -> Tensor:
        """What the MLP gave, of all its rows, for the tokens of this rank; x may be overwritten."""

    def tokens(self, batch: StepBatch) -> StepBatch:
        """Whose tokens `gathered` returns."""

    def embedded(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        """Rows [T, hidden] of token_ids [T] in a table of which `rows` is this rank's part."""


class Alone:
    """Nobody to ask."""

    def attended(self, x: Tensor) -> Tensor:
        return x

    def gathered(self, x: Tensor) -> Tensor:
        return x

    def tokens(self, batch: StepBatch) -> StepBatch:
        return batch

    def reduced(self, x: Tensor) -> Tensor:
        return x

    def embedded(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        return embedding(token_ids, rows)


class Part(Protocol):
    """A rank's part of any model. `ranks` run it, `tensor_ranks` of them share heads; a page of the cache manager is
    `token_shards` times as long as one of the pool."""

    @property
    def ranks(self) -> int: ...

    @property
    def tensor_ranks(self) -> int: ...

    @property
    def token_shards(self) -> int: ...

    @property
    def communicator(self) -> Communicator: ...

    def model(self, model: Model) -> Model:
        """What this rank has of the model. Raises KvtoolError where it cannot be shared so."""

    def weights(self, source: WeightSource, model: Model) -> WeightSource:
        """This rank's parts of the tensors of the whole model."""

    def kernels(self, kernels: Kernels) -> Kernels:
        """Kernels that know where tokens lie which this rank has not."""

    def device(self, device: torch.device) -> torch.device:
        """The rank's own, where ranks have one each."""


class Whole:
    """All of a model, in one process."""

    ranks = tensor_ranks = token_shards = 1
    communicator: Communicator = Alone()

    def model(self, model: Model) -> Model:
        return model

    def weights(self, source: WeightSource, model: Model) -> WeightSource:
        return source

    def kernels(self, kernels: Kernels) -> Kernels:
        return kernels

    def device(self, device: torch.device) -> torch.device:
        return device
