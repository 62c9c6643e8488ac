"""Identical code does not fail, a slow-down is found, and what cannot be told is said: on documents made from seeds."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import msgspec
import pytest

from kvtool.compare.documents import NamedDocument, compare_documents, regressions
from kvtool.compare.sources import read_bench
from kvtool.results import BenchDocument, CompareRow, Load
from tests.compare.example import document

LENGTHS = (64, 320, 1024, 4096)
PAIRS = 20


def made(
    seed: int, tpot_factor: float = 1.0, run_noise: float = 0.02, runs: int = 3, speed_noise: float = 0.0
) -> BenchDocument:
    """As `bench --runs 3` makes it: three iterations a run."""
    settings = {"iterations": 3 * runs, "runs": runs, "run_noise": run_noise, "speed_noise": speed_noise}
    return document(tpot_factor, seed, LENGTHS, **settings)


def rows(a: BenchDocument, b: BenchDocument) -> list[CompareRow]:
    return compare_documents(NamedDocument("a", a), [NamedDocument("b", b)]).rows


def failing(found: list[CompareRow]) -> list[CompareRow]:
    return regressions(found, limit=0.05)


@pytest.mark.parametrize("run_noise", [0.0, 0.02, 0.05, 0.2])
def test_identical_code_does_not_fail(run_noise: float) -> None:
    pairs = [rows(made(2 * i, run_noise=run_noise), made(2 * i + 1, run_noise=run_noise)) for i in range(PAIRS)]
    assert sum(bool(failing(found)) for found in pairs) <= 1


@pytest.mark.parametrize("run_noise", [0.0, 0.01, 0.03])
def test_a_slow_down_of_a_fifth_is_found(run_noise: float) -> None:
    pairs = [rows(made(2 * i, run_noise=run_noise), made(2 * i + 1, 1.2, run_noise)) for i in range(PAIRS)]
    assert sum({"tpot_ms"} <= {row.metric for row in failing(found)} for found in pairs) >= 19


def test_where_runs_differ_by_a_fifth_it_is_said_that_nothing_can_be_told() -> None:
    found = [row for row in rows(made(1, run_noise=0.2), made(2, 1.2, run_noise=0.2)) if row.metric == "tpot_ms"]
    assert all(row.verdict.startswith("cannot tell: runs differ by ") for row in found)
    assert all(row.noise is not None and row.noise > 0.1 for row in found)


def test_one_run_a_side_never_ends_in_a_regression() -> None:
    for one, other in ((1, 1), (1, 3), (3, 1)):
        found = rows(made(1, runs=one), made(2, 2.0, runs=other))
        assert failing(found) == []
        timings = [row for row in found if row.unit in ("ms", "tokens/s")]
        assert {row.verdict for row in timings} == {"cannot tell from one run"}


def test_fewer_than_eight_samples_give_no_verdict() -> None:
    few = [document(factor, seed, iterations=3, runs=3) for factor, seed in ((1.0, 1), (2.0, 2))]
    found = [row for row in rows(*few) if row.unit in ("ms", "tokens/s")]
    assert {(row.verdict, row.n) for row in found} == {("cannot tell from 6 samples", 6)}
    assert failing(found) == []


def test_no_difference_within_what_two_runs_of_one_side_differ_by() -> None:
    for row in rows(made(3, run_noise=0.1), made(4, 1.05, run_noise=0.1)):
        if row.noise is not None and row.ratio is not None and 1 / (1 + row.noise) < row.ratio < 1 + row.noise:
            assert not row.verdict.startswith(("faster", "slower", "lower", "higher"))


def test_the_committed_report_against_another_single_run_has_no_regression() -> None:
    report = read_bench(str(Path(__file__).parents[2] / "examples/reports/cpu")).document
    slower = copy.deepcopy(msgspec.to_builtins(report))
    for case in slower["cases"]:
        for sample in case["samples"]:
            sample["ttft_s"], sample["e2e_s"] = 1.5 * sample["ttft_s"], 1.5 * sample["e2e_s"]
            sample["itl_s"] = [1.5 * gap for gap in sample["itl_s"]]
        for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
            if case["metrics"][name]:
                case["metrics"][name]["p50"] *= 1.5
    found = rows(report, msgspec.convert(slower, BenchDocument))
    assert any(row.metric == "tpot_ms" and row.ratio == pytest.approx(1.5) for row in found)
    assert failing(found) == []


def test_an_exact_count_still_fails_from_one_run() -> None:
    more = made(2, runs=1)
    cases = [
        msgspec.structs.replace(case, memory=msgspec.structs.replace(case.memory, kv_allocated_bytes=8192))
        for case in more.cases
    ]
    found = rows(made(1, runs=1), msgspec.structs.replace(more, cases=cases))
    assert {row.metric for row in failing(found)} == {"kv_allocated_bytes"}


SPEED_NOISE = 0.15  # from one iteration to the next: over nine of them the device becomes half or twice as fast


def test_a_device_whose_speed_moves_does_not_make_identical_code_fail() -> None:
    pairs = [rows(made(2 * i, speed_noise=SPEED_NOISE), made(2 * i + 1, speed_noise=SPEED_NOISE)) for i in range(PAIRS)]
    assert sum(bool(failing(found)) for found in pairs) <= 1


def test_a_slow_down_of_a_fifth_is_found_at_an_equal_speed_of_the_device() -> None:
    pairs = [
        rows(made(2 * i, speed_noise=SPEED_NOISE), made(2 * i + 1, 1.2, speed_noise=SPEED_NOISE)) for i in range(PAIRS)
    ]
    assert sum({"tpot_ms"} <= {row.metric for row in failing(found)} for found in pairs) >= 19


def test_what_is_at_an_equal_speed_says_so_beside_what_was_measured() -> None:
    compared = compare_documents(
        NamedDocument("a", made(1, speed_noise=SPEED_NOISE)),
        [NamedDocument("b", made(2, 1.2, speed_noise=SPEED_NOISE))],
    )
    tpot, rate, mbu = (
        [row for row in compared.rows if row.metric == metric] for metric in ("tpot_ms", "decode_tokens_per_s", "mbu")
    )
    for row, inverse, share in zip(tpot, rate, mbu, strict=True):
        assert row.speed == "memory bandwidth"
        assert row.a is not None
        assert row.b is not None
        assert row.ratio == pytest.approx(row.b / row.a)
        assert row.equal_speed_ratio == pytest.approx(1.2, rel=0.05)
        assert inverse.equal_speed_ratio == pytest.approx(1 / 1.2, rel=0.05)
        assert share.equal_speed_ratio is None  # a share of what the device did has its speed out of it
    assert "itl_ms, e2e_ms is at equal memory bandwidth" in " ".join(compared.assumptions)


def test_a_speed_that_accounts_for_no_more_than_chance_is_left_alone() -> None:
    one, two = (
        msgspec.structs.replace(
            steady,
            cases=[
                msgspec.structs.replace(
                    case, samples=[msgspec.structs.replace(s, device_read_gbps=20 + s.iteration) for s in case.samples]
                )
                for case in steady.cases
            ],
        )
        for steady in (made(3), made(4))
    )
    assert {row.speed for row in rows(one, two)} == {None}


def test_a_speed_that_the_compared_setting_sets_is_left_alone() -> None:
    one, two = (
        document(1.0, seed, LENGTHS, iterations=9, speed_noise=SPEED_NOISE, threads=threads)
        for seed, threads in ((1, 1), (2, 2))
    )
    assert {row.speed for row in rows(one, two)} == {None}


def test_threads_that_were_chosen_beside_busy_others_are_no_regression() -> None:
    one, two = (document(factor, seed, LENGTHS, iterations=9, threads=t) for factor, seed, t in ((2, 1, 1), (1, 2, 2)))
    assert {"tpot_ms"} <= {row.metric for row in failing(rows(two, one))}, "whoever sets them compares them"
    for load in (Load(other_cores=0.9), Load(other_cores=0.06, fewer_threads=True)):
        busy = [msgspec.structs.replace(case, load=load) for case in one.cases]
        found = rows(two, msgspec.structs.replace(one, cases=busy))
        assert failing(found) == []
        assert {row.verdict for row in found if row.metric == "tpot_ms"} == {
            "cannot tell: 2 and 1 threads beside busy others"
        }


def at(found: BenchDocument, gbps: float) -> BenchDocument:
    """The document as if the device had read at that rate beside every iteration."""
    cases = [
        msgspec.structs.replace(
            case, samples=[msgspec.structs.replace(s, device_read_gbps=gbps, device_tflops=1.0) for s in case.samples]
        )
        for case in found.cases
    ]
    return msgspec.structs.replace(found, cases=cases)


@pytest.mark.parametrize(("gbps", "found"), [(30.0, True), (20.0, False)])
def test_what_a_slower_device_may_have_brought_is_no_regression(gbps: float, found: bool) -> None:
    """Of times that differ by a fifth: a device that reads two thirds as fast accounts for them, an equal one not."""
    slower = failing(rows(at(made(1), 30.0), at(made(2, 1.2), gbps)))
    assert ("tpot_ms" in {row.metric for row in slower}) == found


def test_threads_that_were_set_are_compared_whatever_speed_they_read_at() -> None:
    one, two = (document(factor, 1, LENGTHS, iterations=9, threads=t) for factor, t in ((1.0, 2), (1.2, 1)))
    assert "tpot_ms" in {row.metric for row in failing(rows(at(one, 30.0), at(two, 20.0)))}


def test_three_times_as_slow_is_a_regression_too() -> None:
    assert {"tpot_ms"} <= {row.metric for row in failing(rows(made(1), made(2, 3.5)))}


def of_weights(found: BenchDocument) -> BenchDocument:
    """The document with its speed of memory as that of its weights, beside one of memory that says nothing."""
    draw = random.Random(7)
    cases = [
        msgspec.structs.replace(
            case,
            samples=[
                msgspec.structs.replace(s, device_read_gbps=draw.uniform(20, 40), weights_read_gbps=s.device_read_gbps)
                for s in case.samples
            ],
        )
        for case in found.cases
    ]
    return msgspec.structs.replace(found, cases=cases)


def test_how_fast_weights_were_read_goes_before_how_fast_memory_was() -> None:
    """A last-level cache that neighbours leave or take changes the first and not the second."""
    one, two = (of_weights(made(*a, speed_noise=SPEED_NOISE)) for a in ((1,), (2, 1.2)))
    assert "tpot_ms" in {row.metric for row in failing(rows(one, two))}
    assert {row.speed for row in rows(one, two) if row.metric == "tpot_ms"} == {"speed of reading weights"}


def test_what_one_side_alone_tells_is_not_held_against_the_other() -> None:
    """Weights are read faster than memory where a cache holds them: the two are no speeds of one thing."""
    one, two = made(1, speed_noise=SPEED_NOISE), made(2, speed_noise=SPEED_NOISE)
    cases = [
        msgspec.structs.replace(
            case, samples=[msgspec.structs.replace(s, weights_read_gbps=900.0) for s in case.samples]
        )
        for case in two.cases
    ]
    assert rows(one, msgspec.structs.replace(two, cases=cases)) == rows(one, two)
