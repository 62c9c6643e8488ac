"""Models against models: the rows of `kvtool size`, for the same contexts, dtypes and layouts of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvtool.catalog.model import Model
from kvtool.errors import KvtoolError
from kvtool.results import MatrixDocument, SizeRow
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size


def compare_models(models: Sequence[Model], options: SizeOptions, layouts: Sequence[Parallel]) -> MatrixDocument:
    """A row for every model x layout x cache dtype x context x batch size; the first model is the baseline.

    Raises KvtoolError for a layout that one of the models cannot take, and for names that are not known.
    """
    ids = [model.id for model in models]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise KvtoolError(f"{twice} is named twice: compare different models")
    rows: list[SizeRow] = []
    assumptions: dict[str, None] = {}
    for model in models:
        for layout in layouts:
            engine = None if options.engine is None else replace(options.engine, parallel=layout)
            sized = size(model, options=replace(options, parallel=layout, engine=engine))
            rows += sized.rows
            assumptions.update(dict.fromkeys(sized.assumptions))
    return MatrixDocument(
        baseline=models[0].id, rows=rows, warnings=_warnings(models, options), assumptions=list(assumptions)
    )


def _warnings(models: Sequence[Model], options: SizeOptions) -> list[str]:
    longest = max(options.contexts, default=0)
    return [
        f"{model.id} was made for {model.max_position_embeddings} tokens: a context of {longest} is beyond them"
        for model in models
        if model.max_position_embeddings is not None and longest > model.max_position_embeddings
    ]
