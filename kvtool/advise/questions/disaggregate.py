"""Disaggregate? Prefills no longer hold up decodes then, which is worth the hand-over under a limit of TPOT.

Work moves and does not become less: without a limit, cards that do both leave none of them idle. With one, they must
decode in smaller batches so that the prefills between the steps fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvtool.advise import commands
from kvtool.advise.decision import decision
from kvtool.advise.questions.layout import Layout
from kvtool.advise.replica import Replica
from kvtool.advise.serving import at_batch
from kvtool.advise.situation import MATERIAL, MONEY, Situation
from kvtool.results import AdviseDecision
from kvtool.sizing.fit import largest
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div, format_ms

QUESTION = "Disaggregate?"
NO = "do not disaggregate"


@dataclass(frozen=True, slots=True)
class Split:
    """Copies that prefill, copies that decode `batch` requests each, and the requests a second that they finish."""

    copy: Replica
    prefill: int
    decode: int
    batch: int
    requests_per_s: float

    @property
    def num_gpus(self) -> int:
        return (self.prefill + self.decode) * self.copy.parallel.num_gpus

    def score(self, situation: Situation) -> float:
        """Higher is better: requests a second, for money of a card."""
        return self.requests_per_s / (self.num_gpus if situation.goal == MONEY else 1)

    @property
    def name(self) -> str:
        tp = self.copy.parallel.tp
        return f"{self.prefill} prefill, {self.decode} decode" + ("" if tp == 1 else f" of TP {tp}")


def decide(situation: Situation, together: Layout, kv_cache_dtype: str) -> AdviseDecision:
    """Requests a second of the best split over those of the best layout whose cards do both."""
    if situation.link_gbps is None:
        return _unknown(situation)
    copies = dict(_copies(situation, kv_cache_dtype))
    if not copies or not situation.traffic.steps:
        return _cannot(situation, bool(copies))
    found = [split for copy, count in copies.values() for split in splits(situation, copy, count)]
    best = max(found, key=lambda one: one.score(situation), default=None)
    rate = together.serving.requests_per_s
    gain = 0.0 if best is None else best.requests_per_s / rate
    if best is not None and situation.goal == MONEY:
        gain *= together.num_gpus / best.num_gpus
    return decision(
        QUESTION,
        NO if best is None or gain < MATERIAL else f"yes: {best.name}",
        value=gain,
        threshold=MATERIAL,
        unit="x the requests/s" + (" a card" if situation.goal == MONEY else ""),
        because=_because(situation, together, best),
        command=_command(situation, best),
        options={f"together, {together.name}": rate, **{one.name: one.requests_per_s for one in found}},
    )


def _copies(situation: Situation, kv_cache_dtype: str) -> Iterator[tuple[int, tuple[Replica, int]]]:
    """By their TP: copies of the model that hold a request, and how many there can be, two at least."""
    for tp in range(1, min(situation.widest_tp, situation.num_gpus // 2) + 1):
        try:
            copy = situation.replica(tp=tp, kv_cache_dtype=kv_cache_dtype)
        except KvtoolError:  # a layout that the model cannot take
            continue
        if copy.holds(situation.traffic.longest_tokens):
            yield tp, (copy, situation.num_gpus // tp)


def splits(situation: Situation, copy: Replica, copies: int) -> Iterator[Split]:
    """Every split of the copies that keeps the limits."""
    traffic = situation.traffic
    held = copy.holds(traffic.longest_tokens)
    prefill_s = at_batch(copy, situation, copies, 1).prefill_s
    first_s = prefill_s + exposed_s(situation, copy, prefill_s)
    if situation.ttft_goal_s is not None and first_s > situation.ttft_goal_s:
        return
    for decode in range(1, copies):
        asked = held if situation.users is None else min(held, ceil_div(situation.users, decode))
        batch = largest(lambda count: _in_time(situation, copy, count), asked)
        if batch:
            step_s = copy.step_s(traffic.decoded_context, batch)
            rate = min((copies - decode) / prefill_s, decode * batch / (traffic.steps * step_s))
            yield Split(copy, copies - decode, decode, batch, _in_flight(situation, rate, first_s, step_s))


def _in_flight(situation: Situation, rate: float, first_s: float, step_s: float) -> float:
    """No faster than those in flight come round: each is prefilled and handed over, then decoded."""
    if situation.users is None:
        return rate
    return min(rate, situation.users / (first_s + situation.traffic.steps * step_s))


def exposed_s(situation: Situation, copy: Replica, prefill_s: float) -> float:
    """Of the hand-over, what a prefill does not hide: layer by layer, the last layer's part at least."""
    layers = situation.model.num_layers
    transfer_s = hand_over_s(situation, copy)
    return max(transfer_s - (1 - 1 / layers) * prefill_s, transfer_s / layers)


def hand_over_s(situation: Situation, copy: Replica) -> float:
    """Of one prompt's cache, each card its part."""
    assert situation.link_gbps is not None  # else there is no split
    return copy.cached_bytes(situation.traffic.input_tokens) / (situation.link_gbps * 1e9)


def _in_time(situation: Situation, copy: Replica, batch: int) -> bool:
    goal = situation.tpot_goal_s
    return goal is None or copy.step_s(situation.traffic.decoded_context, batch) <= goal


def _unknown(situation: Situation) -> AdviseDecision:
    """Where nothing is known of what lies between cards."""
    return decision(
        QUESTION,
        NO,
        value=None,
        threshold=None,
        unit="GB/s between cards",
        because=f"no link between cards of {situation.gpu.name} is known, so no hand-over and no TP can be timed",
        command=commands.bench(situation, "--parts", "latency"),
    )


def _cannot(situation: Situation, has_copies: bool) -> AdviseDecision:
    cards = f"{situation.num_gpus} x {situation.gpu.name}"
    return decision(
        QUESTION,
        NO,
        value=float(situation.traffic.steps if has_copies else 1),
        threshold=1.0 if has_copies else 2.0,
        unit="decode steps" if has_copies else "copies of the model",
        because="there is nothing to decode" if has_copies else f"{cards} hold one copy, and each side needs its own",
        command=commands.bench(situation, "--parts", "latency"),
    )


def _because(situation: Situation, together: Layout, best: Split | None) -> str:
    serving = together.serving
    shown = (
        f"{together.name} decode {serving.batch:,} at a time in {format_ms(1e3 * serving.step_s)} ms a step, with "
        f"prefills in between {format_ms(1e3 * serving.tpot_s)} a token"
    )
    if best is None:
        return f"{shown}; no split keeps the limits"
    hand_over = format_ms(1e3 * hand_over_s(situation, best.copy))
    limit = "" if situation.tpot_goal_s else "; no limit of TPOT asks for it (--goodput tpot:50)"
    return f"{shown}; as {best.name} they decode {best.batch:,} and hand a prompt over in {hand_over} ms{limit}"


def _command(situation: Situation, best: Split | None) -> str:
    sides = f"prefill={best.prefill},decode={best.decode}" if best else "prefill=1,decode=1"
    gpus = best.copy.parallel.num_gpus if best else 1
    goals = {"ttft": situation.ttft_goal_s, "tpot": situation.tpot_goal_s}
    told = ",".join(f"{name}:{1e3 * seconds:g}" for name, seconds in goals.items() if seconds is not None)
    nodes = ("--cluster", f"{sides},gpus={gpus}")
    return commands.replay(situation, *nodes, *(("--goodput", told) if told else ()))
