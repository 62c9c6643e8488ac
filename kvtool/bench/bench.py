"""The whole benchmark: load, measure the device, run every part, measure the device again, write it all down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

from kvtool.bench.accounting import with_roofline
from kvtool.bench.cases.base import Measured, Part, Repeats, Setup, Standalone, Stepped
from kvtool.bench.cases.below import private_tiers
from kvtool.bench.cases.scenario import scales
from kvtool.bench.counted import counted
from kvtool.bench.definitions import DEFINITIONS
from kvtool.bench.engines.race import entrants
from kvtool.bench.limits import accounting_errors, hit_errors
from kvtool.bench.options import BenchOptions
from kvtool.bench.session import CEILING_SECONDS, Conditions, Outcome, Progress, Session
from kvtool.cache.tiers.options import TierOptions
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.loaded import LoadedModel
from kvtool.machine.interleaved import Windows
from kvtool.machine.pace import Budget
from kvtool.machine.roofline import Ceiling
from kvtool.results import BenchDocument
from kvtool.system.errors import KvtoolError


def bench(
    model: Model,
    config: EngineConfig,
    options: BenchOptions,
    *,
    progress: Progress,
    tell: Callable[[str], None] = lambda line: None,
    ceiling: Ceiling | None = None,
) -> Outcome[BenchDocument]:
    """Everything asked for; `tell` is told how long it may take. The device's `ceiling` is measured before and after
    where it is None. Ctrl-C keeps the cases that were done. Raises KvtoolError or DeviceError."""
    if not any(part.computes for part in options.parts):
        return counted(model, config, options, progress)
    if config.tiers is not None and not any(part.uses_tiers for part in options.parts):
        raise KvtoolError("--tiers are measured where prefixes are: add prefix to --parts, or name a --workload")
    if any(isinstance(part, Standalone) for part in options.parts):
        return _alone(options.parts).measure(model, config, Repeats(options.num_iters, options.seed), progress)
    with private_tiers(config.tiers) as tiers:
        config = replace(config, tiers=None)
        return _bench(model, config, options, tiers, progress=progress, tell=tell, ceiling=ceiling)


def _alone(parts: Sequence[Part]) -> Standalone:
    """The one part, which measures itself. Raises KvtoolError where others are asked for beside it."""
    (part, *others) = parts
    if others or not isinstance(part, Standalone):
        raise KvtoolError("ranks are measured by themselves: leave other --parts to a run of their own")
    return part


def _bench(
    model: Model,
    config: EngineConfig,
    options: BenchOptions,
    tiers: TierOptions | None,
    *,
    progress: Progress,
    tell: Callable[[str], None],
    ceiling: Ceiling | None,
) -> Outcome[BenchDocument]:
    progress(f"loading {model.id}", 0.0)
    options = options.fitted(model, config.block_size, tiers=tiers is not None)
    pages = most_pages(options, config.block_size)
    loaded = LoadedModel(model, config, max_positions=options.longest_tokens + 1, num_pages=pages)
    loaded.require_room(pages)
    tell(how_long(options))
    session = Session(str(loaded.device), loaded.torch_dtype, progress, ceiling)
    measured = _measured(loaded, options, session, progress, tiers)
    return _outcome(loaded, measured, session.end())


def how_long(options: BenchOptions) -> str:
    """How many iterations are measured, and in what time, told before any is."""
    asked = f"{options.num_iters} measured iteration{'s' if options.num_iters > 1 else ''} a case"
    if not options.trims:
        return f"{asked}, however long they take"
    return f"{asked}, about {options.budget_s + 2 * CEILING_SECONDS:.0f} s at most: fewer where this machine is slower"


def most_pages(options: BenchOptions, block_size: int) -> int:
    """Pages of the largest case, which the device must hold before anything is loaded, or a prompt made."""
    return max(part.most_pages(block_size) for part in options.parts)


def _measured(
    loaded: LoadedModel, options: BenchOptions, session: Session, progress: Progress, tiers: TierOptions | None
) -> list[Measured]:
    windows = Windows(str(loaded.device), loaded.torch_dtype, session.ceiling, loaded.transformer.weights_read())
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
            tiers=tiers,
            budget=(budget := Budget(options.budget_s, trims=options.trims)),
        )
        steps = [step for part in options.parts if isinstance(part, Stepped) for step in part.steps(setup)]
        budget.num_cases = len(steps)
        return session.run(steps, total=len(steps))


def _outcome(loaded: LoadedModel, measured: list[Measured], conditions: Conditions) -> Outcome[BenchDocument]:
    """The cases next to the best that the device did, be it before them, beside them or after them."""
    best = reduce(Ceiling.best_of, (limit for step in measured for limit in step.limits), conditions.ceiling)
    cases = [with_roofline(case, best, step.limits) for step in measured for case in step.cases]
    document = BenchDocument(
        environment=conditions.environment,
        definitions=DEFINITIONS,
        assumptions=[*loaded.assumptions(), *scales(cases), *conditions.warnings(cases)],
        cases=cases,
    )
    return Outcome(
        document=document,
        interrupted=conditions.interrupted,
        errors=[*conditions.failures, *accounting_errors(cases)],
        unequal=hit_errors(cases),
    )
