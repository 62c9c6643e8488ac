"""What `kvtool verify` found: an engine's own numbers beside the prediction, term by term."""

from __future__ import annotations

from kvtool.results.document import Struct


class VerifyRow(Struct, frozen=True, kw_only=True):
    """`verdict`: equal | off for what must agree once the pool is known, bounded where only the most can be told,
    estimate for what never is exact, unlogged | unpredicted where one side has no number. Where a side is rounded or
    follows from a rounded number, `low` and `high` bound it; `difference` is predicted less logged.
    """

    term: str
    unit: str
    logged: float | int | None
    logged_low: float | int | None
    logged_high: float | int | None
    predicted: float | int | None
    predicted_low: float | int | None
    predicted_high: float | int | None
    difference: float | int | None
    verdict: str
    explanation: str


class VerifyEngine(Struct, frozen=True, kw_only=True):
    """`predicted_version` is the one whose planner the prediction follows."""

    name: str
    version: str | None
    predicted_version: str | None


class VerifyRefusal(Struct, frozen=True, kw_only=True):
    """Why the engine did not start, in its own words and in kvtool's, with the flags that help."""

    kind: str
    line: str
    explanation: str


class VerifyDocument(Struct, frozen=True, kw_only=True):
    """`verdict`: agrees | off | refused | uncompared, where the log has no number that must be exact. `inputs` are the
    flags in force, under kvtool's names.
    """

    schema: str = "kvtool.verify/1"
    log: str
    engine: VerifyEngine
    model: str
    inputs: dict[str, str | int | float | bool | None]
    rows: list[VerifyRow]
    refusal: VerifyRefusal | None
    verdict: str
    assumptions: list[str]
