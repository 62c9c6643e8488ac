"""What the first rank tells the others of a layout, and what they report to it: small tensors over gloo."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from kvtool.machine.ranks.crew import Seat
from kvtool.machine.ranks.messages import packed, unpacked

_FRAME = 128
"""Integers that go out at once: a decode step of some sequences fits in."""


def tell(seat: Seat, kind: int, tensors: Sequence[Tensor | None] = ()) -> int:
    """To all others, who `hear` it; the bytes that this sends, over all ranks."""
    message = packed(kind, tensors)
    frame = torch.zeros(_FRAME, dtype=torch.int64)
    frame[0] = len(message)
    fits = min(len(message), _FRAME - 1)
    frame[1 : 1 + fits] = message[:fits]
    dist.broadcast(frame, 0, group=seat.control)
    if fits < len(message):
        dist.broadcast(message[fits:].contiguous(), 0, group=seat.control)
    return (seat.layout.ranks - 1) * 8 * (_FRAME + len(message) - fits)


def hear(seat: Seat) -> tuple[int, list[Tensor | None]]:
    """The next thing that the first rank tells: its kind, and tensors of integers."""
    frame = torch.empty(_FRAME, dtype=torch.int64)
    dist.broadcast(frame, 0, group=seat.control)
    count = int(frame[0])
    fits = min(count, _FRAME - 1)
    if fits == count:
        return unpacked(frame[1 : 1 + count])
    rest = torch.empty(count - fits, dtype=torch.int64)
    dist.broadcast(rest, 0, group=seat.control)
    return unpacked(torch.cat((frame[1 : 1 + fits], rest)))


def report(seat: Seat, values: Sequence[float]) -> list[list[float]]:
    """The values of every rank, in the order of ranks, on the first one; empty on the others."""
    mine = torch.tensor(values, dtype=torch.float64)
    size = seat.everyone.size
    into = [torch.empty_like(mine) for _ in range(size)] if seat.leads else None
    dist.gather(mine, into, 0, group=seat.control)
    return [] if into is None else [one.tolist() for one in into]
