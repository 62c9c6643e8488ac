"""Whole runs joined: their samples name their run, and the figures are those of all of them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from kvtool.bench import runs
from kvtool.bench.runs import as_many_threads, joined, measure_runs, single_run
from kvtool.compare.sources import read_bench
from kvtool.results import BenchDocument, encode
from kvtool.system import interrupts
from kvtool.system.errors import KvtoolError
from tests.compare.example import document

# Prints the next of the files that it is given, as the runs of a benchmark print their documents, and counts them.
RUN = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
turn = len(list(folder.glob("*.done")))
(folder / f"{turn}.done").touch()
assert sys.argv[-1] == "--json"
sys.stdout.write((folder / f"{turn}.json").read_text())
sys.exit(int((folder / f"{turn}.code").read_text()))
"""


# The second of two: it interrupts the process that started it, and waits to be interrupted itself.
SECOND = """
import os, pathlib, signal, sys
folder = pathlib.Path(sys.argv[1])
if not (folder / "first").exists():
    (folder / "first").touch()
    sys.stdout.write((folder / "0.json").read_text())
    sys.exit(0)
signal.alarm(60)  # not to wait for ever where it is never passed on
try:
    os.kill(os.getppid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    (folder / "interrupted").touch()
    sys.exit(130)
"""


def single(seed: int, factor: float = 1.0) -> BenchDocument:
    return document(factor, seed, iterations=3, runs=1)


def program(folder: Path, *codes: int) -> tuple[str, ...]:
    for turn, code in enumerate(codes):
        (folder / f"{turn}.json").write_bytes(encode(single(turn)))
        (folder / f"{turn}.code").write_text(str(code))
    return (sys.executable, "-c", RUN, str(folder))


def test_samples_name_their_run_and_metrics_are_of_all() -> None:
    both = joined([single(1), single(2, 3.0)])
    for case, one, other in zip(both.cases, single(1).cases, single(2, 3.0).cases, strict=True):
        assert [s.run for s in case.samples] == [0] * 6 + [1] * 6
        assert case.metrics.tpot_ms.n == 12
        assert one.metrics.tpot_ms.p50 < case.metrics.tpot_ms.p50 < other.metrics.tpot_ms.p50
        assert case.roofline.mbu == pytest.approx((one.roofline.mbu + other.roofline.mbu) / 2)
    assert both.assumptions[0] == "samples are of 2 runs, each a process of its own"


def test_the_busiest_run_and_an_unequal_output_are_not_lost() -> None:
    quiet, busy = single(1), single(2)
    busy = replace(busy, environment={**busy.environment, "other_load_cores": 1.2})
    wrong = [replace(case, check=replace(case.check, outputs_equal=False)) for case in busy.cases]
    both = joined([quiet, replace(busy, cases=wrong)])
    assert both.environment["other_load_cores"] == 1.2
    assert {case.check.outputs_equal for case in both.cases} == {False}


def test_what_prefix_hits_save_is_of_all_runs() -> None:
    report = read_bench(str(Path(__file__).parents[2] / "examples/reports/cpu")).document
    both = joined([report, report])
    for one, two in zip(report.cases, both.cases, strict=True):
        assert len(two.samples) == 2 * len(one.samples)
        assert (one.prefix is None) == (two.prefix is None)
        if one.prefix is not None:
            assert two.prefix.ttft_saved_ms == pytest.approx(one.prefix.ttft_saved_ms)
            assert two.prefix.measured_hit_rate == one.prefix.measured_hit_rate
        for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
            a, b = (getattr(case.metrics, name) for case in (one, two))
            assert b.p50 == pytest.approx(a.p50)
    assert read_bench(str(Path(__file__).parents[2] / "examples/reports/cpu")).document == report


def test_runs_of_other_cases_are_not_joined() -> None:
    with pytest.raises(KvtoolError, match="same cases"):
        joined([single(1), document(input_lens=(64,), runs=1)])


def test_a_run_is_asked_what_was_typed_but_for_runs_and_results() -> None:
    typed = ["bench", "m", "--runs", "3", "--out", "d", "--json", "--runs=4", "--out=e", "--parts", "latency"]
    assert single_run(typed) == ["bench", "m", "--parts", "latency"]


def test_every_run_is_a_process_and_the_worst_code_is_kept(tmp_path: Path) -> None:
    found = measure_runs(["bench", "--runs", "3"], 3, program(tmp_path, 0, 3, 0))
    assert (found.code, len(list(tmp_path.glob("*.done")))) == (3, 3)
    assert {s.run for case in found.document.cases for s in case.samples} == {0, 1, 2}


def test_further_runs_take_the_threads_that_the_first_one_chose() -> None:
    def chosen(*arguments: str, **inputs: int) -> list[str]:
        return as_many_threads(document(iterations=3, runs=1, **inputs), ["bench", *arguments])

    assert chosen(threads=1) == ["--threads", "1"]
    assert [chosen("--threads", "2", threads=2), chosen("--threads=2", threads=2), chosen()] == [[], [], []]
    on_gpu = replace(document(threads=8), environment={"device": "cuda:0"})
    assert as_many_threads(on_gpu, ["bench"]) == []


def test_an_interrupted_run_is_left_out_and_a_failing_one_ends_it(tmp_path: Path) -> None:
    found = measure_runs(["bench"], 3, program(tmp_path, 0, runs.INTERRUPTED, 0))
    assert found.code == runs.INTERRUPTED
    assert {s.run for case in found.document.cases for s in case.samples} == {0}
    with pytest.raises(SystemExit) as stopped:
        measure_runs(["bench"], 2, program(tmp_path, 0, 0, 2))
    assert stopped.value.code == 2


def test_ctrl_c_is_passed_on_and_whole_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(number: int, frame: object) -> None:
        pytest.fail("the process would end here, and its whole runs with it")

    program(tmp_path, 0)
    monkeypatch.setattr(interrupts, "_leave", ends)
    before = signal.getsignal(signal.SIGINT)
    try:
        interrupts.leave_on_interrupt()
        found = measure_runs(["bench"], 3, (sys.executable, "-c", SECOND, str(tmp_path)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert found.code == runs.INTERRUPTED
    assert {s.run for case in found.document.cases for s in case.samples} == {0}
    assert (tmp_path / "interrupted").exists()


def test_ctrl_c_in_the_first_run_is_ctrl_c(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure_runs(["bench"], 2, program(tmp_path, runs.INTERRUPTED))
