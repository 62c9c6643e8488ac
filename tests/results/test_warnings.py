"""Warnings that documents give rise to. Those of other processes are tested with their measurement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvtool.results import Power
from kvtool.results.warnings import throttle_warnings, unsteady_warnings


@dataclass(frozen=True)
class Case:
    name: str
    power: Power = field(default_factory=Power)
    steady: bool = True


def throttled(name: str, *reasons: str) -> Case:
    return Case(name, Power(throttle_reasons=list(reasons)))


def test_each_reason_names_its_cases() -> None:
    cases = [throttled("a", "power cap"), throttled("b"), Case("c"), throttled("d", "power cap", "hardware thermal")]
    assert throttle_warnings(cases) == [
        "the card throttled (hardware thermal) during d",
        "the card throttled (power cap) during a, d",
    ]
    assert throttle_warnings([throttled("a"), Case("b")]) == []


def test_many_names_are_cut() -> None:
    (line,) = throttle_warnings([throttled(name, "power cap") for name in "abcde"])
    assert line.endswith("during a, b, c and 2 more")


def test_a_warm_up_that_did_not_settle() -> None:
    cases: list[Any] = [Case("a", steady=False), Case("b")]
    assert unsteady_warnings(cases) == ["not steady after the warm-up: a: use more --num-iters-warmup"]
    assert unsteady_warnings(cases[1:]) == []
