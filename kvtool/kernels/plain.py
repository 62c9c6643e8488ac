"""What torch's own operations do well enough for any backend: activations, gates, norms, rotations, experts in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import gelu, relu, silu

from kvtool.kernels.weights import GatedWeight, Weight
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.kernels.fused import Choice
    from kvtool.kernels.interface import Replay, Rotation
    from kvtool.kernels.weights import ExpertWeights, Gate

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


def likeliest(logits: Tensor) -> Tensor:
    """The token of each row [n, vocab] that has the largest logit, of equals the first."""
    return logits.max(dim=-1).indices  # as argmax, which takes three times as long on a CPU


def nucleus(probabilities: Tensor, top_ps: Tensor) -> Tensor:
    """Keep the smallest set of tokens whose probabilities [n, vocab] reach `top_ps` [n]; the likeliest stays."""
    ordered, tokens = probabilities.sort(dim=-1, descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= top_ps[:, None]
    outside &= top_ps[:, None] < 1.0  # a rounded sum may reach 1 before the last token
    return torch.zeros_like(probabilities).scatter_(-1, tokens, ordered.masked_fill(outside, 0.0))


def route(x: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """x [T, n] -> the experts of each token [T, k] and their shares [T, k], as `Choice` says."""
    wide = x if x.dtype == choice.weight.dtype else x.float()
    logits = functional.linear(wide, choice.weight, choice.logit_bias)
    scores = logits.sigmoid() if choice.is_sigmoid else logits.softmax(dim=-1)
    preferred = scores if choice.bias is None else scores + choice.bias
    if choice.groups > 1:
        preferred = _inside_best_groups(preferred, choice)
    chosen = preferred.topk(choice.top_k, dim=-1).indices
    shares = scores.gather(-1, chosen)
    if choice.normalised:
        shares = shares / (shares.sum(dim=-1, keepdim=True) + 1e-20)
    return chosen, shares * choice.scale


def _inside_best_groups(scores: Tensor, choice: Choice) -> Tensor:
    """Experts outside each token's `groups_kept` best groups cannot be chosen (DeepSeek)."""
    grouped = scores.unflatten(-1, (choice.groups, -1))
    best = grouped.topk(2, dim=-1).values.sum(-1) if choice.top_two else grouped.amax(-1)
    kept = torch.zeros_like(best, dtype=torch.bool)
    kept.scatter_(-1, best.topk(choice.groups_kept, dim=-1).indices, True)
    masked: Tensor = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf"))
    return masked.flatten(-2)


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
