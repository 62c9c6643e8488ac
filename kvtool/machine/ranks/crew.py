"""The processes of a run: started here on one machine, or joined where torchrun started them on several.

The first rank leads. One that dies takes the run with it within seconds, and is named.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection, get_context
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from kvtool.machine.ranks.group import Group, Meter
from kvtool.machine.ranks.layout import RankLayout
from kvtool.machine.threads import set_mask, usable_cpus
from kvtool.system.errors import DeviceError, KvtoolError, one_line

LOST_PEER = 75  # exit code of a rank that ended because another one did (EX_TEMPFAIL of sysexits.h)
_NOTICE_S = 20.0
_GOODBYE_S = 2.0
_PATIENCE = timedelta(minutes=10)
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}
_UNBOUND = {"OMP_PROC_BIND": "false"}  # threads of several ranks would be bound to the same first cores

Job = Any
Work = Callable[["Seat", Job], None]
"""What a rank that does not lead does for a job, until it is over."""


@dataclass(frozen=True)
class Seat:
    """The place of this process among all, and the groups that it is in for one layout."""

    rank: int
    layout: RankLayout
    meter: Meter
    tensor: Group
    tokens: Group
    everyone: Group
    control: Any  # torch's process group of all ranks of the layout, over gloo

    @property
    def leads(self) -> bool:
        return self.rank == 0


class Groups:
    """Torch's process groups by their members. Every process makes all groups of a layout, those that it is not in too,
    in the same order: torch names them by their number."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, tuple[int, ...]], Any] = {}

    def seat(self, rank: int, layout: RankLayout, device_type: str) -> Seat | None:
        """The seat of a rank; None where the layout has no use for it. NCCL carries tensors of GPUs, gloo others."""
        backend = "nccl" if device_type == "cuda" else "gloo"
        everyone = list(range(layout.ranks))
        control = self._handle("gloo", everyone)
        for members in [everyone, *map(layout.tensor_group, everyone), *map(layout.token_group, everyone)]:
            self._handle(backend, members)
        if rank >= layout.ranks:
            return None
        meter = Meter()

        def group(members: list[int]) -> Group:
            return Group(members, rank, self._handle(backend, members), meter)

        return Seat(
            rank=rank,
            layout=layout,
            meter=meter,
            tensor=group(layout.tensor_group(rank)),
            tokens=group(layout.token_group(rank)),
            everyone=group(everyone),
            control=control,
        )

    def _handle(self, backend: str, members: list[int]) -> Any:
        key = (backend, tuple(members))
        if len(members) > 1 and key not in self._made:
            self._made[key] = dist.new_group(members, backend=backend)
        return self._made.get(key)


