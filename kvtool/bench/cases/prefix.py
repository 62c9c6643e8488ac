"""The prefix part: what a cached prefix saves. The same prompts with and without, in turns, so that drift hits both."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace
from statistics import median

from kvtool.bench.accounting import step_bytes
from kvtool.bench.checks import compare_runs
from kvtool.bench.harness import case_inputs, kv_bytes, pages_for, run_requests, sample_of
from kvtool.bench.metrics import metrics_of
from kvtool.bench.options import BenchOptions, prompt_len
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import Sequence
from kvtool.errors import DeviceError
from kvtool.machine.interleaved import Windows
from kvtool.machine.memory import peak_memory
from kvtool.results import Case, Check, Memory, Prefix, Roofline, Sample
from kvtool.sizing.traffic import kv_written_bytes, prefill_flops
from kvtool.stats import paired_median_difference
from kvtool.workloads import SharedPrefix, shared_prefix

NUM_REQUESTS = 2  # an iteration, one after the other: TTFT is then prefill alone


class Arms:
    """Two engines over one model: `cached` keeps prefixes, `uncached` does not."""

    def __init__(self, loaded: LoadedModel, num_pages: int) -> None:
        uncached = replace(loaded.config, prefix_caching=False)
        self.engines = {
            "cached": Engine(loaded, num_pages=num_pages),
            "uncached": Engine(loaded, num_pages=num_pages, config=uncached),
        }
        for engine in self.engines.values():
            engine.prepare([1])

    def run(self, arm: str, workload: SharedPrefix, *, keep_logits: bool = False) -> list[Sequence]:
        """The workload's requests one at a time, after its prefix was primed. Raises DeviceError when the allocator
        counted other hits than were generated."""
        engine = self.engines[arm]
        engine.keep_logits = keep_logits
        engine.cache.reset()
        if arm == "cached" and workload.priming is not None:
            run_requests(engine, [workload.priming])
        engine.cache.reset_counters()
        done = run_requests(engine, workload.requests, concurrency=1)
        hits = engine.cache.counters().hit_tokens
        expected = workload.cached_len * len(workload.requests) if arm == "cached" else 0
        if hits != expected:
            raise DeviceError(f"the allocator counted {hits} hit tokens where {expected} were generated")
        return done


def prefix_case(loaded: LoadedModel, options: BenchOptions, windows: Windows, *, hit_rate: float) -> Case:
    """One hit rate: paired samples of both arms, in turns A B B A."""
    workloads = [_workload(loaded, options, hit_rate, iteration) for iteration in range(options.num_iters + 1)]
    requests = workloads[0].requests
    block_size = loaded.config.block_size
    peak_bytes = peak_memory(loaded.device, apart_bytes=windows.buffer_bytes)
    # Room for the priming request and for what finished requests leave cached.
    arms = Arms(loaded, 2 * pages_for(requests, block_size) + workloads[0].cached_len // block_size + 1)
    check = _check(arms, workloads[-1], loaded.dtype)
    samples: list[Sample] = []
    for iteration, workload in enumerate(workloads[: options.num_iters]):
        order = ("cached", "uncached") if iteration % 2 == 0 else ("uncached", "cached")
        windows.measure()
        for arm in order:
            samples += [sample_of(sequence, arm=arm, iteration=iteration) for sequence in arms.run(arm, workload)]
    windows.measure()
    cached = [sample for sample in samples if sample.arm == "cached"]
    metrics = metrics_of(cached, queues=True)
    moved = step_bytes(loaded, requests[:1])
    predicted, stored = kv_bytes(loaded.specs, requests[:1], block_size)
    engine = arms.engines["uncached"]
    allocated = engine.cache.counters().peak_pages * engine.pool.page_bytes
    return Case(
        name=f"prefix/{hit_rate:g}",
        part="prefix",
        inputs=case_inputs(
            loaded,
            input_len=len(requests[0].prompt_ids),
            output_len=options.prefix_output_len,
            batch_size=1,
            prefix_len=workloads[0].cached_len,
            hit_rate=hit_rate,
            num_iters=options.num_iters,
            num_iters_warmup=1,
            num_prompts=NUM_REQUESTS,
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
            peak_bytes=peak_bytes(),
        ),
        prefix=_savings(loaded, samples, workloads[0], hit_rate),
        check=check,
        cold_start=arms.engines["cached"].cold_start,  # the first of the two compiles for both
    )


def _workload(loaded: LoadedModel, options: BenchOptions, hit_rate: float, iteration: int) -> SharedPrefix:
    longest = max(options.input_lens)
    return shared_prefix(
        num_requests=NUM_REQUESTS,
        input_len=longest if options.prefix_len is None else prompt_len(options.prefix_len, hit_rate),
        output_len=options.prefix_output_len,
        hit_rate=hit_rate,
        block_size=loaded.config.block_size,
        vocab_size=loaded.vocab_size,
        seed=options.seed + iteration,
    )


def _check(arms: Arms, workload: SharedPrefix, dtype: str) -> Check:
    """Untimed, so it also warms both arms up: the tokens and logits of both."""
    cached, uncached = (arms.run(arm, workload, keep_logits=True) for arm in ("cached", "uncached"))
    return compare_runs(cached, uncached, dtype=dtype, names="cached against uncached")


def _savings(loaded: LoadedModel, samples: Seq[Sample], workload: SharedPrefix, requested: float) -> Prefix:
    cached = [sample for sample in samples if sample.arm == "cached"]
    uncached = [sample for sample in samples if sample.arm == "uncached"]
    pairs = [list(_in_order(arm)) for arm in (cached, uncached)]
    saved = paired_median_difference(pairs[0], pairs[1])
    length, hits = len(workload.requests[0].prompt_ids), workload.cached_len
    whole, rest = (prefill_flops(loaded.model, length - skipped, skipped) for skipped in (0, hits))
    assert whole is not None
    assert rest is not None
    return Prefix(
        requested_hit_rate=requested,
        measured_hit_rate=sum(s.cached_tokens for s in cached) / sum(s.prompt_tokens for s in cached),
        ttft_saved_ms=saved.value * 1e3,
        ttft_saved_ratio=saved.value / median(pairs[1]),
        ttft_saved_ms_ci_low=saved.low * 1e3,
        ttft_saved_ms_ci_high=saved.high * 1e3,
        flops_saved=whole - rest,
        kv_bytes_not_written=kv_written_bytes(loaded.specs, hits),
    )


def _in_order(samples: Seq[Sample]) -> list[float]:
    """TTFTs by iteration; within one, requests ran in the same order in both arms."""
    return [sample.ttft_s for sample in sorted(samples, key=lambda sample: sample.iteration)]
