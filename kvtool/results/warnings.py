"""What a reader of measurements must be warned of, in words: found in the documents alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kvtool.results.bench import AccuracyCase, Case, Power
from kvtool.results.kernels import KernelCase

LOADED_CORES = 0.25  # of others, from which times are not those of the machine


class WithPower(Protocol):
    """A measured case of any document."""

    @property
    def name(self) -> str: ...

    @property
    def power(self) -> Power: ...


def load_warnings(environment: Mapping[str, Any], cases: Sequence[WithPower] = ()) -> list[str]:
    """Of a machine that others used too while this ran: in all, or in the iterations of those cases that tell it. None
    where no case times anything."""
    if cases and not any(not isinstance(case, Case) or case.samples for case in cases):
        return []
    loads = {case.name: case.load for case in cases if isinstance(case, Case) and case.load.other_cores is not None}
    disturbed = [name for name, load in loads.items() if load.disturbed_iterations]
    if disturbed:
        most = max(loads[name].other_cores or 0.0 for name in disturbed)
        return [
            f"DISTURBED: others used up to {most:.1f} cores while {_names(disturbed)} ran, and measuring again met the "
            "same: times may be several times too long. Measure again on an idle machine"
        ]
    cores = environment.get("other_load_cores")
    told = [load.other_cores or 0.0 for load in loads.values()]
    if cores is None or cores < LOADED_CORES or (len(told) == len(cases) > 0 and max(told) < LOADED_CORES):
        return []
    return [
        f"another process used {cores:.1f} cores while this ran: threads wait for each other, and times may be "
        "several times too long. Measure again on an idle machine"
    ]


def budget_notes(cases: Sequence[WithPower]) -> list[str]:
    """Of cases that have fewer iterations, or less text, than were planned, so that the whole did not take too long."""
    short = [case.name for case in cases if isinstance(case, Case) and _is_trimmed(case)]
    fewer = [f"fewer iterations, within the time budget: {_names(short)} (--num-iters N sets them)"] if short else []
    read = [case.accuracy.trimmed for case in cases if isinstance(case, AccuracyCase)]
    less = dict.fromkeys("; ".join(trimmed) for trimmed in read if trimmed)
    return [*fewer, *(f"accuracy, within the time budget: {words} (--num-iters N reads N windows)" for words in less)]


def _is_trimmed(case: Case) -> bool:
    per_run = {(sample.run, sample.iteration) for sample in case.samples}
    runs = {run for run, _ in per_run}
    planned = case.inputs.get("num_iters")
    return isinstance(planned, int) and 0 < len(per_run) < planned * len(runs)


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
