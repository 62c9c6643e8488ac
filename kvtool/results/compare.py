"""What `kvtool compare` found: metrics of documents side by side, or a matrix of size rows."""

from __future__ import annotations

from typing import Any

from kvtool.results.document import Struct
from kvtool.results.size import SizeRow


class CompareRow(Struct, frozen=True, kw_only=True):
    """`ratio` is b / a; `document` names where b came from.

    `equal_speed_ratio` is b / a at an equal `speed` of the device, where the speed measured beside each iteration
    accounts for more of what iterations of one side differ by than chance would. The interval, the test and the verdict
    are then of it.

    `p_value`: of no difference, from the spread between runs, corrected for all tests of the comparison; `noise`: the
    largest difference between two runs of one side, as a share; `n`: samples behind the smaller side. None for counts,
    and where a side is one run.
    """

    case: str
    metric: str
    unit: str
    a: float | None
    b: float | None
    ratio: float | None
    ci_low: float | None
    ci_high: float | None
    verdict: str
    document: str
    p_value: float | None = None
    noise: float | None = None
    n: int | None = None
    equal_speed_ratio: float | None = None
    speed: str | None = None

    @property
    def judged_ratio(self) -> float | None:
        """The one that the interval and the verdict are of."""
        return self.ratio if self.equal_speed_ratio is None else self.equal_speed_ratio


class CompareDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.compare/1"
    baseline: str
    rows: list[CompareRow]
    warnings: list[str]
    assumptions: list[str]


class MatrixRefused(Struct, frozen=True, kw_only=True):
    """A layout that one of the models cannot take, and why."""

    model: str
    num_gpus: int
    reason: str


class MatrixDocument(Struct, frozen=True, kw_only=True):
    """`kvtool compare` of models: one size row per model and setting; `baseline` is the first model."""

    schema: str = "kvtool.compare/1"
    baseline: str
    rows: list[SizeRow]
    refused: list[MatrixRefused]
    warnings: list[str]
    assumptions: list[str]


class ReleaseRow(Struct, frozen=True, kw_only=True):
    """What one release makes of the start: terms of a GPU's memory, and of the engine's plan."""

    engine: str
    release: str
    standing: str | None
    terms: dict[str, Any]


class ReleaseChange(Struct, frozen=True, kw_only=True):
    """What changed in `since`; `effects`: terms of the later release as [without this change, with it]."""

    since: str
    rule: str
    what: str
    source: str
    effects: dict[str, list[Any]]


class ReleasesDocument(Struct, frozen=True, kw_only=True):
    """`kvtool compare` of releases of an engine, oldest change first."""

    schema: str = "kvtool.compare/1"
    model: str
    context: int
    rows: list[ReleaseRow]
    changes: list[ReleaseChange]
    assumptions: list[str]
