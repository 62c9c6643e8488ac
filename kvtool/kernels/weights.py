"""What products multiply by, and the gate that follows two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from kvtool.kernels.blocks import Blocks, Saving

# Experts with these gates are computed on a GPU without asking it which were chosen, so that a graph can hold them.
GATES = frozenset(("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "clamped_swiglu"))


@dataclass(frozen=True, slots=True)
class Gate:
    """What becomes of a gate and of what comes up beside it: activation(gate) * up.

    "clamped_swiglu" clamps both to `limit` first: (up + 1) * gate * sigmoid(alpha * gate) (gpt-oss).
    """

    activation: str
    alpha: float = 0.0
    limit: float = 0.0


@dataclass(frozen=True, slots=True)
class Weight:
    """weight [N,K] of a product, and its bias [N]. `packed` is what kernels keep beside it in a layout of their own;
    until then `stored` is what the weight was made of, where it was quantised; `saving` is what that saves afterwards.
    """

    weight: Tensor
    bias: Tensor | None = None
    packed: Any = None
    stored: Blocks | None = None
    saving: Saving | None = None


@dataclass(frozen=True, slots=True)
class GatedWeight:
    """Two products of one input in one piece: weight [2N,K] is the gate's over the other, and so is bias [2N]."""

    weight: Tensor
    bias: Tensor | None
    gate: Gate
    packed: Any = None
    stored: Blocks | None = None
    saving: Saving | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """E experts in one piece: gate over up [E,2I,H] and down [E,H,I], with their biases [E,2I] and [E,H]."""

    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    gate: Gate
    packed: Any = None


AnyWeight = TypeVar("AnyWeight", Weight, GatedWeight, ExpertWeights)
