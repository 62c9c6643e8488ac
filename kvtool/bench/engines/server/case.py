"""One case of a server: its plans driven, iteration by iteration, and what came of them as a case of the document."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from msgspec.structs import replace

from kvtool.bench.cases.goodput import goodput_ratio
from kvtool.bench.engines.server.beside import Own, decode_step
from kvtool.bench.engines.server.drive import Driven, Exchanged
from kvtool.bench.engines.server.hits import Hits
from kvtool.bench.engines.server.options import FIXED, ServerOptions
from kvtool.bench.metrics import metrics_of
from kvtool.catalog.model import Model
from kvtool.engine.endpoint.server import Server
from kvtool.results import (
    Check,
    Endpoint,
    EndpointCase,
    Failure,
    Memory,
    Roofline,
    Sample,
    StepBytes,
)
from kvtool.sizing.speed.traffic import prefill_flops
from kvtool.workloads.scenarios.base import Plan
from kvtool.workloads.scenarios.scenarios import title

MOST_TOLD = 20  # failures whose words a document keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What was measured of a case. `plan` is that of its first iteration."""

    case: tuple[str, int, float | None]
    plan: Plan
    runs: list[Driven]
    hits: Hits
    warm: bool = False  # hits were found where none, or fewer, had been generated

    @property
    def expected_tokens(self) -> int:
        """Hits in a cache that evicts nothing."""
        return sum(run.plan.cached_tokens for run in self.runs)


def samples_of(runs: list[Driven]) -> list[Sample]:
    """One a request that was answered, by iteration."""
    return [_sample(one, iteration) for iteration, run in enumerate(runs) for one in run.whole]


def _sample(one: Exchanged, iteration: int) -> Sample:
    answer = one.answer
    return Sample(
        arm="baseline",
        iteration=iteration,
        ttft_s=one.ttft_s,
        e2e_s=one.e2e_s,
        itl_s=answer.gaps_s,
        output_tokens=answer.output_tokens,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens or 0,
        arrival_s=one.in_s,
        queue_s=max(0.0, one.late_s),
    )


def failures_of(runs: list[Driven]) -> list[Failure]:
    """One a request that was not."""
    return [
        Failure(
            iteration=iteration,
            kind=fault.kind,
            text=str(fault),
            arrival_s=one.in_s,
            after_s=max(0.0, one.answer.ended_s - one.answer.sent_s),
            events=len(one.answer.token_s),
        )
        for iteration, run in enumerate(runs)
        for one, fault in run.failed
    ]


def case_of(
    ran: Ran, model: Model, server: Server, options: ServerOptions, own: Own | None, overhead_ms: float | None
) -> EndpointCase:
    """The case of the document."""
    samples = samples_of(ran.runs)
    queues = options.concurrency is not None or options.request_rate is not None
    metrics = metrics_of(samples, queues=True)
    step = decode_step(model, ran.plan, options)
    mean_prompt = ran.plan.prompt_tokens // max(1, sum(turn.answers for turn in ran.plan.turns))
    return EndpointCase(
        name=options.case_name(ran.case),
        inputs=inputs_of(ran, model, options),
        samples=samples,
        metrics=replace(metrics, decode_tokens_per_s=None) if queues else metrics,
        bytes=StepBytes(
            weights_read=step.weights_read_bytes_per_step or 0,
            kv_read=step.kv_read_bytes_per_step,
            kv_written=0,
            other=0,
            prefill_flops=prefill_flops(model, mean_prompt) or 0,
            decode_flops=step.flops_per_step or 0,
        ),
        roofline=Roofline(
            ideal_tpot_ms=step.ideal_tpot_ms, bound=step.bound, reason="the server's device is not measured from here"
        ),
        memory=Memory(
            kv_predicted_bytes=0, kv_allocated_bytes=0, kv_pool_bytes=None, kv_waste_bytes=0, peak_bytes=None
        ),
        check=Check(text="the server's answers are not compared with anything"),
        endpoint=_endpoint(ran, samples, server, options, own, overhead_ms, step.ideal_tpot_ms),
    )


