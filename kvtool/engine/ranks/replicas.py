"""Attention in replicas, the rest of the model shared (DP attention): each rank attends for requests of its own.

A latent has one head, which tensor ranks would all keep; so each keeps the latents of its own requests alone. The first
rank schedules for all of them; they step together, since they compute the MLP together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvtool.cache.tiers.counters import TierCounters
from kvtool.engine.batch import build_batch
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import KvPool
from kvtool.engine.ranks.lead import RankedModel
from kvtool.engine.sampler import Draw, sample
from kvtool.engine.sequence import SamplingParams, Sequence


def engine_on(loaded: LoadedModel, *, num_pages: int, config: EngineConfig) -> Engine | Replicas:
    """What runs requests on the layout that the model is loaded on, with `num_pages` of each replica."""
    if isinstance(loaded, RankedModel) and loaded.seat.layout.dp > 1:
        return Replicas(loaded, num_pages=num_pages, config=config)
    return Engine(loaded, num_pages=num_pages, config=config)


class Replicas:
    """What an Engine is to who adds requests and steps; with a scheduler and pages for each rank."""

    pipeline = None

    def __init__(self, loaded: RankedModel, *, num_pages: int, config: EngineConfig) -> None:
        """`num_pages` of each replica."""
        self.loaded = loaded
        self.engines = [Engine(loaded, num_pages=num_pages, config=config) for _ in range(loaded.seat.layout.dp)]
        self._added = 0

    @property
    def pool(self) -> KvPool:
        """The first rank's."""
        return self.engines[0].pool

    def prepare(self, batch_sizes: Iterable[int], draw: Draw = Draw.GREEDY) -> None:
        """Nothing is captured."""

    def close(self) -> None:
        """Nothing lies below the pools."""

    def tiers(self) -> list[TierCounters]:
        return []

    def add(self, prompt_ids: list[int], params: SamplingParams) -> Sequence:
        """Queue a request with the replica whose turn it is. Raises KvtoolError as Engine does."""
        place, self._added = self._added % len(self.engines), self._added + 1
        sequence = self.engines[place].add(prompt_ids, params)
        sequence.id = sequence.id * len(self.engines) + place  # engines number their own from 0
        return sequence

    def step(self) -> list[Sequence]:
        """One step of every replica that has something to do."""
        works = [[] if engine.scheduler.is_idle else engine.schedule() for engine in self.engines]
        batches = [build_batch(work, self.loaded.device) if work else None for work in works]
        rows = self.loaded.run_replicas(batches, [engine.pool for engine in self.engines])
        stepped: list[Sequence] = []
        for engine, work, logits in zip(self.engines, works, rows, strict=True):
            params = [item.sequence.params for item in work if item.completes]
            tokens = sample(logits, params, engine.generator, self.loaded.kernels).tolist() if params else []
            stepped += engine.postprocess(work, tokens)
        return stepped

    def run_until_idle(self) -> Iterator[list[Sequence]]:
        """Step until nothing is left to do."""
        while not all(engine.scheduler.is_idle for engine in self.engines):
            yield self.step()
