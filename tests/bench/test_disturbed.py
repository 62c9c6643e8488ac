"""Iterations that others disturb are measured again within the budget, and what stays disturbed is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from msgspec.structs import replace

from kvtool.bench.cases.base import Iterations, Setup
from kvtool.machine.interleaved import Windows
from kvtool.machine.pace import SHORTEST_S, Budget, Disturbance, is_disturbed
from kvtool.results import Load, Sample
from kvtool.results.warnings import budget_notes, load_warnings
from tests.bench.test_bench import FAST
from tests.bench.tiny_model import loaded
from tests.compare.example import document


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Busy:
    """The disturbances of a machine whose others are as busy in each iteration as `cores` say."""

    def __init__(self, cores: Sequence[float]) -> None:
        self._cores: Iterator[float] = iter(cores)

    def __call__(self) -> Busy:
        return self

    def cores(self) -> float:
        return next(self._cores)


def setup(cores: Sequence[float], budget: Budget | None = None) -> Setup:
    windows = Windows("cpu", torch.float32, FAST)
    return Setup(
        loaded=loaded(), windows=windows, num_iters=3, num_iters_warmup=0,
        budget=budget or Budget(), disturbance=Busy(cores),
    )  # fmt: skip


def sample(iteration: int) -> Sample:
    return Sample(
        arm="baseline", iteration=iteration, ttft_s=1.0 + iteration, e2e_s=2.0 + iteration, itl_s=[1.0],
        output_tokens=2, prompt_tokens=4, cached_tokens=0,
    )  # fmt: skip


def ran(cores: Sequence[float], budget: Budget | None = None, work: Callable[[], None] = lambda: None) -> Iterations:
    def samples_of(iteration: int) -> list[Sample]:
        work()
        return [sample(iteration)]

    return setup(cores, budget).iterate(samples_of)


def numbers(iterations: Iterations) -> list[tuple[int, float]]:
    """The number that each kept iteration got, and the one it was measured under."""
    return [(one.iteration, one.ttft_s - 1.0) for one in iterations.samples]


def test_quiet_iterations_are_measured_once() -> None:
    found = ran([0.0, 0.1, 0.4])
    assert numbers(found) == [(0, 0), (1, 1), (2, 2)]
    assert found.load == Load(other_cores=0.17, disturbed_iterations=0)


def test_disturbed_iterations_are_measured_again_and_the_quiet_ones_kept() -> None:
    found = ran([0.0, 1.0, 0.9, 0.1, 0.2])
    assert numbers(found) == [(0, 0), (1, 3), (2, 4)]
    assert found.load == Load(other_cores=0.1, disturbed_iterations=0)


def test_a_machine_that_stays_busy_is_not_measured_for_ever_and_says_so() -> None:
    found = ran([1.0] * 6)
    assert len(found.samples) == 3
    assert found.load == Load(other_cores=1.0, disturbed_iterations=3)
    cases = [replace(case, load=found.load) for case in document().cases]
    (line,) = load_warnings({}, cases)
    assert line.startswith("DISTURBED: others used up to 1.0 cores while latency/128x2, latency/512x2 ran")
    assert load_warnings({"other_load_cores": 0.9}, [replace(c, load=Load(other_cores=0.1)) for c in cases]) == []
    assert len(load_warnings({"other_load_cores": 0.9}, document().cases)) == 1


def test_nothing_is_measured_again_once_the_share_is_spent() -> None:
    clock = Clock()

    def work() -> None:
        clock.now_s += 4.0

    budget = Budget(20.0, num_cases=2, clock=clock)  # 10 s a case
    assert numbers(ran([1.0] * 6, budget, work)) == [(0, 0), (1, 1), (2, 2)]


def test_a_slow_machine_gets_fewer_iterations_and_never_none() -> None:
    clock = Clock()

    def work() -> None:
        clock.now_s += 6.0

    budget = Budget(30.0, num_cases=3, trims=True, clock=clock)
    assert len(ran([0.0] * 3, budget, work).samples) == 2  # 10 s
    assert len(ran([0.0] * 3, budget, work).samples) == 2  # (30 - 12) / 2 s
    clock.now_s = 99.0
    assert len(ran([0.0] * 3, budget, work).samples) == 1
    assert len(ran([0.0] * 3, Budget(1.0, clock=clock), work).samples) == 3, "as many as were asked for"


def test_a_case_has_its_share_for_all_of_its_parts_and_what_one_leaves_for_the_next() -> None:
    clock = Clock()
    case = Budget(40.0, num_cases=2, trims=True, clock=clock).case(parts=2)  # 20 s
    clock.now_s = 4.0
    first = case.case()
    assert (first.left_s, first.times(2.0), first.trims) == (8.0, 4.0, True)
    clock.now_s = 6.0
    assert case.case().left_s == 14.0
    clock.now_s = 99.0
    assert first.left_s == first.times(2.0) == 0.0
    assert Budget(1.0, clock=clock).times(5.0) == float("inf"), "as often as was asked for"


def test_fewer_iterations_than_planned_are_said() -> None:
    whole, short = document(iterations=6, runs=1).cases
    short = replace(short, samples=[one for one in short.samples if one.iteration < 4])
    assert budget_notes([whole]) == []
    assert budget_notes([whole, short]) == [
        "fewer iterations, within the time budget: latency/512x2 (--num-iters N sets them)"
    ]


def test_too_short_an_iteration_tells_no_load() -> None:
    clock = Clock()
    begun = Disturbance(clock)
    clock.now_s = SHORTEST_S / 2
    assert begun.cores() is None
    assert not is_disturbed(None)
    assert is_disturbed(0.5)
