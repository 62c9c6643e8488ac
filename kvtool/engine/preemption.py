"""Who gives way when the pages of the running sequences run out: preemption policies, chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvtool.cache.manager import SequenceCache
from kvtool.engine.sequence import Sequence
from kvtool.system.errors import KvtoolError, did_you_mean

Preemption = Callable[[list[Sequence]], Sequence]  # of the running sequences, in the order of admission, one


class Swap(Protocol):
    """Keeps K/V in another place than the block pool, so that it need not be computed anew."""

    def out(self, sequence: Sequence) -> None:
        """It gives way: keep what is computed of it, where there is room. Its pages are given back right after."""

    def back(self, sequence: Sequence, pages: SequenceCache) -> int:
        """It is seated, for the first time or again: bring what was kept of it into new `pages`; how many of its tokens
        are computed there then, those that the cache had (`pages.cached_tokens`) included. At least one stays pending.
        Pages that the cache is still to copy (`take_copies`) are copied afterwards, over what is put there.
        """


def youngest(running: list[Sequence]) -> Sequence:
    """The one admitted last, so that who came first is served first."""
    return running[-1]


def lowest_priority(running: list[Sequence]) -> Sequence:
    """The least important, the youngest among equals."""
    return min(reversed(running), key=lambda sequence: sequence.priority)


def fewest_remaining(running: list[Sequence]) -> Sequence:
    """The one with the fewest tokens left to produce, which asks for the least when it is back."""
    return min(reversed(running), key=lambda sequence: sequence.params.max_tokens - sequence.num_output)


def cheapest(running: list[Sequence]) -> Sequence:
    """The one with the fewest tokens that were computed for it, those found cached not counted."""
    return min(reversed(running), key=lambda sequence: sequence.num_recomputed_if_preempted)


PREEMPTION: dict[str, Preemption] = {
    "youngest": youngest,
    "priority": lowest_priority,
    "fewest-remaining": fewest_remaining,
    "cheapest": cheapest,
}


def preemption_policy(name: str) -> Preemption:
    """Raises KvtoolError for a name that is not known."""
    if name not in PREEMPTION:
        known = ", ".join(PREEMPTION)
        raise KvtoolError(f"preemption policy {name!r} is not one of {known}{did_you_mean(name, PREEMPTION)}")
    return PREEMPTION[name]
