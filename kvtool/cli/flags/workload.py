"""Which traffic `kvtool bench` runs, and under which policies."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.cli.flags.group import Group
from kvtool.cli.values import optional_length
from kvtool.system.errors import KvtoolError
from kvtool.units import split_list

if TYPE_CHECKING:
    from kvtool.cache.retention import Retention

_option = partial(typer.Option, rich_help_panel="Workloads")


@dataclass(frozen=True)
class WorkloadFlags(Group):
    """Scenarios, how their requests arrive, the pool, and the policies that are compared under it."""

    workload: Annotated[
        str | None,
        _option(
            metavar="LIST",
            help="Run these instead of the parts: independent, translation, few-shot, multi-turn, agent, ranking, "
            "parallel, edit, or a trace file (its first --num-prompts requests).",
        ),
    ] = None
    eviction: Annotated[
        str,
        _option(
            metavar="LIST",
            help="Policies to compare: lru, lfu, fifo, priority, never-hit-first, shared-prefix-first, size-aware, "
            "remaining-length, cost-aware.",
        ),
    ] = "lru"
    preemption: Annotated[
        str,
        _option(
            metavar="LIST",
            help="Who gives way when running requests do not fit: youngest, priority, fewest-remaining, cheapest.",
        ),
    ] = "youngest"
    priority: Annotated[
        str | None,
        _option(
            metavar="LIST",
            help="Of requests in turns, from 0, which goes first, to 100, as 80,20 (default: 35); 80:9 for 9 s.",
        ),
    ] = None
    pool_tokens: Annotated[
        str | None,
        _option(
            metavar="TOKENS",
            help="Tokens that the pool holds (default: everything; half of it where policies are compared).",
        ),
    ] = None
    think_time: Annotated[float, _option(help="Mean seconds before a turn that goes on from another.")] = 0.0
    time_scale: Annotated[float, _option(help="How many times as fast as it was a trace is run.")] = 1.0
    goodput: Annotated[
        str | None, _option(metavar="LIMITS", help="Milliseconds that a request must keep, as ttft:200,tpot:50.")
    ] = None

    def parts(self, asked: str | None) -> tuple[str, ...] | None:
        """The parts that run: those asked for, the workload alone where one is named, None for the usual ones."""
        if asked is not None:
            return tuple(split_list(asked))
        return None if self.workload is None else ("workload",)

    def options(self, parts: Collection[str]) -> dict[str, Any]:
        """The fields of the workload part. Raises KvtoolError, also for what is asked of it where it is not run."""
        from kvtool.bench.cases.goodput import parse_goodput

        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if "disaggregate" in parts:
            given = [name for name in given if name != "goodput"]
        if given and "workload" not in parts:
            raise KvtoolError(f"--{given[0].replace('_', '-')} is of the workload part: name one, as --workload agent")
        return {
            "scenarios": None if self.workload is None else tuple(split_list(self.workload)),
            "evictions": tuple(split_list(self.eviction)),
            "preemptions": tuple(split_list(self.preemption)),
            "priorities": self._priorities(),
            "pool_tokens": optional_length(self.pool_tokens, "pool tokens"),
            "think_s": self.think_time,
            "time_scale": self.time_scale,
            "goodput_ms": None if self.goodput is None else parse_goodput(self.goodput),
        }

    def _priorities(self) -> tuple[Retention, ...]:
        from kvtool.cache.retention import parse_retention

        return () if self.priority is None else tuple(map(parse_retention, split_list(self.priority)))
