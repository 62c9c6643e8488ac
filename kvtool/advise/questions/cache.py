"""Is a cache of K and V needed at all? Only what is read again is worth keeping."""

from __future__ import annotations

from kvtool.advise import commands
from kvtool.advise.decision import decision
from kvtool.advise.replica import Replica
from kvtool.advise.serving import Serving
from kvtool.advise.situation import MATERIAL, Situation
from kvtool.results import AdviseDecision
from kvtool.sizing.fit import largest
from kvtool.units import format_bytes

QUESTION = "Is a cache needed?"
YES, NO, PREFIXES = "yes", "no cache needed", "for shared prefixes only"
POINTS = 64  # steps of a long answer that stand for all: times grow smoothly in between
LONGEST_TOKENS = 1 << 20


def decide(situation: Situation, serving: Serving) -> AdviseDecision:
    """The time of a request without a cache over its time with one."""
    traffic, copy, batch = situation.traffic, serving.replica, serving.batch
    decoded = times_without(copy, traffic.input_tokens, traffic.output_tokens, batch)
    whole_s, behind_s = (copy.prefill_s(traffic.input_tokens, cached) for cached in (0, traffic.hit_tokens))
    shared = whole_s / behind_s
    if decoded >= MATERIAL:
        answer, value, because = YES, decoded, _grows(situation, serving)
    elif shared >= MATERIAL:
        answer, value = PREFIXES, shared
        because = f"{traffic.hit_tokens:,} of {traffic.input_tokens:,} prompt tokens come again; nothing reads the rest"
    else:
        answer, value, because = NO, decoded if traffic.steps else shared, _spared(situation, serving)
    return decision(
        QUESTION,
        answer,
        value=value,
        threshold=MATERIAL,
        unit="x the time without",
        because=because,
        command=commands.bench(situation, "--parts", "no-cache", "--batch-size", str(batch)),
        options={"decoding": decoded, "shared prefixes": shared},
    )


def times_without(copy: Replica, input_tokens: int, output_tokens: int, batch: int) -> float:
    """How many times as long a batch takes where every token computes all before it again: 1 for one output token."""
    steps = output_tokens - 1
    lengths = [input_tokens + 1 + steps * place // POINTS for place in range(POINTS)] if steps > POINTS else None
    lengths = lengths or [input_tokens + 1 + place for place in range(steps)]
    first_s = copy.prefill_s(input_tokens, batch=batch)
    if not lengths:
        return 1.0
    each = steps / len(lengths)
    without_s = first_s + each * sum(copy.prefill_s(tokens, batch=batch) for tokens in lengths)
    with_s = first_s + each * sum(copy.step_s(tokens, batch) for tokens in lengths)
    return without_s / with_s


def pays_from(copy: Replica, batch: int) -> int:
    """The context from which computing all tokens again takes so much longer than a step that reads their cache."""
    return 1 + largest(
        lambda tokens: copy.prefill_s(tokens, batch=batch) < MATERIAL * copy.step_s(tokens, batch), LONGEST_TOKENS
    )


def _grows(situation: Situation, serving: Serving) -> str:
    return (
        f"a step without one computes {serving.batch:,} x {situation.traffic.decoded_context:,} tokens again, and "
        f"{_from_there(serving)}"
    )


def _from_there(serving: Serving) -> str:
    first = pays_from(serving.replica, serving.batch)
    where = "at any context" if first == 1 else f"from {first:,} tokens of context on"
    return f"a step of {serving.batch:,} gains by a cache {where}"


def _spared(situation: Situation, serving: Serving) -> str:
    traffic = situation.traffic
    taken = format_bytes(serving.batch * serving.replica.cached_bytes(traffic.longest_tokens))
    if traffic.output_tokens == 1:
        return f"the one output token comes out of the prefill, and nothing reads K and V again; a card spares {taken}"
    return f"reading the weights takes as long as computing so few tokens again; {_from_there(serving)}"
