"""What the ranks do that do not lead: load their part, and do as they are told until it is over."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kvtool.cache.manager import PageCopy
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig, truncated
from kvtool.engine.handover.move import export_pages, import_pages, path_of
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import KvPool
from kvtool.engine.ranks.run import run_part, run_replica
from kvtool.engine.ranks.sharded import RankPart
from kvtool.engine.ranks.step import replica_batches, whole_batch
from kvtool.machine.ranks.control import hear, report
from kvtool.machine.ranks.crew import Seat
from kvtool.machine.ranks.sockets import sent_bytes

STOP, STEP, POOL, DROP, COPY, REPORT, METER, REPLAY, EXPORT, IMPORT, REPLICAS = range(11)


@dataclass(frozen=True)
class Job:
    """A model to load and run a part of."""

    model: Model
    config: EngineConfig
    max_positions: int
    num_pages: int = 0


def work(seat: Seat, job: Job) -> None:
    """Load the seat's part of the job's model, and serve the first rank."""
    loaded = load_part(seat, job)
    Worker(seat, loaded).serve()


def load_part(seat: Seat, job: Job) -> LoadedModel:
    """Raises KvtoolError where the model cannot be shared so."""
    return LoadedModel(
        job.model,
        job.config,
        max_positions=job.max_positions,
        num_pages=job.num_pages,
        part=RankPart(seat, truncated(job.model, job.config.num_layers)),
    )


class Worker:
    """The pools of one rank, by the numbers that the first rank gave them."""

    def __init__(self, seat: Seat, loaded: LoadedModel) -> None:
        self.seat, self.loaded = seat, loaded
        self.pools: dict[int, KvPool] = {}

    def serve(self) -> None:
        """Until the first rank says that it is over."""
        while True:
            kind, tensors = hear(self.seat)
            if kind == STOP:
                return
            self.do(kind, tensors)

    def do(self, kind: int, tensors: list[Tensor | None]) -> None:
        """One thing that was told."""
        numbers, rest = tensors[0], tensors[1:]
        assert numbers is not None
        first, *more = numbers.tolist()
        if kind == STEP:
            batch = whole_batch(rest, self.loaded.device, self.loaded.config.block_size)
            run_part(self.loaded.transformer, self.loaded, batch, self.pools[first].layers)
        elif kind == REPLICAS:
            batches = replica_batches(rest, self.loaded.device, self.loaded.config.block_size)
            layers = self.pools[numbers.tolist()[self.seat.rank]].layers
            run_replica(self.loaded.transformer, self.loaded, batches, layers)
        elif kind == POOL:
            if owns(self.seat, first):
                self.pools[first] = self.loaded.new_pool(*more)
        elif kind == DROP:
            self.pools.pop(first, None)
        elif kind == COPY and first in self.pools:
            pairs = zip(more[0::2], more[1::2], strict=True)
            self.pools[first].copy_pages([PageCopy(source, target) for source, target in pairs])
        elif kind == METER:
            self.seat.meter.reset(records=bool(first))
        elif kind == REPORT:
            report(self.seat, facts(self.seat, self.loaded, list(self.pools.values())))
        elif kind == REPLAY:
            report(self.seat, [replayed_s(self.seat)])
        elif kind in (EXPORT, IMPORT):
            skip, *page_ids = more
            assert rest[0] is not None
            move(kind, self.seat, self.loaded, self.pools[first], page_ids, path_of(rest[0]), skip)


def owns(seat: Seat, pool: int) -> bool:
    """Whether this rank has a part of the pool of that number: replicas have one each, in turn."""
    return seat.layout.dp == 1 or pool % seat.layout.dp == seat.rank


def move(kind: int, seat: Seat, loaded: LoadedModel, pool: KvPool, page_ids: list[int], path: Path, skip: int) -> None:
    """This rank's heads of the pages out to a file, or in from it; over when all ranks have done so."""
    if kind == EXPORT:
        export_pages(loaded, pool, page_ids, path, seat.rank)
    else:
        import_pages(loaded, pool, page_ids, path, seat.rank, skip)
    report(seat, [0.0])


def facts(seat: Seat, loaded: LoadedModel, pools: list[KvPool]) -> list[float]:
    """Of this rank: bytes of weights and of pools, payload and socket bytes sent (-1: not known), seconds waited."""
    assert isinstance(loaded.part, RankPart)
    weights = loaded.part.sharded
    sent = sent_bytes()
    return [
        0.0 if weights is None else float(weights.loaded_bytes),
        float(sum(pool.bytes for pool in pools)),
        seat.meter.sent_bytes,
        -1.0 if sent is None else float(sent),
        seat.meter.exposed_s,
    ]


def replayed_s(seat: Seat) -> float:
    """Seconds that all recorded exchanges take with nothing computed between them."""
    start_s = time.perf_counter()
    for again in seat.meter.replays:
        again()
    return time.perf_counter() - start_s
