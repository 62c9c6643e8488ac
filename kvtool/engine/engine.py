"""Requests in, tokens out: schedule, run, postprocess. Knows nothing of tokenizers, benchmarks or reports."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import count

import torch
from torch import Tensor

from kvtool.cache.admission import admission_policy
from kvtool.cache.eviction.base import Known
from kvtool.cache.index.index import prefix_index
from kvtool.cache.manager import CacheManager
from kvtool.cache.retention import Retention
from kvtool.cache.tiers.counters import TierCounters
from kvtool.engine.batch import build_batch
from kvtool.engine.config import EngineConfig
from kvtool.engine.decoder.recorded import RecordedSteps
from kvtool.engine.decoder.transformer import runnable_decoder
from kvtool.engine.graphs.capture import Capture, CudaCapture, DecodeGraphs, captured_bytes
from kvtool.engine.graphs.cold_start import CompileTime
from kvtool.engine.graphs.decode_step import decode_rows
from kvtool.engine.graphs.pipeline import DecodePipeline
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.offload.build import build_offload
from kvtool.engine.offload.offload import Offload
from kvtool.engine.preemption import preemption_policy
from kvtool.engine.sampler import Draw, sample
from kvtool.engine.scheduler import Scheduler, SchedulerLimits, Work
from kvtool.engine.sequence import SamplingParams, Sequence
from kvtool.kernels.choosing import choosing
from kvtool.machine.device import device_errors
from kvtool.sizing.speed.traffic import even_context_tokens
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div


class Engine:
    """One block pool and the requests that share it. `step` is the whole system; `clock` gives seconds."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_pages: int,
        config: EngineConfig | None = None,
        clock: Callable[[], float] = time.perf_counter,
        capture: Capture | None = None,
    ) -> None:
        """`config` may differ from the one the model was loaded with in limits, prefix caching and graphs. `capture`
        takes decode steps to the device whole; None leaves that to CUDA graphs, where they can be had."""
        config = config or loaded.config
        capture = capture or (CudaCapture() if config.graphs and loaded.capturable else None)
        captured = 0 if capture is None else captured_bytes(loaded, config.max_num_seqs)
        loaded.require_room(num_pages, beside_bytes=captured, beside="captured steps")
        self.loaded = loaded
        self.clock = clock
        self.cache = self._cache(num_pages, config)
        self.scheduler = Scheduler(
            self.cache,
            SchedulerLimits(
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                prefill_first=config.prefill_first,
            ),
            preemption_policy(config.preemption),
            window=loaded.kept.window,
        )
        with device_errors("allocating the block pool"):
            self.pool = loaded.new_pool(num_pages, config.block_size)
        self.forward = RecordedSteps(loaded.transformer, self.pool.layers, loaded.kernels, ranks=loaded.part.ranks)
        self.offload = self._tiers(config)
        self.generator = torch.Generator(loaded.device).manual_seed(config.seed)
        self.keep_logits = False
        self.compiling = CompileTime(loaded.backend)
        self.pipeline = None if capture is None else self._pipeline(capture, config)
        self._ids = count()

    def _cache(self, num_pages: int, config: EngineConfig) -> CacheManager:
        even_tokens = even_context_tokens(self.loaded.model)
        known = Known(clock=self.clock, page_tokens=config.block_size, even_tokens=even_tokens)
        return CacheManager(
            num_pages,
            config.block_size,
            config.prefix_caching and self.loaded.kept.window is None,
            index=prefix_index(config.index, config.eviction, num_pages=num_pages, known=known),
            admission=admission_policy(config.admission, block_size=config.block_size, num_pages=num_pages),
            partial_hits=config.partial_hits,
            clock=self.clock,
        )

    def _tiers(self, config: EngineConfig) -> Offload | None:
        """What lies below the pool. `close` ends it, at the latest when the engine is gone."""
        if config.tiers is None or not config.prefix_caching:
            return None
        if self.loaded.kept.window is not None:
            raise KvtoolError("tiers keep cached prefixes, and a streaming cache has none: leave --tiers out")
        offload = build_offload(self.loaded, self.pool, self.cache, config.tiers, self.clock, self.loaded.notices)
        if offload is not None:
            self.cache.handing_out, self.scheduler.swap = offload.handing_out, offload
            self._close_tiers = weakref.finalize(self, offload.close)
        return offload

    def reset(self) -> None:
        """Forget every cached prefix, in the pool and below it. Raises ValueError while requests run."""
        self.cache.reset()
        if self.offload is not None:
            self.offload.reset()

    def reset_counters(self) -> None:
        """Count hits, evictions and bytes anew, once what moves down has landed."""
        self.cache.reset_counters()
        if self.offload is not None:
            self.offload.settle()
            self.offload.stack.reset_counters()

    def close(self) -> None:
        """Let the tiers finish what they write. The engine cannot run afterwards where it has any."""
        if self.offload is not None:
            self._close_tiers()

    def tiers(self) -> list[TierCounters]:
        """What each tier below the pool gave and took; empty without tiers."""
        return [] if self.offload is None else self.offload.counters()

    def _pipeline(self, capture: Capture, config: EngineConfig) -> DecodePipeline:
        loaded = self.loaded
        rows = decode_rows(config.max_num_seqs, loaded.max_positions, config.block_size, loaded.device)
        clock = self.compiling.apart_from(self.clock)
        return DecodePipeline(rows, DecodeGraphs(loaded, self.pool, rows, self.generator, capture, clock))

    def prepare(self, batch_sizes: Iterable[int], draw: Draw = Draw.GREEDY) -> None:
        """Capture the decode steps of so many sequences now, so that no request waits for it; without graphs those of
        the most alone, as others are soon taken down when they come. Here alone kernels time their ways."""
        sizes = sorted(batch_sizes, reverse=True)  # memory that served the largest serves all others
        with self.compiling.measured(), choosing():
            if self.pipeline is None:
                self.forward.prepare(max(sizes, default=0), ceil_div(self.loaded.max_positions, self.pool.block_size))
                return
            for size in sizes:
                self.pipeline.graphs.prepare(size, draw, keep_logits=self.keep_logits)

    def add(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        arrival_s: float | None = None,
        retention: Retention | None = None,
    ) -> Sequence:
        """Queue a request; `retention` says how important it is. Raises KvtoolError for a prompt that is empty, out of
        vocabulary, or too long."""
        vocab_size = self.loaded.vocab_size
        if not prompt_ids:
            raise KvtoolError("the prompt is empty: at least one token is needed")
        for token in (min(prompt_ids), max(prompt_ids)):
            if not 0 <= token < vocab_size:
                raise KvtoolError(f"token id {token} is outside the vocabulary of {vocab_size}")
        if len(prompt_ids) + params.max_tokens > self.loaded.max_positions:
            raise KvtoolError(
                f"{len(prompt_ids)} prompt tokens and {params.max_tokens} output tokens exceed the "
                f"{self.loaded.max_positions} positions of this run"
            )
        sequence = Sequence(
            id=next(self._ids),
            token_ids=list(prompt_ids),
            prompt_tokens=len(prompt_ids),
            params=params,
            arrival_s=self.clock() if arrival_s is None else arrival_s,
            retention=retention,
        )
        self.scheduler.add(sequence)
        if self.offload is not None:
            self.offload.prefetch(sequence)
        return sequence

    def fork(self, sequence: Sequence, count: int) -> list[Sequence]:
        """`count` more answers of the prompt of `sequence`, with its sampling and arrival. Once its first token is out
        they share its pages, and copy only the one where answers part; before that they wait for them as others do."""
        children = [
            Sequence(
                id=next(self._ids),
                token_ids=sequence.token_ids[: sequence.prompt_tokens],
                prompt_tokens=sequence.prompt_tokens,
                params=sequence.params,
                arrival_s=sequence.arrival_s,
                retention=sequence.retention,
            )
            for _ in range(count)
        ]
        for child in children:
            self.scheduler.fork(sequence, child)
        self._make_copies()
        return children

    def step(self) -> list[Sequence]:
        """Compute one batch. Returns the sequences that got a token."""
        with self.compiling.measured(), device_errors("a step of the engine"):
            if self.offload is not None and self.scheduler.waiting:
                self.offload.expect(self.scheduler.waiting[0])
            if self.pipeline is not None:
                return self._step_ahead(self.pipeline)
            return self._run_now(self.schedule())

    def _run_now(self, work: list[Work]) -> list[Sequence]:
        """With tiers, while what lay below comes up layer by layer."""
        if self.offload is None:
            return self.postprocess(work, self.run(work))
        start_s = self.clock()
        tokens = self.run(work, wait=self.offload.begin())
        waited_s = self.offload.arrive()
        stepped = self.postprocess(work, tokens)
        self.offload.observe(work, self.clock() - start_s - waited_s)
        return stepped

    def _step_ahead(self, pipeline: DecodePipeline) -> list[Sequence]:
        """The same, but a step that is certain to follow is launched before the tokens of this one are read."""
        try:
            if not pipeline.last:
                work = self.schedule()
                if all(item.is_decode for item in work):
                    if self.offload is not None:
                        self.offload.arrive()
                    pipeline.launch(work, keep_logits=self.keep_logits)
                elif self.offload is None:
                    pipeline.follow(work, *self.compute(work))
                else:
                    return self._run_now(work)
            if self.scheduler.repeats(pipeline.last):
                pipeline.launch([Work(item.sequence, 1) for item in pipeline.last], keep_logits=self.keep_logits)
            landed = pipeline.wait()
            if landed.logits is not None:
                self._keep(landed.work, landed.logits)
            stepped = self.postprocess(landed.work, landed.tokens)
            pipeline.drop_finished()
            return stepped
        except BaseException:
            pipeline.forget()
            raise

    def schedule(self) -> list[Work]:
        work = self.scheduler.schedule()
        self._make_copies()
        return work

    def _make_copies(self) -> None:
        """Before anything is computed, since a page that is copied from may be handed to somebody else at once."""
        if copies := self.cache.take_copies():
            if self.offload is not None:
                self.offload.arrive()
            self.pool.copy_pages(copies)

    def run(self, work: list[Work], *, wait: Callable[[int], None] | None = None) -> list[int]:
        """The next token of each item that completes, in order. `wait` is called before the pages of a layer are used,
        where some may still be on their way."""
        tokens, logits = self.compute(work, wait=wait)
        if logits is not None:
            self._keep(work, logits)
        return tokens.tolist()

    def compute(self, work: list[Work], *, wait: Callable[[int], None] | None = None) -> tuple[Tensor, Tensor | None]:
        """The same tokens, int64 on the device, which the host does not wait for, and their logits if they are kept."""
        batch = build_batch(work, self.loaded.device)
        params = [item.sequence.params for item in work if item.completes]
        logits = self.forward(batch, wait=wait)
        kept = logits.clone() if self.keep_logits else None
        if not params:
            return logits.new_empty(0, dtype=torch.int64), kept
        return sample(logits, params, self.generator, self.loaded.kernels), kept

    def _keep(self, work: list[Work], logits: Tensor) -> None:
        sequences = [item.sequence for item in work if item.completes]
        for sequence, row in zip(sequences, logits, strict=True):
            sequence.logits.append(row)

    def postprocess(self, work: list[Work], tokens: list[int]) -> list[Sequence]:
        """Append the tokens, let finished sequences go, and make what was computed available to others."""
        now = self.clock()
        stepped = [item.sequence for item in work if item.completes]
        for item in work:
            self.scheduler.computed(item)
            if self.offload is not None:
                self.offload.computed(item)
        for sequence, token in zip(stepped, tokens, strict=True):
            sequence.token_ids.append(token)
            sequence.token_times_s.append(now)
            if self._is_finished(sequence, token):
                self.scheduler.finish(sequence)
        return stepped

    def run_until_idle(self) -> Iterator[list[Sequence]]:
        """Step until nothing is left to do."""
        while not self.scheduler.is_idle:
            yield self.step()

    def _is_finished(self, sequence: Sequence, token: int) -> bool:
        params = sequence.params
        stops = not params.ignore_eos and token in runnable_decoder(self.loaded.model).eos_token_ids
        return stops or sequence.num_output >= params.max_tokens
