"""A CUDA graph as a CPU has it: the operations of a step are recorded once and done again at each replay, over the same
memory. What the host worked out while they were recorded stays as it was then, so a value that varies must not be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from kvtool.engine.graphs.capture import Step


class Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))  # kept, so that no other tensor gets its id
        return result

    @torch.inference_mode()
    def replay(self) -> None:
        made: dict[int, Tensor] = {}
        for func, args, kwargs, result in self.calls:
            args, kwargs = tree_map_only(Tensor, lambda tensor: made.get(id(tensor), tensor), (args, kwargs))
            again = func(*args, **kwargs)
            for before, now in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(before, Tensor):
                    made[id(before)] = now


def recorded(step: Step, generator: torch.Generator) -> Step:
    """A `Capture` that records, and draws nothing meanwhile."""
    state, recording = generator.get_state(), Recording()
    with recording:
        step()
    generator.set_state(state)
    return recording.replay
