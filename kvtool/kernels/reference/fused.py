"""The torch twins of products with what stands around them: one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels import plain
from kvtool.kernels.fused import Choice, Input, Normed, Shared
from kvtool.kernels.interface import Rotation
from kvtool.kernels.pages import Pages
from kvtool.kernels.reference import step
from kvtool.kernels.weights import ExpertWeights, GatedWeight, Weight

most_rows = 64  # of any number: so many decode together in a test


def linear(x: Input, weight: Weight, plus: Tensor | None = None) -> Tensor:
    return step.product(read(x), weight.weight, weight.bias, plus)


def gated(x: Input, weight: GatedWeight) -> Tensor:
    return step.gated(read(x), weight)


def likeliest(x: Input, weight: Weight) -> Tensor:
    return linear(x, weight).max(dim=-1).indices


def absorbed(
    q: Tensor,
    latent: Tensor,
    norm: Tensor,
    eps: float,
    rotation: Rotation,
    pages: Pages,
    slots: Tensor,
    w_uk: Tensor,
) -> Tensor:
    out = step.split_latent(q, latent, norm, eps, rotation, pages, slots, len(q))
    nope, rank = w_uk.shape[1:]
    out[..., :rank] = torch.einsum("thn,hnr->thr", q[..., :nope].to(w_uk.dtype), w_uk)
    return out


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
