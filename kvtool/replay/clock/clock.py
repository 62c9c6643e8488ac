"""Events in the order of their time, and flows between them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

from kvtool.replay.clock.network import NEVER, Flow, Network, Path

Call = Callable[[], None]


class Clock:
    """Virtual time, in seconds from 0. Events of one time come in the order in which they were asked for."""

    def __init__(self, bytes_per_s: Sequence[float] = ()) -> None:
        self.now_s = 0.0
        self.network = Network(bytes_per_s)
        self._events: list[tuple[float, int, Call]] = []
        self._number = count()

    def at(self, time_s: float, call: Call) -> None:
        """Call at `time_s`, or now if that is past."""
        heapq.heappush(self._events, (max(self.now_s, time_s), next(self._number), call))

    def send(self, path: Path, num_bytes: float, done: Call, *, latency_s: float = 0.0) -> Flow:
        """Move bytes over the links of `path`, after a latency in which they take no bandwidth."""
        flow = Flow(path, num_bytes, done)
        if latency_s:
            self.at(self.now_s + latency_s, lambda: self._start(flow))
        else:
            self._start(flow)
        return flow

    def stop(self, flow: Flow) -> float:
        """End a flow that is not done. The bytes that had not arrived."""
        flow.stopped = True
        return self.network.remove(flow)

    def _start(self, flow: Flow) -> None:
        if flow.stopped:
            return
        if flow.num_bytes > 0 and flow.path:
            self.network.add(flow)
        else:
            self.at(self.now_s, flow.done)

    def run(self, *, until_s: float = NEVER) -> None:
        """Until nothing is left to happen, or that time."""
        while True:
            flow_s = self.network.left_s()
            event_s = self._events[0][0] - self.now_s if self._events else NEVER
            step_s = min(flow_s, event_s)
            if step_s == NEVER or self.now_s + step_s > until_s:
                return
            self.now_s = self._events[0][0] if event_s <= flow_s else self.now_s + step_s
            self.network.advance(step_s)  # what flows ends by this step, even one too short for the time to show
            while self._events and self._events[0][0] <= self.now_s:
                heapq.heappop(self._events)[2]()


class Server:
    """Room for so many `lanes` at a time, None for all that come, in the order in which they came. What needs more than
    there are has them all.
    """

    def __init__(self, lanes: int | None = 1) -> None:
        self._waiting: deque[tuple[int, Call]] = deque()
        self._lanes, self._used = lanes, 0

    def take(self, begin: Call, lanes: int = 1) -> None:
        """`begin` is called when it is its turn, and ends with a call of `free`."""
        self._waiting.append((lanes, begin))
        self._next()

    def free(self, lanes: int = 1) -> None:
        """One that took so many is done."""
        self._used -= lanes
        self._next()

    def _next(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            lanes, begin = self._waiting.popleft()
            self._used += lanes
            begin()

    def _fits(self, lanes: int) -> bool:
        return self._lanes is None or not self._used or self._used + lanes <= self._lanes
