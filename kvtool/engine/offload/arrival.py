"""Pages on their way up into the block pool, some layers after the others, while the first layers compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch

Landed = Future["torch.cuda.Event | None"]
"""Done once a group of layers is there, or on a GPU once that is an event of the stream that copies."""


class Arrival:
    """Groups of layers, which come in the order of `group_of` each layer; `clock` gives the host's seconds."""

    def __init__(self, groups: Sequence[Landed], group_of: Sequence[int], clock: Callable[[], float]) -> None:
        self._groups = groups
        self._group_of = group_of
        self._clock = clock
        self._num_waited = 0
        self._waited_s = 0.0
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def wait(self, layer: int) -> None:
        """What is computed from here on may use the pages of `layer`."""
        start_s = self._clock()
        while self._num_waited <= self._group_of[layer]:
            landed = self._groups[self._num_waited].result()
            if landed is not None:
                self._wait_on_device(landed)
            self._num_waited += 1
        self._waited_s += self._clock() - start_s

    def _wait_on_device(self, landed: torch.cuda.Event) -> None:
        """The stream that computes waits, the host does not."""
        reached = torch.cuda.Event(enable_timing=True)
        reached.record()
        torch.cuda.current_stream().wait_event(landed)
        self._waits.append((reached, landed))

    def finish(self) -> float:
        """Wait on the host until every layer is there; how many seconds computing had to wait for layers."""
        self.wait(len(self._group_of) - 1)
        for reached, landed in self._waits:
            reached.synchronize()
            landed.synchronize()
        on_device_ms = sum(max(0.0, float(reached.elapsed_time(landed))) for reached, landed in self._waits)
        return self._waited_s + on_device_ms / 1e3
