"""At which context a cache grows past the weights beside it: from there on it is what a GPU is full of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvtool.catalog.model import Model
from kvtool.results import SizeRow
from kvtool.sizing.fit import largest
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.plan import SizePlan, make_plan
from kvtool.units import MAX_LENGTH_TOKENS


def passing_tokens(plan: SizePlan, batch_size: int) -> int | None:
    """The least context at which a batch of such sequences takes more than the weights of a GPU; None where the weights
    are not known, and where that is beyond what the model was made for.
    """
    weights_bytes = plan.weights.bytes_per_gpu(plan.options.parallel)
    if not weights_bytes:
        return None
    limit = min(plan.options.max_context(plan.model) or MAX_LENGTH_TOKENS, MAX_LENGTH_TOKENS)

    def is_less(tokens: int) -> bool:
        prefix = min(plan.options.shared_prefix, tokens)
        held = plan.cache.bytes_per_gpu(tokens=tokens, batch_size=batch_size, shared_prefix=prefix)
        return held <= weights_bytes

    tokens = largest(is_less, limit)
    return None if tokens == limit else tokens + 1


def passing(model: Model, options: SizeOptions, rows: Sequence[SizeRow]) -> list[int | None]:
    """Of each row that fits its card, the context at which its batch would take more than the weights."""
    plans = {
        dtype: make_plan(model, replace(options, engine=None, places=None, lengths=None), dtype)
        for dtype in {row.inputs.kv_cache_dtype for row in rows if row.fit.fits}
    }
    return [
        passing_tokens(plans[row.inputs.kv_cache_dtype], row.inputs.batch_size) if row.fit.fits else None
        for row in rows
    ]
