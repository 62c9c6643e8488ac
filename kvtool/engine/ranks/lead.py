"""The first rank: an engine's model as any other, of which others compute a part."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvtool.cache.manager import PageCopy
from kvtool.engine.batch import StepBatch
from kvtool.engine.config import EngineConfig, truncated
from kvtool.engine.decoder.transformer import Transformer
from kvtool.engine.handover.move import path_as_tensor, whole_plan
from kvtool.engine.handover.staging import planned_bytes, staged
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import KvPool
from kvtool.engine.ranks.run import run_part, run_replica
from kvtool.engine.ranks.sharded import RankPart
from kvtool.engine.ranks.step import padding, told, told_all
from kvtool.engine.ranks.worker import (
    COPY,
    DROP,
    EXPORT,
    IMPORT,
    METER,
    POOL,
    REPLAY,
    REPLICAS,
    REPORT,
    STEP,
    STOP,
    Job,
    facts,
    move,
    owns,
    replayed_s,
)
from kvtool.kernels.interface import Kernels
from kvtool.kernels.pages import Pages
from kvtool.machine.ranks.control import report, tell
from kvtool.machine.ranks.crew import Crew, Seat
from kvtool.machine.ranks.layout import RankLayout
from kvtool.machine.threads import default_threads
from kvtool.system.errors import KvtoolError


@dataclass(frozen=True, slots=True)
class RankFacts:
    """What one rank holds, and what it sent since it was last asked to begin anew; None: the kernel does not tell."""

    weights_bytes: int
    pool_bytes: int
    payload_bytes: float
    socket_bytes: int | None
    exposed_s: float


class RankedModel(LoadedModel):
    """A loaded model whose steps all ranks compute. `close` lets the others go."""

    def __init__(self, job: Job, seat: Seat, crew: Crew | None = None) -> None:
        """`crew` are processes that were started here; None for those of torchrun."""
        self.seat, self.crew = seat, crew
        self._dropped: list[int] = []
        self._pools: dict[int, weakref.ref[KvPool]] = {}
        self._count = 0
        self.told_bytes = 0  # of steps and pools, which the first rank sends the others; no payload
        part = RankPart(seat, truncated(job.model, job.config.num_layers))
        super().__init__(job.model, job.config, max_positions=job.max_positions, num_pages=job.num_pages, part=part)
        self.own_transformer = self.transformer
        self.transformer: Any = LeadTransformer(self, self.transformer)

    def new_pool(self, num_pages: int, block_size: int) -> KvPool:
        """A pool on every rank."""
        number, self._count = self._count, self._count + 1
        self.tell(POOL, number, num_pages, block_size)
        pool = LeadPool(self, number, num_pages, block_size)
        self._pools[number] = weakref.ref(pool)
        weakref.finalize(pool, self._dropped.append, number)
        return pool

    def tell(self, kind: int, *numbers: int, tensors: tuple[Tensor | None, ...] = ()) -> None:
        """To the others; before it, which pools are gone."""
        while self._dropped:
            gone = self._dropped.pop()
            self._pools.pop(gone, None)
            self.told_bytes += tell(self.seat, DROP, [torch.tensor([gone])])
        self.told_bytes += tell(self.seat, kind, [torch.tensor(numbers, dtype=torch.int64), *tensors])

    def number_of(self, layers: list[Pages]) -> int:
        """The number of the pool that these pages are of."""
        for number, reference in self._pools.items():
            pool = reference()
            if pool is not None and pool.layers is layers:
                return number
        raise KvtoolError("ranks compute on pools of their own: this needs a run of one process")

    def run_replicas(self, batches: list[StepBatch | None], pools: list[KvPool]) -> list[Tensor]:
        """Logits [sampled rows, vocab] of the step of each replica; None: it has nothing to do."""
        numbers, message = [self.number_of(pool.layers) for pool in pools], told_all(batches)
        with self.crew.guarded() if self.crew is not None else nullcontext():
            self.tell(REPLICAS, *numbers, tensors=tuple(message))
            whole = [padding(self.device) if batch is None else batch for batch in batches]
            return run_replica(self.own_transformer, self, whole, pools[0].layers)

    def begin_anew(self, *, records: bool = False) -> None:
        """All meters at zero; they may record what is sent, to send it again in `replay_s`."""
        self.tell(METER, int(records))
        self.seat.meter.reset(records=records)

    def facts(self) -> list[RankFacts]:
        """Of every rank, in their order."""
        self.tell(REPORT, 0)
        live = [pool for reference in self._pools.values() if (pool := reference()) is not None]
        pools = [pool for pool in live if not pool.layers[0].k.is_meta]
        return [
            RankFacts(int(weights), int(held), payload, None if sent < 0 else int(sent), exposed_s)
            for weights, held, payload, sent, exposed_s in report(self.seat, facts(self.seat, self, pools))
        ]

    def replay_s(self) -> list[float]:
        """Seconds that what was recorded takes every rank alone, without computing."""
        self.tell(REPLAY, 0)
        return [seconds for (seconds,) in report(self.seat, [replayed_s(self.seat)])]

    def move_pages(self, pool: KvPool, page_ids: list[int], path: Path, *, out: bool, skip: int = 0) -> None:
        """Pages of every rank's heads out to a file, or in from it without its first `skip` pages."""
        staged(path, planned_bytes(whole_plan(self, len(page_ids) + skip)))  # there before anybody opens it
        kind, number = EXPORT if out else IMPORT, self.number_of(pool.layers)
        self.tell(kind, number, skip, *page_ids, tensors=(path_as_tensor(path),))
        move(kind, self.seat, self, pool, page_ids, path, skip)

    def close(self) -> None:
        """The others stop, and wait for the next job."""
        self.tell(STOP, 0)


