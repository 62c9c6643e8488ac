"""What every measurement shares: the device's limits before and after, others' load, and what Ctrl-C leaves."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kvtool.machine.environment import describe_environment
from kvtool.machine.other_load import LoadMeter
from kvtool.machine.roofline import Ceiling, measure_roofline
from kvtool.results import Struct
from kvtool.results.warnings import WithPower, budget_notes, load_warnings, throttle_warnings

if TYPE_CHECKING:
    import torch

CEILING_SECONDS = 2.0

Progress = Callable[[str, float], None]
"""Told what is going on and how much is behind it, 0 to 1."""

T = TypeVar("T")
D = TypeVar("D", bound=Struct)


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """A piece of a measurement: what it is called, and what makes its result."""

    name: str
    measure: Callable[[], T]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a session measured under: the better of the device's limits before and after, and the machine."""

    ceiling: Ceiling
    environment: dict[str, Any]
    interrupted: bool

    def warnings(self, cases: Sequence[WithPower]) -> list[str]:
        """What a reader of these cases must know."""
        interrupted = ["interrupted: cases are missing"] if self.interrupted else []
        return [
            *load_warnings(self.environment, cases),
            *throttle_warnings(cases),
            *budget_notes(cases),
            *interrupted,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[D]):
    """`errors` name cases whose accounting cannot be right, `unequal` those that a reference, or what was asked for,
    contradicts.

    The document of an interrupted session has the cases that were done.
    """

    document: D
    interrupted: bool
    errors: list[str]
    unequal: Sequence[str] = ()


class Session:
    """One measurement on one device, from its limits before to its limits after; `ceiling` where somebody who measures
    one thing after another has measured them."""

    def __init__(self, device: str, dtype: torch.dtype, progress: Progress, ceiling: Ceiling | None = None) -> None:
        self._device, self._dtype, self._progress = device, dtype, progress
        self._is_told = ceiling is not None
        self._interrupted = False
        if ceiling is None:
            progress("measuring the device", 0.0)
        self._load = LoadMeter()
        self.ceiling = ceiling or self._measure_ceiling()

    def run(self, steps: Iterable[Step[T]], *, total: int) -> list[T]:
        """What the steps, `total` of them, measured; those before Ctrl-C. Raises KeyboardInterrupt where none was done.

        Steps may be made one by one, as memory for the next is there only when the one before is gone.
        """
        done: list[T] = []
        gc.collect()
        gc.freeze()  # what torch and others imported, so that the collections below look at what steps leave alone
        try:
            for step in steps:
                self._progress(f"{len(done) + 1} of {total}: {step.name}", len(done) / total)
                done.append(step.measure())
                del step  # and the pool it may hold
                gc.collect()
        except KeyboardInterrupt:
            self._interrupted = True
        finally:
            gc.unfreeze()
        if not done:
            raise KeyboardInterrupt
        return done

    def end(self) -> Conditions:
        """Measure the device again, unless Ctrl-C asked for an end or its limits were told."""
        ceiling = self.ceiling
        if not self._interrupted and not self._is_told:
            self._progress("measuring the device again", 1.0)
            # The device may have been busier with others before or after: its limit is the better of the two.
            ceiling = ceiling.best_of(self._measure_ceiling())
        environment = describe_environment(self._device, other_load_cores=self._load.other_cores())
        return Conditions(ceiling, environment, self._interrupted)

    def _measure_ceiling(self) -> Ceiling:
        return measure_roofline(self._device, self._dtype, seconds=CEILING_SECONDS)
