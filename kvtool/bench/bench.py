"""The whole benchmark: load, measure the device, run every part, measure the device again, write it all down."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce

from kvtool.bench.accounting import is_impossible, with_roofline
from kvtool.bench.cases.latency import latency_case
from kvtool.bench.cases.no_cache import no_cache_cases
from kvtool.bench.cases.prefix import prefix_case
from kvtool.bench.definitions import DEFINITIONS
from kvtool.bench.engines.race import Entrant, entrants
from kvtool.bench.options import BenchOptions
from kvtool.bench.session import CEILING_SECONDS, Progress
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.loaded import TORCH_DTYPES, LoadedModel
from kvtool.machine.environment import describe_environment
from kvtool.machine.interleaved import Windows
from kvtool.machine.other_load import LoadMeter
from kvtool.machine.roofline import Ceiling, measure_roofline
from kvtool.results import BenchDocument, Case
from kvtool.results.warnings import load_warnings, throttle_warnings
from kvtool.units import ceil_div


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of the benchmark: what it is called, and what makes its cases."""

    name: str
    cases: Callable[[], list[Case]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`errors` name cases whose accounting cannot be right; an interrupted run has the cases that were done."""

    document: BenchDocument
    interrupted: bool
    errors: list[str]


def bench(model: Model, config: EngineConfig, options: BenchOptions, *, progress: Progress) -> Outcome:
    """Everything asked for. Ctrl-C keeps the cases that were done. Raises KvtoolError or DeviceError.

    `progress` is told what is going on and how much of the benchmark is behind it, 0 to 1.
    """
    progress(f"loading {model.id}", 0.0)
    loaded = LoadedModel(model, config, max_positions=options.longest_tokens + 1)
    _require_room(loaded, options)
    progress("measuring the device", 0.0)
    load = LoadMeter()
    ceiling = _ceiling(loaded)
    windows = Windows(str(loaded.device), TORCH_DTYPES[loaded.dtype], ceiling)
    if options.peers:
        progress("loading the peers", 0.0)
    with entrants(loaded, options) as peers:
        found, interrupted = _run(list(_steps(loaded, options, windows, peers)), windows, progress)
    if not found:
        raise KeyboardInterrupt
    progress("measuring the device again", 1.0)
    # The device may have been busier with others before or after: its limit is the better of the two.
    ceiling = ceiling if interrupted else ceiling.best_of(_ceiling(loaded))
    best = reduce(Ceiling.best_of, (limit for _, beside in found for limit in beside), ceiling)
    cases = [with_roofline(case, best, beside) for case, beside in found]
    environment = describe_environment(str(loaded.device), other_load_cores=load.other_cores())
    warnings = [*throttle_warnings(cases), *load_warnings(environment)]
    document = BenchDocument(
        environment=environment,
        definitions=DEFINITIONS,
        assumptions=[*loaded.assumptions(), *warnings, *(["interrupted: cases are missing"] if interrupted else [])],
        cases=cases,
    )
    errors = [f"{case.name}: {case.roofline.reason}" for case in cases if is_impossible(case)]
    return Outcome(document, interrupted, errors)


def _require_room(loaded: LoadedModel, options: BenchOptions) -> None:
    """Before anything is measured, or a prompt made: DeviceError when the largest case cannot be held."""
    largest = max(options.input_lens) + options.output_len
    at_once = max(options.batch_sizes) if "latency" in options.parts else 1
    loaded.require_room(at_once * ceil_div(largest, loaded.config.block_size))


def _run(steps: list[Step], windows: Windows, progress: Progress) -> tuple[list[tuple[Case, list[Ceiling]]], bool]:
    """The cases of all steps, each with the limits beside its iterations, or of those before Ctrl-C and True."""
    cases: list[tuple[Case, list[Ceiling]]] = []
    try:
        for done, step in enumerate(steps):
            progress(step.name, done / len(steps))
            made, beside = step.cases(), windows.take()
            cases += [(case, beside) for case in made]
            gc.collect()  # the pools of a case go before the next one asks for its own
    except KeyboardInterrupt:
        return cases, True
    return cases, False


def _steps(loaded: LoadedModel, options: BenchOptions, windows: Windows, peers: Sequence[Entrant]) -> Iterator[Step]:
    shared = (loaded, options, windows)
    if "latency" in options.parts:
        for length in options.input_lens:
            for batch in options.batch_sizes:
                yield Step(
                    f"latency: {length} tokens x {batch}",
                    partial(_one, latency_case, *shared, peers=peers, input_len=length, batch_size=batch),
                )
    if "prefix" in options.parts:
        for rate in options.hit_rates:
            yield Step(f"prefix hits: {rate:.0%}", partial(_one, prefix_case, *shared, hit_rate=rate))
    if "no-cache" in options.parts:
        for length in options.no_cache_lens:
            yield Step(f"with and without a cache: {length} tokens", partial(no_cache_cases, *shared, input_len=length))


def _one(make: Callable[..., Case], *arguments: object, **named: object) -> list[Case]:
    return [make(*arguments, **named)]


def _ceiling(loaded: LoadedModel) -> Ceiling:
    return measure_roofline(str(loaded.device), TORCH_DTYPES[loaded.dtype], seconds=CEILING_SECONDS)
