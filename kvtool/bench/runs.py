"""Whole runs of a benchmark, one process after the other, and their documents joined: what runs of the same code differ
by (where memory lies, what else the machine does) is in no single one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import msgspec

from kvtool.bench.metrics import metrics_of
from kvtool.bench.savings import ttfts_in_order, with_times
from kvtool.machine.stats import paired_median_difference
from kvtool.results import BenchDocument, Case, Load, Prefix, PrefixCase, Roofline, Sample, WorkloadCase
from kvtool.results.warnings import load_warnings
from kvtool.system.errors import KvtoolError
from kvtool.system.interrupts import interruptible

PROGRAM = (sys.executable, "-P", "-c", "from kvtool.__main__ import main; main()")
KEPT = (0, 3)  # exit codes of runs that are whole, and print their document: done, and accounting that cannot be right
INTERRUPTED = 130
_WITH_VALUE = ("--runs", "--out")
_ALONE = ("--json",)

C = TypeVar("C", bound=Case)


@dataclass(frozen=True, slots=True)
class Runs:
    """What the whole ones measured, and the exit code of the last one."""

    document: BenchDocument
    code: int


def measure_runs(arguments: Sequence[str], runs: int, program: Sequence[str] = PROGRAM) -> Runs:
    """`runs` processes of `kvtool ARGUMENTS`. Ctrl-C keeps those that are whole. Raises SystemExit with the code of a
    run that fails, which has said why, and KeyboardInterrupt where no run was whole."""
    command = [*program, *single_run(arguments)]
    documents: list[BenchDocument] = []
    code = 0
    for _ in range(runs):
        last, printed = _finished([*command, "--json"])
        if last == INTERRUPTED:
            code = INTERRUPTED
            break
        if last not in KEPT:
            raise SystemExit(last)
        code = max(code, last)
        documents.append(msgspec.json.decode(printed, type=BenchDocument))
        if len(documents) == 1:
            command += as_many_threads(documents[0], arguments)
    if not documents:
        raise KeyboardInterrupt
    return Runs(joined(documents), code)


def single_run(arguments: Sequence[str]) -> list[str]:
    """The arguments without those that say how many runs there are and where their results go."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in _WITH_VALUE:
            next(rest, None)
        elif argument not in _ALONE and not argument.startswith(tuple(f"{name}=" for name in _WITH_VALUE)):
            kept.append(argument)
    return kept


def as_many_threads(first: BenchDocument, arguments: Sequence[str]) -> list[str]:
    """What makes further runs use the threads that the first one chose beside what others kept busy then: runs of one
    and of two threads are none of the same thing."""
    chosen = {case.inputs.get("threads") for case in first.cases}
    told = any(argument == "--threads" or argument.startswith("--threads=") for argument in arguments)
    if told or first.environment.get("device") != "cpu" or len(chosen) != 1 or None in chosen:
        return []
    return ["--threads", str(chosen.pop())]


def _finished(command: Sequence[str]) -> tuple[int, bytes]:
    """The exit code and what was printed. Ctrl-C is passed on, as only a terminal's reaches the run by itself."""
    with interruptible(), subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            printed, _ = process.communicate()
            return process.returncode, printed
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.communicate()
            return INTERRUPTED, b""


def joined(documents: Sequence[BenchDocument]) -> BenchDocument:
    """One document of all their samples, each of which names its run. Raises KvtoolError where their cases differ."""
    first = documents[0]
    names = [[case.name for case in document.cases] for document in documents]
    if any(other != names[0] for other in names):
        raise KvtoolError("the runs did not measure the same cases, so that they cannot be joined")
    loads = [cores for d in documents if (cores := d.environment.get("other_load_cores")) is not None]
    environment = {**first.environment, "other_load_cores": max(loads, default=None)}
    cases = [_joined_case(cases) for cases in zip(*(document.cases for document in documents), strict=True)]
    return msgspec.structs.replace(
        first,
        environment=environment,
        assumptions=[
            f"samples are of {len(documents)} runs, each a process of its own",
            *load_warnings(environment, cases),
            *dict.fromkeys(line for document in documents for line in _but_load(document)),
        ],
        cases=cases,
    )


def _but_load(document: BenchDocument) -> list[str]:
    """Its assumptions without what others' load made it say, which is said once of all runs."""
    said = load_warnings(document.environment, document.cases)
    return [line for line in document.assumptions if line not in said]


def _joined_case(cases: Sequence[C]) -> C:
    first = cases[0]
    samples = [msgspec.structs.replace(s, run=run) for run, case in enumerate(cases) for s in case.samples]
    measured = [sample for sample in samples if not sample.is_compared]
    equal = [case.check.outputs_equal for case in cases if case.check.outputs_equal is not None]
    peaks = [case.memory.peak_bytes for case in cases if case.memory.peak_bytes is not None]
    together = msgspec.structs.replace(
        first,
        samples=samples,
        metrics=metrics_of(measured, queues=first.metrics.prefill_tokens_per_s is None),
        roofline=_middle([case.roofline for case in cases]),
        memory=msgspec.structs.replace(first.memory, peak_bytes=max(peaks, default=None)),
        load=_all_load([case.load for case in cases]),
        check=msgspec.structs.replace(first.check, outputs_equal=all(equal) if equal else None),
    )
    if isinstance(together, PrefixCase):
        return msgspec.structs.replace(together, prefix=_saved(together.prefix, samples))
    if isinstance(together, WorkloadCase):
        saved = with_times(together.workload.saved, samples)
        return msgspec.structs.replace(together, workload=msgspec.structs.replace(together.workload, saved=saved))
    return together


def _all_load(loads: Sequence[Load]) -> Load:
    known = [load.other_cores for load in loads if load.other_cores is not None]
    return Load(
        other_cores=max(known, default=None),
        disturbed_iterations=sum(load.disturbed_iterations for load in loads),
        fewer_threads=any(load.fewer_threads for load in loads),
    )


def _middle(limits: Sequence[Roofline]) -> Roofline:
    """The median of each figure over the runs that have it; words are the first run's."""
    found: dict[str, Any] = {}
    for name in Roofline.__struct_fields__:
        values = [value for limit in limits if (value := getattr(limit, name)) is not None]
        numbers = [value for value in values if isinstance(value, float | int)]
        found[name] = median(numbers) if numbers else values[0] if values else None
    return Roofline(**found)


def _saved(prefix: Prefix, samples: Sequence[Sample]) -> Prefix:
    """What hits save over all runs; samples of both arms are in the same order."""
    cached, uncached = (ttfts_in_order(samples, arm) for arm in ("cached", "uncached"))
    saved = paired_median_difference(cached, uncached)
    return msgspec.structs.replace(
        prefix,
        ttft_saved_ms=saved.value * 1e3,
        ttft_saved_ratio=saved.value / median(uncached),
        ttft_saved_ms_ci_low=saved.low * 1e3,
        ttft_saved_ms_ci_high=saved.high * 1e3,
    )
