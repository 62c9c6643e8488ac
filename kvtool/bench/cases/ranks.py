"""The ranks part: the same batches on every layout, each of which loads its part of the model, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from kvtool.bench.cases.base import Batches, Repeats, Standalone
from kvtool.bench.cases.rank_cell import RanksCell
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
from kvtool.machine.ranks.layout import RankLayout
from kvtool.results import BenchDocument, RanksCase
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div

Tokens = dict[tuple[int, int], list[list[int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksPart(Batches, Standalone):
    """Every layout with every input length and batch size."""

    input_lens: tuple[int, ...] = (256,)
    batch_sizes: tuple[int, ...] = (1,)
    output_len: int = 16
    layouts: tuple[RankLayout, ...] = (RankLayout(),)

    def __post_init__(self) -> None:
        Batches.__post_init__(self)
        for dp in {layout.dp for layout in self.layouts}:
            if uneven := [size for size in self.batch_sizes if size % dp]:
                raise KvtoolError(f"--batch-size {uneven[0]} is no multiple of --dp {dp}: replicas take as many each")

    @classmethod
    def default(cls, *, gpu: bool) -> RanksPart:
        return cls(input_lens=(4096,), batch_sizes=(8,), output_len=32) if gpu else cls()

    def measure(self, model: Model, config: EngineConfig, asked: Repeats, progress: Progress) -> Outcome[BenchDocument]:
        return _measured(model, config, self, asked, progress)


def _measured(
    model: Model, config: EngineConfig, part: RanksPart, asked: Repeats, progress: Progress
) -> Outcome[BenchDocument]:
    """The cases of every layout, in turn."""
    device = resolve_device(config.device)
    most = max(layout.ranks for layout in part.layouts)
    crew = Crew(most, work) if most > 1 and torchrun_ranks() is None else None
    try:
        session = Session(str(device), TORCH_DTYPES[resolve_dtype(config.dtype, model, device)], progress)
        notes: list[str] = []
        steps = _steps(model, config, part, asked, crew, notes)
        cases = session.run(steps, total=len(part.layouts) * len(part.cells))
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
    return Outcome(
        document=document, interrupted=conditions.interrupted, errors=[*conditions.failures], unequal=unequal
    )


def _how_ranks_run(part: RanksPart, device_type: str) -> list[str]:
    most = max(layout.ranks for layout in part.layouts)
    if device_type != "cpu" or most == 1:
        return []
    return ["ranks share the cores of one machine, and send each other over its loopback: more of them are no faster"]


def _steps(
    model: Model,
    config: EngineConfig,
    part: RanksPart,
    asked: Repeats,
    crew: Crew | None,
    notes: list[str],
) -> Iterator[Step[RanksCase]]:
    first: Tokens = {}
    for layout in part.layouts:
        own = ranked_config(config, layout)
        pages = part.most_sequences * ceil_div(part.longest_tokens, own.block_size)
        with loaded_on(layout, model, own, max_positions=part.longest_tokens + 1, num_pages=pages, crew=crew) as loaded:
            notes += loaded.assumptions()
            for cell in part.cells:
                measured = RanksCell(
                    loaded=loaded,
                    layout=layout,
                    input_len=cell[0],
                    batch_size=cell[1],
                    output_len=part.output_len,
                    num_iters=asked.num_iters,
                    seed=asked.seed,
                    block_size=config.block_size,
                    expected=first.get(cell),
                )
                yield Step(f"{layout}: {cell[0]} tokens x {cell[1]}", partial(_measure, measured, cell, first))


def _measure(cell: RanksCell, key: tuple[int, int], first: Tokens) -> RanksCase:
    case, tokens = cell.measure()
    first.setdefault(key, tokens)
    return case
