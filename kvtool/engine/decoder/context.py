"""What a layer is given besides its input: the rows of the step, where their K/V goes, and how positions turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.gathered import Gathered
from kvtool.engine.decoder.part import Communicator
from kvtool.kernels.fused import FusedKernels, Input, Normed
from kvtool.kernels.interface import Kernels
from kvtool.kernels.weights import GatedWeight, Weight


@dataclass(frozen=True, slots=True)
class StepContext:
    """`rotation` is the cos and sin of the step's positions, computed once for all layers; `local_rotation` is that of
    sliding layers where they have a base of their own. `gathered` is there for the prefill rows of MLA. `others` are
    asked where the weights are a part of the model's; `mlp_batch` has the tokens that the MLP computes. `fused` is
    there where products do the norm before them and the sum behind them too."""

    batch: StepBatch
    kernels: Kernels
    rotation: tuple[Tensor, Tensor]
    local_rotation: tuple[Tensor, Tensor]
    others: Communicator
    mlp_batch: StepBatch
    gathered: Gathered | None = None
    fused: FusedKernels | None = None

    def linear(self, x: Input, weight: Weight, plus: Tensor | None = None) -> Tensor:
        """x W^T + bias, + plus."""
        if self.fused is not None:
            return self.fused.linear(x, weight, plus)
        product = self.kernels.linear(tensor_of(x), weight)
        return product if plus is None else product + plus

    def gated(self, x: Input, weight: GatedWeight) -> Tensor:
        """The gate of both products of x."""
        if self.fused is not None:
            return self.fused.gated(x, weight)
        return self.kernels.gated(tensor_of(x), weight)


def tensor_of(x: Input) -> Tensor:
    """x where nothing is fused: `residual.normed` leaves a norm to be done to fused products alone."""
    assert not isinstance(x, Normed), "only fused products normalise"
    return x


def join(decoded: Tensor | None, prefilled: Tensor | None) -> Tensor:
    """The rows of a step again: decode rows first, then prefill rows."""
    if decoded is None:
        assert prefilled is not None
        return prefilled
    return decoded if prefilled is None else torch.cat((decoded, prefilled))
