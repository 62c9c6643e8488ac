"""Who gives way when the pages of the running sequences run out: preemption policies, chosen by name."""

from __future__ import annotations

from collections.abc import Callable

from kvtool.engine.sequence import Sequence
from kvtool.errors import KvtoolError, did_you_mean

Preemption = Callable[[list[Sequence]], Sequence]  # of the running sequences, in the order of admission, one


def youngest(running: list[Sequence]) -> Sequence:
    """The one admitted last, so that who came first is served first."""
    return running[-1]


PREEMPTION: dict[str, Preemption] = {"youngest": youngest}


def preemption_policy(name: str) -> Preemption:
    """Raises KvtoolError for a name that is not known."""
    if name not in PREEMPTION:
        known = ", ".join(PREEMPTION)
        raise KvtoolError(f"preemption policy {name!r} is not one of {known}{did_you_mean(name, PREEMPTION)}")
    return PREEMPTION[name]
