"""What an answer hangs on most: of all that was estimated or assumed, what may move it furthest, with its size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kvtool.catalog.model import Model, RecurrentLayer
from kvtool.results import SizeRow
from kvtool.sizing.dtypes import AUTO
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
    if gpu is None or not fit.kv_pool_bytes or not fit.memory_bytes or "kv_pool_bytes" in measured:
        return
    share = (fit.usable_bytes or 0) / fit.memory_bytes
    margins = {f"the memory of {gpu.name}": gpu.memory_margin_bytes * share}
    if "activation_bytes" not in measured:
        margins["activations, an estimate"] = fit.activation_margin_bytes or 0
    if "reserve_bytes" not in measured:
        margins["what the runtime takes, an estimate"] = fit.reserve_margin_bytes or 0
    for what, margin in margins.items():
        yield Hinge(what=what, size_bytes=round(margin), whole="the room for cache", whole_bytes=fit.kv_pool_bytes)


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
    return replace(
        options,
        parallel=_parallel(row),
        gpu=None,
        engine=None,
        calibration=None,
        places=None,
        lengths=None,
        contexts=(),
    )


def _parallel(row: SizeRow) -> Parallel:
    asked = row.inputs
    return Parallel(
        tp=asked.tp, pp=asked.pp, dp=asked.dp, dcp=asked.dcp, ep=asked.ep, dp_attention=asked.enable_dp_attention
    )


def _case(row: SizeRow) -> str:
    """`32k x 1`: context and batch size."""
    return f"{format_length(row.inputs.context)} x {row.inputs.batch_size:,}"
