"""A replica at work: it always has `batch` requests, each of them prefilled, then decoded in steps that all share.

A prefill holds up the steps of the others, so a request takes prefill + steps x step / batch of the replica's time, and
batch times that from its arrival to its end.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.advise.replica import Replica
from kvtool.advise.situation import Situation
from kvtool.sizing.fit import largest
from kvtool.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """`replicas` copies with `batch` requests each; `waiting` are those in flight that there is no memory for."""

    replica: Replica
    replicas: int
    batch: int
    waiting: int
    prefill_s: float
    step_s: float
    steps: int

    @property
    def request_s(self) -> float:
        """Of one replica's time."""
        return self.prefill_s + self.steps * self.step_s / self.batch

    @property
    def e2e_s(self) -> float:
        """From arrival to end, with those that wait before it."""
        return (self.batch + self.waiting) * self.request_s

    @property
    def tpot_s(self) -> float:
        """Of the others' prefills a token bears its part; 0 where nothing is decoded."""
        return self.step_s + self.prefill_s * self.batch / self.steps if self.steps else 0.0

    @property
    def requests_per_s(self) -> float:
        return self.replicas / self.request_s

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of all replicas."""
        return self.requests_per_s * (self.steps + 1)

    @property
    def num_gpus(self) -> int:
        return self.replicas * self.replica.parallel.num_gpus


def room_tokens(copy: Replica, situation: Situation, batch: int) -> int:
    """Tokens of prefixes that fit beside what `batch` running requests have of their own."""
    own = batch * (situation.traffic.longest_tokens - situation.traffic.hit_tokens)
    return max(0, copy.pool_tokens() - own)


def at_batch(copy: Replica, situation: Situation, replicas: int, batch: int, *, waiting: int = 0) -> Serving:
    """Prefixes are found in the memory of all replicas together: a request goes where its own is."""
    traffic = situation.traffic
    found = traffic.hits_in(replicas * room_tokens(copy, situation, batch)) if traffic.hit_tokens else 0
    return Serving(
        replica=copy,
        replicas=replicas,
        batch=batch,
        waiting=waiting,
        prefill_s=copy.prefill_s(traffic.input_tokens, found),
        step_s=copy.step_s(traffic.decoded_context, batch) if traffic.steps else 0.0,
        steps=traffic.steps,
    )


def serve(copy: Replica, situation: Situation, replicas: int) -> Serving | None:
    """With as many requests as are in flight, fit, and keep the limits; None where not even one does."""
    held = copy.holds(situation.traffic.longest_tokens)
    asked = None if situation.users is None else ceil_div(situation.users, replicas)
    most = held if asked is None else min(held, asked)
    busy = replicas if situation.users is None else min(replicas, situation.users)
    batch = largest(lambda count: keeps(at_batch(copy, situation, busy, count), situation), most)
    if not batch:
        return None
    return at_batch(copy, situation, busy, batch, waiting=0 if asked is None else asked - batch)


def keeps(serving: Serving, situation: Situation) -> bool:
    """Whether the first token and those after it come within the limits that were given."""
    ttft, tpot = situation.ttft_goal_s, situation.tpot_goal_s
    return (ttft is None or serving.prefill_s <= ttft) and (tpot is None or serving.tpot_s <= tpot)
