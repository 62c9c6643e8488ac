"""The latency part: a batch is prefilled, then decoded; every prompt is new, nothing is cached between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvtool.bench.accounting import step_bytes
from kvtool.bench.checks import logits_check
from kvtool.bench.engines.race import Entrant, compared
from kvtool.bench.harness import at_once, case_inputs, kv_bytes, pages_for, run_requests, sample_of
from kvtool.bench.metrics import metrics_of
from kvtool.bench.options import BenchOptions
from kvtool.bench.power import power_of
from kvtool.engine.batch import build_batch
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams
from kvtool.kernels import load_kernels
from kvtool.machine.interleaved import Windows
from kvtool.machine.memory import peak_memory
from kvtool.machine.nvml import NvmlSampler, open_card
from kvtool.results import BenchPeer, Case, Check, Memory, Roofline, Sample
from kvtool.units import ceil_div
from kvtool.workloads import Request, fixed, poisson_arrivals


def latency_case(
    loaded: LoadedModel,
    options: BenchOptions,
    windows: Windows,
    *,
    input_len: int,
    batch_size: int,
    peers: Sequence[Entrant] = (),
) -> Case:
    """One cell of the grid. Raises DeviceError where a step fails or the accounting cannot be right."""
    num_requests = (options.num_prompts or 4 * batch_size) if options.queues else batch_size
    batches = [
        _requests(loaded, options, num_requests, input_len, iteration)
        for iteration in range(options.num_iters_warmup + options.num_iters)
    ]
    peak_bytes = peak_memory(loaded.device, apart_bytes=windows.buffer_bytes)
    # The check at the end decodes once behind a whole prompt, even where the case has no decode step.
    at_least = ceil_div(input_len + 1, loaded.config.block_size)
    engine = Engine(loaded, num_pages=max(at_least, pages_for(batches[0], loaded.config.block_size)))
    samples: list[Sample] = []
    concurrency = options.concurrency
    most = at_once(engine, num_requests, concurrency)
    engine.prepare(range(1, most + 1) if options.queues else [most])
    for requests in batches[: options.num_iters_warmup]:
        run_requests(engine, requests, concurrency=concurrency)
    engine.cache.reset_counters()
    with NvmlSampler(open_card(str(loaded.device))) as power:
        for iteration, requests in enumerate(batches[options.num_iters_warmup :]):
            windows.measure()
            done = run_requests(engine, requests, concurrency=concurrency)
            samples += [sample_of(sequence, arm="baseline", iteration=iteration) for sequence in done]
        windows.measure()
    metrics = metrics_of(samples, queues=options.queues)
    moved = step_bytes(loaded, batches[0][:batch_size])
    predicted, stored = kv_bytes(loaded.specs, batches[0], loaded.config.block_size)
    allocated = engine.cache.counters().peak_pages * engine.pool.page_bytes
    if not options.queues and predicted != allocated:
        raise AssertionError(f"predicted {predicted} KV bytes but allocated {allocated}")
    return Case(
        name=f"latency/{input_len}x{batch_size}",
        part="latency",
        inputs=case_inputs(
            loaded,
            input_len=input_len,
            output_len=options.output_len,
            batch_size=batch_size,
            num_iters=options.num_iters,
            num_iters_warmup=options.num_iters_warmup,
            concurrency=concurrency,
            request_rate=options.request_rate,
            num_prompts=num_requests,
            seed=options.seed,
        ),
        samples=samples,
        metrics=metrics,
        bytes=moved,
        roofline=Roofline(),
        memory=Memory(
            kv_predicted_bytes=predicted,
            kv_allocated_bytes=allocated,
            kv_pool_bytes=engine.pool.bytes,
            kv_waste_bytes=allocated - stored,
            peak_bytes=None if peers else peak_bytes(),  # their weights are in this process too
        ),
        prefix=None,
        check=_kernel_check(engine, batches[-1]),
        power=power_of(power.summary, samples),
        cold_start=engine.cold_start,
        peers=_compared(engine, options, peers, input_len, batch_size) if peers else [],
    )


def _compared(
    engine: Engine, options: BenchOptions, peers: Sequence[Entrant], input_len: int, batch_size: int
) -> list[BenchPeer]:
    """In rounds of their own, on prompts that nobody saw before. A first round at least compiles and allocates."""
    warmup = max(1, options.num_iters_warmup)
    seen = options.num_iters_warmup + options.num_iters
    rounds = range(seen, seen + warmup + options.num_iters)
    batches = [_requests(engine.loaded, options, batch_size, input_len, iteration) for iteration in rounds]
    return compared(engine, peers, batches, warmup=warmup)


def _requests(
    loaded: LoadedModel, options: BenchOptions, num_requests: int, input_len: int, iteration: int
) -> list[Request]:
    requests = fixed(
        batch_size=num_requests,
        input_len=input_len,
        output_len=options.output_len,
        vocab_size=loaded.vocab_size,
        seed=options.seed + iteration,
    )
    if options.request_rate is None:
        return requests
    return poisson_arrivals(requests, options.request_rate, options.seed + iteration)


def _kernel_check(engine: Engine, requests: list[Request]) -> Check:
    """One decode step of one request by the kernels that ran and by their obvious twins, on the same pages."""
    loaded = engine.loaded
    sequence = engine.add(list(requests[0].prompt_ids), SamplingParams(max_tokens=2))
    engine.step()
    batch = build_batch(engine.scheduler.schedule(), loaded.device)
    # Both write the same K and V to the same slots, so the second run sees what the first saw.
    ran, reference = (
        loaded.transformer(batch, engine.pool.layers, kernels).float()
        for kernels in (loaded.kernels, load_kernels("reference"))
    )
    engine.scheduler.finish(sequence)
    assert isinstance(ran, torch.Tensor)
    return logits_check(ran, reference, dtype=loaded.dtype, names=f"{loaded.backend} kernels against their reference")
