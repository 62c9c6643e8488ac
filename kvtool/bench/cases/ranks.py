"""A benchmark whose cases run on ranks: each layout loads its part of the model, one layout after the other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from kvtool.bench.cases.ranks import RanksCell, RanksPart
from kvtool.bench.definitions import DEFINITIONS
from kvtool.bench.session import Outcome, Progress, Session, Step
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig, resolve_dtype
from kvtool.engine.loaded import TORCH_DTYPES
from kvtool.engine.ranks.lead import ranked_config
from kvtool.engine.ranks.open import loaded_on
from kvtool.engine.ranks.worker import work
from kvtool.machine.device import resolve_device
from kvtool.machine.ranks.crew import Crew, torchrun_ranks
from kvtool.results import BenchDocument, RanksCase
from kvtool.units import ceil_div

Tokens = dict[tuple[int, int], list[list[int]]]


def bench_layouts(
    model: Model, config: EngineConfig, part: RanksPart, num_iters: int, seed: int, progress: Progress
) -> Outcome[BenchDocument]:
    """The cases of every layout, in turn. Raises KvtoolError or DeviceError."""
    device = resolve_device(config.device)
    most = max(layout.ranks for layout in part.layouts)
    crew = Crew(most, work) if most > 1 and torchrun_ranks() is None else None
    try:
        session = Session(str(device), TORCH_DTYPES[resolve_dtype(config.dtype, model, device)], progress)
        notes: list[str] = []
        steps = _steps(model, config, part, num_iters, seed, crew, notes)
        cases = session.run(steps, total=len(part.layouts) * len(part.cells()))
        conditions = session.end()
    finally:
        if crew is not None:
            crew.close()
    document = BenchDocument(
        environment=conditions.environment,
        definitions=DEFINITIONS,
        assumptions=[*dict.fromkeys(notes), *_how_ranks_run(part, device.type), *conditions.warnings(cases)],
        cases=list(cases),
    )
    unequal = [case.name for case in cases if case.check.outputs_equal is False]
    return Outcome(document=document, interrupted=conditions.interrupted, errors=[], unequal=unequal)


def _how_ranks_run(part: RanksPart, device_type: str) -> list[str]:
    most = max(layout.ranks for layout in part.layouts)
    if device_type != "cpu" or most == 1:
        return []
    return ["ranks share the cores of one machine, and send each other over its loopback: more of them are no faster"]


def _steps(
    model: Model,
    config: EngineConfig,
    part: RanksPart,
    num_iters: int,
    seed: int,
    crew: Crew | None,
    notes: list[str],
) -> Iterator[Step[RanksCase]]:
    first: Tokens = {}
    for layout in part.layouts:
        own = ranked_config(config, layout)
        pages = part.most_sequences * ceil_div(part.longest_tokens, own.block_size)
        with loaded_on(layout, model, own, max_positions=part.longest_tokens + 1, num_pages=pages, crew=crew) as loaded:
            notes += loaded.assumptions()
            for cell in part.cells():
                measured = RanksCell(
                    loaded=loaded,
                    layout=layout,
                    part=part,
                    input_len=cell[0],
                    batch_size=cell[1],
                    num_iters=num_iters,
                    seed=seed,
                    block_size=config.block_size,
                    expected=first.get(cell),
                )
                yield Step(f"{layout}: {cell[0]} tokens x {cell[1]}", partial(_measure, measured, cell, first))


def _measure(cell: RanksCell, key: tuple[int, int], first: Tokens) -> RanksCase:
    case, tokens = cell.measure()
    first.setdefault(key, tokens)
    return case
