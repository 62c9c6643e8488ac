"""What would make a batch fit that does not: each single change of dtype, length, batch or ranks that was tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kvtool.catalog.model import Model
from kvtool.errors import KvtoolError
from kvtool.results import SizeRow
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.plan import make_plan

NARROW_CACHE = "fp8"


def remedies(model: Model, options: SizeOptions, row: SizeRow) -> list[str]:
    """As `fp8 cache`, `--max-model-len 28800`, `--batch-size 3`, `--tp 2`: each alone would do.

    None where the row fits, where that is not known, and where no single change is enough.
    """
    if row.fit.fits is not False:
        return []
    return [*_narrower(model, options, row), *_less(row), *_wider(model, options, row)]


def _narrower(model: Model, options: SizeOptions, row: SizeRow) -> Iterator[str]:
    if row.inputs.kv_cache_dtype != NARROW_CACHE and _fits(model, options, row, dtype=NARROW_CACHE):
        yield f"{NARROW_CACHE} cache"


def _less(row: SizeRow) -> Iterator[str]:
    """The longest context at this batch size, and the largest batch at this context."""
    if row.fit.max_context:
        yield f"--max-model-len {row.fit.max_context}"
    if row.fit.max_batch_size:
        yield f"--batch-size {row.fit.max_batch_size}"


def _wider(model: Model, options: SizeOptions, row: SizeRow) -> Iterator[str]:
    """The fewest ranks, of 2, 4, 8 and 16, that hold it. What was measured on other ranks says nothing of these."""
    if options.calibration is not None or "kv_pool_bytes" in (row.fit.measured or ()):
        return
    for tp in (2, 4, 8, 16):
        wider = replace(options, parallel=replace(options.parallel, tp=tp))
        if tp > row.inputs.tp and _fits(model, wider, row, dtype=row.inputs.kv_cache_dtype):
            yield f"--tp {tp}"
            return


def _fits(model: Model, options: SizeOptions, row: SizeRow, *, dtype: str) -> bool:
    """Whether the row's batch would fit; not where the model cannot take the layout or the dtype."""
    try:
        plan = make_plan(model, replace(options, places=None, lengths=None), dtype)
    except KvtoolError:
        return False
    return plan.row(row.inputs.context, row.inputs.batch_size).fit.fits is True
