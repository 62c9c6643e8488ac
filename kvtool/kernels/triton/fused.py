"""Products with what stands around them, as `fused.FusedKernels` promises them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.kernels.fused import Input, Normed
from kvtool.kernels.triton import pairs, products, step
from kvtool.kernels.triton import route as router
from kvtool.kernels.triton.experts import KERNEL_GATES, experts_at_once
from kvtool.kernels.triton.products import Around
from kvtool.kernels.triton.rows import rms_norm
from kvtool.kernels.triton.tiles.products import GEMV_ROWS, MAX_ROWS

if TYPE_CHECKING:
    from kvtool.kernels.fused import Choice, Shared
    from kvtool.kernels.interface import Rotation
    from kvtool.kernels.pages import Pages
    from kvtool.kernels.weights import ExpertWeights, Gate, GatedWeight, Weight

most_rows = MAX_ROWS


def linear(x: Input, weight: Weight, plus: Tensor | None = None) -> Tensor:
    return products.linear(*_read(x, weight, plus))


def gated(x: Input, weight: GatedWeight) -> Tensor:
    return products.linear(*_read(x, weight, None, weight.gate))


def likeliest(x: Input, weight: Weight) -> Tensor:
    """A launch besides, which looks at the largest of each block of columns."""
    rows, matrix, bias, _, around = _read(x, weight, None)
    return products.linear(rows, matrix, bias, around=replace(around, largest=True))


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
    """One launch for few tokens; more of them read a head's matrix together."""
    if len(q) <= GEMV_ROWS:
        return step.latents_stored(q, latent, norm, eps, rotation, pages, slots, len(q), w_uk)
    out = step.split_latent(q, latent, norm, eps, rotation, pages, slots, len(q))
    nope, rank = w_uk.shape[1:]
    torch.bmm(q[..., :nope].transpose(0, 1), w_uk, out=out[..., :rank].transpose(0, 1))
    return out


def route(x: Input, choice: Choice) -> tuple[Tensor, Tensor]:
    return router.route(*_rows(x), choice)


def experts(
    x: Input,
    weights: ExpertWeights,
    chosen: Tensor,
    shares: Tensor,
    plus: Tensor | None = None,
    shared: Shared | None = None,
) -> Tensor:
    """Two launches for few tokens, else four and those of the shared experts."""
    rows, norm = _rows(x)
    if pairs.serves(len(rows), weights, shared):
        return pairs.experts_of_few(rows, norm, weights, chosen, shares, plus, shared)
    if shared is not None:
        plus = linear(gated(x, shared.inner), shared.down, plus)
    if weights.gate.activation in KERNEL_GATES:
        return experts_at_once(rows, weights, chosen, shares, plus, norm)
    normed = rows if norm is None else rms_norm(rows, norm.weight, norm.eps)
    return step.experts(normed, weights, chosen, shares, plus)


def _rows(x: Input) -> tuple[Tensor, Normed | None]:
    return (x.x, x) if isinstance(x, Normed) else (x, None)


def _read(
    x: Input, weight: Weight | GatedWeight, plus: Tensor | None, gate: Gate | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Around]:
    """The arguments of a product."""
    rows, norm = _rows(x)
    around = Around(gate=gate) if norm is None else Around(norm.weight, norm.eps, gate)
    return rows, weight.weight, weight.bias, plus, around
