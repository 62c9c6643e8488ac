"""A dense MLP, which is also what one expert is."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.catalog.decoder import Decoder
from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.linear import ActivatedLinear, ClampedGatedLinear, GatedLinear, Linear
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.interface import StepKernels

Inner = GatedLinear | ClampedGatedLinear | ActivatedLinear


class Mlp:
    """down(inner x) + plus."""

    capturable = True

    def __init__(self, inner: Inner, down: Linear) -> None:
        self.inner, self.down = inner, down

    def __call__(
        self, x: Tensor, batch: StepBatch, plus: Tensor | None = None, fused: StepKernels | None = None
    ) -> Tensor:
        return self.down(self.inner(x, fused), plus, fused)


def load_mlp(hidden_size: int, width: int, decoder: Decoder, weights: WeightSource, prefix: str) -> Mlp:
    """An MLP, or one expert, of the decoder's kind and `width` inner elements."""

    def product(name: str, rows: int, columns: int) -> Linear:
        bias = weights.tensor(f"{prefix}.{name}.bias", rows) if decoder.mlp_bias else None
        return Linear(weights.tensor(f"{prefix}.{name}.weight", rows, columns), bias)

    down = product("down_proj", hidden_size, width)
    if not decoder.gated_mlp:
        return Mlp(ActivatedLinear(product("up_proj", width, hidden_size), decoder.activation), down)
    if decoder.clamped_swiglu is not None:
        gate, up = (product(name, width, hidden_size) for name in ("gate_proj", "up_proj"))
        return Mlp(ClampedGatedLinear(gate, up, decoder.clamped_swiglu), down)
    return Mlp(_gated(hidden_size, width, decoder, weights, prefix), down)


def _gated(hidden_size: int, width: int, decoder: Decoder, weights: WeightSource, prefix: str) -> GatedLinear:
    names = [f"{prefix}.{name}" for name in ("gate_proj", "up_proj")]
    weight = torch.cat([weights.tensor(f"{name}.weight", width, hidden_size) for name in names])
    bias = torch.cat([weights.tensor(f"{name}.bias", width) for name in names]) if decoder.mlp_bias else None
    return GatedLinear(weight, decoder.activation, bias)
