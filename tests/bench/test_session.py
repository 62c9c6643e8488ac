"""A session on a scripted device: limits before and after, steps made one by one, and what Ctrl-C leaves."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from kvtool.bench import session
from kvtool.bench.session import Session, Step
from kvtool.system.errors import DeviceError, KvtoolError
from tests.bench.test_bench import FAST

Told = list[tuple[str, float]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What progress was told; the device reads 10 GB/s before and 12 GB/s after, computes 2 TFLOP/s and then 1."""
    ceilings = iter([replace(FAST, read_gbps=10.0, tflops=2.0), replace(FAST, read_gbps=12.0, tflops=1.0)])
    monkeypatch.setattr(session, "measure_roofline", lambda device, dtype, seconds: next(ceilings))
    return []


def begun(told: Told) -> Session:
    return Session("cpu", torch.float32, lambda doing, done: told.append((doing, done)))


def interrupted() -> int:
    raise KeyboardInterrupt


def test_the_limit_is_the_better_of_before_and_after(told: Told) -> None:
    measuring = begun(told)
    assert measuring.ceiling.read_gbps == 10.0
    assert measuring.run([Step("a", lambda: 1), Step("b", lambda: 2)], total=2) == [1, 2]
    conditions = measuring.end()
    assert (conditions.ceiling.read_gbps, conditions.ceiling.tflops) == (12.0, 2.0)
    assert not conditions.interrupted
    assert conditions.environment["device"] == "cpu"
    assert told == [
        ("measuring the device", 0.0),
        ("1 of 2: a", 0.0),
        ("2 of 2: b", 0.5),
        ("measuring the device again", 1.0),
    ]


def test_limits_that_were_measured_before_are_not_measured_again(told: Told) -> None:
    measuring = Session("cpu", torch.float32, lambda doing, done: told.append((doing, done)), FAST)
    assert measuring.run([Step("a", lambda: 1)], total=1) == [1]
    assert measuring.end().ceiling is FAST
    assert told == [("1 of 1: a", 0.0)]


def test_ctrl_c_keeps_what_was_done_and_says_so(told: Told) -> None:
    measuring = begun(told)
    steps = [Step("a", lambda: 1), Step("b", interrupted), Step("c", lambda: 3)]
    assert measuring.run(steps, total=3) == [1]
    conditions = measuring.end()
    assert conditions.interrupted
    assert conditions.ceiling.read_gbps == 10.0, "who wants to stop waits for no further measurement"
    assert conditions.warnings([])[-1] == "interrupted: cases are missing"


def test_ctrl_c_before_anything_was_done_ends_it(told: Told) -> None:
    with pytest.raises(KeyboardInterrupt):
        begun(told).run([Step("a", interrupted)], total=1)


def failing(error: Exception) -> Callable[[], int]:
    def fail() -> int:
        held = Held()
        alive.append(weakref.ref(held))
        raise error

    return fail


class Held:
    """What a step that fails has in its hands."""


alive: list[weakref.ref[Held]] = []


def test_a_step_that_fails_is_told_and_the_rest_goes_on(told: Told) -> None:
    """In one line, and what it held is gone before the next begins."""
    measuring = begun(told)

    def next_one() -> int:
        assert alive[-1]() is None
        return 3

    steps = [Step("a", lambda: 1), Step("b", failing(RuntimeError("no\nroom"))), Step("c", next_one)]
    assert measuring.run(steps, total=3) == [1, 3]
    conditions = measuring.end()
    (line,) = conditions.failures
    assert line.startswith("b failed: RuntimeError: no room (test_session.py:")
    assert f"not measured: {line}" in conditions.warnings([])


def test_where_all_fail_the_first_is_raised_and_a_users_mistake_at_once(told: Told) -> None:
    steps = [Step("a", failing(DeviceError("no memory"))), Step("b", failing(RuntimeError("else")))]
    with pytest.raises(DeviceError, match="no memory"):
        begun(told).run(steps, total=2)
    after: list[int] = []
    steps = [Step("a", failing(KvtoolError("wrong"))), Step("b", lambda: after.append(1) or 1)]
    with pytest.raises(KvtoolError, match="wrong"):
        Session("cpu", torch.float32, lambda doing, done: None, FAST).run(steps, total=2)
    assert after == []


def test_what_a_step_holds_is_gone_before_the_next_is_made(told: Told) -> None:
    held: list[weakref.ref[Pool]] = []

    class Pool:
        """Holds itself, so that only the collector finds it."""

        def __init__(self) -> None:
            self.itself = self
            held.append(weakref.ref(self))

        def size(self) -> int:
            return 7

    def steps() -> Iterator[Step[int]]:
        for name in ("a", "b"):
            assert all(pool() is None for pool in held)
            yield Step(name, Pool().size)

    assert begun(told).run(steps(), total=2) == [7, 7]
    assert len(held) == 2
