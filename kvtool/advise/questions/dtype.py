"""In which dtype? fp8 halves what a step reads and doubles what fits; its kernels cost a little each step."""

from __future__ import annotations

from kvtool.advise import commands
from kvtool.advise.decision import decision
from kvtool.advise.replica import Replica
from kvtool.advise.serving import Serving, serve
from kvtool.advise.situation import MATERIAL, Situation
from kvtool.results import AdviseDecision
from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.fit import largest

QUESTION = "Which cache dtype?"
FP8 = "fp8"
FP8_STEP_SHARE = 0.022  # of a step without context: 6.44 -> 6.58 ms on an H100 (vLLM's blog on fp8 caches)
LONGEST_TOKENS = 1 << 20


def decide(situation: Situation, copy: Replica, replicas: int) -> AdviseDecision:
    """Output tokens a second with fp8 over those with the model's own dtype, on the layout of `copy`."""
    parallel = copy.parallel
    own = situation.replica(tp=parallel.tp, dcp=parallel.dcp, kv_cache_dtype=AUTO)
    short = situation.replica(tp=parallel.tp, dcp=parallel.dcp, kv_cache_dtype=FP8)
    served, shorter = serve(own, situation, replicas), serve(short, situation, replicas)
    command = commands.bench(
        situation, "--parts", "latency,accuracy", "--kv-cache-dtype", f"{own.kv_cache_dtype},{short.kv_cache_dtype}"
    )
    if served is None or shorter is None:
        return _by_room(situation, own, short, command)
    rates = {own.kv_cache_dtype: tokens_per_s(served), FP8: tokens_per_s(shorter)}
    gain = rates[FP8] / rates[own.kv_cache_dtype]
    return decision(
        QUESTION,
        FP8 if gain >= MATERIAL else own.kv_cache_dtype,
        value=gain,
        threshold=MATERIAL,
        unit=f"x the rate of {own.kv_cache_dtype}",
        because=_because(situation, served, shorter),
        command=command,
        options=rates,
    )


def tokens_per_s(serving: Serving) -> float:
    """With what an fp8 cache costs each step."""
    if serving.replica.kv_cache_dtype != FP8 or not serving.steps:
        return serving.tokens_per_s
    more_s = serving.steps * FP8_STEP_SHARE * serving.replica.step_s(1, serving.batch) / serving.batch
    return serving.replicas * (serving.steps + 1) / (serving.request_s + more_s)


def pays_from(own: Replica, short: Replica, batch: int) -> int | None:
    """The context from which a step with fp8 is shorter; None: none of up to a million tokens."""
    cost_s = FP8_STEP_SHARE * own.step_s(1, batch)
    slower = largest(lambda tokens: own.step_s(tokens, batch) - short.step_s(tokens, batch) <= cost_s, LONGEST_TOKENS)
    return None if slower == LONGEST_TOKENS else slower + 1


def _because(situation: Situation, served: Serving, shorter: Serving) -> str:
    traffic = situation.traffic
    if not traffic.steps:
        return "nothing is decoded, so a shorter cache is never read"
    share = served.replica.kv_share(traffic.decoded_context, served.batch)
    first = pays_from(served.replica, shorter.replica, served.batch)
    from_there = "at no context" if first is None else f"from {first:,} tokens of context on"
    more = "" if served.batch == shorter.batch else f", and {shorter.batch:,} requests at a time for {served.batch:,}"
    return f"the cache is {share:.0%} of what a step reads, and a step gains by fp8 {from_there}{more}"


def _by_room(situation: Situation, own: Replica, short: Replica, command: str) -> AdviseDecision:
    """Where one of them serves nothing: by what the memory holds."""
    tokens = situation.traffic.longest_tokens
    held = {own.kv_cache_dtype: own.holds(tokens), FP8: short.holds(tokens)}
    fits = held[own.kv_cache_dtype] < 1 <= held[FP8]
    return decision(
        QUESTION,
        FP8 if fits else own.kv_cache_dtype,
        value=float(held[own.kv_cache_dtype]),
        threshold=1.0,
        unit="requests that fit",
        because=f"of {tokens:,} tokens a request, {held[own.kv_cache_dtype]:,} fit in {own.kv_cache_dtype} and "
        f"{held[FP8]:,} in fp8",
        command=command,
        options={name: float(count) for name, count in held.items()},
    )
