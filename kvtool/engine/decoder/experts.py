"""The experts of a layer, in one piece."""

from __future__ import annotations

from torch import Tensor

from kvtool.catalog.decoder import Decoder
from kvtool.catalog.model import Moe
from kvtool.engine.decoder.linear import gate_of
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.weights import ExpertWeights
from kvtool.system.errors import KvtoolError


def load_experts(hidden_size: int, moe: Moe, decoder: Decoder, weights: WeightSource, prefix: str) -> ExpertWeights:
    """Weights go to their place in the stack as they come, so that loading takes no more memory than they do."""
    if not decoder.gated_mlp:
        raise KvtoolError("the engine runs no experts without a gate: `kvtool size` can size them")
    width, count = moe.intermediate_size, range(moe.num_experts)
    first = [[f"{prefix}.{expert}.gate_proj", f"{prefix}.{expert}.up_proj"] for expert in count]
    last = [[f"{prefix}.{expert}.down_proj"] for expert in count]
    return ExpertWeights(
        gate_up=_stack(weights, first, "weight", width, hidden_size),
        down=_stack(weights, last, "weight", hidden_size, width),
        gate_up_bias=_stack(weights, first, "bias", width) if decoder.mlp_bias else None,
        down_bias=_stack(weights, last, "bias", hidden_size) if decoder.mlp_bias else None,
        gate=gate_of(decoder),
    )


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
