"""How are the cards used: tensor parallelism, replicas, or the tokens of a decode shared out (DCP)?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvtool.advise import commands
from kvtool.advise.decision import decision
from kvtool.advise.questions.dtype import tokens_per_s
from kvtool.advise.serving import Serving, serve
from kvtool.advise.situation import LATENCY, MONEY, Situation
from kvtool.results import AdviseDecision
from kvtool.system.errors import KvtoolError
from kvtool.units import format_ms

QUESTION = "How are the cards used?"
SECONDS_AN_HOUR = 3600
SAME = 1 - 1e-6  # of scores: replicas serve a card as well as one of them does


@dataclass(frozen=True, slots=True)
class Layout:
    """What a number of cards serve, laid out so."""

    serving: Serving
    copies: int

    @property
    def num_gpus(self) -> int:
        return self.copies * self.serving.replica.parallel.num_gpus

    @property
    def name(self) -> str:
        """As `2 replicas of TP 4`."""
        parallel = self.serving.replica.parallel
        inside = "one card" if parallel.tp == 1 else f"TP {parallel.tp}"
        inside += f" with DCP {parallel.dcp}" if parallel.dcp > 1 else ""
        if self.copies == 1:
            return inside
        return f"{self.copies} replicas" + ("" if parallel.tp == 1 else f" of {inside}")

    def score(self, situation: Situation) -> float:
        """Higher is better: requests a second of one user, or output tokens a second, of all cards or of one."""
        if situation.goal == LATENCY:
            return 1 / self.serving.e2e_s
        return tokens_per_s(self.serving) / (self.num_gpus if situation.goal == MONEY else 1)


def layouts(situation: Situation, kv_cache_dtype: str) -> Iterator[Layout]:
    """Every one that the model takes and that serves a request within the limits; with fewer cards too for money."""
    counts = range(1, situation.num_gpus + 1) if situation.goal == MONEY else (situation.num_gpus,)
    for tp in range(1, situation.widest_tp + 1):
        copies = [count // tp for count in counts if count % tp == 0]
        for dcp in _degrees(situation, tp, kv_cache_dtype) if copies else ():
            replica = situation.replica(tp=tp, dcp=dcp, kv_cache_dtype=kv_cache_dtype)
            for count in copies:
                serving = serve(replica, situation, count)
                if serving is not None:
                    yield Layout(serving, count)


def _degrees(situation: Situation, tp: int, kv_cache_dtype: str) -> list[int]:
    """Of DCP: 1, and the widest that shares out the copies which TP makes of the cache; none where TP is refused."""
    for dcp in (degree for degree in range(tp, 0, -1) if tp % degree == 0):
        try:
            situation.replica(tp=tp, dcp=dcp, kv_cache_dtype=kv_cache_dtype)
        except KvtoolError:
            continue
        return [1, dcp] if dcp > 1 else [1]
    return []


def decide(situation: Situation, found: list[Layout]) -> AdviseDecision:
    """The best beside the next best. Raises KvtoolError where none serves."""
    ranked = ranking(situation, found)
    best = ranked[0]
    other = next((one for one in ranked if one.score(situation) < SAME * best.score(situation)), None)
    unit = {LATENCY: "ms a request", MONEY: "tokens/s a card"}.get(situation.goal, "tokens/s")
    options = {one.name: shown(situation, one) for one in ranked}
    return decision(
        QUESTION,
        best.name,
        value=shown(situation, best),
        threshold=None if other is None else shown(situation, other),
        unit=unit,
        because=_because(situation, best, other),
        command=commands.size(situation, best.serving),
        options=options,
    )


def ranking(situation: Situation, found: list[Layout]) -> list[Layout]:
    """Best first; of equal ones that with the fewest cards, then the fewest ranks. Raises KvtoolError for none."""
    if not found:
        limits = " within the limits" if situation.ttft_goal_s or situation.tpot_goal_s else ""
        raise KvtoolError(
            f"{situation.num_gpus} x {situation.gpu.name} serve no request of {situation.traffic.longest_tokens:,} "
            f"tokens of {situation.name}{limits}: give more (--num-gpus), a larger card, or shorter requests"
        )
    return sorted(found, key=lambda one: (-one.score(situation), one.num_gpus, one.serving.replica.parallel.tp))


def shown(situation: Situation, layout: Layout) -> float:
    """The score in the unit that is printed."""
    score = layout.score(situation)
    return 1e3 / score if situation.goal == LATENCY else score


def dollars_per_million(price_per_hour: float, layout: Layout) -> float:
    """Of output tokens, at the price of one card."""
    return price_per_hour * layout.num_gpus / SECONDS_AN_HOUR / tokens_per_s(layout.serving) * 1e6


def _because(situation: Situation, best: Layout, other: Layout | None) -> str:
    serving = best.serving
    told = f"a prefill takes {format_ms(1e3 * serving.prefill_s)} ms"
    if serving.steps:
        told += f" and a step of {serving.batch:,} {format_ms(1e3 * serving.step_s)}"
    if serving.waiting:
        told += f"; {serving.waiting:,} more wait for memory"
    if situation.price_per_hour is not None:
        told += f"; {dollars_per_million(situation.price_per_hour, best):.3g} $ for a million output tokens"
    return told if other is None else f"{told}; next best is {other.name}"
