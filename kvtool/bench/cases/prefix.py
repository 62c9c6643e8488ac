"""The prefix part: what a cached prefix saves. The same prompts with and without, in turns, so that drift hits both."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import ClassVar

from kvtool.bench.accounting import step_bytes
from kvtool.bench.cases.base import Measured, Setup, Stepped, require_positive
from kvtool.bench.cases.below import each_tier, run_from_below, tier_hits
from kvtool.bench.checks import compare_runs
from kvtool.bench.harness import cold_start_of, engine_memory, pages_for, run_requests, sample_of
from kvtool.bench.metrics import metrics_of
from kvtool.bench.savings import flops_saved, of_arm, ttfts_in_order
from kvtool.bench.session import Step
from kvtool.cache.tiers.options import TierOptions
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import Sequence
from kvtool.machine.memory import peak_memory
from kvtool.machine.stats import paired_median_difference
from kvtool.results import Check, Prefix, PrefixCase, Roofline, Sample
from kvtool.sizing.speed.traffic import kv_written_bytes
from kvtool.system.errors import DeviceError, KvtoolError
from kvtool.workloads import Request, SharedPrefix, shared_prefix

NUM_REQUESTS = 2  # an iteration, one after the other: TTFT is then prefill alone


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixHits(Stepped):
    """Hit rates as shares of the longest prompt; or of prompts that are as long as the rate makes `prefix_len`."""

    input_lens: tuple[int, ...]
    output_len: int
    prefix_len: int | None = None
    hit_rates: tuple[float, ...] = (0.0, 0.5, 0.9)
    uses_tiers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("input length", *self.input_lens)
        require_positive("output length", self.output_len)
        require_positive("count", self.prefix_len)
        for rate in self.hit_rates:
            if not 0.0 <= rate < 1.0:
                raise KvtoolError(f"hit rate {rate} must be at least 0 and below 1: the last token is always computed")

    @classmethod
    def default(cls, *, gpu: bool) -> PrefixHits:
        # Half and nine tenths of 320 tokens are whole pages.
        return cls(input_lens=(8192,), output_len=8) if gpu else cls(input_lens=(320,), output_len=2)

    @property
    def longest_tokens(self) -> int:
        return max(self.input_len(rate) for rate in self.hit_rates) + self.output_len

    def input_len(self, hit_rate: float) -> int:
        """Of a prompt at this rate; a rate of 0 has the prefix itself for a prompt."""
        if self.prefix_len is None:
            return max(self.input_lens)
        return self.prefix_len if hit_rate == 0 else max(self.prefix_len + 1, round(self.prefix_len / hit_rate))

    def steps(self, setup: Setup) -> Iterator[Step[Measured]]:
        for rate in self.hit_rates:
            yield Step(f"prefix hits: {rate:.0%}", partial(prefix_case, setup, self, hit_rate=rate))
            for tier in each_tier(setup.tiers) if rate else ():
                measure = partial(prefix_case, setup, self, hit_rate=rate, tier=tier)
                yield Step(f"prefix hits: {rate:.0%} from {tier}", measure)


class Arms:
    """Two engines over one model: `cached` keeps prefixes, in `tiers` alone where they are given; `uncached` none."""

    def __init__(self, loaded: LoadedModel, num_pages: int, tiers: TierOptions | None = None) -> None:
        cached, uncached = replace(loaded.config, tiers=tiers), replace(loaded.config, prefix_caching=False)
        self.below = tiers is not None
        self.engines = {
            "cached": Engine(loaded, num_pages=num_pages, config=cached),
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
        before = tier_hits(engine)
        from_below = self.below and arm == "cached"
        done = (run_from_below if from_below else one_by_one)(engine, workload.requests)
        hits = engine.cache.counters().hit_tokens + tier_hits(engine) - before
        expected = workload.cached_len * len(workload.requests) if arm == "cached" else 0
        if hits != expected:
            raise DeviceError(f"the allocator counted {hits} hit tokens where {expected} were generated")
        return done

    def samples(self, workload: SharedPrefix, iteration: int) -> list[Sample]:
        """Both arms, the other one first in every second iteration."""
        order = ("cached", "uncached") if iteration % 2 == 0 else ("uncached", "cached")
        return [sample_of(done, arm=arm, iteration=iteration) for arm in order for done in self.run(arm, workload)]


def one_by_one(engine: Engine, requests: list[Request]) -> list[Sequence]:
    """TTFT is then prefill alone."""
    return run_requests(engine, requests, concurrency=1)


def prefix_case(setup: Setup, options: PrefixHits, *, hit_rate: float, tier: str | None = None) -> Measured:
    """One hit rate, in the pool or from a tier below it: paired samples of both arms, in turns A B B A."""
    loaded = setup.loaded
    workloads = [_workload(setup, options, hit_rate, draw) for draw in range(setup.most_iters + 1)]
    requests, cached_len = workloads[0].requests, workloads[0].cached_len
    block_size = loaded.config.block_size
    peak_bytes = peak_memory(loaded.device, apart_bytes=setup.windows.buffer_bytes)
    # Room for the priming request and for what finished requests leave cached.
    tiers = None if tier is None else each_tier(setup.tiers)[tier]
    arms = Arms(loaded, 2 * pages_for(requests, block_size) + cached_len // block_size + 1, tiers)
    check = _check(arms, workloads[-1], loaded.dtype)
    iterations = setup.iterate(lambda iteration: arms.samples(workloads[iteration], iteration))
    samples = iterations.samples
    case = PrefixCase(
        name=f"prefix/{hit_rate:g}" + (f"/{tier}" if tier else ""),
        inputs=setup.inputs(
            input_len=len(requests[0].prompt_ids),
            output_len=options.output_len,
            batch_size=1,
            prefix_len=cached_len,
            hit_rate=hit_rate,
            num_iters_warmup=1,
            num_prompts=NUM_REQUESTS,
            **({} if setup.tiers is None else {"tier": tier or "pool"}),
        ),
        samples=samples,
        metrics=metrics_of(of_arm(samples, "cached"), queues=True),
        bytes=step_bytes(loaded, requests[:1]),
        roofline=Roofline(),
        memory=engine_memory(arms.engines["uncached"], requests[:1], peak_bytes=peak_bytes()),
        prefix=_savings(loaded, samples, workloads[0], hit_rate),
        check=check,
        cold_start=cold_start_of(arms.engines["cached"]),  # the first of the two compiles for both
        load=iterations.load,
    )
    return Measured([case], iterations.limits)


def _workload(setup: Setup, options: PrefixHits, hit_rate: float, draw: int) -> SharedPrefix:
    return shared_prefix(
        num_requests=NUM_REQUESTS,
        input_len=options.input_len(hit_rate),
        output_len=options.output_len,
        hit_rate=hit_rate,
        block_size=setup.loaded.config.block_size,
        vocab_size=setup.loaded.vocab_size,
        seed=setup.seed + draw,
    )


def _check(arms: Arms, workload: SharedPrefix, dtype: str) -> Check:
    """Untimed, so it also warms both arms up: the tokens and logits of both."""
    cached, uncached = (arms.run(arm, workload, keep_logits=True) for arm in ("cached", "uncached"))
    return compare_runs(cached, uncached, dtype=dtype, names="cached against uncached")


def _savings(loaded: LoadedModel, samples: Seq[Sample], workload: SharedPrefix, requested: float) -> Prefix:
    cached = of_arm(samples, "cached")
    pairs = [ttfts_in_order(samples, arm) for arm in ("cached", "uncached")]
    saved = paired_median_difference(pairs[0], pairs[1])
    length, hits = len(workload.requests[0].prompt_ids), workload.cached_len
    return Prefix(
        requested_hit_rate=requested,
        measured_hit_rate=sum(s.cached_tokens for s in cached) / sum(s.prompt_tokens for s in cached),
        ttft_saved_ms=saved.value * 1e3,
        ttft_saved_ratio=saved.value / median(pairs[1]),
        ttft_saved_ms_ci_low=saved.low * 1e3,
        ttft_saved_ms_ci_high=saved.high * 1e3,
        flops_saved=flops_saved(loaded.model, length, hits),
        kv_bytes_not_written=kv_written_bytes(loaded.specs, hits),
    )
