"""The whole benchmark: load, measure the device, run every part, measure the device again, write it all down."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from kvtool.bench.accounting import is_impossible, with_roofline
from kvtool.bench.cases.base import Measured, Setup, Step
from kvtool.bench.definitions import DEFINITIONS
from kvtool.bench.engines.race import entrants
from kvtool.bench.options import BenchOptions
from kvtool.bench.session import CEILING_SECONDS, Progress
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.loaded import TORCH_DTYPES, LoadedModel
from kvtool.machine.environment import describe_environment
from kvtool.machine.interleaved import Windows
from kvtool.machine.other_load import LoadMeter
from kvtool.machine.roofline import Ceiling, measure_roofline
from kvtool.results import BenchDocument
from kvtool.results.warnings import load_warnings, throttle_warnings
from kvtool.units import ceil_div


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
    longest, most = options.longest_tokens, options.most_sequences
    with entrants(loaded, options.peers, max_tokens=longest, max_batch=most) as peers:
        setup = Setup(
            loaded=loaded,
            windows=windows,
            num_iters=options.num_iters,
            num_iters_warmup=options.num_iters_warmup,
            seed=options.seed,
            peers=peers,
        )
        steps = [step for part in options.parts for step in part.steps(setup)]
        measured, interrupted = _run(steps, progress)
    if not measured:
        raise KeyboardInterrupt
    progress("measuring the device again", 1.0)
    # The device may have been busier with others before or after: its limit is the better of the two.
    ceiling = ceiling if interrupted else ceiling.best_of(_ceiling(loaded))
    best = reduce(Ceiling.best_of, (limit for done in measured for limit in done.limits), ceiling)
    cases = [with_roofline(case, best, done.limits) for done in measured for case in done.cases]
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
    block_size = loaded.config.block_size
    loaded.require_room(max(p.most_sequences * ceil_div(p.longest_tokens, block_size) for p in options.parts))


def _run(steps: Sequence[Step], progress: Progress) -> tuple[list[Measured], bool]:
    """What all steps made, or those before Ctrl-C and True."""
    made: list[Measured] = []
    try:
        for done, step in enumerate(steps):
            progress(step.name, done / len(steps))
            made.append(step.measure())
            gc.collect()  # the pools of a case go before the next one asks for its own
    except KeyboardInterrupt:
        return made, True
    return made, False


def _ceiling(loaded: LoadedModel) -> Ceiling:
    return measure_roofline(str(loaded.device), TORCH_DTYPES[loaded.dtype], seconds=CEILING_SECONDS)
