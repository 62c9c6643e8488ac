"""What a reader of measurements must be warned of, in words: found in the documents alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kvtool.results.bench import Power
from kvtool.results.kernels import KernelCase

LOADED_CORES = 0.25  # of others, from which times are not those of the machine


class WithPower(Protocol):
    """A measured case of any document."""

    @property
    def name(self) -> str: ...

    @property
    def power(self) -> Power: ...


def load_warnings(environment: Mapping[str, Any]) -> list[str]:
    """Of a machine that others used too while this ran."""
    cores = environment.get("other_load_cores")
    if cores is None or cores < LOADED_CORES:
        return []
    return [
        f"another process used {cores:.1f} cores while this ran: threads wait for each other, and times may be "
        "several times too long. Measure again on an idle machine"
    ]


def throttle_warnings(cases: Sequence[WithPower]) -> list[str]:
    """Of a card that held its clocks back, a line for each reason."""
    reasons = sorted({reason for case in cases for reason in case.power.throttle_reasons or ()})
    return [
        f"the card throttled ({reason}) during "
        + _names([case.name for case in cases if reason in (case.power.throttle_reasons or ())])
        for reason in reasons
    ]


def unsteady_warnings(cases: Sequence[KernelCase]) -> list[str]:
    """Of cases whose warm-up ended before their passes took the same time."""
    unsteady = [case.name for case in cases if not case.steady]
    return [f"not steady after the warm-up: {_names(unsteady)}: use more --num-iters-warmup"] if unsteady else []


def _names(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"
