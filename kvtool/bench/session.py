"""What every measurement shares: the device's limits before and after, others' load, and what Ctrl-C leaves."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kvtool.machine.environment import describe_environment
from kvtool.machine.other_load import LoadMeter
from kvtool.machine.roofline import Ceiling, measure_roofline
from kvtool.results import Struct
from kvtool.results.warnings import WithPower, budget_notes, load_warnings, throttle_warnings
from kvtool.system.errors import DeviceError, KvtoolError, one_line

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
    """What a session measured under: the better of the device's limits before and after, the machine, and a line for
    each step that failed."""

    ceiling: Ceiling
    environment: dict[str, Any]
    interrupted: bool
    failures: Sequence[str] = ()

    def warnings(self, cases: Sequence[WithPower]) -> list[str]:
        """What a reader of these cases must know."""
        interrupted = ["interrupted: cases are missing"] if self.interrupted else []
        return [
            *(f"not measured: {line}" for line in self.failures),
            *load_warnings(self.environment, cases),
            *throttle_warnings(cases),
            *budget_notes(cases),
            *interrupted,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[D]):
    """`errors` name cases that failed, or whose accounting cannot be right, `unequal` those that a reference, or what
    was asked for, contradicts.

    The document has the cases that were done, also where the session was interrupted.
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
        self._failures: list[str] = []
        if ceiling is None:
            progress("measuring the device", 0.0)
        self._load = LoadMeter()
        self.ceiling = ceiling or self._measure_ceiling()

    def run(self, steps: Iterable[Step[T]], *, total: int) -> list[T]:
        """What the steps, `total` of them, measured; those before Ctrl-C. One that fails is told, and the rest goes on.
        Raises KeyboardInterrupt, or what the first failed with, where none was done, and a user's mistake at once.

        Steps may be made one by one, as memory for the next is there only when the one before is gone.
        """
        done: list[T] = []
        first: Exception | None = None
        gc.collect()
        gc.freeze()  # what torch and others imported, so that the collections below look at what steps leave alone
        try:
            for step in steps:
                behind = len(done) + len(self._failures)
                self._progress(f"{behind + 1} of {total}: {step.name}", behind / total)
                try:
                    done.append(step.measure())
                except Exception as error:
                    first = first or error
                    self._failures.append(failure(step.name, error))
                del step  # and the pool it may hold
                gc.collect()
        except KeyboardInterrupt:
            self._interrupted = True
        finally:
            gc.unfreeze()
        if not done:
            raise first or KeyboardInterrupt
        return done

    def end(self) -> Conditions:
        """Measure the device again, unless Ctrl-C asked for an end or its limits were told."""
        ceiling = self.ceiling
        if not self._interrupted and not self._is_told:
            self._progress("measuring the device again", 1.0)
            # The device may have been busier with others before or after: its limit is the better of the two.
            ceiling = ceiling.best_of(self._measure_ceiling())
        environment = describe_environment(self._device, other_load_cores=self._load.other_cores())
        return Conditions(ceiling, environment, self._interrupted, tuple(self._failures))

    def _measure_ceiling(self) -> Ceiling:
        return measure_roofline(self._device, self._dtype, seconds=CEILING_SECONDS)


def failure(name: str, error: Exception) -> str:
    """One line for a step that failed, whose memory is let go. Raises a mistake of the user again."""
    if isinstance(error, KvtoolError) and not isinstance(error, DeviceError):
        raise error
    where = traceback.extract_tb(error.__traceback__)[-1]
    each: BaseException | None = error
    while each is not None:
        traceback.clear_frames(each.__traceback__)
        each = each.__cause__ or each.__context__
    place = "" if isinstance(error, DeviceError) else f" ({Path(where.filename).name}:{where.lineno})"
    told = str(error) if isinstance(error, DeviceError) else f"{type(error).__name__}: {error}"
    return one_line(f"{name} failed: {told}{place}")
