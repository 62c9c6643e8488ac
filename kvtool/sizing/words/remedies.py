"""What would make a batch fit that does not: each single change of dtype, length, batch or ranks that was tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

from kvtool.catalog.model import Model
from kvtool.errors import KvtoolError
from kvtool.results import SizeRow
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.plan import SizePlan, make_plan

NARROW_CACHE = "fp8"
RANKS = (2, 4, 8, 16)
Plans = Callable[[str, int], SizePlan | None]  # the plan of a cache dtype on so many tensor-parallel ranks


def remedies(model: Model, options: SizeOptions, rows: Sequence[SizeRow]) -> list[list[str]]:
    """For each row `fp8 cache`, `--max-model-len 28800`, `--batch-size 3`, `--tp 2`: whatever alone would do.

    None where the row fits, where that is not known, and where no single change is enough.
    """

    @cache
    def plans(dtype: str, tp: int) -> SizePlan | None:
        parallel = replace(options.parallel, tp=tp)
        try:
            return make_plan(model, replace(options, parallel=parallel, places=None, lengths=None), dtype)
        except KvtoolError:  # a layout or a dtype that the model cannot take
            return None

    transferable = options.calibration is None  # what was measured on some ranks says nothing of others
    return [[] if row.fit.fits is not False else _remedies(row, plans, wider=transferable) for row in rows]


def _remedies(row: SizeRow, plans: Plans, *, wider: bool) -> list[str]:
    given = "kv_pool_bytes" in (row.fit.measured or ())
    return [*_narrower(row, plans), *_less(row), *(_wider(row, plans) if wider and not given else ())]


def _narrower(row: SizeRow, plans: Plans) -> Iterator[str]:
    if row.inputs.kv_cache_dtype != NARROW_CACHE and _fits(row, plans(NARROW_CACHE, row.inputs.tp)):
        yield f"{NARROW_CACHE} cache"


def _less(row: SizeRow) -> Iterator[str]:
    """The longest context at this batch size, and the largest batch at this context."""
    if row.fit.max_context:
        yield f"--max-model-len {row.fit.max_context}"
    if row.fit.max_batch_size:
        yield f"--batch-size {row.fit.max_batch_size}"


def _wider(row: SizeRow, plans: Plans) -> Iterator[str]:
    """The fewest of the usual numbers of ranks that hold it."""
    more = (tp for tp in RANKS if tp > row.inputs.tp)
    fewest = next((tp for tp in more if _fits(row, plans(row.inputs.kv_cache_dtype, tp))), None)
    if fewest is not None:
        yield f"--tp {fewest}"


def _fits(row: SizeRow, plan: SizePlan | None) -> bool:
    """Whether a plan holds the row's batch, its margin not called upon."""
    return plan is not None and plan.row(row.inputs.context, row.inputs.batch_size).fit.missing_bytes == 0