def inputs_of(ran: Ran, model: Model, options: ServerOptions) -> dict[str, str | int | float | bool | None]:
    """All that is needed to ask it again, but for the salt."""
    scenario, input_len, hit_rate = ran.case
    return {
        "model": model.id,
        "scenario": title(scenario),
        "route": "chat" if options.chat else "completions",
        "input_len": input_len,
        "output_len": options.output_len,
        "batch_size": None,
        "prefix_len": options.prefix_len,
        "hit_rate": hit_rate,
        "num_prompts": sum(turn.answers for turn in ran.plan.turns),
        "concurrency": options.concurrency,
        "request_rate": options.request_rate,
        "burstiness": None if options.request_rate is None else options.burstiness,
        "think_time": options.think_s,
        "time_scale": None if scenario == FIXED else options.time_scale,
        "num_iters": options.num_iters,
        "num_iters_warmup": options.num_iters_warmup,
        "seed": options.seed,
    }


def _endpoint(
    ran: Ran,
    samples: list[Sample],
    server: Server,
    options: ServerOptions,
    own: Own | None,
    overhead_ms: float | None,
    floor_ms: float | None,
) -> Endpoint:
    failures = failures_of(ran.runs)
    requests = len(samples) + len(failures)
    prompt_tokens = sum(sample.prompt_tokens for sample in samples)
    events = sum(len(one.answer.token_s) for run in ran.runs for one in run.whole)
    output_tokens = sum(sample.output_tokens for sample in samples)
    good = goodput_ratio(samples, options.goodput_ms)
    return Endpoint(
        url_model=server.model,
        server=" ".join(filter(None, (server.engine, server.version))),
        route="chat" if options.chat else "completions",
        scenario=title(ran.case[0]),
        requests=requests,
        errors=dict(sorted(Tally(failure.kind for failure in failures).items())),
        cache_state="unknown" if ran.warm else "reset" if options.reset_cache else "fresh",
        hit_tokens=ran.hits.tokens,
        prompt_tokens=prompt_tokens,
        hit_rate=None if ran.hits.source == "none" or not prompt_tokens else ran.hits.tokens / prompt_tokens,
        hit_source=ran.hits.source,
        hit_rate_requested=ran.plan.hit_rate if ran.case[2] is None else ran.case[2],
        hit_rate_rounded=ran.plan.hit_rate,
        hit_tokens_expected=ran.expected_tokens,
        hits_exact=are_hits_exact(ran, server, options),
        block_tokens=options.block_tokens(server),
        usage_hit_tokens=ran.hits.usage_tokens,
        metrics_hit_tokens=ran.hits.metrics_tokens,
        preemptions=ran.hits.preemptions,
        output_pinned=all(sample.output_tokens == wanted for sample, wanted in zip(samples, _wanted(ran), strict=True)),
        tokens_per_event=output_tokens / events if events else None,
        requests_per_s=_rate(ran.runs, lambda one: 1),
        output_tokens_per_s=_rate(ran.runs, lambda one: one.answer.output_tokens),
        client_overhead_ms=overhead_ms,
        floor_tpot_ms=floor_ms,
        own_ttft_ms=own.ttft_ms if own else None,
        own_tpot_ms=own.tpot_ms if own else None,
        goodput_ratio=None if good is None or not requests else good * len(samples) / requests,
        salt=options.salt,
        failures=failures[:MOST_TOLD],
    )


def _wanted(ran: Ran) -> list[int]:
    """Output tokens asked for, of each request that was answered."""
    return [run.plan.turns[one.turn].output_len for run in ran.runs for one in run.whole]


def _rate(runs: list[Driven], count: Callable[[Exchanged], int]) -> float | None:
    """The median over iterations of what is counted a second."""
    rates = [sum(map(count, run.whole)) / run.wall_s for run in runs if run.whole and run.wall_s > 0]
    return median(rates) if rates else None


def are_hits_exact(ran: Ran, server: Server, options: ServerOptions) -> bool:
    """Where whatever is shared is in the cache before a request starts, and the server says how it looks it up: the
    slots of llama.cpp hold a prefix each, so that one request at a time finds it."""
    alone = options.concurrency == 1
    forks = any(turn.answers > 1 for turn in ran.plan.turns)
    shared = ran.plan.exact and (server.engine != "llama.cpp" or alone)
    failed = any(run.failed for run in ran.runs)
    return server.block_tokens is not None and not options.chat and not forks and not failed and (shared or alone)
