"""What torch's own operations do well enough for any backend: activations, gates, norms, rotations, experts in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import gelu, relu, silu

from kvtool.errors import KvtoolError
from kvtool.kernels.interface import GatedWeight, Weight

if TYPE_CHECKING:
    from kvtool.kernels.interface import ExpertWeights, Gate, Replay, Rotation

CLAMPED = "clamped_swiglu"

# By the names that checkpoints use.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_new": lambda x: gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": relu,
}


def record(step: Callable[[], Tensor]) -> tuple[Tensor, Replay | None]:
    """Nothing is taken down."""
    return step(), None


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function called `name`. Raises KvtoolError for one that is not known."""
    if name not in ACTIVATIONS:
        raise KvtoolError(f"activation {name!r} is not one the engine runs: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def gated(of_gate: Tensor, up: Tensor, gate: Gate) -> Tensor:
    """Both [T, n] -> [T, n], as `Gate` says."""
    if gate.activation != CLAMPED:
        return activation(gate.activation)(of_gate).mul_(up)
    of_gate, up = of_gate.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    return (up + 1) * (of_gate * (of_gate * gate.alpha).sigmoid())


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight of x [..., n], for weight [n] or [heads, n]."""
    size = (weight.shape[-1],)
    if weight.dtype != x.dtype:
        return (functional.rms_norm(x.float(), size, eps=eps) * weight).to(x.dtype)
    if weight.dim() == 1:
        return functional.rms_norm(x, size, weight, eps=eps)
    return functional.rms_norm(x, size, eps=eps) * weight


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x [T, heads, dim] cos + roll(x) sin; of wider heads the first columns are turned."""
    cos, sin = rotation
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat((rotate(x[..., :width], rotation), x[..., width:]), dim=-1)
    return torch.addcmul(x * cos, x.roll(width // 2, dims=-1), sin)


Expert = Callable[[Tensor], Tensor]


def experts_in_turn(
    x: Tensor, expert: Callable[[int], Expert], chosen: Tensor, shares: Tensor, plus: Tensor | None
) -> Tensor:
    """`StepKernels.experts` of one expert after another: those that were chosen, which the device is asked for."""
    out = torch.zeros_like(x) if plus is None else plus.clone()
    for number in chosen.unique().tolist():
        rows, ranks = (chosen == number).nonzero(as_tuple=True)
        out.index_add_(0, rows, expert(number)(x[rows]) * shares[rows, ranks, None].to(x.dtype))
    return out


def expert_weights(weights: ExpertWeights, number: int) -> tuple[GatedWeight, Weight]:
    """One expert's weights, as views."""
    gate_up_bias, down_bias = (
        None if bias is None else bias[number] for bias in (weights.gate_up_bias, weights.down_bias)
    )
    return GatedWeight(weights.gate_up[number], gate_up_bias, weights.gate), Weight(weights.down[number], down_bias)
