"""A part of the benchmark: options whose steps make cases, each of them out of the samples of its iterations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from kvtool.bench.engines.race import Entrant
from kvtool.bench.harness import Value, case_inputs
from kvtool.bench.session import Step
from kvtool.engine.loaded import LoadedModel
from kvtool.errors import KvtoolError
from kvtool.machine.interleaved import Windows
from kvtool.machine.roofline import Ceiling
from kvtool.results import AnyCase, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterations:
    """What the iterations of a step brought: samples, and the device's limit beside each iteration (none on a GPU)."""

    samples: list[Sample]
    limits: list[Ceiling]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all cases share: the model, how often each case runs, and the other engines that run beside ours."""

    loaded: LoadedModel
    windows: Windows
    num_iters: int
    num_iters_warmup: int
    seed: int = 0
    peers: Sequence[Entrant] = ()

    def iterate(self, samples_of: Callable[[int], Iterable[Sample]]) -> Iterations:
        """`samples_of` each measured iteration by its number, with the device measured before, between and after."""
        samples: list[Sample] = []
        for iteration in range(self.num_iters):
            self.windows.measure()
            samples += samples_of(iteration)
        self.windows.measure()
        return Iterations(samples=samples, limits=self.windows.take())

    def inputs(self, *, num_iters_warmup: int, **values: Value) -> dict[str, Value]:
        """All that is needed to run a case again: `values` are its own."""
        repeats = {"num_iters": self.num_iters, "num_iters_warmup": num_iters_warmup, "seed": self.seed}
        return {**case_inputs(self.loaded), **values, **repeats}


@dataclass(frozen=True, slots=True)
class Measured:
    """The cases of a step, and the device's limit beside each of their iterations (none on a GPU)."""

    cases: list[AnyCase]
    limits: list[Ceiling]


@dataclass(frozen=True)
class Part(ABC):
    """The options of one part; its fields bear the names of the flags that set them. Lengths are tokens."""

    @classmethod
    @abstractmethod
    def default(cls, *, gpu: bool) -> Part:
        """What runs where the user says nothing: enough for a picture, within a minute on two CPU cores."""

    @property
    @abstractmethod
    def longest_tokens(self) -> int:
        """Of any of its sequences, prompt and output."""

    @property
    def most_sequences(self) -> int:
        """Sequences that must be held at a time."""
        return 1

    @abstractmethod
    def steps(self, setup: Setup) -> Iterator[Step[Measured]]:
        """Nothing runs before a step's `measure`."""


def require_positive(what: str, *values: int | None) -> None:
    """Raises KvtoolError for a count below 1; None stands for one that was not given."""
    for value in values:
        if value is not None and value < 1:
            raise KvtoolError(f"{what} {value} must be at least 1")
