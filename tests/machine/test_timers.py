"""Timers with a scripted clock: what is thrown away, what is kept, and when a run counts as steady."""

from __future__ import annotations

import time

from kvtool.machine.timers import (
    STEADY_WINDOW,
    Contender,
    call_timer,
    coefficient_of_variation,
    device_clock,
    is_cuda,
    time_in_turns,
    warm_up,
)


def scripted(seconds):
    """A timer that runs the call and then reads its seconds from a list."""
    remaining = iter(seconds)

    def timer(call):
        call()
        return next(remaining)

    return timer


def test_the_cold_first_call_is_reported_apart_and_never_counts_as_steady():
    result = warm_up(lambda: None, timer=scripted([9.0, 1.0, 1.0, 1.0, 1.0, 1.0]), at_least=2, at_most=20)
    assert (result.first_s, result.calls, result.steady) == (9.0, 1 + STEADY_WINDOW, True)


def test_warm_up_goes_on_while_times_fall():
    falling = [8.0, 4.0, 2.0, 1.5, 1.2, 1.0, 1.0, 1.0, 1.0, 1.0]
    result = warm_up(lambda: None, timer=scripted(falling), at_least=1, at_most=20)
    assert (result.calls, result.steady) == (9, True)


def test_warm_up_gives_up_at_most_and_says_that_it_is_not_steady():
    result = warm_up(lambda: None, timer=scripted([1.0, 2.0] * 10), at_least=3, at_most=8)
    assert (result.calls, result.steady) == (8, False)


def test_no_warm_up_calls_nothing():
    calls = []
    result = warm_up(lambda: calls.append(1), timer=scripted([]), at_least=0)
    assert calls == []
    assert (result.first_s, result.calls, result.steady) == (None, 0, False)


def test_contenders_take_turns_and_are_flushed_only_where_measured():
    log = []
    timed = time_in_turns(
        [
            Contender(lambda: log.append("a"), flush=lambda: log.append("flush")),
            Contender(lambda: log.append("b")),
        ],
        device="cpu",
        warmup=2,
        iterations=3,
        timer=scripted([9.0, *[1.0] * 4, *[7.0, 2.0] * 4, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
    )
    assert log == ["a"] * 5 + ["b"] * 8 + ["flush", "a", "b", "b", "flush", "a", "flush", "a", "b"]
    assert [each.seconds for each in timed] == [[0.1, 0.4, 0.5], [0.2, 0.3, 0.6]]
    assert [(each.warm_up.first_s, each.warm_up.steady) for each in timed] == [(9.0, True), (7.0, False)]


def test_one_warm_up_call_asked_for_still_gets_the_chance_to_be_steady():
    (timed,) = time_in_turns([Contender(lambda: None)], device="cpu", warmup=1, iterations=0, timer=scripted([1.0] * 5))
    assert (timed.warm_up.calls, timed.warm_up.steady) == (5, True)


def test_a_gpu_is_held_while_the_call_is_submitted(monkeypatch):
    """So that launching from the CPU is in no time: the events stand behind the hold, around the call alone."""
    import contextlib

    import torch

    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, other):
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("hold"))
    assert call_timer("cuda:0")(lambda: log.append("call")) == 2.5e-3
    assert log == ["hold", "record", "call", "record", "wait"]


def test_the_wall_timer_measures_a_sleep():
    assert call_timer("cpu")(lambda: time.sleep(0.02)) >= 0.02


def test_the_cpu_clock_moves_forward():
    now = device_clock("cpu")
    assert now() <= now()


def test_coefficient_of_variation():
    assert coefficient_of_variation([]) == 0
    assert coefficient_of_variation([1.0]) == 0
    assert coefficient_of_variation([1.0, 3.0]) == 0.5


def test_only_cuda_names_are_cuda():
    assert [is_cuda(d) for d in ("cuda", "cuda:1", "cpu", "mps")] == [True, True, False, False]
