"""What a log says: numbers with the range that their rounding leaves open, flags, and why the engine refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvtool.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number as logged; what was rounded to it lies in [low, high]. Bytes and tokens are whole numbers."""

    value: float
    low: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether the log rounds it to nothing."""
        return self.low == self.high

    def meets(self, low: float, high: float) -> bool:
        """Whether something between `low` and `high` may have been logged as this."""
        return self.low <= high and low <= self.high


def exactly(value: float) -> Figure:
    """A figure that is not rounded."""
    return Figure(value=value, low=value, high=value)


def rounded(value: float, decimals: int, unit: int = 1) -> Figure:
    """`value` of `unit`, rounded to that many decimals: 56.21 GiB is anything from 56.205 to 56.215 GiB."""
    half = 0.5 * 10**-decimals
    return Figure(value=value * unit, low=(value - half) * unit, high=(value + half) * unit)


def gib(text: str) -> Figure:
    """Bytes of `56.21`, `24.0` or `14.9888` GiB. Both engines round to two decimals at least, `24.0` included."""
    return rounded(float(text), max(2, len(text.partition(".")[2])), GIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One number of one line. `rank` is the worker's or device's name in the log (`TP1`), "" where it has none.

    `start` counts the engine starts in the log: a restarted server logs them one after another.
    """

    term: str
    figure: Figure
    rank: str
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The engine's own reason not to start. `kind`: load_oom | oom | free_memory | unbalanced | profiling |
    no_kv_memory | one_request | mamba_blocks | layout | gpus | too_long | failed; `line` is its text without the
    worker's prefix.
    """

    kind: str
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """What was found in one start. `flags` are by the engine's own names with underscores, values as logged."""

    engine: str
    version: str | None = None
    model: str | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()
    refusal: Refusal | None = None
    starts: int = 1

    def refused(self, kind: str) -> bool:
        """Whether the engine did not start, for that reason."""
        return self.refusal is not None and self.refusal.kind == kind

    def of(self, term: str) -> tuple[Figure, ...]:
        """Its figures in the order of the log."""
        return tuple(reading.figure for reading in self.readings if reading.term == term)

    def first(self, term: str) -> Figure | None:
        """Its first figure: SGLang logs the target model before a draft model."""
        return next(iter(self.of(term)), None)

    def last(self, term: str) -> Figure | None:
        """Its last figure: what a profiling run logs is logged again when it is real."""
        return next(reversed(self.of(term)), None)

    def smallest(self, term: str) -> Figure | None:
        """Its smallest figure: the rank with the least memory decides for all."""
        return min(self.of(term), key=lambda figure: figure.value, default=None)

    def largest(self, term: str) -> Figure | None:
        """Its largest figure over the ranks."""
        return max(self.of(term), key=lambda figure: figure.value, default=None)
