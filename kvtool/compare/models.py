"""Models against models: the rows of `kvtool size`, for the same contexts, dtypes and layouts of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvtool.catalog.model import Model
from kvtool.results import MatrixDocument, MatrixRefused, SizeRow
from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.layers import has_indexer
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size
from kvtool.system.errors import KvtoolError


def compare_models(models: Sequence[Model], options: SizeOptions, layouts: Sequence[Parallel]) -> MatrixDocument:
    """A row for every model x layout x cache dtype x context x batch size; the first model is the baseline. What one of
    the models cannot take (heads that tp does not divide) is left out of its rows with a warning.

    Raises KvtoolError where no model takes any layout, and for names that are not known.
    """
    ids = [model.id for model in models]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise KvtoolError(f"{twice} is named twice: compare different models")
    rows: list[SizeRow] = []
    refused: list[MatrixRefused] = []
    assumptions: dict[str, None] = {}
    first_error: KvtoolError | None = None
    indexed = any(has_indexer(model) for model in models)
    for model in models:
        # --index-dtype is about the models that have an indexer, where any of them has.
        own = replace(options, index_dtype=AUTO) if indexed and not has_indexer(model) else options
        for layout in layouts:
            try:
                sized = size(model, options=replace(own, parallel=layout))
            except KvtoolError as error:
                first_error = first_error or error
                refused.append(MatrixRefused(model=model.id, num_gpus=layout.num_gpus, reason=str(error)))
                continue
            rows += sized.rows
            assumptions.update(dict.fromkeys(sized.assumptions))
    if not rows and first_error is not None:
        raise first_error
    return MatrixDocument(
        baseline=models[0].id,
        rows=rows,
        refused=refused,
        warnings=[*_warnings(models, options), *(f"left out: {one.reason}" for one in refused)],
        assumptions=list(assumptions),
    )


def _warnings(models: Sequence[Model], options: SizeOptions) -> list[str]:
    longest = max(options.contexts, default=0)
    return [
        f"{model.id} was made for {model.max_position_embeddings} tokens: a context of {longest} is beyond them"
        for model in models
        if model.max_position_embeddings is not None and longest > model.max_position_embeddings
    ]
