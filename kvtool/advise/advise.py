"""`kvtool advise` as a function: a situation in, a document of decisions out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kvtool.advise.questions import cache, disaggregate, dtype, layout, offload, pages, prefix
from kvtool.advise.serving import Serving
from kvtool.advise.situation import MATERIAL, THROUGHPUT, Situation
from kvtool.results import AdviseDocument, AdviseTraffic
from kvtool.results.advise import Input
from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.speed.exchange import COLLECTIVE_S


def advise(situation: Situation) -> AdviseDocument:
    """Every question. Raises KvtoolError where the cards serve no such request, and for what is not known of them."""
    small = situation.smallest(AUTO) or situation.smallest(dtype.FP8)
    if small is None:
        layout.ranking(situation, [])  # says what is missing
        raise AssertionError
    stored = dtype.decide(situation, small, situation.num_gpus // small.parallel.num_gpus)
    cache_dtype = dtype.FP8 if stored.answer == dtype.FP8 else AUTO
    laid_out = layout.ranking(situation, list(layout.layouts(situation, cache_dtype)))
    serving = laid_out[0].serving
    return AdviseDocument(
        inputs=_inputs(situation),
        traffic=_traffic(situation),
        decisions=[
            cache.decide(situation, serving),
            prefix.decide(situation, serving),
            stored,
            pages.decide(situation, serving),
            *offload.decide(situation, serving),
            layout.decide(situation, laid_out),
            disaggregate.decide(situation, laid_out[0], cache_dtype),
        ],
        assumptions=list(assumptions(situation, serving)),
    )


def fewest_gpus(situation: Situation, most: int = 8) -> Situation:
    """On the fewest cards that hold what is in flight; on `most` where no number up to there does."""
    for count in (number for number in (1, 2, 4, 8) if number <= most):
        tried = replace(situation, num_gpus=count)
        copy = tried.smallest(AUTO) or tried.smallest(dtype.FP8)
        if copy is not None and copy.holds(situation.traffic.longest_tokens) >= (situation.users or 1):
            return tried
    return replace(situation, num_gpus=most)


def assumptions(situation: Situation, serving: Serving) -> Iterator[str]:
    """What the numbers rest on that was not read or measured."""
    yield from situation.model.assumed
    yield "times are floors: a prefill's FLOPs or a step's bytes at the rates named, and nothing of an engine's own"
    if not situation.measured:
        gpu = situation.gpu
        yield f"rates are the card's own: {gpu.bf16_tflops:g} TFLOP/s, {gpu.memory_bandwidth_gbps:g} GB/s"
    yield from situation.measured
    yield f"below {MATERIAL:g}x a gain is no reason: runs of one configuration differ by as much"
    yield "all requests are alike: the mean prompt, answer and hit stand for them"
    if serving.replica.parallel.tp > 1:
        yield f"an all-reduce takes {1e6 * COLLECTIVE_S:g} us and its bytes over the link between cards; none is hidden"
    if serving.replicas > 1:
        yield "a request goes to the replica that has its prefix"
    if situation.goal == THROUGHPUT and situation.users is None:
        yield f"so many are in flight as fit: {serving.batch:,} on each copy"
    for tier in situation.tiers.tiers if situation.tiers is not None else ():
        yield f"{tier.name} reads {tier.read_gbps:g} GB/s ({tier.source}), each card over its own link"


def _inputs(situation: Situation) -> dict[str, Input]:
    return {
        "model": situation.model.id,
        "gpu": situation.gpu.name,
        "num_gpus": situation.num_gpus,
        "workload": situation.workload,
        "goal": situation.goal,
        "concurrency": situation.users,
        "ttft_goal_s": situation.ttft_goal_s,
        "tpot_goal_s": situation.tpot_goal_s,
        "price_per_hour": situation.price_per_hour,
    }


def _traffic(situation: Situation) -> AdviseTraffic:
    traffic = situation.traffic
    return AdviseTraffic(
        source=traffic.source,
        requests=traffic.requests,
        input_tokens=traffic.input_tokens,
        output_tokens=traffic.output_tokens,
        hit_tokens=traffic.hit_tokens,
        reused_tokens=traffic.reused_tokens,
    )
