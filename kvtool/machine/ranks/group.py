"""A group of ranks that exchange tensors, and a meter of what they sent and how long they waited for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kvtool.sizing.speed.exchange import EXCHANGE_BYTES, Link, all_reduce_bytes

FEW_BYTES, MANY_BYTES = 1 << 8, 1 << 20  # between which the time of a step grows with its bytes
LINK_STEPS = 9


@dataclass(slots=True)
class Meter:
    """Of one rank: payload bytes that it sent, seconds in which it could do nothing but wait for others, and each
    exchange once more, so that all can be repeated without anything computed between."""

    clock: Callable[[], float] = time.perf_counter
    sent_bytes: float = 0.0
    exposed_s: float = 0.0
    records: bool = False
    replays: list[Callable[[], object]] = field(default_factory=list)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Seconds inside are waited for."""
        start_s = self.clock()
        try:
            yield
        finally:
            self.exposed_s += self.clock() - start_s

    def sends(self, count: float, again: Callable[[], object]) -> None:
        """So many bytes are sent, and could be by `again`."""
        self.sent_bytes += count
        if self.records:
            self.replays.append(again)

    def reset(self, *, records: bool = False) -> None:
        """Begin anew."""
        self.sent_bytes, self.exposed_s, self.records = 0.0, 0.0, records
        self.replays.clear()


class Group:
    """Ranks `members`, in that order, of whom this process is one. A group of one does nothing."""

    def __init__(self, members: list[int], rank: int, handle: Any, meter: Meter) -> None:
        """`handle` is torch's process group of these members; None for one that is alone."""
        self.members, self.index, self.meter = members, members.index(rank), meter
        self._handle = handle
        self.link: Link | None = None

    @property
    def size(self) -> int:
        return len(self.members)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of the members' x, in x's place where it is contiguous: the same bits on all of them."""
        if self.size == 1 or not x.numel():
            return x
        x = x.contiguous()
        count = x.numel() * x.element_size()
        shape, dtype, device = x.shape, x.dtype, x.device
        self.meter.sends(
            all_reduce_bytes(count, self.size), lambda: self._sum(torch.zeros(shape, dtype=dtype, device=device))
        )
        with self.meter.waiting():
            return self._sum(x)

    def _sum(self, x: Tensor) -> Tensor:
        if x.numel() * x.element_size() > EXCHANGE_BYTES:
            dist.all_reduce(x, group=self._handle)
            return x
        others = {place: torch.empty_like(x) for place in range(self.size) if place != self.index}
        self._exchange(dict.fromkeys(others, x), others)
        parts = [x if place == self.index else others[place] for place in range(self.size)]
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total

    def shift(self, x: Tensor, into: Tensor) -> Callable[[], None]:
        """Send x to the next member, receive `into` from the one before, both meanwhile; the result waits for both."""
        self.meter.sends(x.numel() * x.element_size(), lambda: self._shift(x, torch.empty_like(into))())
        return self._waited(self._shift(x, into))

    def _shift(self, x: Tensor, into: Tensor) -> Callable[[], None]:
        after, before = (self.index + 1) % self.size, (self.index - 1) % self.size
        return self._start({after: x}, {before: into})

    def measured_link(self, device: torch.device) -> Link:
        """Of a step round, once: all members measure it together, and have the same numbers. It is no payload."""
        if self.link is None:
            few_s, many_s = (self._step_s(size, device) for size in (FEW_BYTES, MANY_BYTES))
            few, many = self._sum(torch.tensor([few_s, many_s], device=device)).tolist()
            rate = (MANY_BYTES - FEW_BYTES) / max(1e-9, (many - few) / self.size)
            self.link = Link(bytes_per_s=rate, alpha_s=few / self.size)
        return self.link

    def _step_s(self, size: int, device: torch.device) -> float:
        """The median of several steps in which everybody sends so many bytes on."""
        x = torch.zeros(size, dtype=torch.uint8, device=device)
        taken_s = []
        for _ in range(LINK_STEPS):
            start_s = self.meter.clock()
            self._shift(x, torch.empty_like(x))()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken_s.append(self.meter.clock() - start_s)
        return median(taken_s)

    def swap(self, out: dict[int, Tensor], into: dict[int, Tensor]) -> Callable[[], None]:
        """Send to members, receive from members, by their places, meanwhile; the result waits for all of it."""
        count = sum(x.numel() * x.element_size() for x in out.values())
        sent, coming = dict(out), dict(into)  # callers go on to use theirs
        self.meter.sends(count, lambda: self._exchange(sent, {at: torch.empty_like(x) for at, x in coming.items()}))
        return self._waited(self._start(out, into))

    def _waited(self, wait: Callable[[], None]) -> Callable[[], None]:
        def metered() -> None:
            with self.meter.waiting():
                wait()

        return metered

    def _exchange(self, out: dict[int, Tensor], into: dict[int, Tensor]) -> None:
        self._start(out, into)()

    def _start(self, out: dict[int, Tensor], into: dict[int, Tensor]) -> Callable[[], None]:
        """Tensors without elements are not sent: both sides know their shapes."""
        operations = [
            dist.P2POp(dist.irecv, x, self.members[place], self._handle) for place, x in into.items() if x.numel()
        ]
        operations += [
            dist.P2POp(dist.isend, x.contiguous(), self.members[place], self._handle)
            for place, x in out.items()
            if x.numel()
        ]
        works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            for work in works:
                work.wait()
            operations.clear()  # until here they keep what is sent alive

        return wait
