"""The scenarios by name, and a trace for a name that is a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvtool.system.errors import KvtoolError, did_you_mean
from kvtool.workloads.scenarios.agent import agent
from kvtool.workloads.scenarios.base import Plan, Shape
from kvtool.workloads.scenarios.sessions import multi_turn
from kvtool.workloads.scenarios.shared import few_shot, independent, translation
from kvtool.workloads.scenarios.single import edit, parallel, ranking
from kvtool.workloads.scenarios.trace import trace_plan

SCENARIOS: dict[str, Callable[[Shape], Plan]] = {
    "independent": independent,
    "translation": translation,
    "few-shot": few_shot,
    "multi-turn": multi_turn,
    "agent": agent,
    "ranking": ranking,
    "parallel": parallel,
    "edit": edit,
}


def is_trace(name: str) -> bool:
    """Whether a name that is no scenario's is a file or folder."""
    return name not in SCENARIOS and Path(name).exists()


def title(name: str) -> str:
    """A scenario by its name, a trace by its file's."""
    return Path(name).name if is_trace(name) else name


def require_scenario(name: str) -> None:
    """Raises KvtoolError for what is neither a scenario nor a file."""
    if name not in SCENARIOS and not is_trace(name):
        known = ", ".join(SCENARIOS)
        raise KvtoolError(f"workload {name!r} is neither a file nor one of {known}{did_you_mean(name, SCENARIOS)}")


def plan_of(name: str, shape: Shape, *, time_scale: float = 1.0) -> Plan:
    """The requests of a scenario, or of the trace of that path. Raises KvtoolError."""
    require_scenario(name)
    return SCENARIOS[name](shape) if name in SCENARIOS else trace_plan(Path(name), shape, time_scale=time_scale)
