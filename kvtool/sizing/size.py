"""`kvtool size` as a function: models and options in, one typed document out."""

from __future__ import annotations

from dataclasses import replace

from kvtool.catalog.model import Model
from kvtool.results import SizeDocument, SizeRow
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.plan import make_plan
from kvtool.sizing.words.assumptions import assumptions

POINTS_PER_OCTAVE = 4


def size(*models: Model, options: SizeOptions | None = None) -> SizeDocument:
    """A row for every model x cache dtype x context x batch size.

    Raises KvtoolError for a layout that a model cannot take, and for dtypes that are not known.
    """
    options = options or SizeOptions()
    rows: list[SizeRow] = []
    said: dict[str, None] = {}
    for model in models:
        for dtype in options.kv_cache_dtypes:
            plan = make_plan(model, options, dtype)
            rows += [
                plan.row(context, batch_size)
                for context in options.contexts_of(model)
                for batch_size in options.batch_sizes
            ]
            said.update(dict.fromkeys(assumptions(plan, automatic=dtype == "auto")))
    return SizeDocument(rows=rows, assumptions=list(said))


def curve(model: Model, options: SizeOptions) -> SizeOptions:
    """The same options at contexts close enough for a chart: from 1k to the longest of interest, and nothing else."""
    longest = max(*options.contexts_of(model), options.max_context(model) or 0)
    shortest = min(max(1024, options.shared_prefix), longest)
    steps = max(1, POINTS_PER_OCTAVE * (longest // shortest).bit_length())
    between = (round(shortest * (longest / shortest) ** (step / steps)) for step in range(1, steps))
    return replace(options, contexts=tuple(sorted({shortest, *between, longest})), places=None, lengths=None)
