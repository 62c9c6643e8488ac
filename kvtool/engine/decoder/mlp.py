"""A dense MLP, gated or not."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.catalog.decoder import Decoder
from kvtool.engine.decoder.context import StepContext
from kvtool.engine.decoder.linear import gate_of, load_linear
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.blocks import stacked
from kvtool.kernels.fused import Input
from kvtool.kernels.interface import Kernels
from kvtool.kernels.plain import activation
from kvtool.kernels.weights import GatedWeight, Weight


class GatedMlp:
    """down(activation(gate x) * up x), + plus."""

    capturable = True

    def __init__(self, inner: GatedWeight, down: Weight) -> None:
        self.inner, self.down = inner, down

    def __call__(self, x: Input, step: StepContext, plus: Tensor | None = None) -> Tensor:
        return step.linear(step.gated(x, self.inner), self.down, plus)


class Mlp:
    """down(activation(up x)), + plus. Raises KvtoolError for an unknown activation."""

    capturable = True

    def __init__(self, up: Weight, down: Weight, name: str) -> None:
        self.up, self.down, self.activated = up, down, activation(name)

    def __call__(self, x: Input, step: StepContext, plus: Tensor | None = None) -> Tensor:
        return step.linear(self.activated(step.linear(x, self.up)), self.down, plus)


def load_mlp(
    hidden_size: int, width: int, decoder: Decoder, weights: WeightSource, kernels: Kernels, prefix: str
) -> GatedMlp | Mlp:
    """An MLP of the decoder's kind and `width` inner elements."""
    has_bias = decoder.mlp_bias
    down = load_linear(kernels, weights, f"{prefix}.down_proj", hidden_size, width, bias=has_bias)
    if decoder.gated_mlp:
        return GatedMlp(kernels.prepare(_gated(hidden_size, width, decoder, weights, prefix)), down)
    up = load_linear(kernels, weights, f"{prefix}.up_proj", width, hidden_size, bias=has_bias)
    return Mlp(up, down, decoder.activation)


def _gated(hidden_size: int, width: int, decoder: Decoder, weights: WeightSource, prefix: str) -> GatedWeight:
    names = [f"{prefix}.{name}" for name in ("gate_proj", "up_proj")]
    weight = torch.cat([weights.tensor(f"{name}.weight", width, hidden_size) for name in names])
    bias = torch.cat([weights.tensor(f"{name}.bias", width) for name in names]) if decoder.mlp_bias else None
    stored = stacked([weights.blocks(f"{name}.weight") for name in names])
    return GatedWeight(weight, bias, gate_of(decoder), stored=stored)