class LeadTransformer:
    """Called as a Transformer is: tells the others of the step, and computes this rank's part."""

    def __init__(self, loaded: RankedModel, own: Transformer) -> None:
        self._loaded, self._own = weakref.ref(loaded), own
        self.capturable = False

    def __call__(
        self,
        batch: StepBatch,
        layers: list[Pages],
        kernels: Kernels,
        *,
        wait: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Logits [sampled rows, vocab]. Nothing is on its way that could be waited for: ranks run without tiers."""
        assert wait is None
        loaded = self._loaded()
        assert loaded is not None
        compute = partial(self._computed, loaded, batch, layers)
        if loaded.crew is None:
            return compute()
        with loaded.crew.guarded():
            return compute()

    def saved_bytes(self, num_rows: int) -> int:
        """None: what ranks have of a weight does not lie in blocks."""
        return self._own.saved_bytes(num_rows)

    def _computed(self, loaded: RankedModel, batch: StepBatch, layers: list[Pages]) -> Tensor:
        loaded.tell(STEP, loaded.number_of(layers), tensors=tuple(told(batch)))
        return run_part(self._own, loaded, batch, layers)


class LeadPool(KvPool):
    """The first rank's part of a pool; what is copied in it, others copy too."""

    def __init__(self, loaded: RankedModel, number: int, num_pages: int, block_size: int) -> None:
        # Of a pool that is another replica's the first rank keeps shapes, and no memory.
        device = loaded.device if owns(loaded.seat, number) else torch.device("meta")
        super().__init__(loaded.specs, num_pages, block_size // loaded.part.token_shards, device)
        self._loaded, self._number = loaded, number

    def copy_pages(self, copies: list[PageCopy]) -> None:
        pairs = [number for copy in copies for number in (copy.source, copy.target)]
        self._loaded.tell(COPY, self._number, *pairs)
        if owns(self._loaded.seat, self._number):
            super().copy_pages(copies)


def ranked_config(config: EngineConfig, layout: RankLayout) -> EngineConfig:
    """The config of every rank: its share of the threads, and pages of the cache manager that hold a page of each
    shard. Raises KvtoolError for what ranks cannot do."""
    if config.tiers is not None:
        raise KvtoolError("--tiers keep the pages of one process: leave them out, or --tp, --cp and --dcp")
    threads = config.threads
    if threads is None:
        threads = max(1, default_threads(torch.get_num_threads()) // layout.ranks)
    shards = layout.token_shards
    return replace(config, threads=threads, other_cores=None, graphs=False, block_size=config.block_size * shards)
