"""A part of the benchmark: options whose steps make cases, each of them out of the samples of its iterations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import mean
from typing import ClassVar

from msgspec.structs import replace

from kvtool.bench.engines.race import Entrant
from kvtool.bench.harness import Value, case_inputs
from kvtool.bench.session import Outcome, Progress, Step
from kvtool.cache.tiers.options import TierOptions
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.loaded import LoadedModel
from kvtool.machine.interleaved import Beside, Windows
from kvtool.machine.pace import Budget, Disturbance, is_disturbed
from kvtool.machine.roofline import Ceiling
from kvtool.results import AnyCase, BenchDocument, Load, Sample
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div

PART_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterations:
    """What the iterations of a step brought: samples, the device's limit beside each iteration (none on a GPU), the
    cores that others kept busy during each, and whether fewer threads ran because of them."""

    samples: list[Sample]
    limits: list[Ceiling]
    other_cores: list[float | None]
    fewer_threads: bool = False

    @property
    def load(self) -> Load:
        """What a case tells of it."""
        known = [cores for cores in self.other_cores if cores is not None]
        disturbed = sum(map(is_disturbed, self.other_cores))
        other_cores = round(mean(known), 2) if known else None
        return Load(other_cores=other_cores, disturbed_iterations=disturbed, fewer_threads=self.fewer_threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all cases share: the model, how often each case runs and how long all may take, and the other engines that
    run beside ours. `tiers` are for the parts that measure them."""

    loaded: LoadedModel
    windows: Windows
    num_iters: int
    num_iters_warmup: int
    seed: int = 0
    peers: Sequence[Entrant] = ()
    tiers: TierOptions | None = None
    budget: Budget = field(default_factory=Budget)
    disturbance: Callable[[], Disturbance] = Disturbance

    @property
    def most_iters(self) -> int:
        """With those that are measured again: iterations are numbered below it."""
        return 2 * self.num_iters

    def iterate(self, samples_of: Callable[[int], Iterable[Sample]]) -> Iterations:
        """`samples_of` each measured iteration by its number, with the device measured before, between and after.

        An iteration that others disturb is measured again, under the next number, while the budget lasts; the quietest
        are kept, numbered from 0. A budget that trims leaves out iterations, but never the first.
        """
        in_time = self.budget.share()
        found: list[list[Sample]] = []
        cores: list[float | None] = []
        while self._goes_on(cores, in_time=in_time()):
            load = self.disturbance()
            self.windows.measure()
            found.append(list(samples_of(len(found))))
            cores.append(load.cores())
        self.windows.measure()
        beside = self.windows.take()
        kept = sorted(sorted(range(len(found)), key=lambda i: (is_disturbed(cores[i]), i))[: self.num_iters])
        return Iterations(
            samples=[
                replace(s, iteration=place, **_speeds(beside, i)) for place, i in enumerate(kept) for s in found[i]
            ],
            limits=[beside[i].limit for i in kept] if beside else [],
            other_cores=[cores[i] for i in kept],
            fewer_threads=self.loaded.fewer_threads is not None,
        )

    def _goes_on(self, cores: Sequence[float | None], *, in_time: bool) -> bool:
        """Whether another iteration is measured, after some beside which others kept `cores` busy."""
        if len(cores) < self.num_iters:
            return not cores or in_time or not self.budget.trims
        quiet = len(cores) - sum(map(is_disturbed, cores))
        return quiet < self.num_iters and len(cores) < self.most_iters and in_time

    def inputs(self, *, num_iters_warmup: int, **values: Value) -> dict[str, Value]:
        """All that is needed to run a case again: `values` are its own."""
        repeats = {"num_iters": self.num_iters, "num_iters_warmup": num_iters_warmup, "seed": self.seed}
        return {**case_inputs(self.loaded), **values, **repeats}


def _speeds(beside: Sequence[Beside], iteration: int) -> dict[str, float | None]:
    """What a sample tells of the device's speed."""
    if not beside:
        return {}
    found = beside[iteration]
    return {
        "device_read_gbps": found.limit.read_gbps,
        "device_tflops": found.limit.tflops,
        "weights_read_gbps": found.weights_gbps,
    }


@dataclass(frozen=True, slots=True)
class Measured:
    """The cases of a step, and the device's limit beside each of their iterations (none on a GPU)."""

    cases: list[AnyCase]
    limits: list[Ceiling]


@dataclass(frozen=True, slots=True)
class Repeats:
    """How often each case is measured, and the seed of its prompts."""

    num_iters: int
    seed: int


@dataclass(frozen=True)
class Part(ABC):
    """The options of one part; its fields bear the names of the flags that set them. Lengths are tokens.

    It is `Stepped` or `Standalone`. One that does not `computes` only counts: it needs neither weights nor the device's
    limits. Whole runs of one that is not `timed` have nothing to join. `uses_tiers` says that its steps measure the
    tiers of the setup.
    """

    computes: ClassVar[bool] = True
    timed: ClassVar[bool] = True
    uses_tiers: ClassVar[bool] = False

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

    @property
    def budget_s(self) -> float:
        """That its measured iterations may take where the user does not say how many."""
        return PART_S

    def fitted(self, model: Model, block_size: int, *, tiers: bool = False) -> Part:
        """The same for that model and pages of that size; `tiers`: some lie below the pool."""
        return self

    def most_pages(self, block_size: int) -> int:
        """Pages of its largest case."""
        return self.most_sequences * ceil_div(self.longest_tokens, block_size)


class Stepped(Part):
    """A part that is measured on the model of the run, beside others."""

    @abstractmethod
    def steps(self, setup: Setup) -> Iterator[Step[Measured]]:
        """Nothing runs before a step's `measure`."""


class Standalone(Part):
    """A part that measures itself, on models that it loads: it has a run of its own."""

    @abstractmethod
    def measure(self, model: Model, config: EngineConfig, asked: Repeats, progress: Progress) -> Outcome[BenchDocument]:
        """All of its cases. Raises KvtoolError or DeviceError."""


@dataclass(frozen=True)
class Batches(Part):
    """One that has every input length with every batch size."""

    input_lens: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    output_len: int

    def __post_init__(self) -> None:
        require_positive("input length", *self.input_lens)
        require_positive("batch size", *self.batch_sizes)
        require_positive("output length", self.output_len)

    @property
    def longest_tokens(self) -> int:
        return max(self.input_lens) + self.output_len

    @property
    def most_sequences(self) -> int:
        return max(self.batch_sizes)

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Input length and batch size of each case."""
        return list(product(self.input_lens, self.batch_sizes))


def require_positive(what: str, *values: int | None) -> None:
    """Raises KvtoolError for a count below 1; None stands for one that was not given."""
    for value in values:
        if value is not None and value < 1:
            raise KvtoolError(f"{what} {value} must be at least 1")


def require_arrivals(request_rate: float | None, burstiness: float) -> None:
    """Raises KvtoolError for a rate or a burstiness that is none, and for bursts of what is submitted at once."""
    for what, value in (("request rate", request_rate), ("burstiness", burstiness)):
        if value is not None and not 0.0 < value < 1e9:
            raise KvtoolError(f"{what} {value} must be above 0")
    if burstiness != 1 and request_rate is None:
        raise KvtoolError("--burstiness needs --request-rate: without one everything is submitted at once")
