"""What `kvtool advise` decided: a question at a time, with the number that decided it."""

from __future__ import annotations

from kvtool.results.document import Struct

Input = str | int | float | bool | None


class AdviseOption(Struct, frozen=True, kw_only=True):
    """One of the answers that a question could have had, in the unit of its decision; None: it cannot be had."""

    name: str
    value: float | None


class AdviseDecision(Struct, frozen=True, kw_only=True):
    """`value` was held against `threshold`, both in `unit`. `margin`: by what part of the threshold the value is off
    it, never negative: the smaller, the sooner a measurement turns the answer. None where nothing was compared.
    `command` checks it.
    """

    question: str
    answer: str
    value: float | None
    unit: str
    threshold: float | None
    margin: float | None
    because: str
    command: str
    options: list[AdviseOption]


class AdviseTraffic(Struct, frozen=True, kw_only=True):
    """Means of a request. `hit_tokens`: found in a cache that evicts nothing; `reused_tokens`: what a cache must hold
    so that all of them are."""

    source: str
    requests: int
    input_tokens: int
    output_tokens: int
    hit_tokens: int
    reused_tokens: int


class AdviseDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.advise/1"
    inputs: dict[str, Input]
    traffic: AdviseTraffic
    decisions: list[AdviseDecision]
    assumptions: list[str]
