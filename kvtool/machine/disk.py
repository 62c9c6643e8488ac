"""How fast a disk is: requests of one size at random places of one file, some of them in flight at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from random import Random

from kvtool.machine.direct_io import AlignedBuffer, is_direct, open_direct, read_into, write_from
from kvtool.machine.filesystem import writable_bytes
from kvtool.system.errors import DeviceError
from kvtool.system.interrupts import interruptible
from kvtool.units import MIB, format_bytes, round_up

FILL_BYTES = 4 * MIB
LEAST_ROUND_S = 0.02
LEAST_ROUNDS = 3
Check = Callable[[memoryview], object]


@dataclass(frozen=True, slots=True)
class Scratch:
    """A file of random bytes that has no name: it is gone when it is closed, however the process ends."""

    fd: int
    size_bytes: int
    direct: bool


@contextmanager
def scratch_file(folder: Path, size_bytes: int) -> Iterator[Scratch]:
    """Of so many bytes, or as many as leave a tenth of the filesystem free. Raises DeviceError where that is too
    little, or where the folder cannot be written."""
    size_bytes = min(size_bytes, _writable(folder)) // FILL_BYTES * FILL_BYTES
    if not size_bytes:
        raise DeviceError(f"{folder} has no room: {format_bytes(FILL_BYTES)} beside a free tenth are needed")
    with interruptible():
        try:
            fd = _unnamed(folder)
        except OSError as error:
            raise DeviceError(f"cannot write into {folder}: {error.strerror or error}") from error
        try:
            _fill(fd, size_bytes)
            yield Scratch(fd, size_bytes, is_direct(fd))
        except OSError as error:
            raise DeviceError(f"measuring {folder} failed: {error.strerror or error}") from error
        finally:
            os.close(fd)


def _writable(folder: Path) -> int:
    try:
        return writable_bytes(folder)
    except OSError as error:
        raise DeviceError(f"cannot measure {folder}: {error.strerror or error}") from error


def _unnamed(folder: Path) -> int:
    """A new file that has lost its name."""
    name = folder / f".kvtool-tiers.{os.urandom(8).hex()}.tmp"
    fd = open_direct(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.unlink(name)
    return fd


def _fill(fd: int, size_bytes: int) -> None:
    """Random bytes all over, so that no disk can compress or skip them."""
    buffer = AlignedBuffer(FILL_BYTES)
    for offset in range(0, size_bytes, FILL_BYTES):
        buffer.view[:] = os.urandom(FILL_BYTES)
        write_from(fd, buffer.view, offset)
    os.fsync(fd)


@dataclass(slots=True)
class Served:
    """What rounds of requests took: bytes a second of each round, seconds of each request, and seconds of wall clock
    and of this process's CPU a request."""

    rates: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Requests:
    """`depth` requests of `size_bytes` in flight; `direction` is down (written), up (read) or both (half of each).
    `check` goes over what was read, in the thread that read it."""

    size_bytes: int
    depth: int
    direction: str
    check: Check | None = None


def serve(scratch: Scratch, requests: Requests, *, seconds: float, seed: int = 0) -> Served:
    """Rounds of requests for about so long, at least LEAST_ROUNDS after a first one that does not count."""
    workers = [_Worker(scratch, requests, index, Random(1000 * seed + index)) for index in range(requests.depth)]
    served, each, cpu_s, count = Served(), 1, 0.0, 0
    with ThreadPoolExecutor(requests.depth) as threads:
        deadline = time.perf_counter() + seconds
        while len(served.rates) < LEAST_ROUNDS or time.perf_counter() < deadline:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            latencies = [latency for part in threads.map(_Worker.run, workers, repeat(each)) for latency in part]
            took_s = time.perf_counter() - began_s
            if took_s < LEAST_ROUND_S:
                each *= 2
                continue
            served.rates.append(len(latencies) * requests.size_bytes / took_s)
            served.latencies_s += latencies
            served.wall_s += took_s
            cpu_s += time.process_time() - began_cpu_s
            count += len(latencies)
    served.wall_s, served.cpu_s = served.wall_s / count, cpu_s / count
    return served


class _Worker:
    """One request after the other, at random places of the file."""

    def __init__(self, scratch: Scratch, requests: Requests, index: int, random: Random) -> None:
        self._scratch, self._requests, self._random = scratch, requests, random
        self._writes = requests.direction == "down" or (requests.direction == "both" and index % 2 == 1)
        self._buffer = AlignedBuffer(round_up(requests.size_bytes, 4096))
        if self._writes:
            self._buffer.view[:] = random.randbytes(len(self._buffer))

    def run(self, count: int) -> list[float]:
        """Seconds of each of so many requests."""
        return [self._one() for _ in range(count)]

    def _one(self) -> float:
        view = self._buffer.view
        place = self._random.randrange(max(1, self._scratch.size_bytes // len(view))) * len(view)
        began_s = time.perf_counter()
        if self._writes:
            write_from(self._scratch.fd, view, place)
        else:
            read_into(self._scratch.fd, view, place)
            if self._requests.check is not None:
                self._requests.check(view)
        return time.perf_counter() - began_s
