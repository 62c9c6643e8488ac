"""What an answer hangs on most: of all that was estimated or assumed, what may move it furthest, with its size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kvtool.catalog.gpus import Gpu, load_gpus
from kvtool.catalog.model import Model, RecurrentLayer
from kvtool.results import SizeRow
from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.fit import ACTIVATION_MARGIN, RESERVE_MARGIN
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import make_plan
from kvtool.units import format_bytes, format_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinge:
    """`what` may move `whole`, of `whole_bytes`, by `size_bytes`."""

    what: str
    size_bytes: int
    whole: str
    whole_bytes: int

    @property
    def share(self) -> float:
        """Of the whole."""
        return self.size_bytes / self.whole_bytes if self.whole_bytes else 0.0

    def __str__(self) -> str:
        return f"{self.what}: {format_bytes(self.size_bytes)}, {self.share:.1%} of {self.whole}"


def largest_hinge(models: Sequence[Model], options: SizeOptions, rows: Sequence[SizeRow]) -> Hinge | None:
    """The hinge with the largest share of what it moves, over all rows; None where nothing of a size was assumed."""
    by_id = {model.id: model for model in models}
    found = [one for row in rows for one in hinges(by_id[row.model.id], options, row) if one.size_bytes > 0]
    return max(found, key=lambda one: one.share, default=None)


def hinges(model: Model, options: SizeOptions, row: SizeRow) -> Iterator[Hinge]:
    """Everything that a row hangs on, each with its size."""
    yield from _card(options, row)
    yield from _copies(row)
    yield from _dtypes(model, options, row)


def _card(options: SizeOptions, row: SizeRow) -> Iterator[Hinge]:
    """How far each term of the card's memory may be off, against the room that is left for cache."""
    fit, gpu = row.fit, options.gpu
    measured = fit.measured or []
    if gpu is None or not fit.kv_pool_bytes or "kv_pool_bytes" in measured:
        return
    margins = {"the memory of " + gpu.name + ", assumed": _memory_margin(gpu) * options.gpu_memory_utilization}
    if "activation_bytes" not in measured:
        margins["activations, an estimate"] = ACTIVATION_MARGIN * (fit.activation_bytes or 0)
    if "reserve_bytes" not in measured:
        margins["what the runtime takes, an estimate"] = RESERVE_MARGIN * (fit.reserve_bytes or 0)
    for what, margin in margins.items():
        yield Hinge(what=what, size_bytes=round(margin), whole="the room for cache", whole_bytes=fit.kv_pool_bytes)


def _memory_margin(gpu: Gpu) -> int:
    """By how much a driver may report another memory than the decimal figure that was assumed: the most that it does on
    a card of which both are known.
    """
    if not gpu.memory_assumed:
        return 0
    known = [(card.memory_bytes, _decimal_bytes(card)) for card in load_gpus() if not card.memory_assumed]
    off = [abs(reported / decimal - 1) for reported, decimal in known if decimal]
    return round(max(off, default=0.0) * gpu.memory_bytes)


def _decimal_bytes(gpu: Gpu) -> int | None:
    """`L40S-48GB` -> 48,000,000,000."""
    named = re.search(r"-(\d+)GB$", gpu.name)
    return int(named[1]) * 10**9 if named else None


def _copies(row: SizeRow) -> Iterator[Hinge]:
    """What ranks keep of each other's cache, where one replica's heads are all that is split."""
    inputs, kv = row.inputs, row.kv
    if inputs.tp == 1 or inputs.dp > 1 or inputs.pp > 1:
        return
    held = inputs.tp * kv.bytes_per_gpu
    yield Hinge(
        what=f"copies that the {inputs.tp} ranks of {row.model.id} keep of the same cache",
        size_bytes=held - kv.bytes_total,
        whole=f"what they hold at {_case(row)}",
        whole_bytes=held,
    )


def _dtypes(model: Model, options: SizeOptions, row: SizeRow) -> Iterator[Hinge]:
    """What a dtype that nobody asked for could be instead: the cache's where none is known or engines take another, and
    that of recurrent state.
    """
    cache = row.inputs.kv_cache_dtype
    other = "bf16" if cache == "fp32" else "fp8"
    if AUTO in options.kv_cache_dtypes and (model.dtype is None or cache == "fp32"):
        yield _instead(model, options, row, what=f"a cache in {cache}, which {other} would change", dtype=other)
    if options.state_dtype == AUTO and any(isinstance(layer.cache, RecurrentLayer) for layer in model.layers):
        state = make_plan(model, _layout_alone(options, row), cache).state.recurrent
        other = "bf16" if state == "fp32" else "fp32"
        what = f"recurrent state in {state}, which {other} would change"
        yield _instead(model, replace(options, state_dtype=other), row, what=what, dtype=cache)


def _instead(model: Model, options: SizeOptions, row: SizeRow, *, what: str, dtype: str) -> Hinge:
    """How far the cache of a GPU moves under other options."""
    plan, inputs = make_plan(model, _layout_alone(options, row), dtype), row.inputs
    other = plan.cache.bytes_per_gpu(
        tokens=inputs.context, batch_size=inputs.batch_size, shared_prefix=inputs.shared_prefix
    )
    here = row.kv.bytes_per_gpu
    return Hinge(what=what, size_bytes=abs(other - here), whole=f"the cache at {_case(row)}", whole_bytes=here)


def _layout_alone(options: SizeOptions, row: SizeRow) -> SizeOptions:
    """The options of a plan of the cache alone, on the layout of the row."""
    one = row.inputs
    parallel = Parallel(tp=one.tp, pp=one.pp, dp=one.dp, dcp=one.dcp, ep=one.ep, dp_attention=one.enable_dp_attention)
    return replace(
        options, parallel=parallel, gpu=None, engine=None, calibration=None, places=None, lengths=None, contexts=()
    )


def _case(row: SizeRow) -> str:
    """`32k x 1`: context and batch size."""
    return f"{format_length(row.inputs.context)} x {row.inputs.batch_size:,}"
