"""The experts of a layer: in one piece, for products of all at once, and one by one as views of that."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvtool.catalog.decoder import Decoder
from kvtool.catalog.model import Moe
from kvtool.engine.decoder.linear import ClampedGatedLinear, GatedLinear, Linear
from kvtool.engine.decoder.mlp import Mlp, load_mlp
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.interface import GATES, ExpertWeights


@dataclass(frozen=True, slots=True)
class Experts:
    """`stacked` is None where the gate is one that fused kernels do not compute."""

    alone: list[Mlp]
    stacked: ExpertWeights | None


def load_experts(hidden_size: int, moe: Moe, decoder: Decoder, weights: WeightSource, prefix: str) -> Experts:
    """Weights go to their place in the stack as they come, so that loading takes no more memory than they do."""
    width, count = moe.intermediate_size, range(moe.num_experts)
    gate = "clamped_swiglu" if decoder.clamped_swiglu is not None else decoder.activation
    if not decoder.gated_mlp or gate not in GATES:
        return Experts([load_mlp(hidden_size, width, decoder, weights, f"{prefix}.{one}") for one in count], None)
    first = [[f"{prefix}.{one}.gate_proj", f"{prefix}.{one}.up_proj"] for one in count]
    last = [[f"{prefix}.{one}.down_proj"] for one in count]
    clamp = {} if decoder.clamped_swiglu is None else _clamp(decoder)
    stacked = ExpertWeights(
        gate_up=_stack(weights, first, "weight", width, hidden_size),
        down=_stack(weights, last, "weight", hidden_size, width),
        gate_up_bias=_stack(weights, first, "bias", width) if decoder.mlp_bias else None,
        down_bias=_stack(weights, last, "bias", hidden_size) if decoder.mlp_bias else None,
        activation=gate,
        **clamp,
    )
    return Experts([_expert(stacked, one, decoder) for one in count], stacked)


def _clamp(decoder: Decoder) -> dict[str, float]:
    assert decoder.clamped_swiglu is not None
    return {"alpha": decoder.clamped_swiglu.alpha, "limit": decoder.clamped_swiglu.limit}


def _stack(weights: WeightSource, modules: list[list[str]], kind: str, *shape: int) -> Tensor:
    """The tensors of each expert's modules, row after row: [E, modules x shape[0], ...]."""
    stack: Tensor | None = None
    for expert, names in enumerate(modules):
        for part, name in enumerate(names):
            tensor = weights.tensor(f"{name}.{kind}", *shape)
            if stack is None:
                stack = tensor.new_empty(len(modules), len(names), *shape)
            stack[expert, part] = tensor
    assert stack is not None, "a mixture has experts"
    return stack.flatten(1, 2)


def _expert(stacked: ExpertWeights, one: int, decoder: Decoder) -> Mlp:
    gate_up, down = stacked.gate_up[one], stacked.down[one]
    bias = None if stacked.gate_up_bias is None else stacked.gate_up_bias[one]
    down_bias = None if stacked.down_bias is None else stacked.down_bias[one]
    if decoder.clamped_swiglu is None:
        return Mlp(GatedLinear(gate_up, decoder.activation, bias), Linear(down, down_bias))
    biases = (None, None) if bias is None else bias.chunk(2)
    gate, up = (Linear(weight, half) for weight, half in zip(gate_up.chunk(2), biases, strict=True))
    return Mlp(ClampedGatedLinear(gate, up, decoder.clamped_swiglu), Linear(down, down_bias))
