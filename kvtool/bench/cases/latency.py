"""The latency part: a batch is prefilled, then decoded; every prompt is new, nothing is cached between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from kvtool.bench.accounting import step_bytes
from kvtool.bench.cases.base import Batches, Measured, Setup, Stepped, require_arrivals, require_positive
from kvtool.bench.checks import logits_check
from kvtool.bench.engines.race import compared
from kvtool.bench.harness import Value, at_once, cold_start_of, engine_memory, pages_for, run_requests, sample_of
from kvtool.bench.metrics import metrics_of
from kvtool.bench.session import Step
from kvtool.engine.batch import build_batch
from kvtool.engine.engine import Engine
from kvtool.engine.sequence import SamplingParams
from kvtool.machine.memory import peak_memory
from kvtool.machine.nvml import NvmlSampler, open_card
from kvtool.results import BenchPeer, Check, LatencyCase, Memory, Roofline, Sample
from kvtool.units import ceil_div
from kvtool.workloads import Request, fixed, random_arrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(Batches, Stepped):
    """Every input length with every batch size. With `concurrency` or `request_rate` requests queue."""

    concurrency: int | None = None
    request_rate: float | None = None
    burstiness: float = 1.0
    num_prompts: int | None = None

    def __post_init__(self) -> None:
        Batches.__post_init__(self)
        require_positive("count", self.concurrency, self.num_prompts)
        require_arrivals(self.request_rate, self.burstiness)

    @classmethod
    def default(cls, *, gpu: bool) -> Latency:
        if gpu:
            return cls(input_lens=(1024, 8192), batch_sizes=(1, 8, 32), output_len=64)
        return cls(input_lens=(64, 320), batch_sizes=(1, 8), output_len=8)

    @property
    def queues(self) -> bool:
        """Whether requests wait for their turn: then prefill and decode mix in one step, as in a server."""
        return self.concurrency is not None or self.request_rate is not None

    def steps(self, setup: Setup) -> Iterator[Step[Measured]]:
        for input_len, batch_size in self.cells:
            cell = Cell(setup, self, input_len, batch_size)
            yield Step(f"latency: {input_len} tokens x {batch_size}", cell.measure)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the grid."""

    setup: Setup
    options: Latency
    input_len: int
    batch_size: int

    @property
    def num_requests(self) -> int:
        """Of an iteration."""
        return (self.options.num_prompts or 4 * self.batch_size) if self.options.queues else self.batch_size

    def measure(self) -> Measured:
        """The case. Raises DeviceError where a step fails, AssertionError where the accounting cannot be right."""
        setup, loaded = self.setup, self.setup.loaded
        warmup = setup.num_iters_warmup
        batches = [self._requests(draw) for draw in range(warmup + setup.most_iters)]
        peak_bytes = peak_memory(loaded.device, apart_bytes=setup.windows.buffer_bytes)
        engine = self._engine(batches[0])
        for requests in batches[:warmup]:
            self._samples(engine, requests, 0)
        engine.cache.reset_counters()
        with NvmlSampler(open_card(str(loaded.device))) as power:
            iterations = setup.iterate(lambda i: self._samples(engine, batches[warmup + i], i))
        samples = iterations.samples
        case = LatencyCase(
            name=f"latency/{self.input_len}x{self.batch_size}",
            inputs=self._inputs(),
            samples=samples,
            metrics=metrics_of(samples, queues=self.options.queues),
            bytes=step_bytes(loaded, batches[0][: self.batch_size]),
            roofline=Roofline(),
            # The weights of peers are in this process too.
            memory=self._memory(engine, batches[0], peak_bytes=None if setup.peers else peak_bytes()),
            check=kernel_check(engine, batches[-1][0]),
            power=power.summary.over(sum(sample.output_tokens for sample in samples)),
            cold_start=cold_start_of(engine),
            load=iterations.load,
            peers=self._compared(engine) if setup.peers else [],
        )
        return Measured([case], iterations.limits)

    def _engine(self, requests: Sequence[Request]) -> Engine:
        """With every decode step that the case will take already captured, where steps are."""
        loaded, queues = self.setup.loaded, self.options.queues
        block_size = loaded.config.block_size
        # The check at the end decodes once behind a whole prompt, even where the case has no decode step.
        num_pages = max(ceil_div(self.input_len + 1, block_size), pages_for(requests, block_size))
        engine = Engine(loaded, num_pages=num_pages, config=replace(loaded.config, prefill_first=not queues))
        most = at_once(engine, self.num_requests, self.options.concurrency)
        engine.prepare(range(1, most + 1) if queues else [most])
        return engine

    def _samples(self, engine: Engine, requests: Sequence[Request], iteration: int) -> list[Sample]:
        done = run_requests(engine, requests, concurrency=self.options.concurrency)
        return [sample_of(sequence, arm="baseline", iteration=iteration) for sequence in done]

    def _requests(self, draw: int) -> list[Request]:
        """Prompts that no other draw has."""
        setup, options = self.setup, self.options
        requests = fixed(
            batch_size=self.num_requests,
            input_len=self.input_len,
            output_len=options.output_len,
            vocab_size=setup.loaded.vocab_size,
            seed=setup.seed + draw,
        )
        if options.request_rate is None:
            return requests
        rate, burstiness = options.request_rate, options.burstiness
        return random_arrivals(requests, rate, setup.seed + draw, burstiness=burstiness)

    def _inputs(self) -> dict[str, Value]:
        return self.setup.inputs(
            input_len=self.input_len,
            output_len=self.options.output_len,
            batch_size=self.batch_size,
            num_iters_warmup=self.setup.num_iters_warmup,
            concurrency=self.options.concurrency,
            request_rate=self.options.request_rate,
            burstiness=None if self.options.request_rate is None else self.options.burstiness,
            num_prompts=self.num_requests,
        )

    def _memory(self, engine: Engine, requests: Sequence[Request], *, peak_bytes: int | None) -> Memory:
        memory = engine_memory(engine, requests, peak_bytes=peak_bytes)
        predicted, allocated = memory.kv_predicted_bytes, memory.kv_allocated_bytes
        if not self.options.queues and predicted != allocated:
            raise AssertionError(f"predicted {predicted} KV bytes but allocated {allocated}")
        return memory

    def _compared(self, engine: Engine) -> list[BenchPeer]:
        """In rounds of their own, on prompts that nobody saw before. A first round at least compiles and allocates."""
        setup = self.setup
        warmup, seen = max(1, setup.num_iters_warmup), setup.num_iters_warmup + setup.most_iters
        batches = [self._requests(seen + turn) for turn in range(warmup + setup.num_iters)]
        return compared(engine, setup.peers, batches, warmup=warmup)


def kernel_check(engine: Engine, request: Request) -> Check:
    """One decode step of the request by the kernels that ran and by their obvious twins, on the same pages."""
    loaded = engine.loaded
    sequence = engine.add(list(request.prompt_ids), SamplingParams(max_tokens=2))
    prompt = engine.schedule()
    engine.postprocess(prompt, engine.run(prompt))  # `step` may launch the decode behind it
    batch = build_batch(engine.schedule(), loaded.device)
    # Both write the same K and V to the same slots, so the second run sees what the first saw.
    ran, reference = (
        loaded.transformer(batch, engine.pool.layers, kernels).float()
        for kernels in (loaded.kernels, loaded.keeping(loaded.cache_format, backend="reference").kernels)
    )
    engine.scheduler.finish(sequence)
    assert isinstance(ran, torch.Tensor)
    return logits_check(ran, reference, dtype=loaded.dtype, names=f"{loaded.backend} kernels against their reference")