class Crew:
    """`size` processes, of which this one is the first and the others do `work` for each job that they are given."""

    def __init__(self, size: int, work: Work) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory(prefix="kvtool-ranks-")  # of this user alone
        self._noticed, self._closing = threading.Event(), False
        self._lost: str | None = None
        self._groups = Groups()
        store = os.path.join(self._folder.name, "store")
        context = get_context("spawn")
        self._pipes, self._processes = [], []
        with _environment(_LOOPBACK | _UNBOUND):
            for rank in range(1, size):
                ours, theirs = context.Pipe()
                process = context.Process(target=_member, args=(work, rank, size, store, theirs), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            set_mask(usable_cpus())
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        try:
            with _environment(_LOOPBACK), self.guarded():
                _join(store, 0, size)
        except BaseException:
            self.close()
            raise

    def seat(self, layout: RankLayout, device_type: str, job: Job) -> Seat:
        """Give the ranks of a layout a job, and take the first seat of it."""
        if layout.ranks > self.size:
            raise KvtoolError(f"{layout} is {layout.ranks} ranks, but {self.size} processes were started")
        with _environment(_LOOPBACK), self.guarded():
            for pipe in self._pipes:
                pipe.send((layout, device_type, job))
            seat = self._groups.seat(0, layout, device_type)
        assert seat is not None
        return seat

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What fails inside because a rank has died raises DeviceError that names the rank."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            self._watcher.join(_NOTICE_S / 4)
            self._noticed.set()
            if self._lost is None:
                raise
            raise DeviceError(self._lost) from error

    def close(self) -> None:
        """End the others, who have no job any more."""
        if self._closing:
            return
        self._closing = True
        for pipe in self._pipes:
            pipe.close()
        if dist.is_initialized():
            dist.destroy_process_group()  # who still waits for a word of this rank hears that it is gone
        until_s = time.monotonic() + _GOODBYE_S
        for process in self._processes:
            process.join(max(0.0, until_s - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()

    @property
    def is_lost(self) -> bool:
        """Whether a rank has died."""
        return self._lost is not None

    @property
    def pids(self) -> list[int]:
        """Of the other ranks, from rank 1 on."""
        return [process.pid for process in self._processes if process.pid is not None]

    def _watch(self) -> None:
        """Sleep until a rank ends. If nobody closed the crew, end the others, whose exchanges fail then at once."""
        if not self._processes:
            return
        connection.wait([process.sentinel for process in self._processes])
        if self._closing:
            return
        self._lost = self._who_died()
        for process in self._processes:
            process.kill()
        threading.Thread(target=self._leave_unless_noticed, daemon=True).start()

    def _leave_unless_noticed(self) -> None:
        """A GPU that waits for a dead peer never comes back: then nothing but the end of the process helps."""
        if not self._noticed.wait(_NOTICE_S) and not self._closing:
            print(one_line(f"kvtool: {self._lost}"), file=sys.stderr, flush=True)
            os._exit(DeviceError.exit_code)

    def _who_died(self) -> str:
        """In words, the first that did not end for another one's sake."""
        for process in self._processes:
            process.join(0.1)
        ended = [(rank, p) for rank, p in enumerate(self._processes, 1) if p.exitcode is not None]
        own = [(rank, p) for rank, p in ended if p.exitcode != LOST_PEER] or ended
        rank, process = own[0]
        told = _told(self._pipes[rank - 1])
        return f"rank {rank} of {self.size} died ({told or _ending(process.exitcode or 0)}): the run is over"


def _told(pipe: Any) -> str | None:
    """What a rank said before it ended."""
    try:
        return str(pipe.recv()) if pipe.poll() else None
    except (EOFError, OSError):
        return None


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _join(store: str, rank: int, size: int) -> None:
    dist.init_process_group("gloo", store=FileStore(store, size), rank=rank, world_size=size, timeout=_PATIENCE)


def _member(work: Work, rank: int, size: int, store: str, pipe: Any) -> None:
    """The life of a rank that does not lead: jobs one after the other, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first rank's business
    set_mask(usable_cpus())
    try:
        _join(store, rank, size)
        groups = Groups()
        while True:
            try:
                layout, device_type, job = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            seat = groups.seat(rank, layout, device_type)
            if seat is not None:
                work(seat, job)
    except KvtoolError as error:
        _say(pipe, str(error))
        os._exit(error.exit_code)
    except RuntimeError as error:
        if "onnection" in str(error) or "peer" in str(error) or "gloo" in str(error):
            os._exit(LOST_PEER)
        _say(pipe, f"{type(error).__name__}: {error}")
        os._exit(1)
    except Exception as error:
        _say(pipe, f"{type(error).__name__}: {error}")
        os._exit(1)


def _say(pipe: Any, text: str) -> None:
    try:
        pipe.send(one_line(text))
    except OSError:  # the first rank is gone
        return


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for children that are started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def torchrun_ranks() -> tuple[int, int] | None:
    """This process's rank and the number of ranks, where torchrun started several; else None."""
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return (rank, size) if size > 1 and "MASTER_ADDR" in os.environ else None


def join_torchrun(layout: RankLayout, device_type: str) -> Seat:
    """The seat of a process that torchrun started. Raises KvtoolError where it started another number of them."""
    found = torchrun_ranks()
    assert found is not None
    rank, size = found
    if size != layout.ranks:
        raise KvtoolError(f"torchrun started {size} processes, but {layout} is {layout.ranks} ranks")
    if not dist.is_initialized():
        dist.init_process_group("gloo", init_method="env://", timeout=_PATIENCE)
    seat = Groups().seat(rank, layout, device_type)
    assert seat is not None
    return seat
