"""The torch twins of products with what stands around them: one after the other."""

from __future__ import annotations

from torch import Tensor

from kvtool.kernels import plain
from kvtool.kernels.fused import Choice, Input, Normed, Shared
from kvtool.kernels.interface import ExpertWeights, GatedWeight, Weight
from kvtool.kernels.reference import step

most_rows = 64  # of any number: so many decode together in a test


def linear(x: Input, weight: Weight, plus: Tensor | None = None) -> Tensor:
    return step.product(read(x), weight.weight, weight.bias, plus)


def gated(x: Input, weight: GatedWeight) -> Tensor:
    return step.gated(read(x), weight)


def route(x: Input, choice: Choice) -> tuple[Tensor, Tensor]:
    return plain.route(read(x), choice)


def experts(
    x: Input,
    weights: ExpertWeights,
    chosen: Tensor,
    shares: Tensor,
    plus: Tensor | None = None,
    shared: Shared | None = None,
) -> Tensor:
    x = read(x)
    if shared is not None:
        plus = step.product(step.gated(x, shared.inner), shared.down.weight, shared.down.bias, plus)
    return step.experts(x, weights, chosen, shares, plus)


def read(x: Input) -> Tensor:
    """What a product reads."""
    return step.rms_norm(x.x, x.weight, x.eps) if isinstance(x, Normed) else x
